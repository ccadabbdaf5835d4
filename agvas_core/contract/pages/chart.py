"""Axes and marks of an SVG chart: linear and logarithmic scales, ticks, lines, bars, dots.

Colours are classes of the page's style sheet, so that a chart follows the reader's light or dark mode.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, floor, log10

__all__ = ["Chart", "Scale", "legend", "number"]

WIDTH, HEIGHT = 560, 280
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 44


def number(value: float) -> str:
    """Three digits that count: 0.123, 12.3, 1,230."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = max(0, 2 - floor(log10(abs(value))))
    return f"{value:.{min(digits, 4)}f}".rstrip("0").rstrip(".") if digits else f"{value:.0f}"


@dataclass(frozen=True)
class Scale:
    """Values to pixels; ``low`` and ``high`` are at the ends."""

    low: float
    high: float
    start_px: float
    end_px: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        if self.logarithmic:
            share = (log10(max(value, self.low)) - log10(self.low)) / max(log10(self.high) - log10(self.low), 1e-12)
        else:
            share = (value - self.low) / max(self.high - self.low, 1e-12)
        return self.start_px + share * (self.end_px - self.start_px)

    def ticks(self) -> list[float]:
        """Round numbers within the scale, about five."""
        if self.logarithmic:
            powers = range(floor(log10(self.low)), ceil(log10(self.high)) + 1)
            factors = (1, 2, 5) if log10(self.high / self.low) < 2.2 else (1,)
            ticks = [factor * 10.0**power for power in powers for factor in factors]
            return [tick for tick in ticks if self.low <= tick <= self.high]
        step = 10.0 ** floor(log10(max((self.high - self.low) / 4, 1e-12)))
        step *= next((factor for factor in (1, 2, 5) if (self.high - self.low) / (step * factor) <= 6), 10)
        return [tick * step for tick in range(ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9) + 1)]


@dataclass
class Chart:
    """One chart with two axes; marks are drawn in the order of the calls.

    Args:
        x_range, y_range: values at the ends of the axes.
        x_label, y_label: what the axes mean, with their units.
        about: what the chart shows, for screen readers.
    """

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_label: str
    y_label: str
    about: str
    logarithmic: bool = False
    y_linear: bool = False
    """Only x is logarithmic."""
    height: int = HEIGHT
    width: int = WIDTH
    left: int = LEFT
    y_names: Sequence[str] | None = None
    """Words in place of numbers up the y axis, at 0.5, 1.5 and so on."""
    x_names: Sequence[str] | None = None
    """Words in place of numbers along the x axis, at 0, 1 and so on."""
    _marks: list[str] = field(default_factory=list)

    @property
    def x(self) -> Scale:
        return Scale(*self.x_range, self.left, self.width - RIGHT, self.logarithmic)

    @property
    def y(self) -> Scale:
        return Scale(*self.y_range, self.height - BOTTOM, TOP, self.logarithmic and not self.y_linear)

    def line(self, points: Sequence[tuple[float, float]], kind: str, title: str = "", colour: str | None = None) -> None:
        """A polyline, in the colour of its class or another one."""
        path = "M" + "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points)
        own = f' style="stroke:{colour}"' if colour else ""
        self._marks.append(f'<path class="line {kind}"{own} d="{path}">{_title(title)}</path>')

    def bar(self, x0: float, x1: float, y0: float, y1: float, kind: str, title: str = "") -> None:
        """A box between two values on each axis."""
        left, right = sorted((self.x(x0), self.x(x1)))
        top, bottom = sorted((self.y(y0), self.y(y1)))
        self._marks.append(
            f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" width="{max(right - left, 0.6):.1f}" '
            f'height="{max(bottom - top, 0.0):.1f}">{_title(title)}</rect>'
        )

    def dot(self, x: float, y: float, kind: str, title: str = "", radius: float = 4, colour: str | None = None) -> None:
        """A point, in the colour of its class or another one."""
        own = f' style="fill:{colour}"' if colour else ""
        self._marks.append(
            f'<circle class="{kind}"{own} cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="{radius:g}">{_title(title)}</circle>'
        )

    def upright(self, x: float, label: str, kind: str, row: int = 0) -> None:
        """A line from top to bottom with a word beside it; ``row`` keeps neighbours apart."""
        at = self.x(x)
        side, shift = ("end", -4) if at > self.width - 90 else ("start", 4)
        self._marks.append(f'<path class="line {kind}" d="M{at:.1f} {TOP}V{self.height - BOTTOM}"/>')
        self._marks.append(
            f'<text class="word" x="{at + shift:.1f}" y="{TOP + 10 + 14 * row}" text-anchor="{side}">{html.escape(label)}</text>'
        )

    def word(self, x: float, y: float, label: str, dx: float = 7, dy: float = 4) -> None:
        """A word beside a value."""
        side = "end" if self.x(x) > self.width - 110 and dx > 0 else "start"
        at = self.x(x) + (dx if side == "start" else -dx)
        self._marks.append(
            f'<text class="word" x="{at:.1f}" y="{self.y(y) + dy:.1f}" text-anchor="{side}">{html.escape(label)}</text>'
        )

    def render(self) -> str:
        """The SVG."""
        bottom = self.height - BOTTOM
        parts = [
            f'<svg class="chart" viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{html.escape(self.about, quote=True)}">'
        ]
        named = self.x_names
        for tick in self.x.ticks() if named is None else map(float, range(len(named))):
            label = number(tick) if named is None else html.escape(named[int(tick)])
            parts.append(f'<path class="grid" d="M{self.x(tick):.1f} {TOP}V{bottom}"/>')
            parts.append(f'<text x="{self.x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{label}</text>')
        if self.y_names is None:
            for tick in self.y.ticks():
                parts.append(f'<path class="grid" d="M{self.left} {self.y(tick):.1f}H{self.width - RIGHT}"/>')
                parts.append(f'<text x="{self.left - 7}" y="{self.y(tick) + 4:.1f}" text-anchor="end">{number(tick)}</text>')
        else:
            for at, name in enumerate(self.y_names):
                parts.append(
                    f'<text x="{self.left - 7}" y="{self.y(at + 0.5) + 4:.1f}" text-anchor="end">{html.escape(name)}</text>'
                )
        parts += self._marks
        parts.append(
            f'<text class="axis" x="{self.width - RIGHT}" y="{self.height - 8}" text-anchor="end">{html.escape(self.x_label)}</text>'
        )
        if self.y_label:
            parts.append(
                f'<text class="axis" transform="translate(13 {TOP}) rotate(-90)" text-anchor="end">{html.escape(self.y_label)}</text>'
            )
        return "".join([*parts, "</svg>"])


def legend(names: Sequence[tuple[str, str]]) -> str:
    """Below a chart: each line's name, with a sample of the line. ``names``: name and class."""
    entries = "".join(
        f'<li><svg class="sample" viewBox="0 0 30 8" aria-hidden="true"><path class="line {kind}" d="M0 4h30"/></svg>{html.escape(name)}</li>'
        for name, kind in names
    )
    return f'<ul class="legend">{entries}</ul>'


def _title(text: str) -> str:
    return f"<title>{html.escape(text)}</title>" if text else ""

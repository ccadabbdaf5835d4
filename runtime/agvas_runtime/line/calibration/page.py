"""The calibration as one HTML page with its plots in SVG: false rejects, their bound and escapes against the threshold."""

import html
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agvas_runtime.line.calibration.calibration import Calibrated, Scores, upper_bound

__all__ = ["calibration_page"]

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 760, 300, 64, 40, 16, 16
STEPS: Final = 200
GOOD, BOUND, BAD, CHOSEN = "#0072b2", "#56b4e9", "#d55e00", "#555"  # Okabe-Ito: told apart with every kind of colour vision

STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 820px; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; background: #fff }
svg { width: 100%; height: auto } svg text { font: 12px system-ui, sans-serif; fill: #444 }
table { border-collapse: collapse } td, th { text-align: left; padding: .2rem 1.2rem .2rem 0; vertical-align: top }
.warn { border-left: 4px solid #d55e00; padding: .3rem .8rem; background: #fdf3ec }
"""


def calibration_page(
    found: Calibrated,
    good: Scores,
    bad: Scores | None,
    facts: dict[str, str],
    warned: Sequence[str],
    *,
    confidence: float,
) -> str:
    """The page, without anything from the network."""
    scores = np.sort(good.values[:, found.column])
    worse = np.sort(bad.values[:, found.column]) if bad is not None and len(bad) else None
    thresholds = np.linspace(0.0, 1.0, STEPS + 1)
    n = len(scores)
    rejects = n - np.searchsorted(scores, thresholds, side="right")
    curves: list[tuple[str, str, NDArray[np.float64], str]] = [
        ("false rejects among the good parts", GOOD, rejects / n, ""),
        (
            f"their upper bound at {confidence:.0%}, for a threshold fixed beforehand",
            BOUND,
            np.array([upper_bound(int(count), n, confidence) for count in rejects]),
            "6 4",
        ),
    ]
    if worse is not None:
        curves.append(("escapes among the bad parts", BAD, np.searchsorted(worse, thresholds, side="right") / len(worse), "2 3"))
    rows = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in facts.items())
    top = "".join(f'<p class="warn">{html.escape(warning)}</p>' for warning in warned)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Calibration</title><style>{STYLE}</style><h1>Calibration</h1>{top}<table>{rows}</table>"
        f"<h2>Rejected against the threshold</h2>{_plot(thresholds, curves, found.seed_threshold)}"
        f"<h2>Reject scores</h2>{_histogram(scores, worse, found.seed_threshold)}</html>\n"
    )


def _plot(x: NDArray[np.float64], curves: Sequence[tuple[str, str, NDArray[np.float64], str]], chosen: float) -> str:
    lines = []
    for number, (name, colour, y, dash) in enumerate(curves):
        points = " ".join(f"{_x(a):.1f},{_y(b):.1f}" for a, b in zip(x, y, strict=True))
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>')
        lines.append(
            f'<line x1="{LEFT + 90}" x2="{LEFT + 120}" y1="{TOP + 14 + 18 * number}" y2="{TOP + 14 + 18 * number}" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
        )
        lines.append(f'<text x="{LEFT + 126}" y="{TOP + 18 + 18 * number}">{html.escape(name)}</text>')
    return _frame("share of parts", [f"{tick:.0%}" for tick in np.linspace(0, 1, 5)], "".join(lines), chosen)


def _histogram(good: NDArray[np.float64], bad: NDArray[np.float64] | None, chosen: float) -> str:
    edges = np.linspace(0.0, 1.0, 41)
    sets = [(good, GOOD, "good"), *([(bad, BAD, "bad")] if bad is not None else [])]
    heights = [np.histogram(values, edges)[0] for values, _, _ in sets]
    top = max(1, max(int(height.max()) for height in heights))
    bars = []
    for (_, colour, name), height in zip(sets, heights, strict=True):
        for left, right, count in zip(edges, edges[1:], height, strict=False):
            if count:
                share = count / top
                bars.append(
                    f'<rect x="{_x(left):.1f}" y="{_y(share):.1f}" width="{_x(right) - _x(left) - 1:.1f}" height="{_y(0) - _y(share):.1f}" '
                    f'fill="{colour}" fill-opacity="0.65"><title>{count} {name} parts from {left:.3f} to {right:.3f}</title></rect>'
                )
    return _frame("parts", [f"{top * tick:g}" for tick in np.linspace(0, 1, 5)], "".join(bars), chosen)


def _frame(label: str, ticks: list[str], inside: str, chosen: float) -> str:
    marks = "".join(
        f'<text x="{LEFT - 8}" y="{_y(number / 4) + 4:.1f}" text-anchor="end">{tick}</text>'
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_y(number / 4):.1f}" y2="{_y(number / 4):.1f}" stroke="#e5e5e5"/>'
        for number, tick in enumerate(ticks)
    )
    marks += "".join(
        f'<text x="{_x(tick):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:g}</text>'
        for tick in np.linspace(0, 1, 6).round(1)
    )
    line = (
        f'<line x1="{_x(chosen):.1f}" x2="{_x(chosen):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="{CHOSEN}" stroke-width="1.5"/>'
        f'<text x="{_x(chosen) + 4:.1f}" y="{HEIGHT - BOTTOM - 6}">{chosen:.3f}</text>'
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(label)} against the seed threshold">{marks}{inside}{line}'
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">seed threshold</text></svg>'
    )


def _x(value: float) -> float:
    return LEFT + float(value) * (WIDTH - LEFT - RIGHT)


def _y(value: float) -> float:
    return HEIGHT - BOTTOM - float(value) * (HEIGHT - BOTTOM - TOP)

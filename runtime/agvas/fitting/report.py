"""The report of a fit: one HTML file that opens from disk, without a network and without scripts."""

import base64
import html
from collections.abc import Sequence
from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas.fitting.operating_point import more_images
from agvas_core.contract.decision import OperatingPoint, outline_threshold
from agvas_core.contract.pages.chart import Chart, number
from agvas_core.contract.pages.document import Tile, document
from agvas_core.contract.product import CatchRate, Product
from agvas_runtime.masks.overlay import draw_overlay

__all__ = ["Example", "ReportFacts", "render_report"]

Float = NDArray[np.float32]
Rgb = NDArray[np.uint8]

BINS: Final = 40
JPEG_QUALITY: Final = 82
STYLE: Final = """
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(46%, 190px), 1fr)); gap: 12px; }
.pictures figure { margin: 0; min-width: 0; } .pictures img { width: 100%; border-radius: 6px; display: block; background: var(--ground); }
.pictures figcaption { font-weight: 400; font-size: .88rem; color: var(--quiet); margin: 4px 0 0; overflow-wrap: anywhere; }
.pictures b { color: var(--ink); font-variant-numeric: tabular-nums; }
.statement { font-size: 1.12rem; margin: 0; text-wrap: pretty; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 14px; margin-bottom: 14px; }
.pair .panel { margin: 0; }
"""


class Example(NamedTuple):
    """One picture of the report."""

    caption: str
    image: Rgb
    """[h, w, 3]."""
    score_map: Float
    """On the grid, 0..1."""
    score: float
    truth: NDArray[np.bool_] | None = None
    """Where a painted defect lies, on the grid."""


class ReportFacts(NamedTuple):
    """What the page shows."""

    product: Product
    point: OperatingPoint
    strict: OperatingPoint
    statement: str
    hardest: Sequence[Example]
    found: Sequence[Example]
    missed: Sequence[Example]
    mean_map: Float
    """Mean score map of the good images, on the grid."""
    image: Rgb
    """A good image."""


def render_report(facts: ReportFacts) -> str:
    """The page."""
    product = facts.product
    return document(
        f"Product {product.name}",
        _body(facts),
        summary=f"Made from {product.base} by agvas {product.agvas}. {product.created}",
        notes=product.warnings,
        tiles=_tiles(facts),
        style=STYLE,
    )


def _tiles(facts: ReportFacts) -> list[Tile]:
    product, promised = facts.product, facts.product.promise
    painted = product.painted
    found = sum(defect.found for defect in painted)
    tiles = [
        Tile(f"{promised.good_images}", "good images", f"{len(product.left_out)} left out"),
        Tile(f"≤ {promised.bound:.1%}", "false rejects", f"{promised.confidence:.0%} sure; {promised.false_rejects} of these"),
        Tile(
            f"{found / len(painted):.0%}" if painted else "-", "painted defects found", f"{found} of {len(painted)}, of all sizes"
        ),
        Tile(f"{facts.point.seed_threshold:.3f}", "threshold", f"strict {facts.strict.seed_threshold:.3f}"),
    ]
    if product.bad:
        caught = sum(each.score > facts.point.seed_threshold for each in product.bad)
        tiles.append(Tile(f"{caught} of {len(product.bad)}", "bad images caught"))
    return tiles


def _body(facts: ReportFacts) -> str:
    product = facts.product
    parts = [
        f'<section class="panel"><p class="statement">{html.escape(facts.statement)}</p></section>',
        '<section class="charts">',
        _figure("Scores of the good images", "each judged by references that have nothing of it", _histogram(facts)),
        _figure("Painted defects", "length against score; above the line they are found", _painted_chart(facts)),
        "</section>",
        _gallery("The hardest good images", "look at them: is one of them not good?", facts.hardest),
        '<section class="pair">',
        _gallery("Painted defects found", "the outline is what the product marks", facts.found, facts.point),
        _gallery("Painted defects missed", "the outline is the defect", facts.missed),
        "</section>",
        '<section class="pair">',
        f'<section class="panel"><h2>Where good images score highest</h2>{_mean(facts)}</section>',
        f'<section class="panel scroll"><h2>What more good images would promise</h2>{_more(product)}</section>',
        "</section>",
        f'<section class="panel scroll"><h2>Expected catch rate</h2>{_catch(product)}</section>',
        '<section class="pair">',
        f'<section class="panel scroll"><h2>Limits of an image</h2>{_limits(product)}'
        "<p class=quiet>A frame outside of them has no verdict: it is unlike every good image.</p></section>",
        f'<section class="panel"><h2>Seconds</h2><dl>{_seconds(product)}</dl></section>',
        "</section>",
    ]
    return "".join(parts)


def _figure(title: str, more: str, inside: str) -> str:
    return f'<figure class="panel"><figcaption>{title}<span>{more}</span></figcaption>{inside}</figure>'


def _histogram(facts: ReportFacts) -> str:
    good = np.array([each.score for each in facts.product.calibrated or facts.product.good])
    bad = np.array([each.score for each in facts.product.bad])
    edges = np.linspace(0, 1, BINS + 1)
    counts = [(np.histogram(good, edges)[0], "measured", "good"), (np.histogram(bad, edges)[0], "bad", "bad")]
    top = max(1.0, *(float(each.max()) for each, _, _ in counts))
    chart = Chart((0, 1), (0, top * 1.15), "score", "images", "Histogram of the scores of good images, with the thresholds")
    for count, kind, name in counts:
        for number_there, low, high in zip(count, edges[:-1], edges[1:], strict=True):
            if number_there:
                chart.bar(low, high, 0, float(number_there), kind, f"{number_there} {name} images: {low:.3f} to {high:.3f}")
    chart.upright(facts.point.seed_threshold, f"threshold {facts.point.seed_threshold:.3f}", "mark")
    if facts.strict.seed_threshold > facts.point.seed_threshold:
        chart.upright(facts.strict.seed_threshold, f"strict {facts.strict.seed_threshold:.3f}", "whisker", 1)
    return chart.render()


def _painted_chart(facts: ReportFacts) -> str:
    painted = facts.product.painted
    if not painted:
        return "<p class=quiet>None could be painted.</p>"
    scale = facts.product.mm_per_px or 1.0
    lengths = [max(defect.length_px * scale, 1e-3) for defect in painted]
    chart = Chart(
        (min(lengths) * 0.8, max(lengths) * 1.25), (0, 1), f"length, {'mm' if facts.product.mm_per_px else 'px'}", "score",
        "Scores of painted defects against their length", logarithmic=True, y_linear=True,
    )  # fmt: skip
    for defect, length in zip(painted, lengths, strict=True):
        kind = "measured" if defect.found else "second"
        chart.dot(length, defect.score, kind, f"{defect.kind}, {length:.3g}: {defect.score:.3f}", radius=3.5)
    at = facts.point.seed_threshold
    chart.line([(chart.x_range[0], at), (chart.x_range[1], at)], "mark", f"threshold {at:.3f}")
    return chart.render()


def _gallery(title: str, more: str, examples: Sequence[Example], point: OperatingPoint | None = None) -> str:
    if not examples:
        inside = "<p class=quiet>None.</p>"
    else:
        inside = f'<div class="pictures">{"".join(_picture(each, point) for each in examples)}</div>'
    return f'<section class="panel"><h2>{title}</h2><p class="quiet">{more}</p>{inside}</section>'


def _picture(example: Example, point: OperatingPoint | None) -> str:
    height, width = example.image.shape[:2]
    scores = np.asarray(cv2.resize(example.score_map, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
    if point is not None:
        drawn = draw_overlay(example.image, scores > outline_threshold(point, example.score))
    elif example.truth is not None:
        truth = cv2.resize(example.truth.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
        drawn = draw_overlay(example.image, truth)
    else:
        drawn = _heat(example.image, scores)
    name = html.escape(example.caption.rsplit("/", 1)[-1])
    return (
        f'<figure><img src="{_data_uri(drawn)}" alt="{name}"><figcaption><b>{example.score:.3f}</b> {name}</figcaption></figure>'
    )


def _heat(image: Rgb, scores: Float) -> Rgb:
    """The score map over the image: the warmer, the higher."""
    colours = cv2.applyColorMap(np.clip(scores * 255, 0, 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    share = np.clip(scores, 0, 1)[..., None] * 0.6 + 0.15
    return np.asarray(image * (1 - share) + colours * share, np.uint8)


def _mean(facts: ReportFacts) -> str:
    height, width = facts.image.shape[:2]
    scores = cv2.resize(facts.mean_map.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    top = max(float(scores.max()), 1e-6)
    picture = _heat(facts.image, np.asarray(scores / top, np.float32))
    return (
        f'<div class="pictures"><figure><img src="{_data_uri(picture)}" alt="mean score map">'
        f"<figcaption>mean over the good images; the warmest place has {top:.3f}</figcaption></figure></div>"
    )


def _more(product: Product) -> str:
    rows = [f"<tr><td>{product.promise.good_images}, as now</td><td>{product.promise.bound:.1%}</td></tr>"]
    rows += [f"<tr><td>{each.images}</td><td>{each.bound:.1%}</td></tr>" for each in more_images(product.promise.good_images)]
    return (
        f"<table><tr><th>good images, none above the threshold</th><th>false rejects at most, {product.promise.confidence:.0%} sure</th></tr>"
        f"{''.join(rows)}</table>"
    )


def _catch(product: Product) -> str:
    if not product.catch:
        return "<p class=quiet>No defect could be painted.</p>"
    ranges = list(dict.fromkeys((rate.from_px, rate.to_px) for rate in sorted(product.catch, key=lambda rate: rate.from_px)))
    known = {(rate.kind, rate.from_px): rate for rate in product.catch}
    kinds = list(dict.fromkeys(rate.kind for rate in product.catch))
    head = "".join(f"<th>{_range(low, high, product.mm_per_px)}</th>" for low, high in ranges)
    rows = "".join(f"<tr><td>{kind}</td>{''.join(_cell(known.get((kind, low))) for low, _ in ranges)}</tr>" for kind in kinds)
    return f"<table><tr><th>kind, by length</th>{head}</tr>{rows}</table>"


def _range(low: float, high: float | None, mm_per_px: float | None) -> str:
    scale, unit = (mm_per_px, "mm") if mm_per_px else (1.0, "px")
    if high is None:
        return f"{number(low * scale)} {unit} and longer"
    return f"{number(low * scale)} to {number(high * scale)} {unit}"


def _cell(rate: CatchRate | None) -> str:
    return "<td></td>" if rate is None else f"<td>{rate.found} of {rate.painted}</td>"


def _limits(product: Product) -> str:
    rows = "".join(
        f"<tr><td>{limit.fact}</td><td>{_number(limit.low)}</td><td>{limit.good[0]:.4g} to {limit.good[1]:.4g}</td>"
        f"<td>{_number(limit.high)}</td></tr>"
        for limit in product.limits
    )
    return f"<table><tr><th></th><th>least</th><th>good images</th><th>most</th></tr>{rows}</table>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _seconds(product: Product) -> str:
    return "".join(f"<dt>{html.escape(name)}</dt><dd>{seconds:.1f}</dd>" for name, seconds in product.seconds.items())


def _data_uri(pixels: Rgb) -> str:
    done, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert done, "a picture in memory can be encoded"
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")

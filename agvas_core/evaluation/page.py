"""The result as one HTML file that opens from disk: tables, curves, the worst and the best images, failures by kind and size."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
from numpy.typing import NDArray

from agvas_core.contract.pages.chart import Chart
from agvas_core.contract.pages.document import cells, data_uri, document, escaped
from agvas_core.evaluation.image_score import UNITS, ImageRecord
from agvas_core.evaluation.metrics import METRICS, mean_of
from agvas_core.evaluation.result import CategoryResult, Evaluation
from agvas_core.evaluation.tables import Row, percent, shown, source
from agvas_core.files import read_rgb

__all__ = [
    "CAUGHT",
    "SIZES",
    "KindRow",
    "SizeRow",
    "by_kind",
    "by_size",
    "category_section",
    "curve_figure",
    "eval_document",
    "overlaid",
    "picture",
    "render_page",
    "worst_and_best",
]


# Pictures and curves of the page, as inline SVG.


THUMBNAIL_PX = 260
JPEG_QUALITY = 78
CURVE_PX = 220


def picture(record: ImageRecord) -> str:
    """The image, small, with the outlines of truth and prediction over it."""
    image = cv2.cvtColor(read_rgb(Path(record.image_path), record.name), cv2.COLOR_RGB2BGR)
    # The image fills the box: under a protocol that resizes to a square it is as distorted as what was scored.
    return overlaid(image, [("truth", record.truth_outline), ("mask", record.mask_outline)], record.size)


def overlaid(image: NDArray[Any], outlines: Sequence[tuple[str, str]], size: tuple[int, int] | None = None) -> str:
    """An image, small, with outlines over it.

    Args:
        image: uint8 BGR [H, W, 3].
        outlines: class and path of each; empty ones are left out.
        size: height and width that the paths were made at; the image's own by default.
    """
    height, width = image.shape[:2] if size is None else size
    scale = UNITS / max(height, width)
    box = f"0 0 {width * scale:.0f} {height * scale:.0f}"
    lines = "".join(f'<path class="{name}" d="{path}"/>' for name, path in outlines if path)
    shown = f'<image href="{data_uri(image, THUMBNAIL_PX, JPEG_QUALITY)}" width="100%" height="100%" preserveAspectRatio="none"/>'
    return f'<svg class="picture" viewBox="{box}">{shown}{lines}</svg>'


def curve_figure(curve: Sequence[tuple[float, float]], ap: float | None) -> str:
    """Precision over recall; nothing where there is no curve."""
    if not curve or ap is None:
        return ""
    chart = Chart((0, 1), (0, 1), "recall", "precision", "Precision over recall", width=CURVE_PX + 72, height=CURVE_PX + 58)
    chart.line([(0.0, curve[0][1]), *curve], "series")
    chart.word(0.95, 0.92, f"AP {100 * ap:.1f}")
    return f'<figure class="curve">{chart.render()}</figure>'


# What was missed, by kind and by size; what good images were flagged.


SIZES: Final = (("under 0.05 %", 0.0005), ("0.05 to 0.5 %", 0.005), ("0.5 to 5 %", 0.05), ("over 5 %", 1.0))
"""Area of a region as a share of its image: name and upper bound."""


@dataclass(frozen=True)
class KindRow:
    """Images of one kind."""

    specie: str
    anomalous: bool
    images: int
    missed: int
    """Anomalous: mask and truth have no pixel in common. Good: the mask is not empty, or there is no verdict."""
    iou: float | None


@dataclass(frozen=True)
class SizeRow:
    """Connected regions of one size."""

    size: str
    regions: int
    found: int
    """Those that the mask touches."""


def by_kind(records: Iterable[ImageRecord]) -> list[KindRow]:
    """One row per kind, the good images last."""
    kinds: dict[tuple[bool, str], list[ImageRecord]] = defaultdict(list)
    for record in records:
        kinds[not record.anomalous, record.specie].append(record)
    return [
        KindRow(specie, not good, len(some), sum(_failed(one) for one in some), mean_of(one.iou for one in some))
        for (good, specie), some in sorted(kinds.items())
    ]


def by_size(records: Iterable[ImageRecord]) -> list[SizeRow]:
    """One row per size of region."""
    regions = [0] * len(SIZES)
    found = [0] * len(SIZES)
    for record in records:
        for area, hit in record.regions:
            share = area / (record.size[0] * record.size[1])
            place = next(index for index, (_, bound) in enumerate(SIZES) if share < bound or index == len(SIZES) - 1)
            regions[place] += 1
            found[place] += hit
    return [SizeRow(name, regions[index], found[index]) for index, (name, _) in enumerate(SIZES)]


def worst_and_best(records: Iterable[ImageRecord], count: int) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """The images with the lowest and the highest IoU; a good image counts by its mask: none is best, the larger the worse."""
    ordered = sorted(records, key=_merit)
    count = min(count, (len(ordered) + 1) // 2)  # of a handful, half are the worst and half the best
    anomalous = [record for record in ordered if record.anomalous]
    best = list(reversed(anomalous or ordered))[:count]  # good images with an empty mask have nothing to show
    chosen = {record.key for record in best}
    return [record for record in ordered if record.key not in chosen][:count], best


def _failed(record: ImageRecord) -> bool:
    return record.iou == 0 if record.anomalous else record.flagged


def _merit(record: ImageRecord) -> tuple[float, float, str]:
    height, width = record.size
    if record.anomalous:
        return (record.iou or 0.0, -record.truth_px / (height * width), record.name)
    return (0.0 if record.flagged else 1.0, -record.mask_px / (height * width), record.name)


CAUGHT: Final = (
    "Image AUROC and caught are about whole images: caught at 5 % is the share of defective images whose score is higher than that "
    "of 95 % of the good ones."
)
PICTURES = 6  # worst, and as many of the best; per category
MANY = 20  # categories beyond which there are fewer
PICTURES_MANY = 3


STYLE = """
.facts { padding-left: 1.2rem; }
th { white-space: normal; } tr.mean td { font-weight: 600; } tr.paper td { color: var(--quiet); font-style: italic; }
.results th:nth-child(2), .results td:nth-child(2) { text-align: left; }
.side { display: flex; flex-wrap: wrap; gap: 24px; align-items: flex-start; }
.side table { width: auto; } .side .curve { width: 290px; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: 14px; }
figure { margin: 0; } .gallery figcaption { font-weight: 400; font-size: .82rem; margin: 4px 0 0; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 18px 0 8px; } h2 small, h3 small { font-weight: 400; margin-left: 8px; }
.picture { width: 100%; max-height: 260px; display: block; border-radius: 6px; }
.picture path { fill: none; stroke-width: 2px; vector-effect: non-scaling-stroke; }
path.truth { stroke: #00a2ff; } path.mask { stroke: #ff8c00; } path.other { stroke: #d24ad2; stroke-dasharray: 6 4; }
span.truth { color: var(--blue); } span.mask { color: var(--orange); } span.other { color: #c03cc0; }
"""


def render_page(result: Evaluation, lines: Sequence[Row]) -> str:
    """The whole page; reads the images it shows."""
    categories = sum(len(one.categories) for one in result.sets)
    count = PICTURES if categories <= MANY else PICTURES_MANY
    facts = [
        f"Protocol <b>{escaped(result.protocol['name'])}</b>: {escaped(result.protocol['about'])}; masks: {escaped(result.masks)}.",
        *(
            f"{escaped(key)}: {escaped(', '.join(value) if isinstance(value, list) else value)}"
            for key, value in result.facts.items()
            if value not in (None, [], {})
        ),
        *map(escaped, result.notes),
    ]
    parts = [
        _results(lines),
        *(category_section(one.name, category, count) for one in result.sets for category in one.categories),
    ]
    return eval_document(f"{result.subject}: evaluation", facts, parts)


def eval_document(title: str, facts: Sequence[str], parts: Sequence[str]) -> str:
    """A page of an evaluation; ``facts`` and ``parts`` are HTML, ``title`` is text."""
    listed = "".join(f"<li>{fact}</li>" for fact in facts)
    return document(title, "\n".join([f'<ul class="facts quiet">{listed}</ul>', *parts]), style=STYLE)


def _results(lines: Sequence[Row]) -> str:
    keys = shown(lines)
    head = cells("th", ["set", "category", "images", *(METRICS[key] for key in keys)])
    body = []
    for line in lines:
        name = f"{line.category}, {line.method}" if line.method else line.category
        texts = [
            f"{line.dataset} (paper)" if line.method else line.dataset,
            name,
            "" if line.images is None else f"{line.images:,}",
            *(percent(line.metrics[key]) for key in keys),
        ]
        kind = "paper" if line.method else "mean" if line.category == "mean" else "one"
        body.append(f"<tr class={kind}>{cells('td', texts)}</tr>")
    theirs = f"<p class=quiet>Rows marked (paper) are figures of {escaped(source())}; this software did not measure them.</p>"
    note = theirs if any(line.method for line in lines) else ""
    return (
        f"<section class=panel><div class=scroll><table class=results><thead><tr>{head}</tr></thead><tbody>{''.join(body)}"
        f"</tbody></table></div><p class=quiet>In percent. {CAUGHT}</p>{note}</section>"
    )


def category_section(dataset: str, category: CategoryResult, count: int) -> str:
    """Curve, kinds, sizes, and the ``count`` worst and best images of one category."""
    worst, best = worst_and_best(category.records, count)
    left_out = "".join(f"<li>{escaped(item.reason)}</li>" for item in category.left_out)
    return "\n".join(
        [
            f"<section class=panel><h2>{escaped(dataset)} / {escaped(category.name)}</h2>",
            "<div class=side>",
            curve_figure(category.curve, category.metrics["ap"]),
            _kinds(category.records),
            _sizes(category.records),
            "</div>",
            f"<details open><summary>Left out, {len(category.left_out)} images</summary><ul>{left_out}</ul></details>"
            if left_out
            else "",
            _gallery("Worst", worst),
            _gallery("Best", best),
            "</section>",
        ]
    )


def _kinds(records: Sequence[ImageRecord]) -> str:
    rows = "".join(
        f"<tr>{cells('td', [row.specie, str(row.images), str(row.missed), percent(row.iou)])}</tr>" for row in by_kind(records)
    )
    head = cells("th", ["kind", "images", "failed", "IoU"])
    words = "Failed: nothing of the defect found, or a good part flagged."
    return f"<div><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table><p class=quiet>{words}</p></div>"


def _sizes(records: Sequence[ImageRecord]) -> str:
    rows = "".join(
        f"<tr>{cells('td', [row.size, str(row.regions), str(row.found), percent(row.found / row.regions)])}</tr>"
        for row in by_size(records)
        if row.regions
    )
    if not rows:
        return ""
    head = cells("th", ["region's share of the image", "regions", "found", "%"])
    return f"<div><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"


def _gallery(title: str, records: Sequence[ImageRecord]) -> str:
    if not records:
        return ""
    figures = []
    for record in records:
        outcome = f"IoU {percent(record.iou)}" if record.anomalous else "flagged" if record.mask_px else "good, left alone"
        caption = f"{escaped(record.name)}<br>{outcome}, score {record.rank_score:.3g}"
        if record.unlike is not None:
            caption = f"{escaped(record.name)}<br>NO_VERDICT: {escaped(record.unlike)}"
        figures.append(f"<figure>{picture(record)}<figcaption>{caption}</figcaption></figure>")
    legend = "<span class=truth>truth</span> <span class=mask>prediction</span>"
    return f"<h3>{title} <small>{legend}</small></h3><div class=gallery>{''.join(figures)}</div>"

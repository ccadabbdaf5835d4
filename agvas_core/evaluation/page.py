"""The result as one HTML file that opens from disk: tables, curves, the worst and the best images, failures by kind and size."""

import html
from collections.abc import Sequence
from importlib import resources

from agvas_core.evaluation.failures import by_kind, by_size, worst_and_best
from agvas_core.evaluation.image_score import ImageRecord
from agvas_core.evaluation.metrics import METRICS
from agvas_core.evaluation.page_figure import curve_figure, picture
from agvas_core.evaluation.paper import source
from agvas_core.evaluation.result import CategoryResult, Evaluation, SetResult
from agvas_core.evaluation.tables import Row, percent

__all__ = ["document", "render_page"]

PICTURES = 6  # worst, and as many of the best; per category
MANY = 20  # categories beyond which there are fewer
PICTURES_MANY = 3


def render_page(result: Evaluation, lines: Sequence[Row]) -> str:
    """The whole page; reads the images it shows."""
    categories = sum(len(one.categories) for one in result.sets)
    count = PICTURES if categories <= MANY else PICTURES_MANY
    title = f"{result.subject}: evaluation"
    facts = [
        f"Protocol <b>{_text(result.protocol['name'])}</b>: {_text(result.protocol['about'])}; threshold {result.threshold:g}.",
        *(
            f"{_text(key)}: {_text(', '.join(value) if isinstance(value, list) else value)}"
            for key, value in result.facts.items()
            if value not in (None, [], {})
        ),
        *map(_text, result.notes),
    ]
    parts = [
        f"<h1>{_text(title)}</h1>",
        "<ul class=facts>" + "".join(f"<li>{fact}</li>" for fact in facts) + "</ul>",
        _results(lines),
        *(_category(one, category, count) for one in result.sets for category in one.categories),
    ]
    return document(title, parts)


def document(title: str, parts: Sequence[str]) -> str:
    """A page of its own, which loads nothing: ``parts`` are HTML, ``title`` is text."""
    package = resources.files("agvas_core.evaluation")
    style = package.joinpath("page_style.css").read_text(encoding="utf-8")
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<title>{_text(title)}</title>\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def _results(lines: Sequence[Row]) -> str:
    head = _cells("th", ["set", "category", "images", *METRICS.values()])
    body = []
    for line in lines:
        name = f"{line.category}, {line.method}" if line.method else line.category
        cells = [
            f"{line.dataset} (paper)" if line.method else line.dataset,
            name,
            "" if line.images is None else f"{line.images:,}",
        ]
        kind = "paper" if line.method else "mean" if line.category == "mean" else "one"
        body.append(f"<tr class={kind}>{_cells('td', [*cells, *(percent(line.metrics[key]) for key in METRICS)])}</tr>")
    theirs = f"<p>Rows marked (paper) are figures of {_text(source())}; this software did not measure them.</p>"
    note = theirs if any(line.method for line in lines) else ""
    return f"<table class=results><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table><p>In percent.</p>{note}"


def _category(one: SetResult, category: CategoryResult, count: int) -> str:
    worst, best = worst_and_best(category.records, count)
    left_out = "".join(f"<li>{_text(item.reason)}</li>" for item in category.left_out)
    return "\n".join(
        [
            f"<section><h2>{_text(one.name)} / {_text(category.name)}</h2>",
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
        f"<tr>{_cells('td', [row.specie, str(row.images), str(row.missed), percent(row.iou)])}</tr>" for row in by_kind(records)
    )
    head = _cells("th", ["kind", "images", "failed", "IoU"])
    words = "Failed: nothing of the defect found, or a good part flagged."
    return f"<div><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table><p>{words}</p></div>"


def _sizes(records: Sequence[ImageRecord]) -> str:
    rows = "".join(
        f"<tr>{_cells('td', [row.size, str(row.regions), str(row.found), percent(row.found / row.regions)])}</tr>"
        for row in by_size(records)
        if row.regions
    )
    if not rows:
        return ""
    head = _cells("th", ["region's share of the image", "regions", "found", "%"])
    return f"<div><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"


def _gallery(title: str, records: Sequence[ImageRecord]) -> str:
    if not records:
        return ""
    figures = []
    for record in records:
        outcome = f"IoU {percent(record.iou)}" if record.anomalous else "flagged" if record.mask_px else "good, left alone"
        caption = f"{_text(record.name)}<br>{outcome}, highest score {record.score:.3g}"
        figures.append(f"<figure>{picture(record)}<figcaption>{caption}</figcaption></figure>")
    legend = "<span class=truth>truth</span> <span class=mask>prediction</span>"
    return f"<h3>{title} <small>{legend}</small></h3><div class=gallery>{''.join(figures)}</div>"


def _cells(tag: str, cells: Sequence[str]) -> str:
    return "".join(f"<{tag}>{_text(cell)}</{tag}>" for cell in cells)


def _text(value: object) -> str:
    return html.escape(str(value))

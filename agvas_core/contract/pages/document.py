"""The document that every page of ours is: head, style sheet, title, warnings, figures, body. It loads nothing.

    body = panel("What was run", facts({"bundle": "nano"}))
    page = document("12 ms a frame", body, summary="nano on onnx", tiles=[Tile("12 ms", "p50")])

Texts are escaped here; only what is called HTML is taken as it is.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Tile", "cells", "data_uri", "document", "escaped", "facts", "note_list", "panel"]

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<!-- The page needs nothing but itself, and the browser holds it to that. -->
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
{body}
</body>
</html>
"""


class Tile(NamedTuple):
    """A figure in large type, as text."""

    value: str
    name: str
    more: str = ""


def document(
    title: str,
    body: str,
    *,
    summary: str = "",
    notes: Sequence[str] = (),
    tiles: Sequence[Tile] = (),
    style: str = "",
    script: str = "",
    header: bool = True,
) -> str:
    """The whole page.

    Args:
        title: of the tab, and the headline.
        body: HTML below the header.
        summary: a line below the headline.
        notes: what the reader must know first.
        style: CSS after the common style sheet.
        script: JavaScript at the end; a page without it may run none.
        header: whether headline, summary, notes and tiles are written; a page whose script does it has its own.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    common = resources.files("agvas_core.contract.pages").joinpath("page.css").read_text(encoding="utf-8")
    parts = [f"<main>\n{body}\n</main>" if header else body]
    if header:
        figures = "".join(
            f'<div class="tile"><b>{escaped(tile.value)}</b><span>{escaped(tile.name)}</span><small>{escaped(tile.more)}</small></div>'
            for tile in tiles
        )
        head = [
            f"<h1>{escaped(title)}</h1>",
            f'<p class="quiet">{escaped(summary)}</p>' if summary else "",
            note_list(notes),
            f'<div class="tiles">{figures}</div>' if figures else "",
        ]
        parts.insert(0, "<header>\n" + "\n".join(filter(None, head)) + "\n</header>")
    if script:
        policy += "; script-src 'unsafe-inline'"
        parts.append(f"<script>\n{script}</script>")
    return _PAGE.format(policy=policy, title=escaped(title), style=common + style, body="\n".join(parts))


def panel(title: str, body: str, about: str = "") -> str:
    """A section with a frame; ``body`` is HTML, the others are text."""
    words = f'<p class="quiet">{escaped(about)}</p>' if about else ""
    return f'<section class="panel"><h2>{escaped(title)}</h2>{words}{body}</section>'


def cells(tag: str, texts: Sequence[object]) -> str:
    """``<td>`` or ``<th>`` of texts."""
    return "".join(f"<{tag}>{escaped(each)}</{tag}>" for each in texts)


def facts(named: Mapping[str, object]) -> str:
    """Names and values, as texts."""
    return f"<dl>{''.join(f'<dt>{escaped(name)}</dt><dd>{escaped(value)}</dd>' for name, value in named.items())}</dl>"


def note_list(notes: Sequence[str]) -> str:
    """A list that stands out; nothing where there is no note."""
    return f'<ul class="notes">{"".join(f"<li>{escaped(note)}</li>" for note in notes)}</ul>' if notes else ""


def escaped(value: object) -> str:
    """Text as HTML."""
    return html.escape(str(value))


def data_uri(image: NDArray[Any], side_px: int, quality: int = 80) -> str:
    """An image, uint8 BGR [H, W, 3] or grey [H, W], as a JPEG in a page; at most ``side_px`` on its longer side."""
    scale = min(1.0, side_px / max(image.shape[:2]))
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(image), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, f"OpenCV cannot encode {image.shape} as JPEG"
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")

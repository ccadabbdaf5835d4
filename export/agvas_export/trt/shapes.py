"""The shapes that an engine must take: least, usual and largest of each input, from the bundle's manifest alone.

An axis named in the manifest (``height/16``) is open; how far follows from the pixel view, the scales, the prompt and the batch. The
language model's engine is for direct mode: one prefill, nothing before it.
"""

import re
from collections.abc import Mapping
from itertools import product

from agvas_core.contract.errors import BundleError
from agvas_core.contract.manifest import GraphSpec, Manifest, ReferencesSpec
from agvas_core.contract.preprocess import ViewSpec, view_size
from agvas_core.contract.product import HEAD

__all__ = ["Range", "Shapes", "profile_shapes"]

Range = tuple[int, int, int]
"""Least, usual, largest."""
Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


def profile_shapes(manifest: Manifest, graph: GraphSpec, max_batch: int, product_view: ViewSpec | None = None) -> Shapes:
    """Input -> its three shapes.

    Args:
        product_view: of a product, in which its references see a frame.

    Raises:
        BundleError: an open axis whose name says nothing.
    """
    ranges = _ranges(manifest, graph, max_batch, product_view)
    found: Shapes = {}
    for spec in graph.inputs:
        axes = [_axis(axis, ranges) for axis in spec.shape]
        least, usual, largest = zip(*axes, strict=True) if axes else ((), (), ())
        found[spec.name] = least, usual, largest
    return found


def _ranges(manifest: Manifest, graph: GraphSpec, max_batch: int, product_view: ViewSpec | None) -> Mapping[str, Range]:
    view, scales = manifest.pixel_view, manifest.scales
    rows, references = (1, 1, 1), manifest.references
    if isinstance(graph, ReferencesSpec):
        rows = (1, graph.max_rows, graph.max_rows)
    if references is not None and graph.file in (references.file, HEAD):
        view, scales = (view, scales) if references.view is None else (references.view, (1.0,))
        view = product_view or view
    sizes = [round(view.size_px * scale) for scale in scales]
    if product_view is not None and references is not None and references.features:
        sizes.append(product_view.size_px)  # which the vision engine sees, too
    # Every aspect that the view allows, at every scale: the corners are the extremes.
    aspects = (1 / view.max_aspect, 1.0, view.max_aspect)
    seen = [
        view_size(view.model_copy(update={"size_px": max(8, size)}), round(4096 * aspect**0.5), round(4096 / aspect**0.5))
        for size, aspect in product(sizes, aspects)
    ]
    least = 2 * view.multiple_px if view.fit == "area" else view.size_px
    usual = view_size(view, view.size_px, view.size_px)
    semantic, aligned = (_tokens(manifest, name) for name in ("f_s", "f_align"))
    most = manifest.prompt.max_tokens
    return {
        "batch": (1, 1, max_batch),
        "height": (least, usual[0], max(height for height, _ in seen)),
        "width": (least, usual[1], max(width for _, width in seen)),
        "semantic": (semantic, semantic, semantic),
        "aligned": (aligned, aligned, aligned),
        "before": (1, min(32, most), most),
        "after": (1, min(64, most), most),
        "asked": (1, 1, 1),
        "past": (0, 0, 0),
        "rows": rows,
    }


def _tokens(manifest: Manifest, name: str) -> int:
    (shape,) = (spec.shape for spec in manifest.vision.outputs if spec.name == name)
    if not isinstance(shape[1], int):
        raise BundleError(f"{name} has the shape {list(shape)}; its number of tokens must be a number: export the bundle again")
    return shape[1]


def _axis(axis: int | str, ranges: Mapping[str, Range]) -> Range:
    if isinstance(axis, int):
        return axis, axis, axis
    name, _, divisor = axis.partition("/")
    if name not in ranges or not re.fullmatch(r"\d*", divisor):
        raise BundleError(f"the manifest has an axis named {axis!r}, whose length is unknown: export the bundle again")
    least, usual, largest = (length // int(divisor or 1) for length in ranges[name])
    return least, usual, largest

"""Run lengths are read as COCO's own library writes them."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from agvas_core.contract.errors import ImageError
from agvas_core.data.datasets.coco import CocoMask, read_coco

MASKS = arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40)))


@settings(max_examples=60, deadline=None)
@given(mask=MASKS)
def test_what_coco_encodes_is_decoded(mask: Any) -> None:
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    as_json = {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}
    for segmentation in (encoded, as_json, [as_json]):
        assert np.array_equal(CocoMask((segmentation,), mask.shape, "m").read(mask.shape), mask)


def test_long_runs_come_through() -> None:
    mask = np.zeros((1200, 1600), bool)
    mask[300:900, 200:1500] = True
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert np.array_equal(CocoMask((encoded,), mask.shape, "m").read(mask.shape), mask)


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [4, 4], "counts": [3, 2]},
        {"size": [4, 4], "counts": "04p"},
        {"counts": [16]},
        [["a"] * 6],
        {"size": [4, 4], "counts": [-1, 17]},
    ],
)
def test_what_is_no_mask_is_refused_in_words(segmentation: Any) -> None:
    with pytest.raises(ImageError, match="m is neither polygons nor run lengths"):
        CocoMask((segmentation,), (4, 4), "m").read((4, 4))


def test_polygons_that_were_read_are_small_and_draw_the_same(tmp_path: Path) -> None:
    """A training holds those of all its images, in each of its processes. A broken one is told of where it is drawn, as ever."""
    turns = np.linspace(0, 2 * np.pi, 80, endpoint=False)
    outline = np.stack([6 + 4.3 * np.cos(turns), 5 + 4.1 * np.sin(turns)], 1).flatten().tolist()
    rows = [{"image_id": 1, "category_id": 1, "segmentation": one} for one in ([outline], [["a"] * 6])]
    tables = {"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 1, "name": "part"}], "annotations": rows}
    (tmp_path / "coco.json").write_text(json.dumps(tables), encoding="utf-8")
    whole, broken = (row["segmentation"] for row in read_coco(tmp_path / "coco.json").annotations[1])
    mask = CocoMask((whole,), (12, 12), "m").read((12, 12))
    assert mask.any() and np.array_equal(mask, CocoMask(([outline],), (12, 12), "m").read((12, 12)))
    as_list = sys.getsizeof(outline) + sum(map(sys.getsizeof, outline))
    assert sys.getsizeof(whole[0]) < as_list / 3
    with pytest.raises(ImageError, match="m is neither polygons nor run lengths"):
        CocoMask((broken,), (12, 12), "m").read((12, 12))


def test_a_line_covers_nothing() -> None:
    assert not CocoMask(([[0, 0, 3, 3]], []), (4, 4), "m").read((4, 4)).any()

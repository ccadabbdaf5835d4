"""With the native core and without it a frame gets one answer, from the file to the polygon."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from agvas_core.contract.certificate import TOLERANCES
from agvas_runtime import Segmenter, native

PARTS = Path(__file__).resolve().parents[2] / "examples/parts"
NEAR = TOLERANCES["native"].probability


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter.load("nano")


@pytest.mark.parametrize("kind", ["parts", "tiles"])
def test_verdicts_masks_and_regions_are_the_same(monkeypatch: pytest.MonkeyPatch, segmenter: Segmenter, kind: str) -> None:
    images = [cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in sorted(PARTS.iterdir())[::3]]
    if kind == "tiles":  # large enough to be cut up
        images = [np.tile(images[0], (4, 4, 1))]
    found = segmenter.predict(images)
    monkeypatch.setattr(native, "core", None)
    expected = segmenter.predict(images)
    assert kind == "tiles" or any(result.regions for result in found)
    assert (found[0].tiles > 1) == (kind == "tiles")
    for a, b in zip(found, expected, strict=True):
        assert a.score_map is not None and b.score_map is not None and a.mask is not None and b.mask is not None
        assert float(np.abs(a.score_map - b.score_map).max()) <= NEAR
        undecided = np.abs(b.score_map - b.threshold) <= NEAR
        np.testing.assert_array_equal(a.mask[~undecided], b.mask[~undecided])
        assert a.verdict == b.verdict
        if undecided.any():
            continue
        for mine, theirs in zip(a.regions, b.regions, strict=True):
            scores = {"mean_score": theirs.mean_score, "max_score": theirs.max_score, "centroid": theirs.centroid}
            assert replace(mine, **scores) == theirs
            assert mine.mean_score == pytest.approx(theirs.mean_score, abs=NEAR)
            assert mine.max_score == pytest.approx(theirs.max_score, abs=NEAR)
            assert mine.centroid == pytest.approx(theirs.centroid, abs=1e-6)

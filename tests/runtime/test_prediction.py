"""The runtime as ``agvas eval`` sees it: the segmenter's own answer, or an error, never an empty mask in its place."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError, UsageError
from agvas_runtime.pipeline.predictors import open_predictor
from agvas_runtime.pipeline.segmenter import Segmenter

Part = Callable[..., NDArray[np.uint8]]


@pytest.fixture
def picture(tmp_path: Path, make_part: Part) -> Path:
    path = tmp_path / "part.png"
    assert cv2.imwrite(str(path), make_part(spots=[(40, 30, 9)]))
    return path


def test_a_file_gives_the_segmenter_s_answer(tiny_bundle: Path, picture: Path) -> None:
    predictor = open_predictor(tiny_bundle, threads=1)
    score_map, mask, verdict, score, answer = predictor.predict(picture)
    assert answer is None  # nothing is generated in direct mode
    expected = Segmenter.load(tiny_bundle, threads=1).predict(picture)[0]
    assert expected.score_map is not None and expected.mask is not None
    assert np.array_equal(score_map, expected.score_map) and np.array_equal(mask, expected.mask)
    assert score_map.dtype == np.float32 and mask.dtype == bool and mask.any() and verdict == "FAIL"
    assert score is None, "it is the highest pixel"
    assert predictor.name == "tiny" and predictor.identity == expected.bundle


def test_options_reach_the_segmenter(tiny_bundle: Path, picture: Path) -> None:
    dark = open_predictor(tiny_bundle, threads=1).predict(picture)[1]
    bright = open_predictor(tiny_bundle, threads=1, prompt="find the bright spots").predict(picture)[1]
    assert not dark[0, 0] and bright[0, 0]
    with pytest.raises(UsageError, match="threshold is 2"):
        open_predictor(tiny_bundle, threshold=2)


def test_no_verdict_is_an_error(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="NaN or infinite"):
        open_predictor(tiny_bundle, threads=1, prompt="find the broken spots").predict(picture)
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:50])
    with pytest.raises(ImageError, match=r"cut\.png"):
        open_predictor(tiny_bundle, threads=1).predict(tmp_path / "cut.png")

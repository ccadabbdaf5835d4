"""The bundled nano on real photographs that it never saw. They are not part of the repository: `../shared/data`."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from agvas_runtime import Segmenter

DATA = Path(__file__).parents[2].parent / "shared" / "data"
COUNT = 8

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DATA.is_dir(), reason="the photographs of ../shared/data are not here")]


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter.load("nano", threads=1)


def test_broken_bottles_score_higher_than_good_ones(segmenter: Segmenter) -> None:
    def mean_score(kind: str) -> float:
        files = sorted((DATA / "mvtec/bottle/test" / kind).iterdir())[:COUNT]
        return float(np.mean([result.score for result in segmenter.predict(files) if result.score is not None]))

    assert mean_score("broken_small") > mean_score("good") + 0.1


@pytest.mark.parametrize(("part", "kind"), [("ksdd1/commutator", "defect"), ("road/road", "crack"), ("isic/skin", "lesion")])
def test_the_map_is_higher_on_the_defect_than_beside_it(segmenter: Segmenter, part: str, kind: str) -> None:
    files = sorted((DATA / part / "test" / kind).iterdir())[:COUNT]
    higher = 0
    for file, result in zip(files, segmenter.predict(files), strict=True):
        truth = cv2.imread(str(DATA / part / "ground_truth" / kind / f"{file.stem}_mask.png"), cv2.IMREAD_GRAYSCALE) > 127
        assert result.score_map is not None
        higher += result.score_map[truth].mean() > result.score_map[~truth].mean()
    assert higher >= 0.85 * len(files)

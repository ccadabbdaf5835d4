"""What painted defects say about the weight of the model's own score map."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from agvas.fitting.fit import Fitted
from agvas.fitting.rules import Evidence, average_precision, zero_shot_weight
from agvas_core.contract.product import Product
from agvas_runtime import Segmenter

Rgb = NDArray[np.uint8]
Float = NDArray[np.float32]
PIXELS = 4000


def evidence(images: int, distance: float, own: float, seed: int) -> list[Evidence]:
    """Images whose defects raise the distance and the model's own map by so much above noise."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(images):
        truth = rng.random(PIXELS) < 0.03
        maps = [(rng.exponential(1.0, PIXELS) + gain * truth).astype(np.float32) for gain in (distance, own)]
        found.append(Evidence(maps[0], maps[1], truth))
    return found


@pytest.mark.parametrize(("distance", "own", "weight"), [(0.5, 3.0, 2.0), (3.0, 0.0, 0.5)])
def test_the_better_map_counts_more(distance: float, own: float, weight: float) -> None:
    assert zero_shot_weight(evidence(12, distance, own, seed=0)) == weight


def test_maps_that_tell_alike_count_alike() -> None:
    assert {zero_shot_weight(evidence(12, 2.0, 2.0, seed)) for seed in range(10)} == {1.0}


def test_one_image_that_differs_decides_nothing() -> None:
    mixed = evidence(11, 2.0, 2.0, seed=0) + evidence(1, 0.0, 6.0, seed=1)
    assert zero_shot_weight(mixed) == 1.0


def test_few_images_decide_nothing() -> None:
    clear = evidence(8, 0.5, 3.0, seed=0)
    unpainted = [each._replace(truth=np.zeros(PIXELS, bool)) for each in clear[7:]]
    assert zero_shot_weight(clear) == 2.0
    assert zero_shot_weight(clear[:7] + unpainted) == 1.0


def test_average_precision_is_the_mean_over_the_true_values() -> None:
    values = np.array([0.9, 0.8, 0.7, 0.1], np.float32)
    assert average_precision(values, np.array([True, False, True, False])) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(values, np.zeros(4, bool)) == 0.0


def test_the_chosen_weight_is_what_runs_and_stays_when_a_product_grows(
    quick_fit: Callable[..., Fitted],
    good: Path,
    fitted: Fitted,
    photograph: Callable[..., Rgb],
    save: Callable[[Rgb, Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad = photograph(300, red=(60, 60, 14))
    save(bad, tmp_path / "bad" / "one.png")
    save(photograph(301), tmp_path / "more" / "one.png")
    monkeypatch.setattr("agvas.fitting.fit.zero_shot_weight", lambda found: 2.0)
    heavy = quick_fit(good, tmp_path / "heavy", bad=tmp_path / "bad")
    (result,) = Segmenter.load(tmp_path / "heavy", threads=1).predict([bad])
    (plain,) = Segmenter.load(fitted.bundle.folder, threads=1).predict([bad])
    assert (fitted.product.zero_shot_weight, heavy.product.zero_shot_weight) == (1.0, 2.0)
    assert result.score == heavy.product.bad[0].score != plain.score
    monkeypatch.setattr("agvas.fitting.fit.zero_shot_weight", lambda found: 0.5)
    grown: Product = quick_fit(tmp_path / "more", tmp_path / "heavy", add=True).product
    assert grown.zero_shot_weight == 2.0 and len(grown.good) == 13

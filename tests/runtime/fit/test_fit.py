"""Good images in, a product out: what it promises, and what it does on images that it has not seen."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from agvas.fitting.fit import Fitted
from agvas.fitting.operating_point import are_mixed
from agvas_core.contract.errors import UsageError
from agvas_core.contract.product import Product
from agvas_runtime import Segmenter, Verdict

Rgb = NDArray[np.uint8]
Photograph = Callable[..., Rgb]
QuickFit = Callable[..., Fitted]
Save = Callable[[Rgb, Path], None]


def test_defects_are_told_from_good_parts(fitted: Fitted, photograph: Photograph) -> None:
    segmenter = Segmenter.load(fitted.bundle.folder, threads=1)
    for seed in range(100, 106):
        passed, failed = segmenter.predict([photograph(seed)])[0], segmenter.predict([photograph(seed, red=(110, 70, 12))])[0]
        assert passed.verdict == Verdict.PASS and not passed.regions
        assert failed.verdict == Verdict.FAIL and failed.mask is not None and failed.mask[70, 110]
        assert passed.score is not None and failed.score is not None
        assert 0 < passed.score <= passed.seed_threshold < failed.score < 1


def test_a_fail_has_a_region_and_a_pass_has_none(fitted: Fitted, photograph: Photograph) -> None:
    segmenter = Segmenter.load(fitted.bundle.folder, threads=1)
    for radius in range(1, 12):
        (result,) = segmenter.predict([photograph(200 + radius, red=(40, 40, radius))])
        assert result.score is not None
        assert (result.verdict == Verdict.FAIL) == bool(result.regions) == (result.score > result.seed_threshold)


def test_the_score_map_is_float_between_0_and_1(fitted: Fitted, photograph: Photograph) -> None:
    (result,) = Segmenter.load(fitted.bundle.folder).predict([photograph(1, red=(60, 60, 20))])
    assert result.score_map is not None and result.score_map.dtype == np.float32 and result.score_map.shape == (144, 160)
    assert 0 <= result.score_map.min() < result.score_map.max() < 1


def test_fitting_again_gives_the_same_product(quick_fit: QuickFit, good: Path, fitted: Fitted, tmp_path: Path) -> None:
    again = quick_fit(good, tmp_path / "plate")
    assert again.product.model_copy(update={"created": "", "seconds": {}}) == fitted.product.model_copy(
        update={"created": "", "seconds": {}}
    )


def test_no_good_image_is_rejected_and_the_bound_is_exact(fitted: Fitted) -> None:
    promise = fitted.product.promise
    assert promise.good_images == 12 and promise.false_rejects == 0
    assert promise.bound == pytest.approx(1 - 0.05 ** (1 / 12))


def test_painted_defects_say_what_is_caught(fitted: Fitted) -> None:
    painted = fitted.product.painted
    assert len(painted) > 10 and any(defect.found for defect in painted)
    totals = [rate for rate in fitted.product.catch if rate.kind == "all"]
    assert sum(rate.painted for rate in totals) == len(painted)
    assert sum(rate.found for rate in totals) == sum(defect.found for defect in painted)


def test_a_promise_that_cannot_be_kept_is_said_first(quick_fit: QuickFit, good: Path, tmp_path: Path) -> None:
    found = quick_fit(good, tmp_path / "p", max_false_reject=0.01)
    assert not found.kept and found.product.promise.missing == 299 - 12
    assert "1.00%" in found.warnings[0] and "287 more" in found.warnings[0]
    Segmenter.load(tmp_path / "p")


def test_a_promise_of_many_images_is_kept(quick_fit: QuickFit, good: Path, tmp_path: Path) -> None:
    found = quick_fit(good, tmp_path / "p", max_false_reject=0.4)
    assert found.kept and found.product.promise.missing == 0


def test_images_of_unlike_sizes_are_all_used(quick_fit: QuickFit, photograph: Photograph, tmp_path: Path) -> None:
    images = [photograph(seed, size=(140 + seed, 150 + 3 * seed)) for seed in range(8)]
    found = quick_fit(images, tmp_path / "p")
    assert found.product.promise.good_images == 8 and not found.product.left_out


def test_one_image_works_and_says_what_it_means(quick_fit: QuickFit, photograph: Photograph, tmp_path: Path) -> None:
    found = quick_fit([photograph(0)], tmp_path / "p")
    assert found.product.promise.good_images == 1 and "one good image" in " ".join(found.warnings)
    segmenter = Segmenter.load(tmp_path / "p", threads=1)
    assert segmenter.predict([photograph(3, red=(110, 70, 14))])[0].verdict == Verdict.FAIL


def test_copies_count_once(quick_fit: QuickFit, photograph: Photograph, tmp_path: Path) -> None:
    found = quick_fit([photograph(0)] * 50, tmp_path / "p")
    assert found.product.promise.good_images == 1 and any("49 of 50" in each for each in found.warnings)


def test_a_bad_image_among_the_good_is_named(quick_fit: QuickFit, photograph: Photograph, tmp_path: Path, save: Save) -> None:
    for seed in range(10):
        save(photograph(seed, red=(110, 70, 18) if seed == 4 else None), tmp_path / "good" / f"part-{seed}.png")
    found = quick_fit(tmp_path / "good", tmp_path / "p")
    assert "unlike the others" in found.warnings[0] and "part-4" in found.warnings[0] and "part-5" not in found.warnings[0]
    assert found.product.promise.false_rejects == 1  # it counts, for a person called it good


def test_nothing_to_learn_from(quick_fit: QuickFit, tmp_path: Path) -> None:
    for images in ([], tmp_path / "nowhere", 7):
        with pytest.raises(UsageError):
            quick_fit(images, tmp_path / "p")
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match="broken"):
        quick_fit(tmp_path / "broken.png", tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_images_that_cannot_be_read_are_said_first(quick_fit: QuickFit, good: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    (tmp_path / "b.png").write_bytes(b"neither")
    found = quick_fit([good, tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "p")
    assert "2 of 14" in found.warnings[0] and not found.kept and len(found.product.left_out) == 2


@pytest.mark.parametrize("name", ["black", "white", "noise", "dark", "overexposed"])
def test_a_frame_that_is_unlike_every_good_one_has_no_verdict(fitted: Fitted, photograph: Photograph, name: str) -> None:
    image = photograph(50)
    frame = {
        "black": np.zeros_like(image),
        "white": np.full_like(image, 255),
        "noise": np.random.default_rng(0).integers(0, 256, image.shape).astype(np.uint8),
        "dark": image // 8,
        "overexposed": np.clip(image.astype(int) * 4, 0, 255).astype(np.uint8),
    }[name]
    (result,) = Segmenter.load(fitted.bundle.folder, threads=1).predict([frame])
    assert result.verdict == Verdict.NO_VERDICT and result.score is None
    assert result.error is not None and result.error.startswith("unlike: ")


def test_adding_images_keeps_what_was_known(
    quick_fit: QuickFit, fitted: Fitted, photograph: Photograph, good: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p"
    first = quick_fit(good, out)
    more = [photograph(seed) for seed in range(60, 68)]
    grown = quick_fit(more, out, add=True)
    assert grown.product.promise.good_images == 20 and grown.product.promise.bound < first.product.promise.bound
    assert grown.product.good[:12] == first.product.good and grown.product.joint == first.product.joint
    assert len(grown.product.painted) > len(first.product.painted)
    (result,) = Segmenter.load(out, threads=1).predict([photograph(99, red=(110, 70, 12))])
    assert result.verdict == Verdict.FAIL


def test_more_images_than_are_asked_for_are_chosen_evenly(quick_fit: QuickFit, good: Path, tmp_path: Path) -> None:
    found = quick_fit(good, tmp_path / "p", max_images=4)
    assert [Path(each.name).name for each in found.product.good] == ["00.png", "04.png", "07.png", "11.png"]
    assert any("4 of 12" in each for each in found.warnings)


def test_bad_images_are_judged(quick_fit: QuickFit, good: Path, photograph: Photograph, tmp_path: Path, save: Save) -> None:
    for seed in range(4):
        image = photograph(70 + seed, red=(40 + 20 * seed, 50, 14))
        save(image, tmp_path / "bad" / "test" / "spot" / f"{seed}.png")
        mask = np.zeros_like(image)
        mask[36:64, 26 + 20 * seed : 54 + 20 * seed] = 255
        save(mask, tmp_path / "bad" / "ground_truth" / "spot" / f"{seed}_mask.png")
    found = quick_fit(good, tmp_path / "p", bad=tmp_path / "bad")
    assert len(found.product.bad) == 4 and "4 bad images given, 4 are caught" in found.statement
    assert all(each.facts["iou"] > 0.1 for each in found.product.bad)


def test_masks_for_other_names_are_refused(
    quick_fit: QuickFit, good: Path, photograph: Photograph, tmp_path: Path, save: Save
) -> None:
    save(photograph(1), tmp_path / "bad" / "one.png")
    save(photograph(1) * 0, tmp_path / "bad" / "masks" / "other.png")
    with pytest.raises(UsageError, match=r"one\.png"):
        quick_fit(good, tmp_path / "p", bad=tmp_path / "bad")


def test_a_review_folder_joins(quick_fit: QuickFit, good: Path, photograph: Photograph, tmp_path: Path, save: Save) -> None:
    review = tmp_path / "review"
    save(photograph(80), review / "images" / "ok.png")
    save(photograph(81, red=(80, 70, 15)), review / "images" / "spot.png")
    mask = np.zeros((144, 160, 3), np.uint8)
    mask[55:85, 65:95] = 255
    save(mask, review / "masks" / "spot.png")
    lines = [{"image": "images/ok.png", "good": True}, {"image": "images/spot.png", "mask": "masks/spot.png", "good": False}]
    (review / "review.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = quick_fit(good, tmp_path / "p", review=review)
    assert found.product.promise.good_images == 13 and len(found.product.bad) == 1
    with pytest.raises(UsageError, match=r"review\.jsonl"):
        quick_fit(good, tmp_path / "q", review=good)


def test_sizes_are_said_in_millimetres(quick_fit: QuickFit, good: Path, tmp_path: Path) -> None:
    assert " mm found" in quick_fit(good, tmp_path / "p", mm_per_px=0.1).statement


def test_the_product_is_a_model_of_pydantic(fitted: Fitted) -> None:
    text = (fitted.bundle.folder / "product.json").read_text()
    assert Product.model_validate_json(text) == fitted.product


def test_images_of_different_products_are_told() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, 40)).astype(np.float32)
    images = [centre + 0.1 * rng.normal(size=(600, 40)).astype(np.float32) for centre in centres]
    apart = [np.linalg.norm(centres[0] - centres[1]) * np.ones((20, 30), np.float32)] * 6
    near = [np.ones((20, 30), np.float32)] * 6
    assert are_mixed(apart, images, rng) and not are_mixed(near, images, rng)

"""From pixels to verdicts, with the tiny bundle, which finds what is dark."""

import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from agvas_core.contract.decision import Decision, OperatingPoint
from agvas_core.contract.errors import BundleError, ImageError, SourceError, UsageError
from agvas_core.contract.preprocess import ViewSpec, scaled_views
from agvas_runtime import Frame, Result, Segmenter, Verdict
from agvas_runtime.bundle import load_bundle
from agvas_runtime.images.tiling import plan_scales
from agvas_runtime.pipeline.options import SegmentOptions
from agvas_runtime.stages.onnx import OnnxDecoder, OnnxLmm, OnnxVision
from agvas_runtime.stages.protocol import Features

Part = Callable[..., NDArray[np.uint8]]


@pytest.fixture(scope="module")
def segmenter(tiny_bundle: Path) -> Segmenter:
    return Segmenter.load(tiny_bundle, threads=1)


def altered(tiny_bundle: Path, options: dict[str, Any] | None = None, **changes: Any) -> Segmenter:
    """The tiny bundle with other numbers in its manifest; ``options`` are the segmenter's."""
    bundle = load_bundle(tiny_bundle)
    bundle = replace(bundle, manifest=bundle.manifest.model_copy(update=changes))
    stages = OnnxVision(bundle, threads=1), OnnxLmm(bundle, threads=1), OnnxDecoder(bundle, threads=1)
    return Segmenter(bundle, *stages, SegmentOptions(**options or {}))


def disc(height: int, width: int, x: int, y: int, radius: int) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[:height, :width]
    return np.asarray((columns - x) ** 2 + (rows - y) ** 2 <= radius**2)


def overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / (a | b).sum())


def masks_of(result: Result) -> NDArray[np.bool_]:
    assert result.mask is not None
    return result.mask


def test_a_dark_spot_is_found_where_it_is(segmenter: Segmenter, make_part: Part) -> None:
    (result,) = segmenter.predict(make_part(96, 128, [(90, 30, 14)]))
    assert result.verdict is Verdict.FAIL and result.error is None
    assert overlap(masks_of(result), disc(96, 128, 90, 30, 14)) > 0.85
    (region,) = result.regions
    assert abs(region.centroid[0] - 90) < 1 and abs(region.centroid[1] - 30) < 1
    assert result.score is not None and result.score > 0.99
    assert result.score_map is not None and result.score_map.dtype == np.float32 and result.score_map.shape == (96, 128)
    assert result.bundle == segmenter.bundle.identity


def test_a_good_part_passes(segmenter: Segmenter, make_part: Part) -> None:
    (result,) = segmenter.predict(make_part())
    assert result.verdict is Verdict.PASS and result.regions == [] and not masks_of(result).any()
    assert result.score is not None and result.score < 0.01


def test_the_words_reach_the_mask(segmenter: Segmenter, make_part: Part) -> None:
    part = make_part(96, 128, [(60, 40, 20)])
    dark, bright = (
        segmenter.predict(part, prompt="find the dark spots")[0],
        segmenter.predict(part, prompt="find the bright spots")[0],
    )
    assert bright.prompt == "find the bright spots"
    assert overlap(masks_of(bright), ~masks_of(dark)) > 0.98


def test_anchors_in_a_prompt_are_stripped_with_a_warning(
    segmenter: Segmenter, make_part: Part, caplog: pytest.LogCaptureFixture
) -> None:
    part = make_part(spots=[(60, 40, 20)])
    with caplog.at_level(logging.WARNING, "agvas"):
        (dirty,) = segmenter.predict(part, prompt="find the [SEG] dark [NOR] spots")
    assert "[SEG], [NOR]" in caplog.text
    (clean,) = segmenter.predict(part, prompt="find the dark spots")
    assert dirty.prompt == clean.prompt
    np.testing.assert_array_equal(dirty.score_map, clean.score_map)


@pytest.mark.parametrize("prompt", ["", "  ", "[SEG]", "x" * 2001, "spots " * 200, "spots \udcff"])
def test_a_prompt_that_cannot_be_meant_is_a_usage_error(
    tiny_bundle: Path, segmenter: Segmenter, make_part: Part, prompt: str
) -> None:
    with pytest.raises(UsageError):
        segmenter.predict(make_part(), prompt=prompt)
    with pytest.raises(UsageError):
        Segmenter.load(tiny_bundle, prompt=prompt)


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0, float("nan")])
def test_a_threshold_out_of_range_is_a_usage_error(
    tiny_bundle: Path, segmenter: Segmenter, make_part: Part, threshold: float
) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        segmenter.predict(make_part(), threshold=threshold)
    with pytest.raises(UsageError):
        Segmenter.load(tiny_bundle, threshold=threshold)


def test_a_higher_threshold_marks_no_more(segmenter: Segmenter, make_part: Part) -> None:
    part = make_part(spots=[(60, 40, 20)])
    low, high = (masks_of(segmenter.predict(part, threshold=threshold)[0]) for threshold in (0.05, 0.95))
    assert not (high & ~low).any() and low.sum() > high.sum()


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 3), (31, 17), (40, 20_000), (300, 500)])
def test_any_size_gives_a_map_of_its_own_size(segmenter: Segmenter, make_part: Part, size: tuple[int, int]) -> None:
    for image, verdict in ((make_part(*size), Verdict.PASS), (np.zeros((*size, 3), np.uint8), Verdict.FAIL)):
        (result,) = segmenter.predict(image)
        assert result.verdict is verdict, result.error
        assert masks_of(result).shape == size
    assert masks_of(result).all()


def test_tiles_find_what_a_single_view_loses(tiny_bundle: Path, segmenter: Segmenter, make_part: Part) -> None:
    part = make_part(600, 900, [(450, 300, 6), (200, 120, 30)])
    (tiled,) = segmenter.predict(part)
    (squeezed,) = Segmenter.load(tiny_bundle, threads=1, tiling="off").predict(part)
    assert tiled.tiles > 4 and squeezed.tiles == 1
    assert len(tiled.regions) == 2 and len(squeezed.regions) == 1
    truth = disc(600, 900, 450, 300, 6) | disc(600, 900, 200, 120, 30)
    assert overlap(masks_of(tiled), truth) > overlap(masks_of(squeezed), truth)


def test_tiling_leaves_no_seam(segmenter: Segmenter, make_part: Part) -> None:
    (result,) = segmenter.predict(np.full((700, 700, 3), 128, np.uint8))  # right at the threshold, where a seam would show
    assert result.tiles > 1 and result.score_map is not None
    assert np.ptp(result.score_map) < 1e-5


def test_grey_float_and_strided_arrays_are_the_same_part(segmenter: Segmenter, make_part: Part) -> None:
    part = make_part(spots=[(60, 40, 20)])
    alike: list[NDArray[Any]] = [
        part,
        part[:, :, 0],
        part[:, :, :1],
        part.astype(np.float32) / 255,
        part.astype(np.float64) / 255,
        part.astype(np.uint16) * 257,
        np.dstack([part, np.full(part.shape[:2], 255, np.uint8)]),
        np.asfortranarray(part),
        np.repeat(part, 2, axis=1)[:, ::2],
        part[::-1][::-1],
        part[:, :, ::-1],
    ]
    for result in segmenter.predict(alike):
        assert result.verdict is Verdict.FAIL, result.error
        np.testing.assert_array_equal(result.mask, masks_of(segmenter.predict(part)[0]))


def test_an_array_that_is_no_image_has_no_verdict_and_stops_nothing(segmenter: Segmenter, make_part: Part) -> None:
    part = make_part()
    nan = np.full((8, 8), np.nan, np.float32)
    bad = [
        np.zeros((0, 5, 3), np.uint8),
        np.zeros(7, np.uint8),
        part.astype(np.float32),
        nan,
        part.astype(np.int64),
        np.zeros((4, 4, 9)),
    ]
    results = segmenter.predict([*bad, part])
    assert [result.verdict for result in results] == [Verdict.NO_VERDICT] * len(bad) + [Verdict.PASS]
    for result in results[:-1]:
        assert result.error and result.mask is None and result.score is None and result.image is None
    assert [result.index for result in results] == list(range(len(results)))


def test_a_frame_that_could_not_be_read_keeps_its_reason(segmenter: Segmenter) -> None:
    result = segmenter.segment(Frame("torn.jpg", 7, error=ImageError("the file ends early"), read_ms=2.5))
    assert (result.name, result.index, result.verdict, result.error) == ("torn.jpg", 7, Verdict.NO_VERDICT, "the file ends early")
    assert result.timing["read"] == 2.5


def test_values_that_are_not_finite_never_pass(segmenter: Segmenter, make_part: Part) -> None:
    for image in (make_part(), make_part(700, 700)):
        (result,) = segmenter.predict(image, prompt="broken")
        assert result.verdict is Verdict.NO_VERDICT
        assert result.error and "NaN" in result.error


def test_an_image_beyond_the_cap_has_no_verdict(tiny_bundle: Path, make_part: Part) -> None:
    small = Segmenter.load(tiny_bundle, threads=1, max_pixels=5000)
    assert [result.verdict for result in small.predict([make_part(100, 100), make_part(50, 100)])] == [
        Verdict.NO_VERDICT,
        Verdict.PASS,
    ]


@pytest.mark.parametrize(
    "exhaust", [lambda: bytearray(1 << 62), lambda: cv2.resize(np.zeros((1, 1), np.uint8), (1 << 20, 1 << 24))]
)
def test_an_image_for_which_memory_runs_out_has_no_verdict(
    tiny_bundle: Path, make_part: Part, exhaust: Callable[[], object]
) -> None:
    bundle = load_bundle(tiny_bundle)
    decoder = OnnxDecoder(bundle, threads=1)

    def hungry(anchor_states: NDArray[np.float32], features: Features) -> NDArray[np.float32]:
        exhaust()
        return decoder(anchor_states, features)

    segmenter = Segmenter(bundle, OnnxVision(bundle, threads=1), OnnxLmm(bundle, threads=1), hungry)
    (result,) = segmenter.predict(make_part())
    assert result.verdict is Verdict.NO_VERDICT and "needs more memory than there is" in str(result.error)


@pytest.mark.parametrize("shape", [(1, 1, 24, 32), (1, 3, 0, 32), (0, 3, 24, 32), (1, 3, 24), ()])
def test_logits_of_another_shape_are_a_broken_bundle(tiny_bundle: Path, make_part: Part, shape: tuple[int, ...]) -> None:
    bundle = load_bundle(tiny_bundle)
    segmenter = Segmenter(
        bundle, OnnxVision(bundle, threads=1), OnnxLmm(bundle, threads=1), lambda states, features: np.zeros(shape, np.float32)
    )
    with pytest.raises(BundleError, match="export the bundle again"):
        segmenter.predict(make_part())


def test_regions_below_the_least_area_are_no_regions(tiny_bundle: Path, make_part: Part) -> None:
    part = make_part(128, 128, [(30, 30, 20), (100, 100, 6)])
    everything, large, none = (
        altered(tiny_bundle, decision=decided(min_area_fraction=share)).predict(part)[0] for share in (0.0, 0.02, 0.5)
    )
    assert [len(result.regions) for result in (everything, large, none)] == [2, 1, 0]
    assert masks_of(large).sum() == large.regions[0].area_px
    assert none.verdict is Verdict.PASS and none.score == everything.score


ABSOLUTE = Decision(alpha=1.0)  # P is P_seg, so its logits can be told


def decided(**numbers: float) -> Decision:
    """A decision whose balanced point has these numbers."""
    return Decision(operating_points={"balanced": OperatingPoint(**numbers)})


def grey_and_dark(make_part: Part) -> NDArray[np.uint8]:
    """A part with a grey spot, and one that is grey with a black middle: P of about 0.93 and 1 in this bundle."""
    part = make_part(128, 128, [(40, 40, 16), (96, 96, 12)])
    part[part == 20] = 115
    part[92:100, 92:100] = 0
    return part


def test_a_region_counts_where_it_reaches_the_seed_threshold_and_keeps_its_outline(tiny_bundle: Path, make_part: Part) -> None:
    part = grey_and_dark(make_part)
    plain, seeded = (
        altered(tiny_bundle, decision=decided(threshold=0.6, seed_threshold=seed)).predict(part)[0] for seed in (0.6, 0.97)
    )
    assert [len(result.regions) for result in (plain, seeded)] == [2, 1]
    assert seeded.regions[0] in plain.regions and seeded.regions[0].max_score > 0.97
    assert (seeded.operating_point, seeded.threshold, seeded.seed_threshold) == ("balanced", 0.6, 0.97)
    good = altered(tiny_bundle, decision=decided(threshold=0.6, seed_threshold=0.9999999)).predict(part)[0]
    assert good.verdict is Verdict.PASS and not masks_of(good).any() and good.score == plain.score


def test_the_strict_point_is_chosen_by_its_name_and_recorded(tiny_bundle: Path, make_part: Part) -> None:
    part = grey_and_dark(make_part)
    points = {
        "balanced": OperatingPoint(threshold=0.6, seed_threshold=0.6),
        "strict": OperatingPoint(threshold=0.6, seed_threshold=0.97),
    }
    bundle = Path(tiny_bundle)
    balanced, strict = (
        altered(bundle, {"operating_point": name}, decision=Decision(operating_points=points)).predict(part)[0] for name in points
    )
    assert [(result.operating_point, len(result.regions)) for result in (balanced, strict)] == [("balanced", 2), ("strict", 1)]
    assert strict.to_dict()["operating_point"] == "strict" and strict.to_dict()["seed_threshold"] == 0.97
    own = altered(bundle, {"threshold": 0.3}, decision=Decision(operating_points=points)).predict(part)[0]
    assert (own.operating_point, own.threshold, own.seed_threshold) == ("threshold", 0.3, 0.3)
    assert own.score_map is not None and np.array_equal(masks_of(own), own.score_map > 0.3)


def test_an_operating_point_that_cannot_be_had_is_a_usage_error(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="no operating point 'strict'; it has balanced"):
        Segmenter.load(tiny_bundle, operating_point="strict")
    with pytest.raises(UsageError, match="leave one out"):
        Segmenter.load(tiny_bundle, operating_point="strict", threshold=0.3)


def test_the_gate_of_the_bundle_passes_what_the_language_model_refuses(tiny_bundle: Path, make_part: Part) -> None:
    part = make_part(spots=[(60, 40, 20)])
    gated = altered(tiny_bundle, decision=decided(gate=0.5))
    assert gated.predict(part)[0].verdict is Verdict.FAIL
    (refused,) = gated.predict(part, prompt="find the hole")  # the tiny model refuses holes
    assert refused.accept is not None and refused.accept < 0.5
    assert refused.verdict is Verdict.PASS and refused.regions == [] and not masks_of(refused).any()
    assert altered(tiny_bundle).predict(part, prompt="find the hole")[0].verdict is Verdict.FAIL


def test_several_scales_are_averaged_before_fusion(tiny_bundle: Path, make_part: Part) -> None:
    part = faint(make_part(128, 160, [(60, 50, 20), (120, 90, 4)]))
    fine, coarse, both = (
        logits_of(altered(tiny_bundle, {"tiling": "off"}, scales=scales, decision=ABSOLUTE).predict(part)[0])
        for scales in ((1.0,), (0.5,), (0.5, 1.0))
    )
    assert np.abs(fine - coarse).max() > 0.5
    np.testing.assert_allclose(both, (fine + coarse) / 2, atol=2e-3)


def test_a_coarse_scale_sees_a_tiled_frame_as_a_whole(tiny_bundle: Path, make_part: Part) -> None:
    part = faint(make_part(600, 900, [(450, 300, 6), (200, 120, 60)]))
    (both,) = altered(tiny_bundle, scales=(0.5, 1.0), decision=ABSOLUTE).predict(part)
    (fine,) = altered(tiny_bundle, decision=ABSOLUTE).predict(part)
    (coarse,) = altered(tiny_bundle, {"tiling": "off"}, scales=(0.5,), decision=ABSOLUTE).predict(part)
    assert both.tiles == fine.tiles > 4
    manifest = load_bundle(tiny_bundle).manifest
    share = plan_scales(600, 900, scaled_views(manifest.pixel_view, (0.5, 1.0), 600, 900), manifest.tiling)[-1].share
    assert 0.01 < share < 0.3
    np.testing.assert_allclose(logits_of(both), (1 - share) * logits_of(fine) + share * logits_of(coarse), atol=5e-3)


def logits_of(result: Result) -> NDArray[np.float64]:
    """Logits of a score map that is P_seg alone."""
    assert result.score_map is not None
    score_map = result.score_map.astype(np.float64)
    return np.asarray(np.log(score_map / (1 - score_map)))


def faint(part: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The part in greys of the middle, where the tiny bundle's logits are small and P tells them apart."""
    return (120 + part / 16).astype(np.uint8)


def test_alpha_weighs_the_absolute_against_the_relative_anchor(tiny_bundle: Path, make_part: Part) -> None:
    part = make_part(spots=[(60, 40, 20)])
    seg, ano, both = (
        altered(tiny_bundle, decision=Decision(alpha=alpha)).predict(part)[0].score_map for alpha in (1.0, 0.0, 0.5)
    )
    assert seg is not None and ano is not None and both is not None
    np.testing.assert_allclose(both, (seg + ano) / 2, atol=1e-6)


def test_padding_never_changes_the_mask(tiny_bundle: Path, make_part: Part) -> None:
    """Letterbox pads a 90 x 128 part to 128 x 128; the part itself must come back, to its last row."""
    numbers: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    letterbox = altered(tiny_bundle, pixel_view=ViewSpec(fit="letterbox", size_px=128, **numbers))
    part = make_part(90, 128, [(64, 80, 9)])
    (result,) = letterbox.predict(part)
    assert masks_of(result).shape == (90, 128)
    assert overlap(masks_of(result), disc(90, 128, 64, 80, 9)) > 0.85
    assert masks_of(letterbox.predict(255 - part, prompt="bright")[0]).sum() == masks_of(result).sum()
    assert letterbox.predict(make_part(90, 128))[0].verdict is Verdict.PASS  # grey padding is no anomaly


def test_a_stream_is_read_one_by_one_and_closed_when_the_caller_stops(segmenter: Segmenter, make_part: Part) -> None:
    seen: list[str] = []

    def parts() -> Iterator[NDArray[np.uint8]]:
        try:
            for number in range(5):
                seen.append(f"part {number}")
                yield make_part()
        finally:
            seen.append("closed")

    results = segmenter.predict(parts(), stream=True)
    assert seen == []
    assert next(results).name == "array-000000"
    assert seen == ["part 0"]
    results.close()  # type: ignore[attr-defined]
    assert seen == ["part 0", "closed"]


def test_a_lost_source_is_told_after_the_results_so_far(segmenter: Segmenter, make_part: Part) -> None:
    def camera() -> Iterator[Frame]:
        yield Frame("camera-0#000000", 0, image=make_part())
        raise SourceError("camera 0 stopped")

    results = segmenter.predict(camera(), stream=True)
    assert next(results).verdict is Verdict.PASS
    with pytest.raises(SourceError):
        next(results)


def test_a_source_of_another_kind_is_a_usage_error(segmenter: Segmenter) -> None:
    for source in (None, [3.5], ["a.png", np.zeros((4, 4), np.uint8)]):
        with pytest.raises(UsageError, match="array"):
            segmenter.predict(source)


def test_a_folder_is_read_to_its_end_past_a_bad_file(segmenter: Segmenter, make_part: Part, tmp_path: Path) -> None:
    for name, spots in (("a.png", []), ("c.png", [(60, 40, 20)])):
        cv2.imwrite(str(tmp_path / name), make_part(spots=spots))
    (tmp_path / "b.png").write_text("this is no picture")
    results = list(segmenter.predict(tmp_path, stream=True))
    assert [Path(result.name).name for result in results] == ["a.png", "b.png", "c.png"]
    assert [result.verdict for result in results] == [Verdict.PASS, Verdict.NO_VERDICT, Verdict.FAIL]
    assert results[0].timing["read"] > 0
    assert [result.verdict for result in segmenter.predict([tmp_path / "c.png", str(tmp_path / "a.png")])] == [
        Verdict.FAIL,
        Verdict.PASS,
    ]


def test_a_path_that_is_not_there_is_told_at_once(segmenter: Segmenter, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        segmenter.predict(tmp_path / "nothing.png", stream=True)


def test_every_stage_has_its_time(segmenter: Segmenter, make_part: Part) -> None:
    timing = segmenter.predict(make_part(400, 400))[0].timing
    assert list(timing) == ["read", "preprocess", "vision", "lmm", "decoder", "postprocess", "total"]
    assert timing["total"] == pytest.approx(sum(ms for stage, ms in timing.items() if stage != "total"))
    assert all(timing[stage] > 0 for stage in ("preprocess", "vision", "lmm", "decoder", "postprocess"))


def test_options_that_cannot_be_meant_are_refused(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="auto or off"):
        Segmenter.load(tiny_bundle, tiling="on")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="threads is 0"):
        Segmenter.load(tiny_bundle, threads=0)
    with pytest.raises(UsageError, match="threads is 1000000; 1 to 1024"):
        Segmenter.load(tiny_bundle, threads=1_000_000)


def test_a_changed_bundle_has_another_identity(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    manifest = copy / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"threshold": 0.5', '"threshold": 0.4'))
    assert Segmenter.load(copy, threads=1).bundle.identity != load_bundle(tiny_bundle).identity

"""A whole evaluation: right figures, bad input refused in words, nothing done twice, other libraries agree."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from agvas_core.contract.errors import ParityError, UsageError
from agvas_core.data.datasets.item import DataSet, Item
from agvas_core.data.datasets.layouts import find_test_sets
from agvas_core.evaluation.cross_check import compare
from agvas_core.evaluation.evaluate import Job, evaluate
from agvas_core.evaluation.page import by_kind, by_size, worst_and_best
from agvas_core.evaluation.predictor import Scored, pair_predictions, read_map
from agvas_core.evaluation.protocol import PROTOCOLS
from agvas_core.evaluation.result import CategoryResult, SetResult

SHAPE = (24, 32)
NATIVE = PROTOCOLS["native"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two categories in the MVTec layout: ``part`` with good and anomalous images, ``film`` with anomalous ones alone."""
    root = tmp_path / "data"
    chance = np.random.default_rng(0)
    for category, kind, count in (("part", "good", 3), ("part", "crack", 3), ("part", "hole", 2), ("film", "hole", 2)):
        for number in range(count):
            write(root / f"{category}/test/{kind}/{number}.png", chance.integers(0, 255, (*SHAPE, 3), dtype=np.uint8))
            if kind != "good":
                mask = np.zeros(SHAPE, np.uint8)
                mask[2 : 5 + number, 3:9] = 255
                mask[20, 30] = 255
                write(root / f"{category}/ground_truth/{kind}/{number}_mask.png", mask)
    return root


@pytest.fixture
def maps(data: Path, tmp_path: Path) -> Path:
    """A noisy map for each image, as .npy: higher on the truth, everything low on two of the three good images."""
    chance = np.random.default_rng(1)
    for item in find_test_sets(data)[0].items:
        scores = chance.random(SHAPE).astype(np.float32) * 0.45
        if item.mask_path is not None:
            scores += 0.4 * (cv2.imread(str(item.mask_path), cv2.IMREAD_GRAYSCALE) > 0)
        elif item.name.endswith("0.png"):
            scores[0, 0] = 0.9
        path = tmp_path / "maps" / Path(item.name).with_suffix(".npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.round(scores, 2))
    return tmp_path / "maps"


def write(path: Path, pixels: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def scored(data: Path, maps: Path, out: Path, **options: Any) -> SetResult:
    sets = find_test_sets(data)
    job = replace(Job(NATIVE, out), **options)
    return evaluate(sets, {one.name: pair_predictions(maps, one) for one in sets}, job)[0]


def category(result: SetResult, name: str) -> CategoryResult:
    return next(one for one in result.categories if one.name == name)


def test_figures_are_those_of_the_definitions(data: Path, maps: Path, tmp_path: Path) -> None:
    result = scored(data, maps, tmp_path / "out")
    part = category(result, "part")
    overlaps, empty = [], []
    for item in find_test_sets(data)[0].items:
        if item.category == "part":
            mask = np.load(maps / Path(item.name).with_suffix(".npy")) > 0.5
            if item.mask_path is None:
                empty.append(not mask.any())
            else:
                truth = cv2.imread(str(item.mask_path), cv2.IMREAD_GRAYSCALE) > 0
                overlaps.append((mask & truth).sum() / (mask | truth).sum())
    assert part.metrics["iou_ano"] == pytest.approx(np.mean(overlaps))
    assert part.metrics["iou_nor"] == pytest.approx(2 / 3) == np.mean(empty)
    assert len(part.records) == 8 and part.anomalous == 5
    assert result.mean["ap"] == pytest.approx(np.mean([one.metrics["ap"] for one in result.categories]))


def test_a_category_without_good_images_has_no_iou_nor_and_does_not_lower_the_mean(
    data: Path, maps: Path, tmp_path: Path
) -> None:
    result = scored(data, maps, tmp_path / "out")
    film = category(result, "film")
    assert film.metrics["iou_nor"] is None and film.metrics["image_auroc"] is None
    assert result.mean["iou_nor"] == category(result, "part").metrics["iou_nor"]


def test_other_libraries_and_little_memory_and_two_processes_agree(data: Path, maps: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    one = scored(data, maps, tmp_path / "one")
    two = scored(data, maps, tmp_path / "two", jobs=2, chunk=50)
    checked = scored(data, maps, tmp_path / "three", cross_check=True)
    for a, b, c in zip(one.categories, two.categories, checked.categories, strict=True):
        for key, value in a.metrics.items():
            assert value == pytest.approx(b.metrics[key], abs=1e-12) == pytest.approx(c.metrics[key], abs=1e-12)
    names = set(category(checked, "part").checks)
    keys = ("ap", "f1_max", "auroc", "aupro", "iou_ano", "iou_nor", "image_auroc")
    assert {f"{key} scikit-learn" for key in keys} <= names
    assert "iou_nor scikit-learn" not in category(checked, "film").checks


def test_a_difference_is_not_let_pass() -> None:
    compare("part", {"ap": 0.5}, {"ap scikit-learn": 0.5 + 5e-7})
    for ours, theirs in ((0.5, 0.50001), (None, 0.5), (0.5, float("nan"))):
        with pytest.raises(ParityError, match="AP of part"):
            compare("part", {"ap": ours}, {"ap scikit-learn": theirs})


class Interrupted:
    """Maps from files that stop coming after a number of them, as if the process were killed; counts what was read."""

    def __init__(self, folder: Path, data: DataSet, most: int = 1000) -> None:
        self.files = pair_predictions(folder, data)
        self.most = most
        self.reads: list[str] = []
        self.identity = "interrupted"

    def fingerprint(self, item: Item) -> str:
        return self.files.fingerprint(item)

    def read(self, item: Item) -> tuple[NDArray[np.float32], None]:
        if len(self.reads) == self.most:
            raise KeyboardInterrupt
        self.reads.append(item.name)
        return self.files.read(item)


@pytest.mark.parametrize("killed_after", [1, 2, 5, 9])
def test_a_killed_evaluation_goes_on_where_it_was(killed_after: int, data: Path, maps: Path, tmp_path: Path) -> None:
    whole = scored(data, maps, tmp_path / "whole")
    one = find_test_sets(data)[0]
    job = Job(NATIVE, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        evaluate([one], {one.name: Interrupted(maps, one, killed_after)}, job)
    rest = Interrupted(maps, one)
    again = evaluate([one], {one.name: rest}, job)[0]
    assert len(rest.reads) == len(one.items) - killed_after
    assert [part.metrics for part in again.categories] == [part.metrics for part in whole.categories]
    nothing = Interrupted(maps, one)
    assert evaluate([one], {one.name: nothing}, job)[0] == again and nothing.reads == []
    assert not list((tmp_path / "out").rglob("*.npy"))  # scores are not kept longer than needed


def test_what_changed_is_scored_anew(data: Path, maps: Path, tmp_path: Path) -> None:
    one = find_test_sets(data)[0]
    job = Job(NATIVE, tmp_path / "out")
    before = evaluate([one], {one.name: Interrupted(maps, one)}, job)[0]
    changed = maps / "part/test/crack/1.npy"
    np.save(changed, 1 - np.load(changed))
    source = Interrupted(maps, one)
    after = evaluate([one], {one.name: source}, job)[0]
    # The others of the category are read again, for their pixels are needed; the other category is not.
    assert sorted(set(source.reads)) == sorted(item.name for item in one.items if item.category == "part")
    assert category(after, "part").metrics != category(before, "part").metrics
    assert category(after, "film") == category(before, "film")


def test_maps_of_every_accepted_kind_say_the_same(data: Path, maps: Path, tmp_path: Path) -> None:
    # No score lies near .505: at .5 the rounding to 16 bits would decide.
    wanted = [one.metrics for one in scored(data, maps, tmp_path / "npy", threshold=0.505).categories]
    writers: dict[str, Callable[[Path, NDArray[np.float32]], None]] = {
        "float64": lambda path, scores: np.save(path, scores.astype(np.float64)[None]),
        "tiff": lambda path, scores: write(path.with_suffix(".tiff"), scores),
        "png": lambda path, scores: write(path.with_suffix(".png"), np.round(scores * 65535).astype(np.uint16)),
    }
    for name, save in writers.items():
        for path in maps.rglob("*.npy"):
            target = tmp_path / name / path.relative_to(maps)
            target.parent.mkdir(parents=True, exist_ok=True)
            save(target, np.load(path))
        found = [one.metrics for one in scored(data, tmp_path / name, tmp_path / f"out-{name}", threshold=0.505).categories]
        assert found == [{key: pytest.approx(value) for key, value in one.items()} for one in wanted], name


@pytest.mark.parametrize("dtype", [np.uint8, bool, np.int64])
def test_maps_without_fine_steps_are_refused(dtype: type, tmp_path: Path) -> None:
    np.save(tmp_path / "map.npy", np.zeros(SHAPE, dtype))
    with pytest.raises(UsageError, match=np.dtype(dtype).name):
        read_map(tmp_path / "map.npy")


def test_8_bit_pictures_are_refused_whatever_else_is_wrong(data: Path, maps: Path, tmp_path: Path) -> None:
    (maps / "part/test/good/1.npy").unlink()
    write(maps / "part/test/good/1.png", np.zeros(SHAPE, np.uint8))
    with pytest.raises(UsageError, match="8 bits"):
        scored(data, maps, tmp_path / "out", skip_unusable=True)


def test_missing_maps_are_all_named(data: Path, maps: Path, tmp_path: Path) -> None:
    (maps / "part/test/good/1.npy").unlink()
    (maps / "film/test/hole/0.npy").unlink()
    with pytest.raises(UsageError) as error:
        scored(data, maps, tmp_path / "out")
    assert "2 of the 10 images" in str(error.value)
    assert "part/test/good/1" in str(error.value) and "film/test/hole/0" in str(error.value)


def test_two_maps_for_one_image_are_refused(data: Path, maps: Path, tmp_path: Path) -> None:
    write(maps / "part/test/good/1.tiff", np.zeros(SHAPE, np.float32))
    with pytest.raises(UsageError, match="has two maps"):
        scored(data, maps, tmp_path / "out")


def test_maps_may_lie_in_a_folder_named_after_the_set(data: Path, maps: Path, tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    maps.rename(tmp_path / "all" / "data")
    assert scored(data, tmp_path / "all", tmp_path / "out").images == 10


def test_maps_with_nan_are_named_or_left_out_on_request(data: Path, maps: Path, tmp_path: Path) -> None:
    scores = np.load(maps / "part/test/hole/0.npy")
    scores[3, 3] = np.nan
    np.save(maps / "part/test/hole/0.npy", scores)
    with pytest.raises(UsageError, match=r"1 of the 10 images.*(\n.*)*hole/0.npy holds 1 values that are NaN"):
        scored(data, maps, tmp_path / "out")
    part = category(scored(data, maps, tmp_path / "out", skip_unusable=True), "part")
    assert len(part.records) == 7 and [item.name for item in part.left_out] == ["part/test/hole/0.png"]


def test_masks_that_are_missing_empty_or_of_another_size_are_named_before_anything_is_scored(
    data: Path, maps: Path, tmp_path: Path
) -> None:
    (data / "part/ground_truth/crack/0_mask.png").unlink()
    write(data / "part/ground_truth/crack/1_mask.png", np.zeros(SHAPE, np.uint8))
    write(data / "film/ground_truth/hole/0_mask.png", np.full((5, 5), 255, np.uint8))
    one = find_test_sets(data)[0]
    source = Interrupted(maps, one)
    with pytest.raises(UsageError) as error:
        evaluate([one], {one.name: source}, Job(NATIVE, tmp_path / "out"))
    said = str(error.value)
    assert "3 of the 10 images" in said and "--skip-unusable" in said and source.reads == []
    assert "has no mask" in said and "is empty" in said and "its mask 0_mask.png 5x5" in said
    left = evaluate([one], {one.name: source}, Job(NATIVE, tmp_path / "out", skip_unusable=True))[0]
    assert left.images == 7 and sum(len(part.left_out) for part in left.categories) == 3


def test_a_folder_without_masks_is_refused(data: Path, maps: Path, tmp_path: Path) -> None:
    for path in data.rglob("*_mask.png"):
        path.unlink()
    with pytest.raises(UsageError, match="7 of the 10 images"):
        scored(data, maps, tmp_path / "out")


def test_scores_on_another_scale_give_no_iou_until_a_threshold_is_named(data: Path, maps: Path, tmp_path: Path) -> None:
    wanted = scored(data, maps, tmp_path / "out")
    for path in maps.rglob("*.npy"):
        np.save(path, np.load(path) * 40 - 3)
    found = scored(data, maps, tmp_path / "out")
    assert found.mean["iou_ano"] is None and found.mean["iou_nor"] is None
    assert found.mean["ap"] == pytest.approx(wanted.mean["ap"])
    named = scored(data, maps, tmp_path / "out", threshold=17.0)
    assert named.mean["iou_ano"] == pytest.approx(wanted.mean["iou_ano"])


def test_a_model_s_own_mask_counts_unless_the_protocol_says_otherwise(data: Path, maps: Path, tmp_path: Path) -> None:
    one = find_test_sets(data)[0]

    class Cautious(Interrupted):
        def read(self, item: Item) -> Any:
            scores = super().read(item).score_map
            return Scored(scores, np.zeros(scores.shape, bool))

    own = evaluate([one], {one.name: Cautious(maps, one)}, Job(NATIVE, tmp_path / "out"))[0]
    assert own.mean["iou_ano"] == 0 and own.mean["iou_nor"] == 1
    fixed = evaluate([one], {one.name: Cautious(maps, one)}, Job(PROTOCOLS["paper"], tmp_path / "out"))[0]
    assert fixed.mean["iou_ano"] == scored(data, maps, tmp_path / "plain").mean["iou_ano"]


def test_protocols_resize_and_smooth_as_they_say(tmp_path: Path) -> None:
    scores = np.zeros((40, 60), np.float32)
    scores[20, 30] = 1
    truth = scores > 0
    for protocol in PROTOCOLS.values():
        at = protocol.truth(truth)
        shown = protocol.score_map(scores, at.shape)
        side = protocol.size_px
        assert shown.shape == at.shape == ((side, side) if side else truth.shape)
        assert protocol.to_dict()["name"] == protocol.name and protocol.mask(shown, truth, 0.5).shape == at.shape
    smoothed = replace(NATIVE, sigma_px=2.0).score_map(scores, scores.shape)
    rows, columns = np.ogrid[:40, :60]
    bell = np.exp(-((rows - 20) ** 2 + (columns - 30) ** 2) / 8)
    assert np.allclose(smoothed, bell / bell.sum(), atol=1e-4)


def test_failures_are_counted_by_kind_and_by_size(data: Path, maps: Path, tmp_path: Path) -> None:
    part = category(scored(data, maps, tmp_path / "out"), "part")
    kinds = {row.specie: row for row in by_kind(part.records)}
    assert list(kinds) == ["crack", "hole", "good"]
    assert (kinds["good"].images, kinds["good"].missed, kinds["good"].iou) == (3, 1, None)
    assert sum(row.regions for row in by_size(part.records)) == 10  # each defect is a block and a single pixel
    assert all(row.found <= row.regions for row in by_size(part.records))
    worst, best = worst_and_best(part.records, 2)
    ious = sorted(record.iou for record in part.records if record.iou is not None)
    assert [record.iou for record in best] == ious[::-1][:2] and not {record.name for record in worst} & {r.name for r in best}


def test_a_record_is_plain_json(data: Path, maps: Path, tmp_path: Path) -> None:
    result = scored(data, maps, tmp_path / "out")
    text = json.dumps([one.to_dict() for one in result.categories], allow_nan=False)
    assert "part/test/crack/0.png" in text and str(tmp_path) not in text

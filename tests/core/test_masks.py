"""Masks as people and programs write them, and score maps that must not be taken."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from agvas_core.contract.errors import ImageError, UsageError
from agvas_core.data.datasets.anomalies import MVTEC, REVIEWED
from agvas_core.data.datasets.item import examine, read_truth
from agvas_core.data.datasets.layouts import find_test_sets
from agvas_core.evaluation.predictor import check_upright, read_map
from agvas_core.files import read_mask

SHAPE = (64, 96)


@pytest.fixture
def truth() -> NDArray[np.bool_]:
    """[64, 96]: a disc."""
    return cv2.circle(np.zeros(SHAPE, np.uint8), (40, 30), 12, 1, -1) > 0


def saved(path: Path, pixels: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


def test_a_jpeg_mask_is_cut_at_half_with_a_note(truth: NDArray[np.bool_], tmp_path: Path) -> None:
    mask = read_mask(saved(tmp_path / "m.jpg", truth * np.uint8(255)), "m")
    assert (mask.pixels != truth).sum() < 20
    assert len(mask.notes) == 1 and "JPEG" in mask.notes[0]
    with pytest.raises(ImageError, match="highest value"):
        read_mask(saved(tmp_path / "dark.jpg", truth * np.uint8(3)), "m")


def test_soft_edges_are_cut_at_half_with_a_note(truth: NDArray[np.bool_], tmp_path: Path) -> None:
    soft = cv2.GaussianBlur(truth * np.uint8(255), (0, 0), 2)
    for name, pixels in (("m.png", soft), ("m.tiff", soft.astype(np.uint16) * 257)):
        mask = read_mask(saved(tmp_path / name, pixels), "m")
        assert abs(int(mask.pixels.sum()) - int(truth.sum())) < 30
        assert len(mask.notes) == 1 and "soft" in mask.notes[0]


@pytest.mark.parametrize("values", [(1,), (1, 2, 3), (255,), (128, 255), tuple(range(1, 13))])
def test_numbered_kinds_are_all_anomalous(values: tuple[int, ...], truth: NDArray[np.bool_], tmp_path: Path) -> None:
    kinds = np.zeros(SHAPE, np.uint8)
    kinds[truth] = np.resize(np.array(values, np.uint8), int(truth.sum()))
    mask = read_mask(saved(tmp_path / "m.png", kinds), "m")
    np.testing.assert_array_equal(mask.pixels, truth)
    assert mask.notes == ()


@pytest.mark.parametrize(
    ("colours", "noted"),
    [
        ([(0, 0, 0), (128, 0, 0)], False),  # VOC
        ([(255, 255, 255), (0, 0, 0)], None),  # by colour: index 1 is black, so normal
        ([(0, 0, 0), (0, 0, 0)], True),  # a palette that nobody filled
        ([(0, 0, 255), (255, 0, 0)], True),  # no black: index 0 is normal
    ],
)
def test_palette_masks(colours: list[tuple[int, int, int]], noted: bool | None, truth: NDArray[np.bool_], tmp_path: Path) -> None:
    image = Image.fromarray(truth.astype(np.uint8)).convert("P")
    image.putdata(truth.astype(np.uint8).ravel().tolist())
    image.putpalette([value for colour in colours for value in colour])
    image.save(tmp_path / "m.png")
    mask = read_mask(tmp_path / "m.png", "m")
    np.testing.assert_array_equal(mask.pixels, ~truth if noted is None else truth)
    if noted is not None:
        assert any("palette" in note for note in mask.notes) == noted


def test_a_mask_of_nearly_everything_is_warned_of(truth: NDArray[np.bool_], tmp_path: Path) -> None:
    mask = read_mask(saved(tmp_path / "m.png", np.where(truth, np.uint8(0), np.uint8(255))), "m")
    assert any("inverted" in note for note in mask.notes)
    np.testing.assert_array_equal(mask.pixels, ~truth)


def test_a_tiff_mask_with_white_as_zero(truth: NDArray[np.bool_], tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "m.tif", np.where(truth, 0, 255).astype(np.uint8), photometric="miniswhite")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.tif", "m").pixels, truth)


def test_loco_masks_of_one_image_are_joined(truth: NDArray[np.bool_], tmp_path: Path) -> None:
    other = np.zeros(SHAPE, bool)
    other[50:60, 70:90] = True
    part = tmp_path / "part"
    saved(part / "test/good/000.png", np.zeros(SHAPE, np.uint8))
    saved(part / "test/cut/000.png", np.zeros(SHAPE, np.uint8))
    saved(part / "ground_truth/cut/000/000.png", truth * np.uint8(255))
    saved(part / "ground_truth/cut/000/001.png", other * np.uint8(255))
    (item,) = (item for item in find_test_sets(tmp_path)[0].items if item.anomalous)
    np.testing.assert_array_equal(read_truth(item), truth | other)
    (record,) = (record for record in MVTEC.records(tmp_path) if record.anomalous)
    assert record.mask is not None
    np.testing.assert_array_equal(record.mask.read(SHAPE), truth | other)


def test_a_reviewed_picture_whose_mask_marks_nothing_is_good(truth: NDArray[np.bool_], tmp_path: Path) -> None:
    lines = []
    for name, mask in (("a", truth), ("b", np.zeros(SHAPE, bool))):
        saved(tmp_path / "images" / f"{name}.png", np.full(SHAPE, 90, np.uint8))
        saved(tmp_path / "masks" / f"{name}.png", mask * np.uint8(255))
        lines.append({"image": f"images/{name}.png", "mask": f"masks/{name}.png", "good": False, "kind": "scratch"})
    (tmp_path / "review.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [item.anomalous for item in find_test_sets(tmp_path)[0].items] == [True, False]
    assert [(record.anomalous, record.mask is None) for record in REVIEWED.records(tmp_path)] == [(True, False), (False, True)]
    (tmp_path / "review.jsonl").unlink()
    assert [record.anomalous for record in REVIEWED.records(tmp_path)] == [True, False]


def test_a_truth_that_is_noted_reaches_its_reader(truth: NDArray[np.bool_], tmp_path: Path) -> None:
    saved(tmp_path / "part/test/good/000.png", np.zeros(SHAPE, np.uint8))
    saved(tmp_path / "part/test/cut/000.png", np.zeros(SHAPE, np.uint8))
    saved(tmp_path / "part/ground_truth/cut/000_mask.jpg", truth * np.uint8(255))
    found = [examine(item) for item in find_test_sets(tmp_path)[0].items]
    assert [one.reason for one in found] == [None, None] and sum(len(one.notes) for one in found) == 1


# Score maps


def test_a_transposed_map_is_refused() -> None:
    check_upright((64, 96), SHAPE, "a")
    check_upright((32, 48), SHAPE, "a")
    check_upright((64, 64), SHAPE, "a")  # a square map was resized
    for shape in ((96, 64), (48, 32)):
        with pytest.raises(ImageError, match="transposed"):
            check_upright(shape, SHAPE, "a")


def test_a_map_of_several_pages_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "m.tiff", np.zeros((3, *SHAPE), np.float32), photometric="minisblack", metadata=None)
    with pytest.raises(ImageError, match="3 pages"):
        read_map(tmp_path / "m.tiff")
    tifffile.imwrite(tmp_path / "one.tiff", np.full(SHAPE, 0.25, np.float32), photometric="minisblack", metadata=None)
    assert read_map(tmp_path / "one.tiff").tolist() == np.full(SHAPE, 0.25).tolist()


@pytest.mark.parametrize("dtype", ["uint8", "int8", "bool", "int16", "int32", "int64", "uint32"])
def test_maps_of_whole_numbers_are_named_as_they_are(dtype: str, tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.zeros(SHAPE, dtype))
    with pytest.raises(UsageError, match=dtype) as error:
        read_map(tmp_path / "m.npy")
    assert ("8 bits" in str(error.value)) == (dtype in ("uint8", "int8"))

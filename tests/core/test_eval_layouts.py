"""Each published layout, made on the spot, is recognised and gives its test images with the right masks."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from agvas_core.contract.errors import ImageError, UsageError
from agvas_core.data.datasets.item import DataSet, Item, examine, read_truth
from agvas_core.data.datasets.layouts import find_test_sets, limited
from agvas_core.files import IMAGE_SUFFIXES

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """``write("a/b.png", value)``: a picture of 8 x 6 px with one block of that value; black elsewhere."""

    def picture(name: str, value: int = 0, *, shape: tuple[int, int] = (6, 8), rest: int = 0) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full(shape, rest, np.uint8)
        pixels[1:3, 2:5] = value
        assert cv2.imwrite(str(path), pixels)
        return path

    return picture


def the_set(root: Path, layout: str) -> DataSet:
    """The one set of a folder, which is the same with what file managers and archivers leave in it."""
    found = find_test_sets(root)
    assert [one.layout for one in found] == [layout]
    some = next(path for path in sorted(root.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES)
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        for name in (".DS_Store", "Thumbs.db", "desktop.ini", f"._{some.name}"):
            (folder / name).write_bytes(b"\0no picture")
    (root / "__MACOSX" / "test" / "good").mkdir(parents=True, exist_ok=True)
    assert [(one.layout, told(one)) for one in find_test_sets(root)] == [(layout, told(found[0]))]
    return found[0]


def good_of(root: Path) -> list[tuple[str, str]]:
    """Name and category of the training half's images of the one set of a folder."""
    assert not find_test_sets(root)[0].train  # only where they are asked for
    (data,) = find_test_sets(root, train=True)
    assert not any(item.anomalous for item in data.train)
    return [(item.name, item.category) for item in data.train]


def told(data: DataSet) -> set[tuple[str, str, str, bool, str | None]]:
    """Name, category, kind, anomalous, name of the mask."""
    return {(i.name, i.category, i.specie, i.anomalous, i.mask_path.name if i.mask_path else None) for i in data.items}


def test_mvtec(tmp_path: Path, write: Write) -> None:
    write("bottle/train/good/000.png")
    write("bottle/test/good/000.png")
    write("bottle/test/broken/000.png")
    write("bottle/ground_truth/broken/000_mask.png", 255)
    write("license/read.png")
    data = the_set(tmp_path, "mvtec")
    assert told(data) == {
        ("bottle/test/good/000.png", "bottle", "good", False, None),
        ("bottle/test/broken/000.png", "bottle", "broken", True, "000_mask.png"),
    }
    assert [int(read_truth(item).sum()) for item in data.items] == [6, 0]
    assert good_of(tmp_path) == [("bottle/train/good/000.png", "bottle")]
    assert told(find_test_sets(tmp_path / "bottle")[0]) == {
        ("test/good/000.png", "bottle", "good", False, None),
        ("test/broken/000.png", "bottle", "broken", True, "000_mask.png"),
    }


def test_visa_numbers_kinds_from_one_and_has_a_split(tmp_path: Path, write: Write) -> None:
    for name in ("0000", "0001"):
        write(f"candle/Data/Images/Normal/{name}.JPG")
    write("candle/Data/Images/Anomaly/000.JPG")
    write("candle/Data/Masks/Anomaly/000.png", 3)
    everything = the_set(tmp_path, "visa")
    assert len(everything.items) == 3
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv" / "1cls.csv").write_text(
        "object,split,label,image,mask\n"
        "candle,train,normal,candle/Data/Images/Normal/0000.JPG,\n"
        "candle,test,normal,candle/Data/Images/Normal/0001.JPG,\n"
        "candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png\n"
    )
    data = the_set(tmp_path, "visa")
    assert told(data) == {
        ("candle/Data/Images/Normal/0001.JPG", "candle", "good", False, None),
        ("candle/Data/Images/Anomaly/000.JPG", "candle", "anomaly", True, "000.png"),
    }
    assert good_of(tmp_path) == [("candle/Data/Images/Normal/0000.JPG", "candle")]
    assert int(read_truth(data.items[0]).sum()) == 6


def test_btad(tmp_path: Path, write: Write) -> None:
    write("01/train/ok/0000.bmp")
    write("01/test/ok/0001.bmp")
    write("01/test/ko/0000.bmp")
    write("01/ground_truth/ko/0000.png", 255)
    write("03/test/ko/0000.bmp")
    write("03/ground_truth/ko/0000.bmp", 255)
    assert told(the_set(tmp_path, "btad")) == {
        ("01/test/ok/0001.bmp", "01", "good", False, None),
        ("01/test/ko/0000.bmp", "01", "ko", True, "0000.png"),
        ("03/test/ko/0000.bmp", "03", "ko", True, "0000.bmp"),
    }
    assert good_of(tmp_path) == [("01/train/ok/0000.bmp", "01")]


def test_ksdd2_is_good_where_the_mask_is_black(tmp_path: Path, write: Write) -> None:
    write("train/10000.png")
    write("train/10000_GT.png")
    write("test/20000.png")
    write("test/20000_GT.png")
    write("test/20001.png")
    write("test/20001_GT.png", 255)
    assert told(the_set(tmp_path, "ksdd2")) == {
        ("test/20000.png", "surface", "good", False, None),
        ("test/20001.png", "surface", "defect", True, "20001_GT.png"),
    }
    write("train/10001.png")
    write("train/10001_GT.png", 255)
    assert good_of(tmp_path) == [("train/10000.png", "surface")]
    write("test/20002.png")
    with pytest.raises(UsageError, match="has no 20002_GT"):
        find_test_sets(tmp_path)


def test_rsdd_cuts_the_noise_of_jpeg_masks(tmp_path: Path, write: Write) -> None:
    for kind in ("Type-I", "Type-II"):
        write(f"{kind} RSDDs dataset/Rail surface images/rail_1.jpg")
        write(f"{kind} RSDDs dataset/GroundTruth/rail_1.jpg", 255, shape=(32, 48), rest=9)
    data = the_set(tmp_path, "rsdd")
    assert [item.category for item in data.items] == ["type-i", "type-ii"]
    assert "its mask rail_1.jpg 48x32" in (examine(data.items[0]).reason or "")
    for item in data.items:
        cv2.imwrite(str(item.image_path), np.zeros((32, 48), np.uint8))
        assert 0 < read_truth(item).sum() < 20


@pytest.mark.parametrize(
    ("pictures", "masks", "suffix"),
    [
        ("ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth", "_Segmentation"),
        ("ISIC-2017_Test_v2_Data", "ISIC-2017_Test_v2_Part1_GroundTruth", "_segmentation"),
        ("ISIC2018_Task1-2_Test_Input", "ISIC2018_Task1_Test_GroundTruth", "_segmentation"),
    ],
)
def test_isic(pictures: str, masks: str, suffix: str, tmp_path: Path, write: Write) -> None:
    write(f"{pictures}/ISIC_0012086.jpg")
    write(f"{pictures}/ISIC_0012086_superpixels.png")
    write(f"{masks}/ISIC_0012086{suffix}.png", 255)
    write("ISIC-2017_Test_v2_Part2_GroundTruth/ISIC_0012086_features.png")
    write("ISIC2018_Task3_Test_Input/ISIC_0034524.jpg")
    name = f"{pictures}/ISIC_0012086.jpg"
    assert told(the_set(tmp_path, "isic")) == {(name, "skin", "lesion", True, f"ISIC_0012086{suffix}.png")}


@pytest.mark.parametrize(
    ("picture", "mask"),
    [
        ("Original/1.tif", "Ground Truth/1.tif"),
        ("PNG/Original/1.png", "PNG/Ground Truth/1.png"),
        ("images/1.png", "masks/1.png"),
        ("CVC-ColonDB/1.bmp", "CVC-ColonDB/p1.bmp"),
    ],
)
def test_cvc(picture: str, mask: str, tmp_path: Path, write: Write) -> None:
    write(picture)
    write(mask, 250, rest=3)
    data = the_set(tmp_path, "cvc")
    assert told(data) == {(picture, "colon", "polyp", True, Path(mask).name)}
    assert int(read_truth(data.items[0]).sum()) == 6


def test_a_list_comes_before_what_the_folders_look_like(tmp_path: Path, write: Write) -> None:
    write("tile/test/good/0.png")
    write("tile/test/crack/1.png")
    write("tile/ground_truth/crack/1_mask.png", 255)
    good = {"img_path": "tile/test/good/0.png", "category": "tile", "specie": "good", "anomaly": 0}
    bad = {"img_path": "tile/test/crack/1.png", "category": "tile", "specie": "crack", "anomaly": 1}
    bad["mask_path"] = "tile/ground_truth/crack/1_mask.png"
    (tmp_path / "meta_mine.json").write_text(json.dumps([good, bad]))
    data = the_set(tmp_path, "meta")
    assert data.name == "mine" and len(data.items) == 2
    assert [one.layout for one in find_test_sets(tmp_path, layout="mvtec")] == ["mvtec"]
    (tmp_path / "meta_mine.json").write_text(json.dumps([good, good]))
    with pytest.raises(UsageError, match="2 times"):
        find_test_sets(tmp_path)
    (tmp_path / "meta_mine.json").write_text(json.dumps([{"img_path": "a.png", "category": "b"}]))
    with pytest.raises(UsageError, match="lacks anomaly"):
        find_test_sets(tmp_path)


def test_the_lists_of_other_zero_shot_code_are_read_too(tmp_path: Path, write: Write) -> None:
    write("mvtec/bottle/test/broken/0.png")
    write("mvtec/bottle/ground_truth/broken/0_mask.png", 255)
    entry = {"img_path": "bottle/test/broken/0.png", "mask_path": "bottle/ground_truth/broken/0_mask.png", "cls_name": "bottle"}
    good = {"img_path": "bottle/train/good/1.png", "mask_path": "", "cls_name": "bottle", "specie_name": "", "anomaly": 0}
    listed = {"train": {"bottle": [good]}, "test": {"bottle": [{**entry, "specie_name": "broken", "anomaly": 1}]}}
    (tmp_path / "meta_mvtec.json").write_text(json.dumps(listed))
    data = the_set(tmp_path, "meta")
    assert told(data) == {("bottle/test/broken/0.png", "bottle", "broken", True, "0_mask.png")}
    assert read_truth(data.items[0]).any()
    assert good_of(tmp_path) == [("bottle/train/good/1.png", "bottle")]


def test_the_authors_lists_are_read_as_they_are_published(tmp_path: Path, write: Write) -> None:
    """One folder of lists beside the sets; a half without images is one entry with an empty path; most sets are not there."""
    stem = "RSDD/Metal15/test/anomaly/RSDD_I-metal-defect-000001_0000000000"
    entry = {"cls_name": "Metal15", "dataset_name": "RSDD"}
    bad = {
        **entry,
        "img_path": f"{stem}.png",
        "mask_path": stem.replace("test", "ground_truth") + ".png",
        "specie_name": "anomaly",
        "anomaly": 1,
    }
    good = {**entry, "img_path": "RSDD/Metal15/test/good/0.png", "mask_path": "", "specie_name": "good", "anomaly": 0}
    empty = {"img_path": "", "mask_path": "", "cls_name": "Metal15", "specie_name": "good", "dataset_name": "", "anomaly": 0}
    listed = {"train": {"Metal15": [empty]}, "test": {"Metal15": [bad, good]}}
    write(bad["img_path"])
    write(bad["mask_path"], 255)
    write(good["img_path"])
    (tmp_path / "meta_RSDD.json").write_text(json.dumps(listed))
    (tmp_path / "meta_KSDD2.json").write_text(json.dumps(listed).replace("RSDD/", "KSDD2/"))
    data = the_set(tmp_path, "meta")
    assert data.name == "RSDD" and [item.anomalous for item in data.items] == [True, False]
    assert good_of(tmp_path) == []
    assert find_test_sets(tmp_path, only="KSDD2")[0].name == "KSDD2"  # asked for by name: its images are missed later, by name


def test_a_folder_of_sets_gives_them_all_and_one_by_name(tmp_path: Path, write: Write) -> None:
    for name in ("one", "two"):
        write(f"{name}/part/test/crack/0.png")
        write(f"{name}/part/ground_truth/crack/0_mask.png", 255)
    assert [one.name for one in find_test_sets(tmp_path)] == ["one", "two"]
    assert [one.name for one in find_test_sets(tmp_path, only="two")] == ["two"]
    with pytest.raises(UsageError, match="has one, two"):
        find_test_sets(tmp_path, only="three")


def test_what_is_no_set_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none of the layouts"):
        find_test_sets(tmp_path)
    with pytest.raises(UsageError, match="is not there"):
        find_test_sets(tmp_path / "no")
    with pytest.raises(UsageError, match="--layout is 'mvtce'"):
        find_test_sets(tmp_path, layout="mvtce")


def test_names_that_pair_twice_are_refused(tmp_path: Path, write: Write) -> None:
    write("part/test/crack/0.png")
    write("part/ground_truth/crack/0_mask.png", 255)
    write("part/ground_truth/crack/0.png", 255)
    with pytest.raises(UsageError, match="has two masks"):
        find_test_sets(tmp_path)
    (tmp_path / "part/ground_truth/crack/0.png").unlink()
    write("part/test/crack/0.jpg")
    with pytest.raises(UsageError, match="have one name"):
        find_test_sets(tmp_path)


def test_a_limit_is_the_same_choice_every_time_and_takes_every_kind(tmp_path: Path) -> None:
    kinds = [("good", False), ("crack", True)]
    items = tuple(
        Item(tmp_path / f"{kind}{n}.png", None, "part", kind, bad, f"{kind}{n}.png") for kind, bad in kinds for n in range(30)
    )
    data = DataSet("s", "mvtec", tmp_path, items)
    names = [item.name for item in limited(data, 4, 0).items]
    assert names == [item.name for item in limited(DataSet("s", "mvtec", tmp_path, items[::-1]), 4, 0).items][::-1]
    assert sum(name.startswith("good") for name in names) == sum(name.startswith("crack") for name in names) == 4
    assert names != [item.name for item in limited(data, 4, 1).items]
    assert len(limited(data, 100, 0).items) == 60


def test_truth_that_cannot_be_used_says_why(tmp_path: Path, write: Write) -> None:
    picture = write("a.png")
    item = Item(picture, None, "part", "crack", True, "a.png")
    assert examine(item).reason == "a.png is anomalous (crack) and has no mask"
    black = Item(picture, write("black.png"), "part", "crack", True, "a.png")
    with pytest.raises(ImageError, match="is empty"):
        read_truth(black)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert "broken.png" in str(examine(Item(tmp_path / "broken.png", None, "part", "good", False, "broken.png")).reason)
    assert "missing" in str(examine(Item(tmp_path / "gone.png", None, "part", "good", False, "gone.png")).reason)


REAL = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.skipif(not REAL.is_dir(), reason="the photographs of ../shared/data are not on this machine")
def test_the_photographs_are_found_by_their_lists_and_by_their_folders_alike() -> None:
    sets = {one.name: one for one in find_test_sets(REAL)}
    assert {name: len(one.items) for name, one in sets.items()} == {
        "magtile": 688, "road": 118, "ksdd1": 150, "neu": 420, "mvtec": 83, "mpdd": 67, "isic": 600,
    }  # fmt: skip
    assert sum(item.anomalous for item in sets["magtile"].items) == 388
    for one in find_test_sets(REAL, layout="mvtec"):
        assert told(one) == told(sets[one.name]), one.name


def test_opacity_is_no_anomaly(tmp_path: Path, write: Write) -> None:
    mask = np.zeros((6, 8, 4), np.uint8)
    mask[..., 3] = 255
    mask[0, 0, :3] = 255
    cv2.imwrite(str(tmp_path / "m.png"), mask)
    item = Item(write("a.png"), tmp_path / "m.png", "part", "crack", True, "a.png")
    assert int(read_truth(item).sum()) == 1

"""Keeping test images out of training: the sets that results are published on, known by name, and any folder of them, by content.

    known = test_set_of(record, root)                  # "MVTec-AD", or None
    same = shared_images(records, known_images(Path("test-sets")))

MVTec-AD's files are called 000.png everywhere, so a category that was renamed is told from other parts by its content alone: name the
test images (``[mixture] test_data``), and every training image is compared with them. ``agvas data hashes`` keeps what that needs in one
file, for machines that do not have the test images.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from agvas_core.contract.errors import UsageError
from agvas_core.contract.validation import StrictModel
from agvas_core.data.datasets.layouts import find_test_sets
from agvas_core.data.datasets.record import Family, Record

__all__ = ["TEST_SETS", "KnownImage", "TestHashes", "TestSet", "known_images", "shared_images", "test_set_of"]


@dataclass(frozen=True)
class TestSet:
    """A set that zero-shot results are published on, and how its images are recognised."""

    __test__ = False  # no test case of pytest

    name: str
    folders: frozenset[str]
    """Names that its folder has, small letters and digits only."""
    categories: frozenset[str] = frozenset()
    """Names of its categories, small letters."""
    files: re.Pattern[str] | None = None
    """What its file names look like, where that says something: in the authors' lists, and as published."""


def _test_set(name: str, folders: str, categories: str = "", files: str = "") -> TestSet:
    pattern = re.compile(files, re.IGNORECASE) if files else None
    return TestSet(name, frozenset(folders.split()), frozenset(categories.split()), pattern)


# The six of the paper (B.1), then others that `agvas eval` has a layout for. File names: the published lists of Bayes-PFL
# (dataset/mvisa/data/meta_*.json), whose protocol the paper follows.
TEST_SETS: Final[tuple[TestSet, ...]] = (
    _test_set(
        "MVTec-AD",
        "mvtec mvtecad mvtecanomalydetection",
        "bottle cable capsule carpet grid hazelnut leather metal_nut pill screw tile toothbrush transistor wood zipper",
        r"^mvtec_",
    ),
    _test_set("KSDD2", "ksdd2 kolektorsdd2", "metal metal13", r"^KSDD2-metal-|^\d{5}_GT$"),
    _test_set("RSDD", "rsdd rsdds", "metal15", r"^RSDD_I+-metal-"),
    _test_set("ISIC", "isic isic2016 isic2017 isic2018", "skin", r"^(ISIC_defect_)?ISIC_\d{7}"),
    _test_set("ColonDB", "colondb cvccolondb", "colon", r"^ColonDB_defect_"),
    _test_set("ClinicDB", "clinicdb cvcclinicdb", "colon", r"^ClinicDB_defect_"),
    _test_set(
        "VisA",
        "visa visa20220922",
        "candle capsules cashew chewinggum fryum macaroni1 macaroni2 pcb1 pcb2 pcb3 pcb4 pipe_fryum",
        r"^visa_",
    ),
    _test_set("MPDD", "mpdd", "bracket_black bracket_brown bracket_white connector metal_plate tubes"),
    _test_set("BTAD", "btad btech btechdatasettransformed"),
)
_OWN_CATEGORIES: Final = ("realiad", "zjuleaper", "gc10", "road")
"""Training sets whose own categories are called as some of a test set are: Real-IAD has a toothbrush and a zipper too."""


_FOLDERS: Final = 4  # above an image: SET/CATEGORY/test/KIND


def test_set_of(record: Record, root: Path) -> str | None:
    """The name of the test set that a training record belongs to, by the names of its folders, category and file; None for none.

    Args:
        root: folder of the set that lists it, or the list itself.
    """
    if record.anomalous is None:  # general and conversation: no set of these is tested on
        return None
    plain = _folder_names(record.image.parent) | {_plain(root.absolute().name), _plain(root.stem.removeprefix("meta_"))}
    if record.family is Family.INSTRUCT:  # its images lie elsewhere, and the line says of which set they are
        plain |= {_plain(record.dataset)}
    for one in TEST_SETS:
        if plain & one.folders or (one.files is not None and one.files.search(record.image.stem)):
            return one.name
    if any(name in _plain(record.dataset) for name in _OWN_CATEGORIES) or record.dataset == "review":
        return None  # a reviewed part is called as its line calls it: "screw" is a screw of the station's own
    category = record.category.lower()
    return next((one.name for one in TEST_SETS if category in one.categories), None)


test_set_of.__test__ = False  # type: ignore[attr-defined]


@dataclass(frozen=True)
class KnownImage:
    """A test image. Where its file was never seen, as in a list without its images, ``size`` and ``sha256`` are None."""

    name: str
    """Of its set, ``/``, and its path in it."""
    size: int | None = None
    """Of the file, in bytes."""
    sha256: str | None = None
    """Hexadecimal; None too where ``path`` is there to be read."""
    path: Path | None = None

    def digest(self) -> str | None:
        """SHA-256 of its bytes; reads the file where that is not known."""
        return _digest(self.path) if self.sha256 is None and self.path is not None else self.sha256


class TestHashes(StrictModel):
    """What ``agvas data hashes`` writes: one row for each image, name, size in bytes and SHA-256."""

    __test__ = False  # no test case of pytest

    test_images: tuple[tuple[str, int | None, str | None], ...]

    @classmethod
    def of(cls, images: Iterable[KnownImage]) -> "TestHashes":
        """Reads all files that are there."""
        return cls(test_images=tuple((image.name, image.size, image.digest()) for image in images))


def known_images(tests: Path) -> list[KnownImage]:
    """The test images of a folder, as ``agvas eval --data`` takes it, or of a file that ``agvas data hashes`` wrote.

    Raises:
        UsageError: it is neither.
    """
    if tests.is_file():
        try:
            rows = TestHashes.model_validate_json(tests.read_bytes()).test_images
        except OSError as error:
            raise UsageError(f"{tests} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            why = error.errors()[0]["msg"]
            raise UsageError(f"{tests} is no file of agvas data hashes ({why}): write it again, or name a folder") from error
        return [KnownImage(name, size, sha256) for name, size, sha256 in rows]
    found = []
    for data in find_test_sets(tests):
        for item in data.items:
            there = item.image_path.is_file()
            size = item.image_path.stat().st_size if there else None
            found.append(KnownImage(f"{data.name}/{item.name}", size, path=item.image_path if there else None))
    return found


def shared_images(records: Iterable[Record], tests: Sequence[KnownImage]) -> Mapping[Path, str]:
    """The training images that are test images, by path, with the test image's set and name.

    An image is one where its bytes are the same; where only the test image's name is known, where its file has that name, unless it is a
    number, which says nothing. Only files of equal size are read, so the check costs a look at the folder.
    """
    by_size: dict[int, list[KnownImage]] = defaultdict(list)
    by_name: dict[str, str] = {}
    for test in tests:
        stem = Path(test.name).stem
        if test.size is not None:
            by_size[test.size].append(test)
        elif not stem.isdigit():
            by_name[stem.lower()] = test.name
    digests: dict[int, dict[str | None, str]] = {}
    found: dict[Path, str] = {}
    for path in dict.fromkeys(record.image for record in records):
        if (named := by_name.get(path.stem.lower())) is not None:
            found[path] = named
            continue
        size = path.stat().st_size if path.is_file() else -1
        if size not in by_size:
            continue
        if size not in digests:
            digests[size] = {test.digest(): test.name for test in by_size[size]}
        if (name := digests[size].get(_digest(path))) is not None:
            found[path] = name
    return found


@lru_cache(maxsize=4096)  # a folder has many images, and resolving it asks the file system for each of its parents
def _folder_names(folder: Path) -> frozenset[str]:
    whole = folder.resolve()
    return frozenset(_plain(path.name) for path in (whole, *whole.parents)[:_FOLDERS])


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Score maps of another program: files paired with images by name.

    DIR/[SET/]bottle/test/broken/000.npy     for the image bottle/test/broken/000.png of the set

float npy or tiff as they are, 16-bit png or tiff as value / 65535. Maps of 8 bits are refused: their 256 steps tie most pixels,
which changes every ranking metric.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError, UsageError
from agvas_core.contract.images.decode import check_header, decode_samples
from agvas_core.contract.manifest import sha256_of
from agvas_core.data.datasets.item import DataSet, Item
from agvas_core.evaluation.predictor import Scored

__all__ = ["MapFiles", "check_upright", "pair_predictions", "read_map"]

SUFFIXES = (".npy", ".tif", ".tiff", ".png")
LISTED = 10
ASPECT_LEAST = 0.1  # log of the ratio of sides: an image with a tenth more width than height can be told from its transpose
ASPECT_MOST = 0.03


@dataclass(frozen=True)
class MapFiles:
    """Maps of one set as files; satisfies ``predictor.MapSource``."""

    folder: Path
    paths: dict[str, Path] = field(repr=False)
    """Name of the item -> file."""

    @property
    def identity(self) -> str:
        """What the result calls it."""
        return f"predictions in {self.folder.name}"

    def fingerprint(self, item: Item) -> str:
        """Changes whenever the map does."""
        return sha256_of(self.paths[item.name])

    def read(self, item: Item) -> Scored:
        """Map [h, w]; there is no mask of its own."""
        return Scored(read_map(self.paths[item.name]), None)


def pair_predictions(folder: Path, data: DataSet) -> MapFiles:
    """Finds the map of every image of a set, below ``folder``/SET where that exists.

    Raises:
        UsageError: no such folder, maps are missing, or one image has two.
    """
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is {'a file' if folder.exists() else 'not there'}; --predictions takes a folder of score maps"
        )
    root = folder / data.name if (folder / data.name).is_dir() else folder
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            by_stem[path.relative_to(root).with_suffix("").as_posix()].append(path)
    paths: dict[str, Path] = {}
    missing = []
    of_stem: dict[str, str] = {}
    for item in data.items:
        stem = PurePosixPath(item.name).with_suffix("").as_posix()
        if stem in of_stem:
            raise UsageError(f"{of_stem[stem]} and {item.name} pair with the same map {stem}: rename one of the images")
        of_stem[stem] = item.name
        found = by_stem.get(stem, [])
        if len(found) > 1:
            raise UsageError(f"{item.name} has two maps, {found[0]} and {found[1].name}: remove one")
        if found:
            paths[item.name] = found[0]
        else:
            missing.append(stem)
    if missing:
        listed = "".join(f"\n  {stem}" for stem in missing[:LISTED])
        more = f"\n  and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
        raise UsageError(
            f"{root} lacks the maps of {len(missing)} of the {len(data.items)} images of {data.name}; an image NAME.png needs "
            f"NAME.npy, .tiff or .png at the same place below it:{listed}{more}"
        )
    return MapFiles(folder, paths)


def read_map(path: Path) -> NDArray[np.float32]:
    """One score map, float32 [h, w].

    Raises:
        UsageError: it has 8 bits or other whole numbers; that will not be otherwise in the next file, so nothing more is read.
        ImageError: it cannot be read, is not of two dimensions or of one page, or holds values that are not finite.
    """
    raw = _raw(path).squeeze()
    if raw.ndim != 2:
        raise ImageError(f"{path} has shape {raw.shape}; a score map has two dimensions, height and width: save one map a file")
    if raw.dtype == np.uint16:
        return np.asarray(raw / 65535.0, np.float32)
    if raw.dtype.kind != "f":
        raise UsageError(
            f"{path} holds {raw.dtype}, {_why_not(raw.dtype)}: save the scores as float npy or tiff, or as 16-bit png"
        )
    scores = raw.astype(np.float32)
    if not np.isfinite(scores).all():
        raise ImageError(f"{path} holds {np.count_nonzero(~np.isfinite(scores))} values that are NaN or infinite")
    return scores


def _why_not(dtype: np.dtype[Any]) -> str:
    if dtype == np.bool_:
        return "which is a mask and ranks nothing"
    if dtype.itemsize == 1:
        return "8 bits, whose 256 steps tie most pixels, which changes every ranking metric"
    if dtype.kind in "iu":
        return f"whole numbers of {dtype.itemsize * 8} bits, whose full scale is unknown"
    return "which are no scores"


def check_upright(shape: tuple[int, ...], size: tuple[int, int], name: str) -> None:
    """Raises ImageError where a map of ``shape`` [h, w] has width and height of its image, ``size`` (H, W), in each other's place.

    A map may be smaller than its image; it is then resized. One that was transposed would be resized as well, and score as noise.
    """
    (h, w), (height, width) = shape[:2], size
    as_image, turned = (h * width) / (w * height), (h * height) / (w * width)
    if abs(np.log(as_image)) > ASPECT_LEAST and abs(np.log(turned)) < ASPECT_MOST:
        raise ImageError(f"{name} is {width}x{height} px and its map {w}x{h}: the map is transposed; save it as [height, width]")


def _raw(path: Path) -> NDArray[Any]:
    if path.suffix.lower() != ".npy":
        data = path.read_bytes() if path.is_file() else b""
        try:
            header = check_header(data)
            if header.pages > 1:
                raise ImageError(f"has {header.pages} pages; a score map has one: save one map a file")
            return np.asarray(decode_samples(data, header).pixels)
        except ImageError as error:
            raise ImageError(f"{path} {error}") from error
    try:
        # No pickle: a file of maps may come from anybody.
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise ImageError(f"{path} cannot be read ({str(error).strip()})") from error

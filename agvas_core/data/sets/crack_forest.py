"""Road cracks: CrackForest-dataset, the paper's "Road".

image/001.jpg, groundTruth/001.mat (struct groundTruth with Segmentation, 2 for crack); where groundTruthPng/001.png or
groundTruthPngImg/001.png lies beside them, as most who use the set write it, it is read instead. Every image has a crack. The layout was
read from public code that loads the set.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agvas_core.data.sets.adapter import Adapter, first_folder
from agvas_core.data.sets.masks import FileMask
from agvas_core.data.sets.mat_file import CrackMat
from agvas_core.data.sets.record import Family, MaskSource, Record
from agvas_core.files.pairing import images, inside

__all__ = ["CRACK_FOREST"]

_PNG_FOLDERS: Final = ("groundTruthPng", "groundTruthPngImg")


def _crack_forest_records(root: Path) -> Iterator[Record]:
    png = first_folder(root, *_PNG_FOLDERS)
    folder = png or root / "groundTruth"
    truths: dict[str, MaskSource] = (
        {path.stem: FileMask(path) for path in images(folder)}
        if png
        else {path.stem: CrackMat(path) for path in folder.glob("*.mat")}
    )
    pictures = {path.stem: path for path in images(root / "image")}
    for stem in sorted(pictures.keys() | truths.keys()):
        picture = pictures.get(stem, root / "image" / f"{stem}.jpg")
        yield Record("road", Family.ANOMALY, picture, inside(root, picture), "train", "road", True, "crack", truths.get(stem))


CRACK_FOREST: Final = Adapter(
    "road",
    Family.ANOMALY,
    "image/*.jpg, groundTruth/*.mat",
    lambda root: (root / "image").is_dir() and first_folder(root, "groundTruth", *_PNG_FOLDERS) is not None,
    _crack_forest_records,
    published_images=118,
)

"""One image: its map against its truth, as a small record and a run of sorted scores, kept so that a killed evaluation goes on."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.durable import write_whole
from agvas_core.contract.errors import ImageError
from agvas_core.contract.manifest import sha256_of
from agvas_core.evaluation.item import Item, read_truth
from agvas_core.evaluation.metrics import iou
from agvas_core.evaluation.outlines import outline
from agvas_core.evaluation.predictions import check_upright
from agvas_core.evaluation.predictor import MapSource
from agvas_core.evaluation.protocol import Protocol
from agvas_core.evaluation.runs import make_run, save_run

__all__ = ["ImageRecord", "ImageScorer", "Unusable"]

VERSION = 2  # of what is computed here; raise it when old records would be wrong


@dataclass(frozen=True)
class ImageRecord:
    """What one image contributes, but for its ranked pixels."""

    key: str
    """Hash of everything it depends on; also the name of its run."""
    name: str
    category: str
    specie: str
    anomalous: bool
    image_path: str
    size: tuple[int, int]
    """Height and width at the protocol's resolution."""
    truth_px: int
    mask_px: int
    iou: float | None
    """Eq. 12; None for a good image, and where the truth vanished at the protocol's resolution."""
    score: float
    """Highest value of the map."""
    lowest: float
    regions: list[tuple[int, bool]]
    """Of each connected region of the truth: its area in pixels, and whether the mask touches it."""
    truth_outline: str
    mask_outline: str
    """SVG paths in units of the longer side / 1000."""
    resized: bool
    """Whether the map came at another resolution than the truth."""
    iou_reference: float | None = None
    """scikit-learn's figure, for --cross-check."""


@dataclass(frozen=True)
class Unusable:
    """An image that cannot be scored, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class ImageScorer:
    """Scores items of one set; goes to other processes by pickling."""

    source: MapSource
    protocol: Protocol
    threshold: float
    folder: Path
    """Where records and runs are kept."""
    cross_check: bool = False

    def __call__(self, item: Item, *, again: bool = False) -> ImageRecord | Unusable:
        """The record of an item, from an earlier evaluation where nothing changed since.

        Args:
            again: score it even so; its run is gone.
        """
        try:
            key = self.key(item)
            path = self.folder / f"{key}.json"
            if not again and path.is_file():
                return _record(json.loads(path.read_text(encoding="utf-8")))
            record = self._score(item, key)
        except ImageError as error:
            return Unusable(item.name, str(error))
        write_whole(path, json.dumps(asdict(record)))  # last: where it is, the run is whole
        return record

    def key(self, item: Item) -> str:
        """Hash of the image, its mask, its map, and the way of comparing."""
        try:
            files = [sha256_of(path) for path in (item.image_path, *item.mask_paths)]
        except OSError as error:
            raise ImageError(f"{item.name}: {error.filename} cannot be read ({error.strerror})") from error
        facts = [VERSION, item.name, item.category, item.specie, item.anomalous, item.mask_level, files, self.protocol.to_dict()]
        facts += [self.source.fingerprint(item), self.threshold, self.cross_check]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]

    def _score(self, item: Item, key: str) -> ImageRecord:
        whole = read_truth(item)
        truth = self.protocol.truth(whole)
        raw, own = self.source.read(item)
        check_upright(raw.shape, (whole.shape[0], whole.shape[1]), item.name)
        score_map = self.protocol.score_map(raw, truth.shape)
        mask = self.protocol.mask(score_map, own, self.threshold)
        labels, area = _regions(truth)
        save_run(self.folder / key, make_run(score_map, truth, area[labels]))
        union = int(np.count_nonzero(truth | mask))
        reached = set(np.unique(labels[mask & truth]).tolist())
        height, width = truth.shape
        return ImageRecord(
            key=key,
            name=item.name,
            category=item.category,
            specie=item.specie,
            anomalous=item.anomalous,
            image_path=str(item.image_path),
            size=(height, width),
            truth_px=int(np.count_nonzero(truth)),
            mask_px=int(np.count_nonzero(mask)),
            iou=iou(int(np.count_nonzero(truth & mask)), union) if truth.any() else None,
            score=float(score_map.max()),
            lowest=float(score_map.min()),
            regions=[(int(area[label]), label in reached) for label in range(1, len(area))],
            truth_outline=outline(truth),
            mask_outline=outline(mask),
            resized=raw.shape != truth.shape,
            iou_reference=_reference(truth, mask) if self.cross_check and truth.any() else None,
        )


def _regions(truth: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.uint32]]:
    """Label of each pixel [H, W], 0 outside, and the area of each label. Pixels that touch at a corner belong together."""
    count, found = cv2.connectedComponents(truth.astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)
    labels = np.asarray(found, np.int32)
    return labels, np.bincount(labels.ravel(), minlength=count).astype(np.uint32)


def _reference(truth: NDArray[np.bool_], mask: NDArray[np.bool_]) -> float:
    from sklearn.metrics import jaccard_score  # only for --cross-check

    return float(jaccard_score(truth.ravel(), mask.ravel()))


def _record(raw: dict[str, Any]) -> ImageRecord:
    height, width = raw["size"]
    return ImageRecord(**{**raw, "size": (height, width), "regions": [(area, found) for area, found in raw["regions"]]})

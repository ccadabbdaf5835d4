"""One image: its map against its truth, as a small record and a run of sorted scores, kept so that a killed evaluation goes on."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.durable import write_whole
from agvas_core.contract.errors import ImageError, UnlikeError
from agvas_core.contract.manifest import sha256_of
from agvas_core.contract.prompts import ANCHORS_SHOWN
from agvas_core.data.datasets.item import Item, read_truth
from agvas_core.evaluation.metrics import FALSE_REJECTS, auroc, caught, iou, make_run, save_run
from agvas_core.evaluation.predictor import MapSource, check_upright
from agvas_core.evaluation.protocol import Protocol

__all__ = ["UNITS", "ImageRecord", "ImageScorer", "Unusable", "image_metrics", "image_scores", "outline"]


# The outline of a mask as an SVG path, small enough to keep one for every image.


UNITS = 1000  # the longer side of the image, in units of the path
MAX_CONTOURS = 60  # the longest ones; a mask of noise has thousands
STEP_UNITS = 2.0  # corners closer than this to the line are left out


def outline(mask: NDArray[np.bool_]) -> str:
    """``M1 2L3 4Z...`` for a mask bool [H, W]; empty for an empty one."""
    if not mask.any():
        return ""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    scale = UNITS / max(mask.shape)
    parts = []
    for contour in sorted(contours, key=len, reverse=True)[:MAX_CONTOURS]:
        points = (contour.reshape(-1, 2).astype(np.float32) + 0.5) * scale
        if len(points) > 3:
            points = np.asarray(cv2.approxPolyDP(points, STEP_UNITS, True), np.float32).reshape(-1, 2)
        parts.append("M" + "L".join(f"{x:.0f} {y:.0f}" for x, y in points) + "Z")
    return "".join(parts)


VERSION = 2  # of what is computed here; raise it when old records would be wrong


@dataclass(frozen=True)
class ImageRecord:
    """What one image contributes, except its ranked pixels."""

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
    image_score: float | None = None
    """The model's own score of the image; None where that is the highest pixel."""
    answer: str | None = None
    """What the model said of it, where its answers are generated."""
    unlike: str | None = None
    """Why the model takes it for no image of its product. There is no map then: such an image counts as rejected, and no pixel of it
    counts."""

    @property
    def rank_score(self) -> float:
        """What ranks images, where there is a map."""
        return self.score if self.image_score is None else self.image_score

    @property
    def answered(self) -> bool | None:
        """Whether its generated answer has anchors; None where the answer was not generated. Without them the mask is empty."""
        return None if self.answer is None else ANCHORS_SHOWN in self.answer

    @property
    def flagged(self) -> bool:
        """Whether it does not pass: part of it is marked, or it has no verdict."""
        return self.mask_px > 0 or self.unlike is not None


@dataclass(frozen=True)
class Unusable:
    """An image that cannot be scored, and why."""

    name: str
    reason: str


def image_scores(records: Sequence[ImageRecord]) -> NDArray[np.float32]:
    """What ranks images; those that are unlike the product rank above all others, for they are never passed."""
    scores = np.array([record.rank_score for record in records], np.float32)
    unlike = np.array([record.unlike is not None for record in records], bool)
    if unlike.any():
        scores[unlike] = np.nextafter(scores[~unlike].max(initial=0.0), np.float32(np.inf))
    return scores


def image_metrics(records: Sequence[ImageRecord]) -> dict[str, float | None]:
    """The metrics that need no pixel: of images as wholes."""
    scores = image_scores(records)
    positive = np.array([record.anomalous for record in records], bool)
    return {"image_auroc": auroc(scores, positive)} | {
        key: caught(scores, positive, share) for key, share in FALSE_REJECTS.items()
    }


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
        except UnlikeError as error:
            record = self._unlike(item, key, str(error))
        except ImageError as error:
            return Unusable(item.name, str(error))
        write_whole(path, json.dumps(asdict(record)))  # last: where it is, the run is whole
        return record

    def is_known(self, item: Item) -> bool:
        """Whether an earlier evaluation has left this item's record."""
        try:
            return (self.folder / f"{self.key(item)}.json").is_file()
        except ImageError:
            return False

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
        raw, own, image_score, answer = self.source.read(item)
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
            image_score=image_score,
            answer=answer,
        )

    def _unlike(self, item: Item, key: str, why: str) -> ImageRecord:
        """An image without a map: its run is empty, so that pixels are ranked without it."""
        shape = self.protocol.truth(read_truth(item)).shape
        nothing = np.empty((0, 0), np.float32)
        save_run(self.folder / key, make_run(nothing, nothing.astype(bool), nothing.astype(np.uint32)))
        return ImageRecord(
            key=key,
            name=item.name,
            category=item.category,
            specie=item.specie,
            anomalous=item.anomalous,
            image_path=str(item.image_path),
            size=(int(shape[0]), int(shape[1])),
            truth_px=0,
            mask_px=0,
            iou=None,
            score=0.0,
            lowest=0.0,
            regions=[],
            truth_outline="",
            mask_outline="",
            resized=False,
            unlike=why,
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

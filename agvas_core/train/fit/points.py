"""Operating points after adaptation, set on reviewed images that were held out of it (``fit.calibrate``).

As after training from scratch (train/calibration.py), with real images in place of generated ones, and no shift of the bias: a person judged
these, and they are of the station where the model is to run.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from agvas_core.contract.decision import BALANCED, STRICT, Decision
from agvas_core.evaluation.item import DataSet, read_truth
from agvas_core.files.picture import read_rgb
from agvas_core.train.config import CalibrationConfig
from agvas_core.train.fit.predictor import TorchPredictor
from agvas_core.train.sweep import Scored, search, strict_seed

__all__ = ["points_on"]


def points_on(predictor: TorchPredictor, sets: Sequence[DataSet], iou_nor: float) -> Decision | None:
    """The points with the highest IoU_ano that leave ``iou_nor`` of the good images alone; None where there is no image of one of the two.

    The strict one, which has to leave more of them alone, counts the same few images: take it for what they are.
    """
    kept_px = CalibrationConfig().kept_px
    scored = []
    for item in (item for one in sets for item in one.items):
        score_map, accept = predictor.score(read_rgb(item.image_path, item.name))
        truth = read_truth(item)
        shrunk = min(1.0, kept_px / max(truth.shape))
        size = (round(truth.shape[1] * shrunk), round(truth.shape[0] * shrunk))
        small, share = (cv2.resize(each, size, interpolation=cv2.INTER_AREA) for each in (score_map, truth.astype(np.float32)))
        scored.append(Scored(np.asarray(small, np.float32), np.asarray(share > 0.4), accept))
    bad = sum(bool(image.truth.any()) for image in scored)
    if not 0 < bad < len(scored):
        return None
    balanced = search(scored, iou_nor).point
    strict = balanced.model_copy(
        update={"seed_threshold": strict_seed(scored, balanced, max(iou_nor, CalibrationConfig().strict_iou_nor))}
    )
    return Decision(alpha=predictor.config.decision.alpha, operating_points={BALANCED: balanced, STRICT: strict})

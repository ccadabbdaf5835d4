"""Calibration of a trained model: the bias of its maps and the two operating points, on generated images that training did not draw.

1. *Bias.* A positive weight w in BCE makes a pixel anomalous at odds of 1 to w, so that a threshold of 0.5 flags too much (log w in
   logits; Dice moves it again). One number corrects it: how far both maps' logits are lowered, chosen where IoU_ano times IoU_nor is highest,
   so that neither is traded away for the other. It becomes part of AGMD's bias, so that P > 0.5 is a meaningful threshold
   by itself; the ranking of pixels (AP) hardly changes.
2. *Balanced*: threshold, seed threshold, least area and gate of the highest IoU_ano that keep the asked IoU_nor.
3. *Strict*: the same outlines, with a seed threshold that good images alone set.

After adaptation to reviewed parts (:func:`points_on`) the held-out images of the data sets take the place of the generated ones, and the bias
stays: a person judged these, and they are of the station where the model is to run.

Generated images are whole frames of several sizes and aspects, seen as the runtime sees them: every scale, the same resizing (contract/preprocess.py),
the same rule (contract/decision.py). There, real photographs are never looked at.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from agvas_core.contract.decision import BALANCED, STRICT, Decision
from agvas_core.contract.errors import UsageError
from agvas_core.contract.preprocess import scaled_views
from agvas_core.contract.prompts import Anchor
from agvas_core.data.datasets.item import DataSet, read_truth
from agvas_core.data.synthetic.synthesis import synthesize
from agvas_core.evaluation.checkpoint import CheckpointPredictor, as_logits
from agvas_core.files import read_rgb
from agvas_core.model.agvas import AgVas
from agvas_core.model.config import ModelConfig
from agvas_core.model.fusion import anomaly_probability
from agvas_core.model.weights.checkpoint import TRAINING, WEIGHTS, Checkpoint, save_checkpoint
from agvas_core.train.config import CalibrationConfig, TrainConfig
from agvas_core.train.state import flat
from agvas_core.train.threshold_search import SEEDS, THRESHOLDS, Judged, Scored, judge, search, strict_seed

__all__ = [
    "Calibration",
    "FrameLogits",
    "calibrate",
    "calibrate_checkpoint",
    "decided",
    "lowered",
    "points_on",
    "summary",
]

Float = NDArray[np.float32]
Progress = Callable[[int, int], None]

SHIFTS = tuple(float(shift) for shift in np.arange(-3.0, 4.01, 0.5))
BIAS = "agmd.bias"  # what the shift moves
# Of a configuration: what weights do not depend on.
_FREE = ("scales", "tiling", "decision")
_FREE_OF_AREA = ("size_px", "max_aspect", "max_upscale")  # of a pixel view that has no one size


@dataclass(frozen=True)
class Calibration:
    """``shift``: what both maps' logits were lowered by. ``record``: the points, what they do on these images, and the curves."""

    shift: float
    decision: Decision
    record: dict[str, Any]

    def moved(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The model's weights with the shift in AGMD's bias."""
        return state if self.shift == 0 else state | {BIAS: lowered(state[BIAS].view(3, 1, 1), self.shift).view(3)}


@dataclass(frozen=True)
class FrameLogits:
    """One image as the model sees it: ``maps`` float16 [2, h, w], l_seg and l_ano - l_nor at frame size or less, averaged over scales."""

    maps: NDArray[np.float16]
    truth: NDArray[np.bool_]
    accept: float

    def scored(self, shift: float, alpha: float) -> Scored:
        """The score map with both maps lowered by ``shift``."""
        logits = as_logits(torch.from_numpy(self.maps.astype(np.float32)) - shift)
        return Scored(anomaly_probability(logits[None], alpha)[0].numpy(), self.truth, self.accept)


def calibrate(
    model: AgVas,
    config: ModelConfig,
    train: TrainConfig,
    tokenizer: Tokenizer,
    on: CalibrationConfig,
    progress: Progress = lambda done, total: None,
) -> Calibration:
    """Measures the model on ``on.images`` generated images; ``model`` is in evaluation mode and is not changed.

    Args:
        train: what the run drew from; its seed plus one gives the images.
        progress: called after each image with images seen and images in all.

    Raises:
        UsageError: a size that the runtime would cut into tiles.
    """
    predictor = CheckpointPredictor(model, config, tokenizer)
    images = list[FrameLogits]()
    for size in on.sizes:
        if config.tiling.excess(scaled_views(config.pixel_view, config.scales, *size)[0], *size) > 1:
            raise UsageError(
                f"calibration size {size[0]}x{size[1]} px would be cut into tiles (tiling.max_downscale {config.tiling.max_downscale:g}): "
                "calibrate on smaller frames"
            )
    cv2.setNumThreads(1)
    spec = train.synthesis.model_copy(update={"normal_fraction": on.normal_fraction})
    for index in range(on.images):
        sample = synthesize(train.seed + 1, index, on.sizes[index % len(on.sizes)], spec)  # another seed: another set
        height, width = sample.mask.shape
        shrunk = min(1.0, on.kept_px / max(height, width))
        size = (round(height * shrunk), round(width * shrunk))
        truth = cv2.resize(sample.mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA) > 0.4  # as in training
        maps, accept = predictor.logits(sample.image, size)
        images.append(FrameLogits(maps.astype(np.float16), truth, accept))
        progress(index + 1, on.images)
    bias = dict(model.named_parameters()).get(BIAS)
    # Ablations lack a bias, or one for each anchor: their operating points alone then say what P means.
    shifts = SHIFTS if bias is not None and len(bias) == len(Anchor) else (0.0,)
    return decided(images, config.decision, on, shifts)


def decided(
    images: Sequence[FrameLogits], start: Decision, on: CalibrationConfig, shifts: Sequence[float] = SHIFTS
) -> Calibration:
    """Shift and operating points from what the model saw; ``start`` has alpha, and the least area that the shift is chosen with."""
    plain = start.point().at(0.5)
    curve = [judge([image.scored(shift, start.alpha) for image in images], plain) for shift in shifts]
    shift = float(shifts[int(np.argmax([judged.iou_ano * judged.iou_nor for judged in curve]))])
    scored = [image.scored(shift, start.alpha) for image in images]
    balanced = search(scored, on.balanced_iou_nor)
    seed = strict_seed(scored, balanced.point, on.strict_iou_nor)
    strict = judge(scored, balanced.point.model_copy(update={"seed_threshold": seed}))
    decision = Decision(alpha=start.alpha, operating_points={BALANCED: balanced.point, STRICT: strict.point})
    record = {
        "config": on.model_dump(mode="json"),
        "good_images": sum(not image.truth.any() for image in images),
        "accept": {
            name: _mean(image.accept for image in images if image.truth.any() == bad)
            for name, bad in (("ano", True), ("nor", False))
        },
        "shift": shift,
        "shifts": [{"shift": at} | _figures(judged) for at, judged in zip(shifts, curve, strict=True)],
        BALANCED: _figures(balanced),
        STRICT: _figures(strict),
        "plain": [_figures(judge(scored, plain.at(at))) for at in THRESHOLDS],
        "seeds": [
            _figures(judge(scored, balanced.point.model_copy(update={"seed_threshold": at})))
            for at in SEEDS
            if at >= balanced.point.threshold
        ],
    }
    return Calibration(shift, decision, record)


def points_on(predictor: CheckpointPredictor, sets: Sequence[DataSet], on: CalibrationConfig) -> Decision | None:
    """The operating points on data sets: the balanced one has the highest IoU_ano that leaves ``on.balanced_iou_nor`` of the good images
    alone. None where there is no image of one of the two.

    The strict one, which has to leave more of them alone, counts the same few images: take it for what they are.
    """
    scored = []
    for item in (item for one in sets for item in one.items):
        score_map, accept = predictor.score(read_rgb(item.image_path, item.name))
        truth = read_truth(item)
        shrunk = min(1.0, on.kept_px / max(truth.shape))
        size = (round(truth.shape[1] * shrunk), round(truth.shape[0] * shrunk))
        small, share = (cv2.resize(each, size, interpolation=cv2.INTER_AREA) for each in (score_map, truth.astype(np.float32)))
        scored.append(Scored(np.asarray(small, np.float32), np.asarray(share > 0.4), accept))
    bad = sum(bool(image.truth.any()) for image in scored)
    if not 0 < bad < len(scored):
        return None
    balanced = search(scored, on.balanced_iou_nor).point
    seed = strict_seed(scored, balanced, max(on.balanced_iou_nor, on.strict_iou_nor))
    strict = balanced.model_copy(update={"seed_threshold": seed})
    return Decision(alpha=predictor.config.decision.alpha, operating_points={BALANCED: balanced, STRICT: strict})


def calibrate_checkpoint(source: Checkpoint, config: ModelConfig, train: TrainConfig, out: Path, progress: Progress) -> Path:
    """Calibrates a checkpoint again, without training; writes it to ``out``, which it returns.

    Args:
        config: gives the decision to start from, scales, tiling, and the size of a view that may have any; all else must be the checkpoint's.

    Raises:
        UsageError: no [train.calibration] table; a configuration of another model; ``out`` holds a checkpoint.
    """
    if train.calibration is None:
        raise UsageError("the preset has no [train.calibration] table: add one, or use --preset nano")
    if (out / WEIGHTS).exists():
        raise UsageError(f"{out} already holds a checkpoint: choose another --out")
    own, view = source.config, config.pixel_view
    if own.pixel_view.fit == view.fit == "area":
        own = own.model_copy(
            update={"pixel_view": own.pixel_view.model_copy(update={name: getattr(view, name) for name in _FREE_OF_AREA})}
        )
    chosen = own.model_copy(update={name: getattr(config, name) for name in _FREE})
    ours, asked = (flat(each.model_dump(mode="json", exclude={"trained"})) for each in (chosen, config))
    if differing := sorted(key for key in ours.keys() | asked.keys() if ours.get(key) != asked.get(key)):
        key = differing[0]
        raise UsageError(
            f"{source.folder} has {key} = {ours.get(key)}, the preset has {asked.get(key)}: give the preset that it was trained with"
        )
    found = calibrate(source.model, chosen, train, source.tokenizer, train.calibration, progress)
    save_checkpoint(
        out,
        found.moved(source.model.state_dict()),
        chosen.model_copy(update={"decision": found.decision}),
        source.tokenizer,
        source.training | {"calibration": found.record},
    )
    return out


def summary(folder: Path) -> list[str]:
    """What calibration found for the checkpoint in ``folder``, in lines for the terminal; none where it was not calibrated."""
    record = json.loads((folder / TRAINING).read_text(encoding="utf-8"))["calibration"]
    return (
        [
            f"{name + ':':12}threshold {found['threshold']:.3f}, seed {found['seed_threshold']:.3f}, least area {found['min_area_fraction']:g}, "
            f"gate {found['gate']:g}: IoU_ano {found['iou_ano']:.3f} at IoU_nor {found['iou_nor']:.3f} on generated images"
            for name, found in ((name, record[name]) for name in (BALANCED, STRICT))
        ]
        if record
        else []
    )


def lowered(logits: torch.Tensor, shift: float) -> torch.Tensor:
    """Mask logits [..., 3, H, W] with l_seg and l_ano - l_nor lowered by ``shift``."""
    moved = logits.clone()
    moved[..., Anchor.SEG, :, :] -= shift
    moved[..., Anchor.ANO, :, :] -= shift / 2
    moved[..., Anchor.NOR, :, :] += shift / 2
    return moved


def _figures(judged: Judged) -> dict[str, float]:
    return judged.point.model_dump() | {"iou_ano": round(judged.iou_ano, 4), "iou_nor": round(judged.iou_nor, 4)}


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return float(np.mean(found)) if found else None

"""Gentle training of the encoder of the reference distances, on generated parts.

    python -m agvas_core.train.encoder --out runs/encoder

It starts from the ImageNet weights. Each step takes generated parts, for each a good image and one with painted defects. The
defective image's cells are measured against the good image's: cells of a defect are pushed farther away than the good cells
of the same image are. Generated pictures alone would teach the encoder to forget the world, so only its last blocks learn, at
a small rate, and their features may not turn away from those of a frozen copy.

Batch norms are folded first: their statistics stay those of ImageNet.
"""

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
import typer
from pydantic import Field
from torch import Tensor

from agvas_core.contract.validation import StrictModel
from agvas_core.data.synthetic.products import KINDS_OF_PRODUCT, SyntheticProduct, Variation
from agvas_core.data.synthetic.sample import Sample
from agvas_core.data.synthetic.synthesis import HELD_OUT_FAMILIES, SynthesisSpec
from agvas_core.evaluation.metrics import Run, auroc, merge, rank
from agvas_core.model.encoders.efficientnet_lite import EfficientNetLite, imagenet_file, load_imagenet, load_trunk, save_trunk
from agvas_core.model.references import EncoderCells, ReferenceDistance

__all__ = ["EncoderTraining", "Quality", "held_out_quality", "train_encoder"]

LAST_BLOCK = 10
KEPT_EVERY = 50
HELD_OUT_SEED = 1_000_000_000  # no training draws from it
VARIATIONS = (Variation(), Variation(turn_deg=180.0, light=0.06), Variation(colour=0.1, grain=0.03), Variation(light=0.1))
"""How pictures of one part differ: lying still, lying as it falls, with varying colour, under varying light."""
TRAINED_ON = SynthesisSpec(held_out_families=HELD_OUT_FAMILIES)
JUDGED_BY = SynthesisSpec(families=HELD_OUT_FAMILIES)


class EncoderTraining(StrictModel):
    """Numbers of one training."""

    seed: int = 20261201
    steps: int = Field(300, ge=1)
    parts: int = Field(2, ge=1)
    """Generated parts in a step; each gives a good image and a defective one."""
    size_px: int = Field(224, ge=96)
    learning_rate: float = Field(1e-5, gt=0)
    first_block: int = Field(8, ge=6, le=LAST_BLOCK)
    """The blocks before it keep their weights."""
    margin: float = Field(0.25, ge=0)
    """By how much a defect's cells are to be farther away than the farthest tenth of the good ones."""
    keep: float = Field(20.0, ge=0)
    """Weight of the cosine distance to the frozen copy's features."""


class Quality(NamedTuple):
    """How well nearest-neighbour distances find painted defects."""

    pixel_ap: float
    """Of the deep distances, over all cells' pixels."""
    image_auroc: float
    """Of the mean over each image's farthest hundredth."""
    joint_pixel_ap: float
    joint_image_auroc: float


def train_encoder(
    config: EncoderTraining,
    *,
    start: EfficientNetLite | None = None,
    kept: Callable[[int, EfficientNetLite], None] = lambda step, trunk: None,
    log: Callable[[dict[str, Any]], None] = lambda record: None,
) -> EfficientNetLite:
    """The trained trunk, norms folded, in evaluation mode. The same seed gives the same weights on the same machine.

    Args:
        start: trunk with folded norms; ImageNet weights where None.
        kept: is given the trunk after every 50 steps.
        log: is given the losses of each step.

    Raises:
        SetupError: the ImageNet weights are not installed.
    """
    trunk = start or load_imagenet(imagenet_file(), last_block=LAST_BLOCK).fold_norms()
    trunk = copy.deepcopy(trunk)
    frozen = copy.deepcopy(trunk).requires_grad_(False)
    trunk.requires_grad_(False)
    learning = trunk.blocks[config.first_block :]
    learning.requires_grad_(True)
    model = ReferenceDistance(EncoderCells(trunk), pieces=1)
    optimizer = torch.optim.Adam(learning.parameters(), config.learning_rate)
    for step in range(config.steps):
        samples = [_pair(config, step * config.parts + part) for part in range(config.parts)]
        good, bad = (_images([pair[index] for pair in samples]) for index in (0, 1))
        share = _defect_shares([pair[1] for pair in samples], model.cells.stride)
        margin, turned = _losses(model, frozen, good, bad, share, config)
        loss = margin + config.keep * turned
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        log({"step": step + 1, "margin": margin.item(), "cosine": turned.item()})
        if (step + 1) % KEPT_EVERY == 0:
            kept(step + 1, trunk)
    return trunk.requires_grad_(False).eval()


def _pair(config: EncoderTraining, index: int) -> tuple[Sample, Sample]:
    """A good picture of a generated part and a defective one."""
    kind = KINDS_OF_PRODUCT[index % len(KINDS_OF_PRODUCT)]
    seed = config.seed + index
    product = SyntheticProduct(seed, kind, (config.size_px,) * 2, VARIATIONS[index % len(VARIATIONS)], TRAINED_ON)
    return product.good(0), product.bad(0)


def _losses(
    model: ReferenceDistance,
    frozen: EfficientNetLite,
    good: Tensor,
    bad: Tensor,
    share: Tensor,
    config: EncoderTraining,
) -> tuple[Tensor, Tensor]:
    """The margin of defects, and the cosine distance to the frozen features."""
    cells = model.cells
    assert isinstance(cells, EncoderCells)
    pixels = F.pad(cells.normalize(torch.cat([good, bad])), (cells.pad_px,) * 4, mode="reflect")
    with torch.no_grad():  # both trunks are the same up to here
        fine, shared = cells.trunk.features(pixels, (cells.blocks[0], config.first_block - 1))
        before = frozen.blocks[config.first_block :](shared)
    after = cells.trunk.blocks[config.first_block :](shared)
    embedding = cells.join([fine, after]).permute(0, 2, 3, 1)  # [2 P, h, w, C]
    kept = (1 - F.cosine_similarity(after, before, dim=1)).mean()
    margins = []
    for of_good, of_bad, part in zip(*embedding.chunk(2), share, strict=True):
        distance = torch.cdist(of_bad.flatten(0, 1), of_good.flatten(0, 1)).amin(1)  # [h w]
        inside, outside = part.flatten() > 0.3, part.flatten() == 0
        if not inside.any() or not outside.any():
            continue
        normal = distance[outside]
        farthest = normal.topk(max(1, len(normal) // 10)).values.mean()
        margins.append(F.relu(config.margin + farthest - distance[inside]).mean())
    return torch.stack(margins).mean() if margins else kept.new_zeros(()), kept


def held_out_quality(trunk: EfficientNetLite, *, parts: int = 16, good: int = 3, tests: int = 4) -> Quality:
    """Finds painted defects on generated parts whose families training never saw.

    Args:
        parts: generated; for each one ``good`` images make the bank, and ``tests`` good and as many defective ones are measured.
    """
    model = ReferenceDistance(EncoderCells(trunk)).eval()
    found: list[list[float]] = []
    with torch.no_grad():
        for index in range(parts):
            kind, variation = KINDS_OF_PRODUCT[index % 3], VARIATIONS[index % len(VARIATIONS)]
            product = SyntheticProduct(HELD_OUT_SEED + index, kind, (256, 256), variation, JUDGED_BY)
            samples = [product.good(number) for number in range(good + tests)]
            samples += [product.bad(number) for number in range(tests)]
            bank = model.embed(_images(samples[:good])).flatten(0, 2)[::3]
            maps = model(_images(samples[good:]), bank)
            truth = np.stack([sample.labels > 0 for sample in samples[good:]])
            anomalous = np.asarray(truth.any((1, 2)), np.bool_)
            row: list[float] = []
            for distance in (maps.deep, maps.joint):
                score = F.interpolate(distance[:, None], truth.shape[1:], mode="bilinear")[:, 0]
                flat = distance.flatten(1)
                image = flat.topk(max(1, flat.shape[1] // 100)).values.mean(1).numpy()
                row += [_pixel_ap(score.numpy(), truth), auroc(image, anomalous) or 0.0]
            found.append(row)
    return Quality(*np.mean(found, 0).tolist())


def _pixel_ap(score: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> float:
    good, bad = np.sort(score[~truth]), np.sort(score[truth])
    run = Run(good, bad, np.ones(len(bad), np.uint32))
    return rank(merge([run]), normal=len(good), anomalous=len(bad), regions=1).ap or 0.0


def _images(samples: list[Sample]) -> Tensor:
    """uint8 [B, H, W, 3]."""
    return torch.from_numpy(np.stack([sample.image for sample in samples]))


def _defect_shares(samples: list[Sample], stride: int) -> Tensor:
    """Share of each cell that a defect covers, [B, h, w]."""
    masks = torch.from_numpy(np.stack([sample.labels > 0 for sample in samples])).float()
    return F.avg_pool2d(masks[:, None], stride)[:, 0]


def main(
    out: Annotated[Path, typer.Option(help="Folder: trunk.safetensors, log.jsonl, quality.json.")],
    steps: Annotated[int, typer.Option(min=1)] = 300,
    seed: Annotated[int, typer.Option(min=0)] = 20261201,
    parts: Annotated[int, typer.Option(min=1, help="Generated parts that decide.")] = 16,
) -> None:
    """Trains the encoder gently, and says whether distances on held-out generated parts became better."""
    cv2.setNumThreads(1)
    config = EncoderTraining(steps=steps, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    start = load_imagenet(imagenet_file(), last_block=LAST_BLOCK).fold_norms()
    before = held_out_quality(start, parts=parts)
    typer.echo(f"ImageNet weights: {before}")
    began = time.monotonic()
    with (out / "log.jsonl").open("w", encoding="utf-8") as file:

        def log(record: dict[str, Any]) -> None:
            file.write(json.dumps(record | {"seconds": round(time.monotonic() - began, 1)}) + "\n")
            file.flush()

        trunk = train_encoder(
            config,
            start=start,
            kept=lambda step, trunk: save_trunk(trunk, out / f"trunk-{step}.safetensors"),
            log=log,
        )
    save_trunk(trunk, out / "trunk.safetensors")
    after = held_out_quality(load_trunk(out / "trunk.safetensors"), parts=parts)
    typer.echo(f"trained weights:  {after}")
    quality = {"config": config.model_dump(), "before": before._asdict(), "after": after._asdict()}
    (out / "quality.json").write_text(json.dumps(quality, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)

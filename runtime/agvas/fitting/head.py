"""A head that one product's painted defects train, and whether it is worth having. Needs torch; imported only where a head is asked for.

Two halves of the good images train a head each, with the copies of them that have painted defects. Each head scores the other half, so what
is known of it (its scale, its gain, the catch rates) comes of images that it was not trained on. The product has the mean of both.
Bad images with masks take part as painted ones do.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple

import cv2
import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from agvas.fitting.judging import Engine, Seen, Spoiled, trials_of
from agvas.fitting.operating_point import IMAGE_SHARE, map_scale
from agvas.fitting.pictures import Picture
from agvas.fitting.rules import average_precision, clear_gain
from agvas_core.contract.decision import mean_of_highest
from agvas_core.contract.errors import ImageError
from agvas_core.contract.manifest import TensorSpec
from agvas_core.contract.product import HeadTrial, Kind, head_spec
from agvas_core.evaluation.metrics import auroc
from agvas_core.model.references import ReferenceHead
from agvas_runtime.pipeline.references import GRID_PX, Scales, grids, head_input, head_map
from agvas_runtime.stages.protocol import HeadStage

__all__ = ["TRAINING_STEPS", "LearnedHead", "Masked", "head_graph", "is_better", "learn_head", "masked_images"]

Float = NDArray[np.float32]
Step = Callable[[int], None]

HALVES: Final = 2
STEPS: Final = 120
"""Of each half."""
TRAINING_STEPS: Final = HALVES * STEPS
BATCH: Final = 4
GOOD_SHARE: Final = 0.3
"""Of a batch, images without a defect."""
RATE, DECAY = 3e-3, 1e-2
DEFECT_WEIGHT: Final = 5.0
COVERED: Final = 0.3
"""Share of a cell that a defect covers, for the cell to be taught as one."""
RARITIES_VARY: Final = 0.15
MOST_GOOD: Final = 48
"""Good images whose cells are kept for training."""
EVERY: Final = 2
"""Every second row and column of the grid, where maps are compared."""
OPSET: Final = 17


class Masked(NamedTuple):
    """A bad image whose defects somebody drew."""

    number: int
    """Among the bad images; even ones are of the first half."""
    embedding: NDArray[np.float16]
    """[h, w, D]."""
    maps: dict[Kind, Float]
    truth: NDArray[np.bool_]
    """[H, W]."""


def masked_images(engine: Engine, pictures: Sequence[Picture], banks: Sequence[Float]) -> list[Masked]:
    """Those of the bad images that can be read and have a mask with a defect in it."""
    found = []
    for number, picture in enumerate(pictures):
        if picture.mask is None:
            continue
        try:
            image = picture.read()
            truth = picture.read_mask((image.shape[0], image.shape[1]))
            own, prepared = engine.look(picture.name, image)
        except ImageError:
            continue  # is said where the bad images are judged
        if truth is not None and truth.any():
            seen = engine.compare(prepared, banks[number % len(banks)])
            found.append(Masked(number, seen.embedding.astype(np.float16), grids(seen, own), truth))
    return found


@dataclass
class LearnedHead:
    """A head that gains."""

    scales: Scales
    """With that of its logits."""
    halves: Sequence[HeadStage]
    """One for each half of the images, trained on the other."""
    graph: bytes
    """ONNX, of the mean of both."""


@dataclass
class _Example:
    half: int
    embedding: NDArray[np.float16]
    rarities: Float
    truth: Tensor
    """[h, w], 0 or 1."""


class _Half:
    """``HeadStage`` of a module."""

    def __init__(self, module: ReferenceHead) -> None:
        self.module = module

    @torch.inference_mode()
    def __call__(self, embedding: Float, rarities: Float) -> Float:
        inputs = torch.from_numpy(embedding.astype(np.float32)), torch.from_numpy(rarities)
        return np.asarray(self.module(*inputs).numpy())


def learn_head(
    engine: Engine,
    judged: Sequence[Seen],
    usual: Sequence[int],
    spoiled: Sequence[Spoiled],
    masked: Sequence[Masked],
    scales: Scales,
    *,
    seed: int,
    threads: int | None,
    step: Step,
) -> tuple[LearnedHead | None, HeadTrial]:
    """Trains both halves, gives good and painted images their maps ``head``, and says what the head gains; None where that is too little.

    Args:
        usual: indices of the good images that look like the others; the rest is neither learned nor compared.
        threads: CPU threads; all cores where None.
    """
    painted = [each for each in spoiled if each.beside in set(usual)]
    examples = [
        *(_good_example(engine, judged[index], index, scales) for index in list(usual)[:MOST_GOOD]),
        *(_example(each.beside, each.embedding, each.maps, each.painted.labels > 0, scales) for each in painted),
        *(_example(each.number, each.embedding, each.maps, each.truth, scales) for each in masked),
    ]
    with _threads(threads):
        heads = []
        for half in range(HALVES):

            def told(done: int, past: int = half * STEPS) -> None:
                step(past + done)

            heads.append(_trained([each for each in examples if each.half != half], seed + half, told))
        halves = [_Half(head) for head in heads]
        for index, each in enumerate(judged):
            embedding = engine.cells.embed(each.prepared)
            each.maps["head"] = head_map(halves[index % HALVES], scales.rarities(each.maps), embedding).astype(np.float16)
        others = [(each.beside, each.maps, each.embedding) for each in painted]
        others += [(each.number, each.maps, each.embedding) for each in masked]
        for number, maps, cells in others:
            maps["head"] = head_map(halves[number % HALVES], scales.rarities(maps), cells.astype(np.float32))
    with_head = scales._replace(head=map_scale([judged[index].maps["head"].astype(np.float32) for index in usual]))
    trial = _compared(judged, usual, painted, masked, scales, with_head)
    if not trial.adopted:
        return None, trial
    return LearnedHead(with_head, halves, head_graph(ReferenceHead.joined(heads))), trial


def _good_example(engine: Engine, each: Seen, index: int, scales: Scales) -> _Example:
    nothing = np.zeros((GRID_PX, GRID_PX), bool)
    return _example(index, engine.cells.embed(each.prepared), each.maps, nothing, scales)


def _example(
    number: int,
    embedding: NDArray[np.floating],
    maps: "dict[Kind, NDArray[np.float16]] | dict[Kind, Float]",
    truth: NDArray[np.bool_],
    scales: Scales,
) -> _Example:
    height, width = embedding.shape[:2]
    shares = cv2.resize(truth.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    covered = shares > min(COVERED, float(shares.max()) / 2)  # an image whose defects are all small is no good one
    rarities = head_input(scales.rarities(maps), (height, width))
    return _Example(number % HALVES, embedding.astype(np.float16), rarities, torch.from_numpy(covered.astype(np.float32)))


def _trained(examples: Sequence[_Example], seed: int, step: Step) -> ReferenceHead:
    """One head, of the images of one half."""
    rng = np.random.default_rng(seed)
    good = [each for each in examples if not each.truth.any()]
    bad = [each for each in examples if each.truth.any()]
    cells = np.concatenate([each.embedding.reshape(-1, each.embedding.shape[-1]).astype(np.float32) for each in good])
    mean, deviation = torch.from_numpy(cells.mean(0)), torch.from_numpy(cells.std(0) + 1e-3)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        head = ReferenceHead(len(mean))
        torch.nn.init.constant_(head.logit.bias, -3.0)  # type: ignore[arg-type]
        optimizer = torch.optim.AdamW(head.parameters(), RATE, weight_decay=DECAY)
        rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS, pct_start=0.1)
        head.train()
        for number in range(STEPS):
            optimizer.zero_grad()
            for _ in range(BATCH):
                among = good if not bad or rng.random() < GOOD_SHARE else bad
                (_loss(head, among[rng.integers(len(among))], mean, deviation, rng) / BATCH).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            rates.step()
            step(number + 1)
    with torch.no_grad():  # the image's cells come as they are
        weight = head.cells.weight / deviation[None, :, None, None]
        assert head.cells.bias is not None
        head.cells.bias -= (weight[:, :, 0, 0] * mean).sum(1)
        head.cells.weight.copy_(weight)
    return head.eval()


def _loss(head: ReferenceHead, each: _Example, mean: Tensor, deviation: Tensor, rng: np.random.Generator) -> Tensor:
    cells = (torch.from_numpy(each.embedding.astype(np.float32)) - mean) / deviation
    rarities = torch.from_numpy(each.rarities) * torch.tensor(
        rng.uniform(1 - RARITIES_VARY, 1 + RARITIES_VARY), dtype=torch.float32
    )
    flipped = [axis for axis in (0, 1) if rng.random() < 0.5]
    truth = each.truth.flip(flipped)
    logit = head(cells.flip(flipped)[None], rarities.flip([axis + 1 for axis in flipped])[None])[0]
    weighted = F.binary_cross_entropy_with_logits(logit, truth, reduction="none") * (1 + (DEFECT_WEIGHT - 1) * truth)
    if not truth.any():
        return weighted.mean()
    chance = logit.sigmoid()
    overlap: Tensor = (2 * (chance * truth).sum() + 1) / (chance.sum() + truth.sum() + 1)
    return weighted.mean() + 1 - overlap


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    """As many for torch as for all else."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _compared(
    judged: Sequence[Seen],
    usual: Sequence[int],
    painted: Sequence[Spoiled],
    masked: Sequence[Masked],
    without: Scales,
    with_head: Scales,
) -> HeadTrial:
    """What the head gains on images that it was not trained on: a good image with its painted copies, or a bad image, is one value."""
    precision: list[list[float]] = []
    areas: list[float] = []
    for scales in (without, with_head):
        good = {index: scales.statistics(judged[index].maps).fused(IMAGE_SHARE) for index in usual}
        found = []
        for index in sorted({each.beside for each in painted}):
            copies = [each for each in painted if each.beside == index]
            maps = [good[index], *(scales.statistics(each.maps).fused(IMAGE_SHARE) for each in copies)]
            found.append(
                _precision(maps, [np.zeros((GRID_PX, GRID_PX), bool), *(_small(each.painted.labels > 0) for each in copies)])
            )
        raised = [mean_of_highest(trial.total, IMAGE_SHARE) for trial in trials_of(painted, judged, scales)[0]]
        for each in masked:
            total = scales.statistics(each.maps).fused(IMAGE_SHARE)
            found.append(_precision([total], [_small(each.truth)]))
            raised.append(mean_of_highest(total, IMAGE_SHARE))
        usual_scores = [mean_of_highest(total, IMAGE_SHARE) for total in good.values()]
        precision.append(found)
        areas.append(auroc(np.array(usual_scores + raised), np.array([False] * len(usual_scores) + [True] * len(raised))) or 0.0)
    gain = np.array(precision[1]) - np.array(precision[0])
    return HeadTrial(
        images=len(gain),
        ap=(math.fsum(precision[0]) / max(1, len(gain)), math.fsum(precision[1]) / max(1, len(gain))),
        error=float(gain.std(ddof=1)) / math.sqrt(len(gain)) if len(gain) > 1 else 0.0,
        auroc=(areas[0], areas[1]),
        adopted=is_better(gain, (areas[0], areas[1])),
    )


def is_better(gain: NDArray[np.float64], areas: tuple[float, float]) -> bool:
    """Whether a product is to have its head: gains in average precision [N] that are clear, and no loss in image AUROC."""
    return clear_gain(gain) and areas[1] >= areas[0]


def _precision(maps: Sequence[Float], truths: Sequence[NDArray[np.bool_]]) -> float:
    thin = (slice(None, None, EVERY), slice(None, None, EVERY))
    return average_precision(
        np.concatenate([each[thin].ravel() for each in maps]), np.concatenate([each[thin].ravel() for each in truths])
    )


def _small(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Cells of the grid of which a fifth or more is covered."""
    return np.asarray(cv2.resize(mask.astype(np.float32), (GRID_PX, GRID_PX), interpolation=cv2.INTER_AREA) > 0.2)


def head_graph(head: ReferenceHead) -> bytes:
    """The head as ONNX, its weights under the names of the module's."""
    weights = {name: value.detach().numpy() for name, value in head.state_dict().items()}
    spec = head_spec(weights["cells.weight"].shape[1])
    constants = {"edge": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "channel": np.array([1], np.int64)}

    def conv(name: str, given: str) -> onnx.NodeProto:
        groups = head.near.groups if name in ("near", "wider") else 1
        return helper.make_node("Conv", [given, f"{name}.weight", f"{name}.bias"], [f"{name}.out"], name=name, group=groups)

    nodes = [
        helper.make_node("Transpose", ["embedding"], ["planes"], perm=[0, 3, 1, 2]),
        conv("cells", "planes"),
        conv("rarities", "rarities"),
        helper.make_node("Add", ["cells.out", "rarities.out"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["first"]),
        helper.make_node("Pad", ["first", "edge"], ["first.wide"], mode="edge"),
        conv("near", "first.wide"),
        helper.make_node("Relu", ["near.out"], ["second"]),
        helper.make_node("Pad", ["second", "edge"], ["second.wide"], mode="edge"),
        conv("wider", "second.wide"),
        helper.make_node("Relu", ["wider.out"], ["third"]),
        conv("logit", "third"),
        helper.make_node("Squeeze", ["logit.out", "channel"], ["logit"]),
    ]

    def value(tensor: TensorSpec) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, list(tensor.shape))

    graph = helper.make_graph(
        nodes,
        "agvas_head",
        [value(each) for each in spec.inputs],
        [value(each) for each in spec.outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights | constants).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())

"""The graph ``references`` of a bundle: an image, or features of the vision graph, and a memory bank to distances.

A model whose pixel encoder has the trunk that ships with this package, unchanged, measures that trunk's features: they come out of the
vision graph, so that a frame is seen once. Nano, and a trunk that was trained further, get the shipped encoder in a graph of its own;
every other model measures its ``f_p``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor
from torch.export import Dim

from agvas_core.contract.errors import ParityError
from agvas_core.contract.manifest import TRUNK_STRIDES, ReferencesSpec, sha256_of
from agvas_core.contract.preprocess import ViewSpec
from agvas_core.data.synthetic.synthesis import synthesize
from agvas_core.model.agvas import AgVas
from agvas_core.model.config import ModelConfig
from agvas_core.model.encoders.efficientnet_lite import IMAGENET_MEAN, IMAGENET_STD, TRUNK, load_trunk
from agvas_core.model.encoders.lite_pyramid import LitePyramid
from agvas_core.model.references import EncoderCells, FeatureCells, ReferenceDistance
from agvas_export.graphs import export_stage
from agvas_export.reference import SEED
from agvas_export.stages import Axes, Axis, Stage

__all__ = ["NAME", "REFERENCE_VIEW", "ReferencesGraph", "export_references", "references_stage", "shares_trunk"]

NAME: Final = "references"
TOLERANCE: Final = 1e-4
"""Of embeddings and squared distances, whose sizes are about 1."""

REFERENCE_VIEW: Final = ViewSpec(fit="area", size_px=384, multiple_px=32, mean=IMAGENET_MEAN, std=IMAGENET_STD)


@dataclass(frozen=True)
class ReferencesGraph:
    """What was exported."""

    spec: ReferencesSpec
    provenance: dict[str, Any]
    """Where the weights come from, and the largest error against torch."""


def shares_trunk(model: AgVas) -> bool:
    """Whether the pixel encoder's trunk is the shipped one to the bit, so that its features can be the references'.

    Raises:
        SetupError: the shipped encoder is missing.
    """
    encoder = model.pixel_encoder.backbone
    if not isinstance(encoder, LitePyramid):
        return False
    shipped, own = load_trunk().state_dict(), encoder.trunk.state_dict()
    return shipped.keys() == own.keys() and all(torch.equal(own[name].cpu(), value) for name, value in shipped.items())


def export_references(config: ModelConfig, vision: Stage, folder: Path) -> ReferencesGraph:
    """Writes ``references.onnx`` into ``folder`` and compares it with the module.

    Args:
        vision: the stage of the vision graph. Where it gives the features of its trunk, these are compared.

    Raises:
        ParityError: the graph does not give the module's answer.
        SetupError: the shipped encoder is missing.
    """
    names = [name for name in TRUNK_STRIDES if name in vision.outputs]
    if not names and config.pixel.kind == "lite":
        data, spec, provenance = _with_encoder(TRUNK, sha256_of(TRUNK) if TRUNK.is_file() else "")
        (folder / spec.file).write_bytes(data)
        return ReferencesGraph(spec, provenance)
    names = names or ["f_p"]
    height = vision.inputs["pixel_image"].shape[1]
    channels = [vision.outputs[name].shape[1] for name in names]
    strides = [height // vision.outputs[name].shape[2] for name in names]
    rows_apart = (config.pixel_view.multiple_px if config.pixel_view.fit == "area" else height) // strides[0]
    module = ReferenceDistance(FeatureCells(channels, strides), pieces=gcd(rows_apart, 4))
    stage = references_stage(module.eval(), config.pixel_view, names)
    graph = export_stage(stage, folder)
    error = _error(folder / graph.file, stage)
    return ReferencesGraph(
        ReferencesSpec(**dict(graph), stride=strides[0]),
        {"encoder": f"{' and '.join(names)} of {config.pixel.kind}", "error": error},
    )


@lru_cache(maxsize=1)
def _with_encoder(trunk: Path, sha256: str) -> tuple[bytes, ReferencesSpec, dict[str, Any]]:
    """The graph with the shipped encoder: the same for every model, so it is traced once. ``sha256`` is part of the key."""
    module = ReferenceDistance(EncoderCells(load_trunk(trunk))).eval()
    stage = references_stage(module, REFERENCE_VIEW)
    with TemporaryDirectory(prefix="agvas-references-") as scratch:
        graph = export_stage(stage, Path(scratch))
        path = Path(scratch) / graph.file
        error = _error(path, stage)
        data = path.read_bytes()
    spec = ReferencesSpec(**dict(graph), view=REFERENCE_VIEW, stride=module.cells.stride)
    return (
        data,
        spec,
        {"encoder": "EfficientNet-Lite0 to block 10", "sha256": sha256, "error": error},
    )


def references_stage(module: ReferenceDistance, view: ViewSpec, features: Sequence[str] = ()) -> Stage:
    """The module with tensors to trace it with; batch and rows are open, and the sides where the view leaves them open.

    Args:
        view: of the image that the module takes.
        features: names of those that it takes beside it.
    """
    is_open = view.fit == "area"
    stride, unit = module.cells.stride, view.multiple_px
    height, width = (3 * unit, 5 * unit) if is_open else (view.size_px, view.size_px)
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8, generator=generator)
    inputs: dict[str, Tensor] = {"pixel_image" if features else "reference_image": image}
    at: dict[str, int] = {}
    if isinstance(module.cells, FeatureCells):
        at = dict(zip(features, module.cells.strides, strict=True))
        for channels, (name, each) in zip(module.cells.of_feature, at.items(), strict=True):
            inputs[name] = torch.randn(2, channels, height // each, width // each, generator=generator)
    inputs["bank"] = torch.randn(7, module.channels, generator=generator)
    inputs["colour_weight"] = torch.tensor(1.0)
    wrapped = _ByPlace(module)
    with torch.no_grad():
        outputs = dict(zip(("embedding", "deep", "joint"), wrapped(*inputs.values()), strict=True))
    batch = Axis("batch", Dim("batch"))
    rows, columns = Dim("rows", min=2), Dim("columns", min=2)

    def sides(first: int, per_cell: int) -> Axes:
        if not is_open:
            return {0: batch}
        name = "" if per_cell == 1 else f"/{per_cell}"
        return {
            0: batch,
            first: Axis(f"height{name}", unit // per_cell * rows),
            first + 1: Axis(f"width{name}", unit // per_cell * columns),
        }

    axes: dict[str, Axes] = {
        **dict.fromkeys(("reference_image", "pixel_image"), sides(1, 1)),
        **{name: sides(2, each) for name, each in at.items()},
        "bank": {0: Axis("rows", Dim("bank_rows", min=2))},
        "colour_weight": {},
        **dict.fromkeys(outputs, sides(1, stride)),
    }
    return Stage(NAME, wrapped.eval(), inputs, outputs, axes)


class _ByPlace(torch.nn.Module):
    """The module with its inputs in the order of the graph's."""

    def __init__(self, module: ReferenceDistance) -> None:
        super().__init__()
        self.module = module

    def forward(
        self,
        image: Tensor,
        second: Tensor,
        third: Tensor,
        fourth: Tensor | None = None,
        fifth: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """image, up to two features, bank, colour_weight -> embedding, deep, joint."""
        given = (second, third, fourth, fifth)  # torch.export wants them one by one
        *features, bank, weight = (each for each in given if each is not None)
        embedding, deep, joint = self.module(image, bank, weight, features)
        return embedding, deep, joint


def _error(path: Path, stage: Stage) -> float:
    """The largest error of the graph against the module, on generated images and a bank of cells of the first.

    Raises:
        ParityError: beyond the tolerance.
    """
    given = dict(stage.inputs)
    name = next(iter(given))
    height, width = given[name].shape[1:3]
    pictures = [synthesize(SEED, index, (height, width)).image for index in range(len(given[name]))]
    given[name] = torch.from_numpy(np.stack(pictures))
    with torch.no_grad():
        embedding = stage.module(*given.values())[0]
        given["bank"] = embedding[:1].flatten(0, 2)[::3].contiguous()
        given["colour_weight"] = torch.tensor(0.5)
        truth = dict(zip(stage.outputs, stage.module(*given.values()), strict=True))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = session.run(list(truth), {key: value.numpy() for key, value in given.items()})
    errors = []
    for key, value in zip(truth, found, strict=True):
        # Squares, for the root turns the last bit of a distance of 0, which cells of the bank have, into 1e-3.
        power = 1 if key == "embedding" else 2
        errors.append(float(np.abs(value**power - truth[key].numpy() ** power).max()))
    worst = max(errors) if np.isfinite(errors).all() else float("inf")
    if worst > TOLERANCE:
        raise ParityError(
            f"{path.name}: off by {worst:.1e} from the model; {TOLERANCE:.0e} is allowed: check the versions of torch and onnxscript"
        )
    return worst

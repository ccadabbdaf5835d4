"""Textures that training never showed beside those it did: pixel AP, exact, on generated images (nano.md)."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agvas_core.contract.durable import write_whole
from agvas_core.contract.errors import ImageError
from agvas_core.data.synthetic.synthesis import HELD_OUT_FAMILIES, SynthesisSpec, synthesize
from agvas_core.evaluation.grounding.cases import FIRST_SEED, SIZE
from agvas_core.evaluation.grounding.figures import Figure
from agvas_core.evaluation.grounding.trial import key_of
from agvas_core.evaluation.metrics import Run, make_run, merge, rank
from agvas_core.evaluation.predictor import Model
from agvas_core.evaluation.workers import Workers

__all__ = ["Drawn", "family_figures"]

# Surfaces alone: on a part, outline and background weigh as much as the texture. Good ones come as often as in training.
_SURFACES = SynthesisSpec(texture=1.0, object=0.0, frame=0.0, organic=0.0)
_SPECS = {
    "shown": _SURFACES.model_copy(update={"held_out_families": HELD_OUT_FAMILIES}),
    "held_out": _SURFACES.model_copy(update={"families": HELD_OUT_FAMILIES}),
}
_FIRST_INDEX = {"shown": 2 * 10**9, "held_out": 3 * 10**9}  # beyond the indices of cases.py


@dataclass(frozen=True)
class Drawn:
    """The map of one image against its truth, as sorted scores; goes to other processes by pickling."""

    model: Model
    seed: int

    def __call__(self, which: tuple[str, int]) -> Run:
        """The run of an image.

        Raises:
            ImageError: the model gave no verdict.
        """
        name, number = which
        sample = synthesize(FIRST_SEED + self.seed, _FIRST_INDEX[name] + number, SIZE, _SPECS[name])
        score_map = self.model.listener.reply(sample.image)[0]
        if score_map.shape != SIZE or not np.isfinite(score_map).all():
            raise ImageError(f"{self.model.identity} gave no usable map of a generated image")
        return make_run(score_map, sample.mask, np.ones(SIZE, np.uint32))


def family_figures(
    model: Model, seed: int, images: int, folder: Path, workers: Workers, advance: Callable[[], None]
) -> list[Figure]:
    """AP on ``images`` surfaces of the families that training shows, and on as many of those that it never does."""
    figures = []
    for name, title in (("shown", "families of training"), ("held_out", f"held-out families: {', '.join(HELD_OUT_FAMILIES)}")):
        path = folder / f"family-{key_of(model, name, seed, images)}.json"
        if path.is_file():
            known = json.loads(path.read_text(encoding="utf-8"))
            for _ in range(images):
                advance()
        else:
            known = _measured(Drawn(model, seed), [(name, number) for number in range(images)], workers, advance)
            write_whole(path, json.dumps(known))
        figures.append(Figure("pixel AP on surfaces", f"ap_{name}", title, known["ap"], images, known["share"], "a constant map"))
    return figures


def _measured(
    drawn: Drawn, which: list[tuple[str, int]], workers: Workers, advance: Callable[[], None]
) -> dict[str, float | None]:
    runs = []
    for run in workers.map(drawn, which):
        runs.append(run)  # 4 bytes a pixel
        advance()
    normal, anomalous = sum(len(run.normal) for run in runs), sum(len(run.anomalous) for run in runs)
    ranking = rank(merge(runs), normal=normal, anomalous=anomalous, regions=0)
    return {"ap": ranking.ap, "share": anomalous / (normal + anomalous)}

"""Recipes over HTTP: one that the server was started with, by its product's name, or one that a client sends as text. No path, no model is opened."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from agvas_core.contract.decision import image_score
from agvas_core.contract.errors import ImageError, RecipeError, UsageError
from agvas_runtime.bundle import Bundle
from agvas_runtime.images.frame import Frame
from agvas_runtime.line.recipe.file import RecipeVersion, parse_recipe, read_recipe
from agvas_runtime.line.recipe.rules import Judge as Rules
from agvas_runtime.line.recipe.rules import Judgement, Looked
from agvas_runtime.line.recipe.store import RecipeStore
from agvas_runtime.line.recipe.thresholds import check_against, thresholds_of
from agvas_runtime.line.station.inspector import frame_fault
from agvas_runtime.masks.result import Result

__all__ = ["MAX_RECIPE_BYTES", "Recipes", "entry_by_recipe"]

MAX_RECIPE_BYTES: Final = 64 << 10
MAX_ROIS: Final = 16
"""Of a recipe that a client sends: each is a mask of the size of the frame."""


class Recipes:
    """What may be named, and what may be sent.

    Args:
        bundle: that answers, whatever ``model`` a recipe names; one that pins another with ``bundle`` is refused.
    """

    def __init__(self, bundle: Bundle, versions: Iterable[RecipeVersion] = ()) -> None:
        self._bundle = bundle
        self._named = dict[str, RecipeVersion]()
        for version in versions:
            name = version.recipe.product
            if name in self._named:
                raise UsageError(f"two recipes are for {name}: give one of them to the server")
            check_against(version.recipe, bundle, version.identity)
            self._named[name] = version

    @classmethod
    def read(cls, bundle: Bundle, places: Iterable[Path]) -> "Recipes":
        """From files, and stores with an active recipe.

        Raises:
            RecipeError: one is wrong, or not for this bundle.
            UsageError: two are for one product.
        """
        stores = ((place, RecipeStore(place)) for place in places)
        return cls(bundle, [store.active() if store.is_store() else read_recipe(place) for place, store in stores])

    def find(self, text: str) -> RecipeVersion:
        """By a name, or by the whole text of a recipe.

        Raises:
            RecipeError: no such name; or a text that is wrong, too large, or not for this bundle.
        """
        if "\n" not in text.strip() and ":" not in text:
            if (version := self._named.get(text.strip())) is None:
                there = ", ".join(sorted(self._named)) or "none"
                raise RecipeError(f"there is no recipe {text.strip()[:64]!r} here; there are {there}; or send the text of one")
            return version
        if (size := len(text.encode())) > MAX_RECIPE_BYTES:
            raise RecipeError(f"the recipe has {size} bytes; {MAX_RECIPE_BYTES} are taken: leave its comments out")
        version = parse_recipe(text, "the recipe")
        if (rois := len(version.recipe.rois)) > MAX_ROIS:
            raise RecipeError(f"the recipe has {rois} ROIs; {MAX_ROIS} are taken: start the server with it (--recipe FILE)")
        check_against(version.recipe, self._bundle, version.identity)
        return version


def entry_by_recipe(
    frame: Frame, version: RecipeVersion, bundle: Bundle, look: Callable[[Frame, str | None], Result]
) -> tuple[Result, Mapping[str, Any]]:
    """A frame by a recipe: its result, whose regions are what counted, and what an entry has beside those.

    Args:
        look: asks the model with the words of one kind.
    """
    recipe = version.recipe
    if (fault := frame_fault(frame, version)) is not None:
        frame = replace(frame, image=None, error=frame.error or ImageError(fault))
    results = dict[str, Result]()
    for kind, prompt in recipe.prompts.items():
        results[kind] = result = look(frame, prompt)
        if result.score_map is None:
            return result, {"recipe": version.identity}
    point = thresholds_of(recipe, bundle)
    first = next(iter(results.values()))
    looked = {kind: Looked(_map(each), 1.0 if each.accept is None else each.accept) for kind, each in results.items()}
    score_map = np.maximum.reduce([each.score_map for each in looked.values()])
    judgement: Judgement = Rules(recipe, point, *score_map.shape).judge(looked)
    timing = {stage: sum(each.timing.get(stage, 0.0) for each in results.values()) for stage in first.timing}
    result = replace(
        first,
        verdict=judgement.verdict,
        score=image_score(score_map, point),
        operating_point="recipe",
        threshold=point.threshold,
        seed_threshold=point.seed_threshold,
        regions=[finding.region for finding in judgement.findings],
        score_map=score_map,
        mask=judgement.mask,
        timing=timing,
    )
    return result, {
        "recipe": version.identity,
        "reject_score": round(judgement.reject_score, 5),
        "broken_rules": list(judgement.broken),
        "findings": [finding.to_dict(recipe.mm_per_px) for finding in judgement.findings],
    }


def _map(result: Result) -> Any:
    assert result.score_map is not None, "a result without one was returned before"
    return result.score_map

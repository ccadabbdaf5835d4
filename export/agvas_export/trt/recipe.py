"""Engine recipes: which precisions and batches to build on which GPU. Data, in ``trt_engines/*.toml``."""

import tomllib
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from agvas_core.contract.errors import SetupError, UsageError
from agvas_core.contract.validation import StrictModel

__all__ = ["Recipe", "find_recipe", "recipe_for_gpu", "recipes"]

_PLACES = (Path(__file__).parents[1] / "trt_engines", Path(__file__).parents[3] / "trt_engines")
"""In a wheel, in a checkout."""


class Recipe(StrictModel):
    """One target."""

    name: str
    gpus: tuple[str, ...]
    """Patterns of what the driver calls such a GPU."""
    compute_capability: str
    flavour: Literal["tensorrt", "tensorrt-rtx"] = "tensorrt"
    min_version: str
    """Of TensorRT."""
    workspace_mb: int = Field(ge=64)
    """Scratch memory that the builder may use."""
    optimization_level: int = Field(default=3, ge=0, le=5)
    max_batch: int = Field(default=4, ge=1)
    """Tiles that go through together."""
    precisions: tuple[Literal["fp32", "tf32", "fp16", "bf16", "int8", "fp8"], ...]
    """Fastest first: what --precision auto tries until the certificate holds."""
    rtx_target: str | None = None
    """TensorRT-RTX's name of the architecture for building ahead of time, where it has one."""
    minutes: float = Field(gt=0)
    """A rough guess, not a measurement: how long nano's three graphs may take to build."""
    note: str = ""


@cache
def recipes() -> tuple[Recipe, ...]:
    """All of them, by name.

    Raises:
        SetupError: there are none, or one is not valid.
    """
    folder = next((place for place in _PLACES if any(place.glob("*.toml"))), None)
    if folder is None:
        raise SetupError(f"no recipe lies in {' or '.join(map(str, _PLACES))}: pip install --force-reinstall agvas")
    found = []
    for path in sorted(folder.glob("*.toml")):
        try:
            found.append(Recipe.model_validate(tomllib.loads(path.read_text(encoding="utf-8")) | {"name": path.stem}))
        except (tomllib.TOMLDecodeError, ValidationError) as error:
            raise SetupError(f"{path} is not a recipe ({error}): fix it") from error
    return tuple(found)


def find_recipe(name: str) -> Recipe:
    """A recipe by name.

    Raises:
        UsageError: there is none of that name.
    """
    for recipe in recipes():
        if recipe.name == name:
            return recipe
    raise UsageError(f"there is no target {name!r}: it can be {', '.join(recipe.name for recipe in recipes())}")


def recipe_for_gpu(gpu: str) -> Recipe:
    """The recipe for a GPU by the name that its driver gives.

    Raises:
        UsageError: no recipe has a pattern that fits.
    """
    for recipe in recipes():
        if any(fnmatchcase(gpu.lower(), f"*{pattern.lower()}*") for pattern in recipe.gpus):
            return recipe
    raise UsageError(
        f"no recipe fits the GPU {gpu!r}: name the nearest with --target ({', '.join(recipe.name for recipe in recipes())}), or add a file to "
        "trt_engines/"
    )

"""What a station looks at and what it ignores, as a person draws it: a new version of its recipe, which goes once it is activated."""

from pathlib import Path
from typing import Any, Final, NamedTuple

from agvas_core.contract.durable import write_whole
from agvas_core.contract.errors import OutputError, UsageError
from agvas_runtime.line.recipe.file import PREFIX_LENGTH, RecipeVersion, parse_recipe, with_keys
from agvas_runtime.line.recipe.recipe import ANY
from agvas_runtime.line.recipe.store import RecipeStore

__all__ = ["AREA", "Saved", "save_version", "with_areas"]

AREA: Final = "area"
"""Name of the ROI that is drawn: a rule that looks at the whole frame looks at it instead."""

Point = tuple[float, float]


class Saved(NamedTuple):
    """A version that was written and does not go yet."""

    path: Path
    command: str
    """That activates it."""


def with_areas(
    base: RecipeVersion, frame_px: tuple[int, int], roi: tuple[Point, Point] | None, ignore: list[list[Point]]
) -> RecipeVersion:
    """A recipe with these areas in place of its own; ROIs of other names stay.

    Args:
        frame_px: width and height of the frame that they were drawn on.
        roi: two corners of the rectangle that is looked at; the whole frame where None.
        ignore: polygons, [[x, y], ...] each.

    Raises:
        UsageError: they were drawn on a frame of another size, or no rule looks at the whole frame.
        RecipeError: a polygon that is none, or outside the frame.
    """
    recipe = base.recipe
    width, height = frame_px
    if recipe.frame is not None and (recipe.frame.width_px, recipe.frame.height_px) != frame_px:
        raise UsageError(
            f"the areas are drawn on {width}x{height} px and recipe {base.identity} is for "
            f"{recipe.frame.width_px}x{recipe.frame.height_px} px: set the camera back"
        )
    before, after = (ANY, AREA) if roi is not None else (AREA, ANY)
    rules = [rule.model_copy(update={"roi": after}) if rule.roi == before else rule for rule in recipe.rules]
    if roi is not None and not any(rule.roi == AREA for rule in rules):
        raise UsageError(
            f"every rule of recipe {base.identity} looks at a ROI of its own: give one of them roi: '{ANY}', or leave the area out"
        )
    rois: dict[str, Any] = {name: polygon for name, polygon in recipe.rois.items() if name != AREA}
    if roi is not None:
        (left, right), (top, bottom) = (sorted(each) for each in zip(*roi, strict=True))
        rois[AREA] = [(left, top), (right, top), (right, bottom), (left, bottom)]
    values: dict[str, Any] = {
        "frame": {"width_px": width, "height_px": height},
        "rois": {name: _rounded(polygon) for name, polygon in rois.items()},
        "ignore": [_rounded(polygon) for polygon in ignore],
    }
    if rules != list(recipe.rules):
        values["rules"] = [rule.model_dump(mode="json", exclude_defaults=True) for rule in rules]
    return parse_recipe(with_keys(base.text, values), "the recipe with these areas")


def save_version(path: Path, version: RecipeVersion) -> Saved:
    """Writes a version beside the one that goes, without activating it.

    Args:
        path: of the recipe that goes, or of its store.

    Raises:
        OutputError: it cannot be written.
    """
    short = version.sha256[:PREFIX_LENGTH]
    store = RecipeStore(path)
    if store.is_store():
        return Saved(store.add(version), f"agvas recipe activate {short} --store {path}")
    stem = path.stem
    out = path.with_name(f"{stem}-{short}.yaml")
    try:
        write_whole(out, version.text)
    except OSError as error:
        raise OutputError(f"{out} cannot be written ({error.strerror}): check space and rights") from error
    return Saved(out, f"agvas recipe activate {out} --store DIR")


def _rounded(polygon: Any) -> list[list[float]]:
    return [[round(float(x), 1), round(float(y), 1)] for x, y in polygon]

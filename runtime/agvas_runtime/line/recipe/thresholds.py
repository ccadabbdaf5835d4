"""Whether a recipe suits its bundle, and warnings about valid but unusual values."""

from agvas_core.contract.decision import OperatingPoint
from agvas_core.contract.errors import RecipeError, UsageError
from agvas_runtime.bundle import Bundle
from agvas_runtime.line.recipe.recipe import Recipe
from agvas_runtime.pipeline.instruction import ask

__all__ = ["check_against", "not_calibrated", "oddities", "thresholds_of", "unlike_product"]

SHORT_DEADLINE_MS = 50.0


def thresholds_of(recipe: Recipe, bundle: Bundle) -> OperatingPoint:
    """The recipe's, or the bundle's balanced operating point."""
    return recipe.thresholds or bundle.manifest.decision.point()


def check_against(recipe: Recipe, bundle: Bundle, what: str) -> None:
    """Refuses a recipe that this bundle cannot follow; ``what`` opens the message.

    Raises:
        RecipeError: it names another bundle, or its words do not fit the model.
    """
    if recipe.bundle is not None and recipe.bundle != bundle.identity:
        raise RecipeError(
            f"{what} was made for {recipe.bundle} and the model here is {bundle.identity}: install that bundle, or calibrate again "
            "and change the line"
        )
    for prompt in recipe.prompts.values():
        try:
            ask(bundle.manifest.prompt, prompt=prompt, mode=recipe.mode, normal_look=recipe.normal_look)
        except UsageError as error:
            raise RecipeError(f"{what}: {error}") from error


def unlike_product(recipe: Recipe, bundle: Bundle) -> str | None:
    """What differs where a recipe has other thresholds than the product that it runs; None where nothing does, or there is no product."""
    if bundle.product is None or recipe.thresholds is None:
        return None
    points = bundle.manifest.decision.operating_points
    if recipe.thresholds in points.values():
        return None
    own, here = bundle.manifest.decision.point().model_dump(), recipe.thresholds.model_dump()
    listed = ", ".join(f"{key} is {here[key]:.5g} and the product's {own[key]:.5g}" for key in own if here[key] != own[key])
    return (
        f"the thresholds of {recipe.product} differ from those of its product {bundle.identity}: {listed}. What the product promises on false "
        "rejects and defects does not hold for them: take the product's (agvas recipe new NAME --product P writes them), or calibrate the "
        "recipe (agvas calibrate --good DIR --bad DIR --recipe FILE)"
    )


def not_calibrated(recipe: Recipe) -> str | None:
    """How a recipe differs from the one that its calibration record was made for; None where it does not, or has no record."""
    record = recipe.calibration
    if record is None:
        return None
    found = []
    if record.product is not None and record.product != recipe.product:
        found.append(f"product is {recipe.product} and was {record.product}")
    if record.thresholds is not None and record.thresholds != recipe.thresholds:
        here = recipe.thresholds.model_dump() if recipe.thresholds is not None else {}
        was = record.thresholds.model_dump()
        found += [f"{key} is {here.get(key)} and was {was[key]}" for key in was if here.get(key) != was[key]]
    if record.decides is not None and record.decides != recipe.decides:
        found.append("prompts, ROIs, rules, scale or model are others")
    if not found:
        return None
    return (
        f"the recipe {recipe.product} is not calibrated: its calibration record was made for another one ({'; '.join(found)}). Calibrate it "
        "(agvas calibrate --good DIR --recipe FILE), or take its calibration: out"
    )


def oddities(recipe: Recipe) -> list[str]:
    """What a person should look at; none of it stops a recipe."""
    found = []
    if recipe.calibration is None:
        found.append(
            "thresholds are not calibrated, so nothing is known of false rejects: agvas calibrate --good DIR --recipe FILE"
        )
    if recipe.calibration is not None and recipe.bundle is None:
        found.append(
            f"it is calibrated on {recipe.calibration.bundle} and pins no bundle: set bundle: {recipe.calibration.bundle}"
        )
    if recipe.calibration is not None and recipe.calibration.thresholds is None:
        found.append("its calibration record does not say which thresholds it was made for: calibrate it again")
    if recipe.frame is None:
        found.append("frame is missing: a camera that changes its size will not be noticed")
    if recipe.deadline_ms < SHORT_DEADLINE_MS:
        found.append(f"deadline_ms is {recipe.deadline_ms:g}; below {SHORT_DEADLINE_MS:g} ms most parts may have NO_VERDICT")
    if not recipe.keep.rejects:
        found.append("keep.rejects is false: images of rejected parts are not kept")
    return found

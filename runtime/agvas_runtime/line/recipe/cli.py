"""``agvas recipe new|lint|list|diff|activate|rollback``."""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml

from agvas_core.contract.defaults import DEFAULT_MODEL
from agvas_core.contract.errors import OutputError, RecipeError, UsageError
from agvas_core.contract.product import Product
from agvas_runtime.bundle import Bundle
from agvas_runtime.line.recipe.file import RecipeVersion, parse_recipe, read_recipe, with_keys
from agvas_runtime.line.recipe.recipe import Recipe
from agvas_runtime.line.recipe.store import Change, RecipeStore
from agvas_runtime.line.recipe.thresholds import not_calibrated

__all__ = ["activate", "diff", "differences", "lint", "list_recipes", "new", "recipe_template", "rollback", "with_product"]


# What two recipes differ in, key by key; comments and order do not count.


def differences(old: Recipe, new: Recipe) -> list[str]:
    """One line per key: ``deadline_ms: 2000.0 -> 1500.0``; ``(none)`` where one of the two has nothing there."""
    before, after = _leaves(old.model_dump(mode="json")), _leaves(new.model_dump(mode="json"))
    return [
        f"{key}: {before.get(key, '(none)')} -> {after.get(key, '(none)')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _leaves(value: Any, where: str = "") -> dict[str, str]:
    """Dotted key -> the value as JSON. Lists of numbers, polygons among them, are one value."""
    if isinstance(value, dict) and value:
        return {
            key: leaf
            for name, inner in value.items()
            for key, leaf in _leaves(inner, f"{where}.{name}" if where else name).items()
        }
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return {key: leaf for number, inner in enumerate(value, 1) for key, leaf in _leaves(inner, f"{where}[{number}]").items()}
    return {} if value is None or value == {} or value == [] else {where: json.dumps(value, ensure_ascii=False)}


QUANTILES = 101
"""Of the good parts' scores that a recipe keeps."""

UNDECIDED = "0" * 12
"""Stands for the hash of a recipe until it is whole."""

Store = Annotated[Path, typer.Option("--store", metavar="DIR", help="Folder of versions, one of them active.")]
RECIPES = Path("recipes")


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the recipe's product: letters, digits, dots, dashes.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="NAME.yaml by default.")] = None,
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="A picture of the part, for the size of the frame.")] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME|FOLDER", help=f"A bundled model, {DEFAULT_MODEL} by default, or the folder of a bundle."),
    ] = None,
    product: Annotated[
        Path | None,
        typer.Option(
            metavar="PRODUCT", help="What agvas fit made: model, thresholds, limits of an image and frame size are taken from it."
        ),
    ] = None,
) -> None:
    """Writes a recipe that is valid as it stands, with every key explained."""
    from agvas_runtime.bundle import load_bundle
    from agvas_runtime.images.read import read_image

    if product is not None and model is not None:
        raise UsageError("both --product and --model are given; a product is the model: leave --model out")
    bundle = load_bundle(model or DEFAULT_MODEL if product is None else product)
    if product is not None and bundle.product is None:
        raise UsageError(f"{product} is a bundle that was never fitted: agvas fit GOOD -o PRODUCT, or name it with --model")
    frame_px = bundle.product.frame_px if bundle.product is not None else None
    if image is not None:
        height, width = read_image(image).shape[:2]
        frame_px = (width, height)
    text = recipe_template(
        name,
        model=model or DEFAULT_MODEL if product is None else str(product),
        identity=bundle.identity,
        frame_px=frame_px,
        known="" if bundle.product is None else _known(name, bundle, bundle.product),
    )
    version = _decided(text, f"a recipe for {name!r}")
    text = version.text
    path = out or Path(f"{name}.yaml")
    try:
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{path} is there already: choose another name with --out, or edit it") from None
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): choose another name with --out") from error
    typer.echo(f"{path}  {version.identity}")


def lint(
    recipes: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Recipes, or stores with an active one.")],
    offline: Annotated[bool, typer.Option("--no-model", help="Leave the bundle out: check the file alone.")] = False,
) -> None:
    """Says what is wrong with a recipe, and what is odd about it."""
    for path in recipes:
        version = _find(str(path), None)
        found = _check(version, str(path), offline=offline)
        if (fault := not_calibrated(version.recipe)) is not None:
            raise RecipeError(f"{path}: {fault}")
        typer.echo(f"{path}: {version.identity} is valid" + ("" if not found else ", but:"))
        for line in found:
            typer.echo(f"  {line}")


def list_recipes(store: Store = RECIPES) -> None:
    """Shows the activations of a store, the active one last."""
    history = RecipeStore(store).history()
    for number, activation in enumerate(history, 1):
        active = "  active" if number == len(history) else ""
        typer.echo(f"{activation.since}  {activation.product}@{activation.sha256[:12]}  {activation.why}{active}")


def diff(
    old: Annotated[str, typer.Argument(metavar="OLD", help="A file, or a version in the store by its first digits.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="So too.")],
    store: Store = RECIPES,
) -> None:
    """Shows what two recipes differ in; comments and order do not count."""
    before, after = _find(old, store), _find(new, store)
    _show(Change(before, after))


def activate(
    recipe: Annotated[str, typer.Argument(metavar="FILE|VERSION", help="A file, or a version in the store.")],
    store: Store = RECIPES,
    offline: Annotated[bool, typer.Option("--no-model", help="Leave the bundle out: check the file alone.")] = False,
) -> None:
    """Makes a recipe the active one: a running station takes it between two parts."""
    version = _find(recipe, store)
    fault = not_calibrated(version.recipe)
    for line in [*([fault] if fault is not None else []), *_check(version, recipe, offline=offline)]:
        typer.echo(f"note: {line}", err=True)
    _show(RecipeStore(store).activate(version))


def rollback(store: Store = RECIPES) -> None:
    """Goes back to the recipe that was active before."""
    _show(RecipeStore(store).rollback())


def _check(version: RecipeVersion, what: str, *, offline: bool) -> list[str]:
    from agvas_runtime.bundle import load_bundle
    from agvas_runtime.line.recipe.thresholds import check_against, oddities, unlike_product

    if offline:
        return oddities(version.recipe)
    bundle = load_bundle(version.recipe.model)
    check_against(version.recipe, bundle, what)
    concern = unlike_product(version.recipe, bundle)
    return [*([concern] if concern is not None else []), *oddities(version.recipe)]


def _find(text: str, store: Path | None) -> RecipeVersion:
    """A file, a store, or a version in ``store``."""
    path = Path(text)
    if RecipeStore(path).is_store():
        return RecipeStore(path).active()
    if path.exists() or store is None:
        return read_recipe(path)
    try:
        return RecipeStore(store).version(text)
    except RecipeError as error:
        raise RecipeError(f"{text} is no file, and {error}") from error


def _show(change: Change) -> None:
    if change.before is None:
        typer.echo(f"active: {change.after.identity}")
        return
    typer.echo(f"{change.before.identity} -> {change.after.identity}")
    for line in differences(change.before.recipe, change.after.recipe) or ["no difference in meaning"]:
        typer.echo(f"  {line}")


# The recipe that ``agvas recipe new`` writes: valid as it stands, every other key beside it as a comment.


_TEXT = """\
# What decides about {product}. agvas recipe lint FILE checks it; its sha256 is its version.
product: {product}
# note: Who made it, for which line, and why.

model: {model}
# bundle: {identity}          # pins the model: another bundle of that name is refused

# What to look for, in words; the model's own instruction where it is left out.
# prompt: Please segment the scratches in this image.
# mode: direct                          # describe, describe-plus (with normal_look), explain
# Or several kinds, each in its own words; the model looks once for each.
# kinds:
#   scratch: {{prompt: Please segment the scratches in this image.}}
#   stain: {{prompt: Please segment the stains in this image.}}

{frame}
# mm_per_px: 0.05

# Polygons, [[x, y], ...] in pixels of that frame. A rule looks at one ROI, or at all of the frame.
# rois:
#   face: [[40, 40], [600, 40], [600, 440], [40, 440]]
# ignore:
#   - [[0, 0], [30, 0], [30, 30], [0, 30]]

# agvas calibrate sets these from good parts, with a guarantee.
{known}

# A region counts where it lies in the ROI and is as large as the rule says. More than max_count of them: FAIL.
rules:
  - max_count: 0
#     name: long scratches
#     roi: face
#     kind: scratch
#     min_score: 0.7
#     min_area_mm2: 0.5                   # or min_area_px; so too min_length_mm, min_width_mm

deadline_ms: 2000                       # from the trigger; later there is NO_VERDICT

keep:                                   # images on disk; the ledger's rows always stay
  rejects: true
  no_verdicts: true
  sample_every: 100                     # of the others each hundredth
  first: 200                            # and all of the first 200 parts, for review and replay while the station is commissioned
  max_gb: 20
"""


def recipe_template(product: str, *, model: str, identity: str, frame_px: tuple[int, int] | None = None, known: str = "") -> str:
    """YAML for a product.

    Args:
        identity: the bundle as it is now, named in a comment.
        frame_px: width and height.
        known: thresholds and limits as YAML, of a product that was fitted.
    """
    frame = (
        f"frame: {{width_px: {frame_px[0]}, height_px: {frame_px[1]}}}"
        if frame_px
        else "# frame: {width_px: 640, height_px: 480}"
    )
    known = known or "# thresholds: {threshold: 0.5, seed_threshold: 0.6}"
    return _TEXT.format(product=product, model=_scalar(model), identity=identity, frame=frame, known=known)


def _scalar(text: str) -> str:
    """A string as YAML, in quotes where it needs them."""
    return str(yaml.safe_dump(text, width=float("inf"), allow_unicode=True)).removesuffix("\n").removesuffix("\n...")


def with_product(base: RecipeVersion, model: str, bundle: Bundle) -> str:
    """The text of a recipe with another product: its model, thresholds, limits and record; all else stays.

    Args:
        bundle: of ``model``; a product.
    """
    assert bundle.product is not None, "a recipe takes its thresholds from a product"
    values = {"model": model, "bundle": bundle.identity, **_known_keys(base.recipe.product, bundle, bundle.product)}
    if base.recipe.mm_per_px is not None:
        values.pop("mm_per_px", None)
    return _decided(with_keys(base.text, values), f"the recipe for {model}").text


def _decided(text: str, what: str) -> RecipeVersion:
    """A recipe whose record names what it decides by, once that is known."""
    version = parse_recipe(text, what)
    if version.recipe.calibration is None:
        return version
    return parse_recipe(text.replace(f"decides: '{UNDECIDED}'", f"decides: '{version.recipe.decides}'"), what)


def _known(name: str, bundle: Bundle, product: Product) -> str:
    """What a product knows, as keys of its recipe."""
    found = _known_keys(name, bundle, product)
    blocks = (yaml.safe_dump({key: value}, sort_keys=False, width=120) for key, value in found.items() if value)
    return "".join(blocks).rstrip("\n")


def _known_keys(name: str, bundle: Bundle, product: Product) -> dict[str, Any]:
    point = {key: value for key, value in bundle.manifest.decision.point().model_dump().items() if value}
    found: dict[str, Any] = {
        "thresholds": point,
        "image": _image_limits(product),
        "calibration": _calibration(bundle, product, point["seed_threshold"])
        | {"product": name, "thresholds": point, "decides": UNDECIDED},
    }
    if product.mm_per_px is not None:
        found["mm_per_px"] = product.mm_per_px
    return found


def _image_limits(product: Product) -> dict[str, float]:
    """The limits that a recipe measures as the product does; a frame is checked for them before any model looks. The product itself
    checks the others (focus, white pixels, aspect, distance)."""
    if product.locate is not None:
        return {}  # its limits are those of the part, and not of the frame around it
    brightness = next((limit for limit in product.limits if limit.fact == "brightness"), None)
    found = {} if brightness is None else {"min_mean": brightness.low, "max_mean": brightness.high}
    return {key: value for key, value in found.items() if value is not None and 0.0 < value < 1.0}


def _calibration(bundle: Bundle, product: Product, seed_threshold: float) -> dict[str, Any]:
    """The product's promise, which also tells the station how good parts score."""
    promised, good = product.promise, product.calibrated or product.good
    scores = [each.score for each in good]
    record: dict[str, Any] = {
        "date": product.created,
        "bundle": bundle.identity,
        "good_parts": promised.good_images,
        "bad_parts": len(product.bad),
        "max_false_reject": promised.asked if promised.asked is not None else min(promised.bound, 0.999999),
        "confidence": promised.confidence,
        "false_rejects": promised.false_rejects,
        "false_reject_bound": promised.bound,
        "score_quantiles": [round(float(value), 5) for value in np.quantile(scores, np.linspace(0, 1, QUANTILES))],
    }
    if product.bad:
        record["escapes"] = sum(each.score <= seed_threshold for each in product.bad)
    return record

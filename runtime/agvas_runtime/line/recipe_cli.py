"""``agvas recipe new|lint|list|diff|activate|rollback``."""

from pathlib import Path
from typing import Annotated

import typer

from agvas_core.contract.errors import OutputError, RecipeError, UsageError
from agvas_runtime.line.recipe_diff import differences
from agvas_runtime.line.recipe_file import RecipeVersion, parse_recipe, read_recipe
from agvas_runtime.line.recipe_store import Change, RecipeStore

__all__ = ["activate", "diff", "lint", "list_recipes", "new", "rollback"]

Store = Annotated[Path, typer.Option("--store", metavar="DIR", help="Folder of versions, one of them active.")]
RECIPES = Path("recipes")


def new(
    product: Annotated[str, typer.Argument(help="Name of the product: letters, digits, dots, dashes.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="PRODUCT.yaml by default.")] = None,
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="A picture of the part, for the size of the frame.")] = None,
    model: Annotated[str, typer.Option(metavar="NAME|FOLDER", help="A bundled model, or the folder of a bundle.")] = "nano",
) -> None:
    """Writes a recipe that is valid as it stands, with every key explained."""
    from agvas_runtime.bundle import load_bundle
    from agvas_runtime.image_file import read_image
    from agvas_runtime.line.recipe_template import recipe_template

    frame_px = None
    if image is not None:
        height, width = read_image(image).shape[:2]
        frame_px = (width, height)
    text = recipe_template(product, model=model, identity=load_bundle(model).identity, frame_px=frame_px)
    version = parse_recipe(text, f"a recipe for {product!r}")
    path = out or Path(f"{product}.yaml")
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
    for line in _check(version, recipe, offline=offline):
        typer.echo(f"note: {line}", err=True)
    _show(RecipeStore(store).activate(version))


def rollback(store: Store = RECIPES) -> None:
    """Goes back to the recipe that was active before."""
    _show(RecipeStore(store).rollback())


def _check(version: RecipeVersion, what: str, *, offline: bool) -> list[str]:
    from agvas_runtime.bundle import load_bundle
    from agvas_runtime.line.recipe_check import check_against, oddities

    if not offline:
        check_against(version.recipe, load_bundle(version.recipe.model), what)
    return oddities(version.recipe)


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

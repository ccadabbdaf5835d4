"""``agvas-export``: checkpoint to bundle."""

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from agvas_core import __version__
from agvas_core.contract.command_line import run_command

__all__ = ["app", "bundle", "main"]

app = typer.Typer(
    name="agvas-export",
    help="Turn trained models into bundles, which are all that agvas-run needs.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def top(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    if version:
        print(f"agvas-export {__version__}")
        raise typer.Exit


@app.command()
def bundle(
    checkpoint: Annotated[
        Path, typer.Argument(help="Folder that agvas train wrote, or nano, the bundled one.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the bundle.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="Name of the bundle; the model's own by default.", show_default=False)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the bundle in --out.")] = False,
) -> None:
    """Export a checkpoint to a bundle.

    Three ONNX graphs, tokenizer and manifest; they are compared with the model before the folder appears.
    """
    from rich.console import Console

    from agvas_export.bundle import export_bundle

    console = Console(stderr=True, highlight=False)
    with console.status("starting") as status:

        def show(step: str) -> None:
            status.update(step)
            if not console.is_terminal:  # a log has no spinner
                console.print(step)

        done = export_bundle(checkpoint, out, name=name, overwrite=overwrite, progress=show)
    for each in done.parity.comparisons:
        typer.echo(f"{each.tensor:<18} off by {each.error:.1e}, {each.tolerance:.0e} allowed")
    changed, pixels = done.parity.mask_pixels_changed, done.parity.mask_pixels
    typer.echo(f"{'mask':<18} {changed} of {pixels} pixels changed sides, over {done.parity.frames} images")
    megabytes = sum((done.folder / file).stat().st_size for file in done.manifest.files) / 1e6
    typer.echo(f"bundle: {done.folder} ({megabytes:.1f} MB)\nnext:   agvas-run SOURCE --model {done.folder}")


def main() -> NoReturn:
    """Entry point of ``agvas-export``."""
    run_command(lambda: app, name="agvas-export")


if __name__ == "__main__":
    main()

"""``agvas fit``: good images in, a product out."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from agvas_core.contract.command_line import DECISION, INPUT, MODEL, OUTPUT, SPEED, printable
from agvas_core.contract.defaults import DEFAULT_MODEL
from agvas_core.contract.errors import EXIT_NOT_KEPT, UsageError
from agvas_core.contract.product import Locate

__all__ = ["fit"]


def fit(
    *,
    good: Annotated[
        list[str] | None, typer.Argument(metavar="GOOD...", help="Images of good parts: files, folders, globs in quotes.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PRODUCT", help="Folder of the product.", rich_help_panel=OUTPUT)],
    bad: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Images of defective parts, masks optional; they are judged and reported.", rich_help_panel=INPUT
        ),
    ] = None,
    review: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of agvas review --out: its good images join, its bad ones are judged.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    add: Annotated[
        bool,
        typer.Option(
            "--add", help="PRODUCT is there already; these good images join it, without starting over.", rich_help_panel=OUTPUT
        ),
    ] = False,
    head: Annotated[
        bool,
        typer.Option(
            "--head/--no-head",
            help="Also train a head on painted defects, and on --bad images with masks (needs the extra fit); it joins where it clearly gains.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    max_false_reject: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Good parts that may be rejected, 0.01 is one in 100; the threshold is set as low as that allows.",
            rich_help_panel=DECISION,
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="NAME|FOLDER", help="The model to start from.", rich_help_panel=MODEL)
    ] = DEFAULT_MODEL,
    name: Annotated[str | None, typer.Option(help="Of the product; the folder's by default.", rich_help_panel=OUTPUT)] = None,
    mm_per_px: Annotated[
        float | None,
        typer.Option(
            metavar="MM", help="Size of a pixel, so that sizes of defects are said in millimetres.", rich_help_panel=DECISION
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            metavar="PX",
            help="Side of the image that is compared with the references; larger sees finer defects and takes longer.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    locate: Annotated[
        Locate,
        typer.Option(
            help="Find the part in each frame and look at it alone; auto: where the good images show that it moves.",
            rich_help_panel=INPUT,
        ),
    ] = Locate.AUTO,
    bits: Annotated[
        int | None,
        typer.Option(
            min=9, max=16, metavar="N", help="Bits that 16-bit images use, 12 say; 16 by default.", rich_help_panel=INPUT
        ),
    ] = None,
    max_images: Annotated[
        int, typer.Option(min=1, metavar="N", help="Of more good images, so many evenly spaced are used.", rich_help_panel=INPUT)
    ] = 500,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="CPU threads; all cores by default.", rich_help_panel=SPEED)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything drawn at random.", rich_help_panel=MODEL)] = 0,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print nothing but warnings and errors.", rich_help_panel=OUTPUT)
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say where the time went.", rich_help_panel=OUTPUT)] = False,
) -> None:
    """Makes a product of images of good parts: 10 are enough to begin with, thousands are possible.

    --model PRODUCT then works wherever a model is named: agvas run parts/ --model PRODUCT.

    Exit codes: 0 fine, 2 usage, 3 environment (model, disk), 4 the product is written, but --max-false-reject cannot be promised with so many
    images, more than a tenth of them was left out, or they show different products.
    """
    if quiet and verbose:
        raise UsageError("both --quiet and --verbose are given: leave one out")
    from rich.console import Console
    from rich.text import Text

    from agvas.fitting.fit import fit as fit_product
    from agvas.fitting.progress import StepProgress

    console = Console(stderr=True)
    with StepProgress(quiet=quiet) as shown:
        fitted = fit_product(
            good or [],
            out,
            bad=bad,
            review=review,
            add=add,
            head=head,
            model=model,
            name=name,
            max_false_reject=max_false_reject,
            mm_per_px=mm_per_px,
            size_px=size,
            locate=locate,
            threads=threads,
            bits=bits,
            max_images=max_images,
            seed=seed,
            progress=shown,
        )
    for warning in fitted.warnings:
        console.print(Text(f"agvas fit: {printable(warning)}", style="yellow"), soft_wrap=True)
    if not quiet:
        product = fitted.product
        if verbose:
            for step, seconds in product.seconds.items():
                print(f"{step:12}  {seconds:6.1f} s")
        print(fitted.statement)
        print(f"product  {out} ({fitted.bundle.identity})\nreport   {out / 'report.html'}")
        print(f"next     agvas run IMAGES --model {out}")
    sys.stdout.flush()
    if not fitted.kept:
        raise typer.Exit(EXIT_NOT_KEPT)

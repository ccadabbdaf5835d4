"""``agvas calibrate``: the operating point of a product, or the thresholds of a recipe, from good parts."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from agvas_core.contract.command_line import DECISION, INPUT, MODEL, OUTPUT, SPEED, printable
from agvas_core.contract.errors import EXIT_NOT_KEPT, UsageError

__all__ = ["calibrate"]

RECIPE_FALSE_REJECT = 0.005
CONFIDENCE = 0.95


def calibrate(
    good: Annotated[
        Path, typer.Option(metavar="DIR", help="Pictures of good parts, as the camera takes them.", rich_help_panel=INPUT)
    ],
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The recipe to calibrate; agvas recipe new makes one.", rich_help_panel=MODEL),
    ] = None,
    product: Annotated[
        Path | None,
        typer.Option(
            metavar="PRODUCT",
            help="The product to calibrate, in its place; agvas fit makes one. Its references stay as they are.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    bad: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Pictures of bad parts; without them nothing is known about defects.", rich_help_panel=INPUT
        ),
    ] = None,
    max_false_reject: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="The largest share of good parts that may be rejected; 0.005 by default for a recipe, for a product as with agvas fit.",
            rich_help_panel=DECISION,
        ),
    ] = None,
    confidence: Annotated[
        float | None,
        typer.Option(
            help="How sure that must be, 0 to 1, with --recipe; 0.95 by default, and for a product.", rich_help_panel=DECISION
        ),
    ] = None,
    min_area_px: Annotated[
        float | None,
        typer.Option(
            min=0, help="The smallest region that matters, with --recipe; chosen where left out.", rich_help_panel=DECISION
        ),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            min=9,
            max=16,
            metavar="N",
            help="Bits that 16-bit pictures use, as the station has it; 16 by default.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="With --recipe; NAME-calibrated.yaml by default.", rich_help_panel=OUTPUT
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="CPU threads; all cores by default.", rich_help_panel=SPEED)
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress; warnings are still printed.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Sets a product's operating point, or a recipe's thresholds, from good parts, so that no more than a share of good parts is rejected.

    Exit codes: 0 fine, 2 usage, 3 environment, 4 it is written, but what was asked for cannot be promised with so many parts, or more than
    a tenth of the pictures was left out.
    """
    if (recipe is None) == (product is None):
        raise UsageError("one of --product and --recipe is needed: what is to be calibrated")
    if recipe is not None:
        from agvas_runtime.line.calibration.cli import calibrate_recipe

        code = calibrate_recipe(
            good,
            recipe,
            bad=bad,
            max_false_reject=RECIPE_FALSE_REJECT if max_false_reject is None else max_false_reject,
            confidence=CONFIDENCE if confidence is None else confidence,
            min_area_px=min_area_px,
            bits=bits,
            out=out,
            threads=threads,
            quiet=quiet,
        )
        raise typer.Exit(code)
    if any(given is not None for given in (min_area_px, out, confidence)):
        raise UsageError(
            "--min-area-px, --confidence and --out are for --recipe; a product is calibrated in its place: leave them out"
        )
    assert product is not None
    from agvas.fitting.calibrate import calibrate_product
    from agvas.fitting.progress import StepProgress

    with StepProgress(quiet=quiet) as progress:
        calibrated = calibrate_product(
            product,
            good,
            bad=bad,
            max_false_reject=max_false_reject,
            bits=bits,
            threads=threads,
            progress=progress,
        )
    for warning in calibrated.warnings:
        print(f"warning: {printable(warning)}", file=sys.stderr)
    print(f"{calibrated.statement}\nproduct  {product} ({calibrated.bundle.identity})\nreport   {product / 'report.html'}")
    if not calibrated.kept:
        raise typer.Exit(EXIT_NOT_KEPT)

"""A recipe's thresholds from good parts, with a promise on how many good parts they reject; ``agvas calibrate --recipe``."""

import math
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import typer
import yaml

from agvas_core.contract.decision import OperatingPoint
from agvas_core.contract.durable import write_whole
from agvas_core.contract.errors import EXIT_NOT_KEPT, EXIT_OK, OutputError
from agvas_runtime.line.calibration.calibration import Calibrated, allowed_rejects, calibrate, needed_parts
from agvas_runtime.line.calibration.page import calibration_page
from agvas_runtime.line.calibration.part_scores import Scored, score_parts
from agvas_runtime.line.recipe.file import RecipeVersion, parse_recipe, read_recipe
from agvas_runtime.line.recipe.thresholds import thresholds_of
from agvas_runtime.line.station.inspector import SegmenterInspector
from agvas_runtime.pipeline.options import SegmentOptions

__all__ = ["calibrate_recipe", "calibrated_text", "calibration_warnings", "least_areas", "with_keys"]


# Top-level keys of a recipe's text, replaced; comments and everything else stay as they are.


def with_keys(text: str, values: Mapping[str, Any]) -> str:
    """The text of a valid recipe with these top-level keys at its end, and none of them before."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    lines = text.splitlines(keepends=True)
    if node is None or node.flow_style:  # {product: x}: written out again
        table = yaml.safe_load(text) or {}
        return "".join(_block(key, value) for key, value in {**table, **values}.items())
    for key, value in reversed(node.value):
        if key.value in values:
            first = key.start_mark.line
            end = value.end_mark.line + (value.end_mark.column > 0)
            while end > first + 1 and (not lines[end - 1].strip() or lines[end - 1].startswith("#")):
                end -= 1
            del lines[first : max(end, first + 1)]
    kept = "".join(lines).rstrip("\n")
    return kept + "\n\n" + "".join(_block(key, value) for key, value in values.items())


def _block(key: str, value: Any) -> str:
    """One key; of a table each inner key on a line of its own."""
    if isinstance(value, dict) and value:
        return f"{key}:\n" + "".join(f"  {name}: {_flow(inner)}\n" for name, inner in value.items())
    return f"{key}: {_flow(value)}\n"


def _flow(value: Any) -> str:
    text = str(yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf")))
    return text.removesuffix("\n").removesuffix("\n...")


AREAS = (0.0, 1e-5, 4e-5, 1.6e-4, 6.4e-4)  # shares of the frame; 0, 3, 12, 49 and 197 px at 640 x 480
QUANTILES = 101
LISTED = 5
LINE_EVERY_S = 5.0
LEFT_OUT_SHARE = 0.1
"""Of the pictures; more left out than this is worth an exit code."""


def least_areas(good_parts: int, max_false_reject: float, confidence: float, own: float) -> tuple[float, ...]:
    """Among how many least areas there may be a choice: the whole list where that many parts pay for it, else the recipe's own alone.

    It depends on the number of parts, never on their scores, so it costs nothing.
    """
    enough = allowed_rejects(good_parts, max_false_reject, confidence, choices=len(AREAS)) is not None
    return AREAS if enough else (own,)


def calibrate_recipe(
    good: Path,
    recipe: Path,
    *,
    bad: Path | None = None,
    max_false_reject: float = 0.005,
    confidence: float = 0.95,
    min_area_px: float | None = None,
    bits: int | None = None,
    out: Path | None = None,
    threads: int | None = None,
    quiet: bool = False,
) -> int:
    """Sets a recipe's thresholds from good parts; writes the calibrated recipe and a page with plots, and prints what came of it.

    Returns:
        ``EXIT_NOT_KEPT`` where the promise cannot be kept with so many parts, or more than a tenth of the pictures was left out.

    Raises:
        UsageError: no picture that can be judged, or a share that is none.
        RecipeError: the recipe is wrong, or does not suit its bundle.
        OutputError: the recipe cannot be written.
    """
    needed = needed_parts(max_false_reject, confidence)  # refuses shares that are none
    version = read_recipe(recipe)
    options = SegmentOptions(threads=threads, bits=bits or version.recipe.bits)
    inspector = SegmenterInspector(options)
    inspector.prepare(version)
    bundle = inspector.bundle_of(version)
    own = thresholds_of(version.recipe, bundle)
    # A product brings frames of any size to its own, and decides by the whole frame: there is no least area to choose.
    product = bundle.product is not None
    say = _silent if quiet else _progress

    def tried(pixels: int) -> tuple[float, ...]:
        if min_area_px is not None:
            return (min_area_px / pixels,)
        return (own.min_area_fraction,) if product else (*AREAS, own.min_area_fraction)

    scored = score_parts(good, inspector, version, tried, any_size=product, bits=options.bits, progress=say("good"))
    pixels = math.prod(scored.size_px)
    if min_area_px is not None:
        areas: tuple[float, ...] = (min_area_px / pixels,)
    elif product:
        areas = (own.min_area_fraction,)
    else:
        areas = least_areas(len(scored.scores), max_false_reject, confidence, own.min_area_fraction)
        columns = slice(0, len(AREAS)) if areas == AREAS else slice(len(AREAS), None)
        scored = scored._replace(scores=scored.scores.columns(columns))
    worse = None
    if bad is not None:
        worse = score_parts(bad, inspector, version, lambda _: areas, any_size=product, bits=options.bits, progress=say("bad"))
    found = calibrate(
        scored.scores,
        [area * pixels for area in areas],
        own,
        max_false_reject=max_false_reject,
        confidence=confidence,
        bad=worse.scores if worse is not None else None,
    )
    text = calibrated_text(
        version, inspector, scored, worse, found, areas[found.column], max_false_reject=max_false_reject, confidence=confidence
    )
    after = parse_recipe(text, "the calibrated recipe")
    path = out or recipe.with_name(f"{recipe.stem.removesuffix('-calibrated')}-calibrated.yaml")
    page = path.with_suffix(".html")
    facts = _facts(version, after, scored, worse, found, max_false_reject=max_false_reject, confidence=confidence, needed=needed)
    warned = calibration_warnings(scored, worse, found, max_false_reject=max_false_reject)
    try:
        write_whole(path, text)
        write_whole(
            page,
            calibration_page(
                found,
                scored.scores,
                worse.scores if worse else None,
                facts,
                warned,
                confidence=confidence,
            ),
        )
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): choose another name with --out") from error
    for warning in warned:
        typer.echo(f"warning: {warning}", err=True)
    for name, value in facts.items():
        typer.echo(f"{name:16}  {value}")
    typer.echo(f"{path}  {after.identity}\n{page}")
    left = len(scored.left_out) > LEFT_OUT_SHARE * (len(scored.left_out) + len(scored.scores))
    return EXIT_NOT_KEPT if found.missing or left else EXIT_OK


def calibration_warnings(good: Scored, bad: Scored | None, found: Calibrated, *, max_false_reject: float) -> list[str]:
    """What must be known before anything else: pictures left out, a promise that is not kept, and what is not known."""
    said = []
    for what, scored in (("good", good), ("bad", bad)):
        if scored is not None and scored.left_out:
            whole = len(scored.left_out) + len(scored.scores)
            more = f"; and {len(scored.left_out) - LISTED} more" if len(scored.left_out) > LISTED else ""
            listed = "; ".join(scored.left_out[:LISTED])
            said.append(f"{len(scored.left_out)} of {whole} {what} pictures are left out: {listed}{more}")
    if found.missing:
        said.append(
            f"false rejects of at most {max_false_reject:.2%} cannot be promised with {len(good.scores)} good parts: {found.missing} "
            f"more are needed; what is promised is at most {found.false_reject_bound:.2%}"
        )
    if bad is None:
        said.append(
            "nothing is known about defects: these thresholds may pass every defective part; give pictures of some with --bad DIR"
        )
    return said


def calibrated_text(
    version: RecipeVersion,
    inspector: SegmenterInspector,
    good: Scored,
    bad: Scored | None,
    found: Calibrated,
    area: float,
    *,
    max_false_reject: float,
    confidence: float,
) -> str:
    """The recipe with thresholds, bundle, frame size and the record of how they came about."""
    bundle = inspector.bundle_of(version)
    own = thresholds_of(version.recipe, bundle)
    scores = good.scores.values[:, found.column]
    focus = np.quantile([facts.focus for facts in good.facts], [0.05, 0.95])
    thresholds = {
        "threshold": found.threshold,
        "seed_threshold": found.seed_threshold,
        "min_area_fraction": area,
        "gate": own.gate,
        **({"image_share": own.image_share} if own.image_share else {}),
    }
    made_for = version.recipe.model_copy(update={"thresholds": OperatingPoint(**thresholds)})
    frame = {"width_px": good.size_px[0], "height_px": good.size_px[1]}
    values: dict[str, Any] = {
        "bundle": bundle.identity,
        **({"frame": frame} if good.one_size else {}),
        "thresholds": thresholds,
        "calibration": {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "bundle": bundle.identity,
            "good_parts": len(good.scores),
            "bad_parts": len(bad.scores) if bad is not None else 0,
            "max_false_reject": max_false_reject,
            "confidence": confidence,
            "false_rejects": found.false_rejects,
            "false_reject_bound": round(found.false_reject_bound, 6),
            **({"escapes": found.escapes} if found.escapes is not None else {}),
            "score_quantiles": [round(float(value), 5) for value in np.quantile(scores, np.linspace(0, 1, QUANTILES))],
            "focus": [round(float(value), 6) for value in focus],
            "product": made_for.product,
            "thresholds": thresholds,
            "decides": made_for.decides,
        },
    }
    return with_keys(version.text, values)


def _facts(
    before: RecipeVersion,
    after: RecipeVersion,
    good: Scored,
    bad: Scored | None,
    found: Calibrated,
    *,
    max_false_reject: float,
    confidence: float,
    needed: int,
) -> dict[str, str]:
    n = len(good.scores)
    facts = {
        "recipe": f"{before.identity} -> {after.identity}",
        "good parts": f"{n}; {needed} are the least for {max_false_reject:g} at {confidence:g}",
        "seed threshold": f"{found.seed_threshold:.5f}, least area {found.min_area_px:.0f} px",
        "false rejects": f"{found.false_rejects} of these {n}; of all good parts at most {found.false_reject_bound:.3%}, {confidence:.0%} sure",
    }
    if found.missing:
        facts["missing"] = f"{found.missing} more good parts, for the promise of {max_false_reject:.3%}"
    if bad is not None and found.escapes is not None:
        facts["escapes"] = f"{found.escapes} of {len(bad.scores)} bad parts pass ({found.escapes / len(bad.scores):.1%})"
    return facts


def _progress(what: str) -> Any:
    """Says how many parts were judged: in place on a terminal, a line every few seconds elsewhere."""
    said = time.monotonic()

    def say(count: int) -> None:
        nonlocal said
        if sys.stderr.isatty():
            print(f"\r{what} parts: {count}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - said >= LINE_EVERY_S:
            said = time.monotonic()
            print(f"{what} parts: {count}", file=sys.stderr, flush=True)

    return say


def _silent(_: str) -> Any:
    return lambda _count: None

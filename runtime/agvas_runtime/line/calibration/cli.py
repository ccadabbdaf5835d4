"""``agvas calibrate``: thresholds from good parts, with a promise on how many good parts they reject."""

import math
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml

from agvas_core.contract.durable import write_whole
from agvas_core.contract.errors import OutputError
from agvas_runtime.line.calibration.calibration import Calibrated, allowed_rejects, calibrate, needed_parts
from agvas_runtime.line.calibration.page import calibration_page
from agvas_runtime.line.calibration.part_scores import Scored, score_parts
from agvas_runtime.line.recipe.file import RecipeVersion, parse_recipe, read_recipe
from agvas_runtime.line.recipe.thresholds import thresholds_of
from agvas_runtime.line.station.inspector import SegmenterInspector
from agvas_runtime.stages.open import StageSettings

__all__ = ["calibrate_command", "calibrated_text", "least_areas", "with_keys"]


# Top-level keys of a recipe's text, replaced; comments and everything else stay as they are.


def with_keys(text: str, values: Mapping[str, Any]) -> str:
    """The text of a valid recipe with these top-level keys at its end, and none of them before."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    lines = text.splitlines(keepends=True)
    if node is None or node.flow_style:  # {product: x}: written out anew
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


def least_areas(good_parts: int, max_false_reject: float, confidence: float, own: float) -> tuple[float, ...]:
    """Among how many least areas there may be a choice: the whole list where that many parts pay for it, else the recipe's own alone.

    It depends on the number of parts, never on their scores, so it costs nothing.
    """
    enough = allowed_rejects(good_parts, max_false_reject, confidence, choices=len(AREAS)) is not None
    return AREAS if enough else (own,)


def calibrate_command(
    good: Annotated[Path, typer.Option(metavar="DIR", help="Pictures of good parts, as the camera takes them.")],
    recipe: Annotated[Path, typer.Option(metavar="FILE", help="The recipe to calibrate; agvas recipe new makes one.")],
    bad: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Pictures of bad parts; without them escapes are unknown.")
    ] = None,
    max_false_reject: Annotated[float, typer.Option(help="The largest share of good parts that may be rejected.")] = 0.005,
    confidence: Annotated[float, typer.Option(help="How sure that must be, 0 to 1.")] = 0.95,
    min_area_px: Annotated[
        float | None, typer.Option(min=0, help="The smallest region that matters; chosen where left out.")
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(min=9, max=16, metavar="N", help="Bits that 16-bit pictures use, as the station has it; 16 by default."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="NAME-calibrated.yaml by default.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, metavar="N", help="CPU threads; all cores by default.")] = None,
) -> None:
    """Sets a recipe's thresholds from good parts, so that no more than a share of good parts is rejected, and writes a page with plots."""
    needed = needed_parts(max_false_reject, confidence)  # refuses shares that are none
    version = read_recipe(recipe)
    inspector = SegmenterInspector(settings=StageSettings(threads=threads))
    inspector.prepare(version)
    bits = bits or version.recipe.bits
    own = thresholds_of(version.recipe, inspector.bundle_of(version))
    say = _progress if sys.stderr.isatty() else _silent

    def tried(pixels: int) -> tuple[float, ...]:
        return (*AREAS, own.min_area_fraction) if min_area_px is None else (min_area_px / pixels,)

    scored = score_parts(good, inspector, version, tried, bits=bits, progress=say("good"))
    pixels = math.prod(scored.size_px)
    if min_area_px is not None:
        areas: tuple[float, ...] = (min_area_px / pixels,)
    else:
        areas = least_areas(len(scored.scores), max_false_reject, confidence, own.min_area_fraction)
        columns = slice(0, len(AREAS)) if areas == AREAS else slice(len(AREAS), None)
        scored = scored._replace(scores=scored.scores.columns(columns))
    worse = score_parts(bad, inspector, version, lambda _: areas, bits=bits, progress=say("bad")) if bad is not None else None
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
    try:
        write_whole(path, text)
        write_whole(
            page,
            calibration_page(
                found,
                scored.scores,
                worse.scores if worse else None,
                facts,
                confidence=confidence,
                max_false_reject=max_false_reject,
            ),
        )
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): choose another name with --out") from error
    for name, value in facts.items():
        typer.echo(f"{name:16}  {value}")
    for line in [*scored.left_out, *(worse.left_out if worse else [])]:
        typer.echo(f"left out: {line}", err=True)
    typer.echo(f"{path}  {after.identity}\n{page}")


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
    values: dict[str, Any] = {
        "bundle": bundle.identity,
        "frame": {"width_px": good.size_px[0], "height_px": good.size_px[1]},
        "thresholds": {
            "threshold": own.threshold,
            "seed_threshold": found.seed_threshold,
            "min_area_fraction": area,
            "gate": own.gate,
        },
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
    def say(count: int) -> None:
        print(f"\r{what} parts: {count}", end="", file=sys.stderr, flush=True)

    return say


def _silent(_: str) -> Any:
    return lambda _count: None

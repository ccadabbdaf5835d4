"""``agvas replay``."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agvas_core.contract.command_line import printable
from agvas_core.contract.defaults import DEFAULT_BACKEND
from agvas_core.contract.errors import EXIT_OK, EXIT_REJECTS

if TYPE_CHECKING:
    from agvas_runtime.line.app.replay import End, Replayed

__all__ = ["replay_command"]

DIFFERS = 3


def replay_command(
    folder: Annotated[Path, typer.Argument(metavar="STATE", help="The --state folder of a station, also while it runs.")] = Path(
        "line"
    ),
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE|STORE", help="A recipe that does not go yet; each part's own where not given.")
    ] = None,
    last: Annotated[int | None, typer.Option(min=1, metavar="N", help="The last N parts; all by default.")] = None,
    part: Annotated[int | None, typer.Option(min=1, metavar="SEQ", help="This part alone.")] = None,
    station: Annotated[str | None, typer.Option(metavar="NAME", help="Parts of this station alone.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="With --recipe: CPU threads; all cores by default.")
    ] = None,
    lmm: Annotated[
        str, typer.Option(metavar="BACKEND|URL", help="With --recipe: what runs the language model.")
    ] = DEFAULT_BACKEND,
    json_lines: Annotated[bool, typer.Option("--json", help="Every part as a JSON line.")] = False,
    fail_on_change: Annotated[
        bool, typer.Option("--fail-on-change", help="With --recipe: exit with 1 if a verdict changes.")
    ] = False,
) -> None:
    """Judges stored parts again: by a new recipe, to see which verdicts change before it goes live, or by their own, to the last digit.

    Without --recipe it ends with 3 where a verdict does not come out as it did though image, recipe, bundle and engine are the same.
    """
    from agvas_runtime.line.app.replay import End, replay_own, replay_with
    from agvas_runtime.line.ledger.reader import Which
    from agvas_runtime.line.recipe.file import read_recipe
    from agvas_runtime.line.recipe.store import RecipeStore
    from agvas_runtime.line.station.inspector import SegmenterInspector
    from agvas_runtime.pipeline.options import SegmentOptions

    which = Which(last, part, station)
    if recipe is None:
        ends = _tell(replay_own(folder, which), json_lines=json_lines, own=True)
        raise typer.Exit(DIFFERS if ends[End.CHANGED] else EXIT_OK)
    store = RecipeStore(recipe)
    version = store.active() if store.is_store() else read_recipe(recipe)
    inspector = SegmenterInspector(SegmentOptions(lmm=lmm, threads=threads))
    ends = _tell(replay_with(folder, version, which, inspector=inspector), json_lines=json_lines, own=False)
    raise typer.Exit(EXIT_REJECTS if fail_on_change and ends[End.CHANGED] else EXIT_OK)


def _tell(replayed: "Iterable[Replayed]", *, json_lines: bool, own: bool) -> "Counter[End]":
    from agvas_runtime.line.app.replay import End

    ends: Counter[End] = Counter()
    changes: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for one in replayed:
        ends[one.end] += 1
        before, now = str(one.part.verdict), str(one.verdict) if one.verdict is not None else None
        if one.end is End.CHANGED:
            changes[f"{before} -> {now}"] += 1
        if one.end is End.SKIPPED:
            reasons[one.why] += 1
        if json_lines:
            fields = {"seq": one.part.seq, "station": one.part.station, "before": before, "now": now, "end": str(one.end)}
            typer.echo(json.dumps({**fields, "score_before": one.part.score, "score": one.score, "why": one.why}))
        elif one.end is End.CHANGED:
            score = (
                ""
                if one.score is None
                else f"  score {one.part.score if one.part.score is not None else 0:.3f} -> {one.score:.3f}"
            )
            typer.echo(printable(f"{one.part.seq:6d}  {one.part.station}  {before} -> {now}{score}  {one.why}".rstrip()))
    what = "reproduced" if own else "verdicts stay"
    lines = [
        f"{ends[End.SAME]} {what}, {ends[End.CHANGED]} {'differ' if own else 'change'}, {ends[End.SKIPPED]} not judged again"
    ]
    lines += [f"  {count} {change}" for change, count in sorted(changes.items())]
    lines += [f"  {count}: {why}" for why, count in reasons.most_common()]
    for line in lines:
        typer.echo(printable(line), err=json_lines)
    return ends

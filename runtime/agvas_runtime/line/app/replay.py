"""Stored parts, judged again: by a new recipe before it is activated, or by their own to reproduce each verdict.

A verdict is reproduced where image, recipe, bundle and engine are those of the ledger and verdict, score, findings and broken rules
come out the same to the last digit. Anything less has its reason.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from agvas_core.contract.errors import AgvasError, LedgerError, StageError, UnlikeError
from agvas_runtime.images.frame import Frame
from agvas_runtime.line.ledger.check import open_for_reading
from agvas_runtime.line.ledger.reader import PastPart, Which, past_parts
from agvas_runtime.line.recipe.file import RecipeVersion, parse_recipe
from agvas_runtime.line.recipe.rules import Judgement
from agvas_runtime.line.station.inspector import Inspection, Inspector, SegmenterInspector, frame_fault
from agvas_runtime.masks.result import Verdict
from agvas_runtime.pipeline.options import SegmentOptions

__all__ = ["End", "Replayed", "replay_own", "replay_with"]

MakeInspector = Callable[[dict[str, Any]], Inspector]
ALL: Final = Which()


class End(StrEnum):
    """Of a part that was to be judged again."""

    SAME = "same"
    """With a new recipe: the same verdict. With its own: all of it, to the last digit."""
    CHANGED = "changed"
    SKIPPED = "skipped"
    """It could not be judged again, or under other conditions only; the reason says which."""


@dataclass(frozen=True)
class Replayed:
    """One part, then and now."""

    part: PastPart
    end: End
    verdict: Verdict | None = None
    """Now; None where it could not be judged."""
    score: float | None = None
    why: str = ""


def replay_with(
    folder: Path, version: RecipeVersion, which: Which = ALL, *, inspector: Inspector | None = None
) -> Iterator[Replayed]:
    """Parts of a ledger by another recipe, in order; those of other products, or whose image is not here, are skipped with their reason.

    Raises:
        LedgerError: there is no ledger.
        AgvasError: the recipe cannot be followed.
    """
    inspector = inspector or SegmenterInspector()
    inspector.prepare(version)
    with closing(open_for_reading(folder)) as db:
        for part in past_parts(db, which):
            frame, why = _frame_of(part, folder)
            if part.product not in (None, version.recipe.product):
                frame, why = None, f"it is a part of {part.product}, and the recipe is for {version.recipe.product}"
            if frame is None:
                yield Replayed(part, End.SKIPPED, why=why)
                continue
            fault = frame_fault(frame, version)
            try:
                if fault is not None:
                    raise StageError(fault)
                judgement = inspector.inspect(frame, version).judgement
            except (StageError, UnlikeError) as error:
                end = End.SAME if part.verdict is Verdict.NO_VERDICT else End.CHANGED
                yield Replayed(part, end, Verdict.NO_VERDICT, why=str(error))
                continue
            end = End.SAME if judgement.verdict is part.verdict else End.CHANGED
            yield Replayed(part, end, judgement.verdict, judgement.reject_score, ", ".join(judgement.broken))


def replay_own(folder: Path, which: Which = ALL, *, make_inspector: MakeInspector | None = None) -> Iterator[Replayed]:
    """Every part by the recipe, bundle and engine that the ledger names for it.

    Args:
        make_inspector: gives an engine for the facts of one in the ledger.
    """
    again = _Again(make_inspector or inspector_as)
    with closing(open_for_reading(folder)) as db:
        again.texts = dict(db.execute("SELECT sha256, text FROM recipes").fetchall())
        again.engines = {name: json.loads(facts) for name, facts in db.execute("SELECT identity, facts FROM engines").fetchall()}
        for part in past_parts(db, which):
            yield again.judge(part, folder)


def inspector_as(facts: dict[str, Any]) -> Inspector:
    """The engine with these facts, as far as this machine has it: backends, threads and tiles are set, versions are what they are.

    Raises:
        LedgerError: they are not those of an engine of ours.
    """
    try:
        vision, lmm, decoder = facts["backends"]
        threads, tiles = facts["threads"], dict(facts.get("tiles", {}))
    except (KeyError, TypeError, ValueError) as error:
        raise LedgerError(
            f"the ledger's engine has no backends and threads, but {', '.join(sorted(facts))}: it is not one of agvas-run"
        ) from error
    return SegmenterInspector(SegmentOptions(vision=vision, lmm=lmm, decoder=decoder, threads=threads), tiles=tiles)


class _Again:
    """Engines and recipes of a ledger, each made ready once."""

    def __init__(self, make_inspector: MakeInspector) -> None:
        self.texts: dict[str, str] = {}
        self.engines: dict[str, dict[str, Any]] = {}
        self._make = make_inspector
        self._inspectors: dict[str, Inspector] = {}
        self._ready: dict[tuple[str, str], RecipeVersion | str] = {}

    def judge(self, part: PastPart, folder: Path) -> Replayed:
        if part.verdict is Verdict.NO_VERDICT:
            return Replayed(part, End.SKIPPED, why=f"it had no verdict ({part.cause}), so there is none to reproduce")
        assert part.recipe is not None and part.engine is not None, "the tables see to it"
        frame, why = _frame_of(part, folder)
        if frame is None:
            return Replayed(part, End.SKIPPED, why=why)
        ready = self._prepared(part.engine, part.recipe)
        if isinstance(ready, str):
            return Replayed(part, End.SKIPPED, why=ready)
        inspector = self._inspectors[part.engine]
        try:
            inspection = inspector.inspect(frame, ready)
        except (StageError, UnlikeError) as error:
            return Replayed(part, End.CHANGED, Verdict.NO_VERDICT, why=str(error))
        return self._compared(part, inspection, ready, inspector)

    def _compared(self, part: PastPart, inspection: Inspection, version: RecipeVersion, inspector: Inspector) -> Replayed:
        judgement = inspection.judgement
        now, score = judgement.verdict, judgement.reject_score
        differ = [
            what
            for what, before, after in (
                ("verdict", part.verdict, now),
                ("score", part.score, score),
                ("broken rules", part.broken, list(judgement.broken)),
                ("findings", part.findings, _as_stored([one.to_dict(version.recipe.mm_per_px) for one in judgement.findings])),
            )
            if before != after and not (what == "score" and _was_set_to_zero(part, judgement))
        ]
        others = []
        if inspection.bundle != part.bundle:
            others.append(f"bundle {inspection.bundle} in place of {part.bundle}")
        if inspector.identity != part.engine:
            others.append("engine: " + _changes(self.engines[part.engine or ""], _as_stored(dict(inspector.facts))))
        outcome = f"{', '.join(differ)} came out otherwise" if differ else "all of it came out the same"
        if others:
            return Replayed(part, End.SKIPPED, now, score, f"{'; '.join(others)}; {outcome}")
        return Replayed(part, End.CHANGED if differ else End.SAME, now, score, outcome if differ else "")

    def _prepared(self, engine: str, recipe: str) -> RecipeVersion | str:
        """The recipe, ready on its engine; or why it is not."""
        if (engine, recipe) not in self._ready:
            try:
                version = parse_recipe(self.texts[recipe], f"recipe {recipe[:12]} of the ledger")
                if version.sha256 != recipe:
                    raise LedgerError(f"recipe {recipe[:12]} of the ledger has another text than its hash says")
                if engine not in self._inspectors:
                    self._inspectors[engine] = self._make(self.engines[engine])
                self._inspectors[engine].prepare(version)
                self._ready[engine, recipe] = version
            except AgvasError as error:
                self._ready[engine, recipe] = str(error)
        return self._ready[engine, recipe]


def _frame_of(part: PastPart, folder: Path) -> tuple[Frame | None, str]:
    image, why = part.image(folder)
    return (Frame(part.frame, 0, image=image), "") if image is not None else (None, why)


def _was_set_to_zero(part: PastPart, judgement: Judgement) -> bool:
    """Whether an older ledger holds 0 in place of the raw score, as it did where no pixel reached the seed threshold."""
    return part.score == 0.0 and not part.broken and not judgement.broken


def _as_stored(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return ", ".join(f"{name} {before.get(name)} then, {now.get(name)} now" for name in names)

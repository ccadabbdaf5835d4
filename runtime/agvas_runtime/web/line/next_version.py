"""The next version of a station's product, from what was reviewed: made, tried on past parts, and activated when a person says so.

    next_version = NextVersion(session, make, recipe=Path("recipes"))
    next_version.start()
    next_version.state()        # what it is at, and what would change
    next_version.activate(sha256)

One runs at a time, in a thread. The product of now is never touched: the next one is a folder beside it, NAME-v2 and so on, with a
recipe NAME-v2.yaml; both are there only once they are whole.
"""

import re
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from agvas_core.contract.durable import write_whole
from agvas_core.contract.errors import AgvasError, OutputError, UsageError
from agvas_runtime.bundle import find_bundle, load_bundle
from agvas_runtime.line.app.replay import End, Replayed, replay_with
from agvas_runtime.line.ledger.check import open_for_reading
from agvas_runtime.line.ledger.reader import Which
from agvas_runtime.line.recipe.cli import differences, with_product
from agvas_runtime.line.recipe.file import RecipeVersion, parse_recipe, read_recipe
from agvas_runtime.line.recipe.store import RecipeStore
from agvas_runtime.line.station.inspector import SegmenterInspector
from agvas_runtime.pipeline.options import SegmentOptions
from agvas_runtime.web.line.review_session import Session

__all__ = ["Made", "NextVersion"]

REPLAYED: Final = 1000
"""Past parts that are judged again at most, the newest."""
LISTED: Final = 200
"""Parts whose verdict changes that are named."""
TRIES: Final = 10_000


class Made(NamedTuple):
    """A product that was made."""

    folder: Path
    statement: str
    warnings: tuple[str, ...]


class Make(Protocol):
    """Makes a product; ``agvas`` has it, which may fit."""

    def __call__(
        self, review: Path, model: str, out: Path, progress: Callable[[str, int, int], None], *, name: str, threads: int | None
    ) -> Made:
        """See ``agvas.fitting.next_version``."""
        ...


class _Ended(Exception):
    """The server ends, and the thread with it."""


@dataclass(frozen=True)
class _Ready:
    version: RecipeVersion
    path: Path
    facts: dict[str, Any]


class NextVersion:
    """Of one review. Threads may share it."""

    def __init__(
        self, session: Session, make: Make, *, recipe: Path | None = None, threads: int | None = None, station: str | None = None
    ) -> None:
        """Args:
        recipe: a recipe or a store with an active one; the recipe of the ledger's newest part where None. Only in a store a recipe
            is activated.

        Raises:
            RecipeError: the recipe cannot be read.
        """
        self._session, self._make, self._threads, self._station = session, make, threads, station
        self._given = recipe
        self._store = RecipeStore(recipe) if recipe is not None and RecipeStore(recipe).is_store() else None
        if recipe is not None:
            self._base()
        self._mutex = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._phase: dict[str, Any] = {"phase": "idle"}
        self._ready: _Ready | None = None

    def state(self) -> dict[str, Any]:
        """What the page shows: ``phase`` is idle, working, failed, ready or active."""
        with self._mutex:
            store = None if self._store is None else str(self._store.folder)
            return {**self._phase, "store": store, "recipe": None if self._given is None else str(self._given)}

    def start(self) -> None:
        """Begins to make it, from what is reviewed by now.

        Raises:
            UsageError: one is being made, or nothing was reviewed.
        """
        counts = self._session.overview()["counts"]
        with self._mutex:
            if self._phase["phase"] == "working":
                raise UsageError("the next version is being made already: wait for it")
            if not counts:
                raise UsageError(
                    "no part was reviewed yet: say of some parts whether they are good, and then make the next version"
                )
            self._phase, self._ready = _working("starting", 0, 0), None
            self._thread = threading.Thread(target=self._run, name="agvas-next-version", daemon=True)
            self._thread.start()

    def activate(self, sha256: str) -> dict[str, Any]:
        """Activates the recipe that was shown, in its store.

        Raises:
            UsageError: another one is shown by now, or there is no store.
            OutputError: the store cannot be written; what was active stays.
        """
        with self._mutex:
            if self._ready is None or self._ready.version.sha256 != sha256:
                raise UsageError(
                    f"{sha256[:12] or 'nothing'} is not the version that was made last: look at what would change first"
                )
            if self._store is None:
                raise UsageError(
                    f"there is no recipe store: agvas recipe activate {self._ready.path} --store DIR, and start agvas review with "
                    "--recipe DIR to do it here"
                )
            change = self._store.activate(self._ready.version, why="review")
            before = None if change.before is None else change.before.identity
            self._phase = {**self._phase, "phase": "active", "before": before}
        return self.state()

    def close(self) -> None:
        """Ends the thread; what is half done leaves nothing behind."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            ready = self._made()
        except _Ended:
            return
        except AgvasError as error:
            self._put({"phase": "failed", "why": str(error)})
            return
        except BaseException:
            self._put({"phase": "failed", "why": "this is a bug in agvas; its traceback is in the server's log"})
            raise
        with self._mutex:
            self._ready = ready
            self._phase = {"phase": "ready", **ready.facts}

    def _made(self) -> _Ready:
        base = self._base()
        recipe = base.recipe
        folder = _beside(recipe.model, recipe.product)
        made = self._make(self._session.out, recipe.model, folder, self._tell, name=recipe.product, threads=self._threads)
        text = with_product(base, str(made.folder), load_bundle(made.folder))
        version = parse_recipe(text, f"the recipe for {made.folder.name}")
        replayed = self._replayed(version)
        path = made.folder.with_name(f"{made.folder.name}.yaml")
        try:
            write_whole(path, text)
        except OSError as error:
            raise OutputError(f"{path} cannot be written ({error.strerror}): the product is in {made.folder}") from error
        facts = {
            "sha256": version.sha256,
            "version": version.identity,
            "product": str(made.folder),
            "path": str(path),
            "statement": made.statement,
            "warnings": list(made.warnings),
            "changes": differences(base.recipe, version.recipe),
            "base": base.identity,
            **replayed,
        }
        return _Ready(version, path, facts)

    def _replayed(self, version: RecipeVersion) -> dict[str, Any]:
        """What the version says of past parts, beside what was said of them then and by a person."""
        state = self._session.state
        said = {seq: word for seq, _, word in self._session.overview()["parts"] if word is not None}
        which = Which(last=REPLAYED, station=self._station, kept=True)
        ends: Counter[str] = Counter()
        changes: Counter[str] = Counter()
        agreed: Counter[str] = Counter()
        skipped: Counter[str] = Counter()
        changed: list[dict[str, Any]] = []
        inspector = SegmenterInspector(SegmentOptions(threads=self._threads))
        with closing(open_for_reading(state)) as db:
            where, values = which.condition()
            total = int(db.execute(f"SELECT COUNT(*) FROM parts WHERE {where}", values).fetchone()[0])
        self._tell("past parts", 0, total)
        for number, one in enumerate(replay_with(state, version, which, inspector=inspector), 1):
            self._tell("past parts", number, total)
            ends[str(one.end)] += 1
            word = said.get(one.part.seq)
            if one.end is End.SKIPPED:
                skipped[one.why] += 1
            elif word is not None:
                agreed[f"{_is_good(one, word)} {one.verdict}"] += 1
            if one.end is End.CHANGED:
                changes[f"{one.part.verdict} -> {one.verdict}"] += 1
                if len(changed) < LISTED:
                    changed.append(_row(one, word))
        return {
            "replayed": {str(end): ends[str(end)] for end in End},
            "flips": dict(sorted(changes.items())),
            "reviewed": dict(sorted(agreed.items())),
            "skipped": dict(skipped.most_common(5)),
            "changed": changed,
        }

    def _base(self) -> RecipeVersion:
        if self._store is not None:
            return self._store.active()
        if self._given is not None:
            return read_recipe(self._given)
        with closing(open_for_reading(self._session.state)) as db:
            where, values = Which(station=self._station).condition()
            row = db.execute(
                f"SELECT recipes.text, recipes.sha256 FROM parts JOIN recipes ON recipes.sha256 = parts.recipe WHERE {where} "
                "ORDER BY seq DESC LIMIT 1",
                values,
            ).fetchone()
        if row is None:
            raise UsageError("no part of the ledger names its recipe: start agvas review with --recipe FILE or STORE")
        return parse_recipe(row[0], f"recipe {row[1][:12]} of the ledger")

    def _tell(self, step: str, done: int, total: int) -> None:
        if self._stop.is_set():
            raise _Ended
        self._put(_working(step, done, total))

    def _put(self, phase: dict[str, Any]) -> None:
        with self._mutex:
            self._phase = phase


def _working(step: str, done: int, total: int) -> dict[str, Any]:
    return {"phase": "working", "step": step, "done": done, "total": total}


def _is_good(one: Replayed, said: str) -> str:
    """What a person said of a part: good or bad."""
    if said == "agree":
        return "good" if str(one.part.verdict) == "PASS" else "bad"
    return "good" if said in ("false-reject", "good") else "bad"


def _row(one: Replayed, said: str | None) -> dict[str, Any]:
    return {
        "seq": one.part.seq,
        "before": str(one.part.verdict),
        "now": str(one.verdict),
        "score_before": one.part.score,
        "score": one.score,
        "why": one.why,
        "said": None if said is None else _is_good(one, said),
    }


def _beside(model: str, product: str) -> Path:
    """A free name: bracket-v2 beside the product bracket, bracket-v3 beside bracket-v2."""
    folder = find_bundle(model)
    bundle = load_bundle(model)
    parent, stem = (Path(), product) if bundle.product is None or bundle.is_bundled else (folder.parent, folder.stem)
    found = re.fullmatch(r"(.*)-v(\d+)", stem)
    name, first = (found[1], int(found[2]) + 1) if found else (stem, 2)
    for number in range(first, first + TRIES):
        out = parent / f"{name}-v{number}"
        if not out.exists() and not out.with_name(f"{out.name}.yaml").exists():
            return out
    raise OutputError(f"{parent} has {TRIES} versions of {name}: remove old ones")

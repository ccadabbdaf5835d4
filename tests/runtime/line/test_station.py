"""What a station promises: each trigger has exactly one verdict, at its deadline at the latest, and never a late PASS."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from agvas_core.contract.errors import ImageError, LedgerError, StageError
from agvas_runtime.images.frame import Frame
from agvas_runtime.line.ledger.check import check_ledger
from agvas_runtime.line.ledger.images import ImageStore, hash_of_image, read_kept
from agvas_runtime.line.ledger.ledger import Ledger
from agvas_runtime.line.ledger.part_result import Cause
from agvas_runtime.line.recipe.file import RecipeVersion
from agvas_runtime.line.station.inspector import SegmenterInspector
from agvas_runtime.line.station.station import Outcome, Station
from agvas_runtime.masks.result import Verdict

from .conftest import PacedInspector, grey

Recipe = Callable[..., RecipeVersion]


def test_dark_parts_fail_and_light_ones_pass(ledger: Ledger, recipe: Recipe) -> None:
    version = recipe()
    station = Station("s", ledger, PacedInspector(), lambda: version)
    pending_parts = [station.offer(grey(200 if n % 2 else 20), key=str(n)) for n in range(10)]
    station.close()
    assert [pending.result.verdict for pending in pending_parts if pending.result] == [Verdict.FAIL, Verdict.PASS] * 5
    assert [pending.seq for pending in pending_parts] == list(range(1, 11))
    assert check_ledger(ledger.folder).faults == []


def test_a_deadline_missed_is_no_verdict_at_the_deadline_and_the_late_pass_is_never_seen(ledger: Ledger, recipe: Recipe) -> None:
    version, told = recipe("deadline_ms: 100"), []
    inspector = PacedInspector()
    inspector.may_end.clear()
    station = Station("s", ledger, inspector, lambda: version, listeners=(told.append,))
    pending = station.offer(grey(200), key="1")
    end = pending.wait(60.0)  # the engine is still at it
    assert end is not None and (end.verdict, end.cause) == (Verdict.NO_VERDICT, Cause.DEADLINE)
    assert inspector.looked == []
    inspector.may_end.set()
    station.close()
    assert inspector.looked == ["part"]
    assert len(told) == 1
    assert ledger.read("SELECT verdict, cause FROM parts") == [("NO_VERDICT", "deadline")]


def test_at_twice_the_rate_every_part_has_a_verdict_in_time_and_many_a_real_one(ledger: Ledger, recipe: Recipe) -> None:
    version = recipe("deadline_ms: 200")
    station = Station("s", ledger, PacedInspector(0.02), lambda: version)
    for number in range(100):
        station.offer(grey(200), key=str(number))
        time.sleep(0.01)
    station.close()
    rows = ledger.read("SELECT verdict, cause, decided_ms, deadline_ms FROM parts")
    assert len(rows) == 100
    judged = [row for row in rows if row[0] == "PASS"]
    assert all(row[2] <= row[3] for row in judged)
    assert all(row[1] == "deadline" for row in rows if row[0] != "PASS")
    assert len(judged) >= 5  # parts that would be late are not looked at, so the engine's time is not spent on them
    assert check_ledger(ledger.folder).faults == []


def test_a_full_queue_is_no_verdict_at_once(ledger: Ledger, recipe: Recipe) -> None:
    version, inspector = recipe("deadline_ms: 60000"), PacedInspector()
    inspector.may_end.clear()
    station = Station("s", ledger, inspector, lambda: version, queue_parts=2)
    pending_parts = [station.offer(grey(200), key=str(n)) for n in range(8)]
    refused = [pending for pending in pending_parts if pending.result and pending.result.cause is Cause.DEADLINE]
    assert len(refused) >= 5
    inspector.may_end.set()
    station.close()
    assert all(pending.result for pending in pending_parts)


def test_the_same_trigger_again_gets_the_same_part_and_the_same_verdict(ledger: Ledger, recipe: Recipe) -> None:
    version = recipe()
    station = Station("s", ledger, PacedInspector(), lambda: version)
    first = station.offer(grey(20), key="4711")
    first.wait()
    again = station.offer(grey(200), key="4711")
    assert again.seq == first.seq
    assert again.result is not None and again.result.verdict is Verdict.FAIL
    assert first.result is not None and again.result.score == first.result.score == 1.0
    station.close()
    assert len(ledger.read("SELECT 1 FROM parts")) == 1


def test_what_is_no_picture_is_no_verdict_of_the_source(ledger: Ledger, recipe: Recipe) -> None:
    version = recipe("frame: {width_px: 8, height_px: 8}")
    station = Station("s", ledger, PacedInspector(), lambda: version)
    broken = station.offer(Frame("x", 0, error=ImageError("cut off")), key="1")
    other = station.offer(Frame("y", 1, image=np.zeros((9, 8, 3), np.uint8)), key="2")
    station.close()
    assert [pending.result.cause for pending in (broken, other) if pending.result] == [Cause.SOURCE] * 2
    assert "8x9 px" in ledger.read("SELECT detail FROM parts WHERE seq = 2")[0][0]


def test_an_engine_that_is_down_is_no_verdict_and_the_line_goes_on(ledger: Ledger, recipe: Recipe) -> None:
    version, inspector = recipe(), PacedInspector()
    station = Station("s", ledger, inspector, lambda: version)
    inspector.error = StageError("the server does not answer")
    assert station.offer(grey(200), key="1").wait().cause is Cause.ENGINE  # type: ignore[union-attr]
    inspector.error = None
    assert station.offer(grey(200), key="2").wait().verdict is Verdict.PASS  # type: ignore[union-attr]
    station.close()


def test_a_bug_ends_the_station_but_no_part_goes_without_a_verdict(ledger: Ledger, recipe: Recipe) -> None:
    version, inspector = recipe("deadline_ms: 60000"), PacedInspector()
    station = Station("s", ledger, inspector, lambda: version)
    inspector.error = ZeroDivisionError("a bug")
    inspector.may_end.clear()
    pending_parts = [station.offer(grey(200), key=str(n)) for n in range(3)]
    inspector.may_end.set()
    ends = [pending.wait(60.0) for pending in pending_parts]
    assert [end.cause for end in ends if end] == [Cause.ENGINE] * 3
    assert isinstance(station.failure, ZeroDivisionError)
    with pytest.raises(LedgerError, match="takes no more parts"):
        station.offer(grey(200), key="9")
    station.close()


def test_listeners_hear_of_a_part_after_it_is_in_the_ledger(ledger: Ledger, recipe: Recipe) -> None:
    version, seen = recipe(), []

    def listen(outcome: Outcome) -> None:
        seen.append(ledger.read("SELECT verdict FROM parts WHERE seq = ?", (outcome.seq,))[0][0])

    station = Station("s", ledger, PacedInspector(), lambda: version, listeners=(listen,))
    station.offer(grey(200), key="1").wait()
    station.close()
    assert seen == ["PASS"]


def test_many_threads_may_offer_at_once(ledger: Ledger, recipe: Recipe) -> None:
    version = recipe("deadline_ms: 60000")
    station = Station("s", ledger, PacedInspector(), lambda: version, queue_parts=1000)
    threads = [
        threading.Thread(target=lambda n=n: [station.offer(grey(200), key=f"{n % 2}/{i}") for i in range(20)]) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    station.close()
    assert ledger.read("SELECT COUNT(*), COUNT(DISTINCT seq), MAX(seq) FROM parts WHERE verdict = 'PASS'") == [(40, 40, 40)]


def test_a_kept_image_is_the_very_image_that_was_judged(ledger: Ledger, recipe: Recipe) -> None:
    version, rng = recipe("keep: {rejects: true, sample_every: 0, first: 0}"), np.random.default_rng(0)
    images = ImageStore(ledger)
    station = Station("s", ledger, PacedInspector(), lambda: version, images=images)
    bad = rng.integers(0, 100, (31, 47, 3), dtype=np.uint8)
    station.offer(Frame("bad", 0, image=bad), key="1")
    station.offer(Frame("good", 1, image=bad + 150), key="2")
    station.close()
    images.close()
    rows = ledger.read("SELECT image_state, image_path, image_sha256 FROM parts ORDER BY seq")
    assert [row[0] for row in rows] == ["kept", "none"]
    kept = read_kept(ledger.folder, rows[0][1])
    assert kept is not None and np.array_equal(kept, bad) and hash_of_image(kept) == rows[0][2]


def test_old_images_go_where_they_take_too_much_room(ledger: Ledger, recipe: Recipe) -> None:
    version = recipe("keep: {sample_every: 1, max_gb: 0.0001}")
    images, rng = ImageStore(ledger), np.random.default_rng(0)
    station = Station("s", ledger, PacedInspector(), lambda: version, images=images)
    for number in range(12):
        station.offer(Frame("x", number, image=rng.integers(0, 256, (80, 80, 3), dtype=np.uint8)), key=str(number)).wait()
    station.close()
    images.close()
    assert sum(path.stat().st_size for path in (ledger.folder / "images").rglob("*.png")) <= 100_000
    states = [state for (state,) in ledger.read("SELECT image_state FROM parts ORDER BY seq")]
    assert states[0] == "removed" and states[-1] == "kept"
    assert check_ledger(ledger.folder, images=True).faults == []


def test_the_real_model_finds_a_spot_inside_the_roi_and_none_outside(
    ledger: Ledger, recipe: Recipe, tiny_bundle: Path, make_part: Callable[..., np.ndarray]
) -> None:
    version = recipe(
        f"model: {tiny_bundle}",
        "frame: {width_px: 128, height_px: 96}",
        "mm_per_px: 0.5",
        "rois: {left: [[0, 0], [63, 0], [63, 95], [0, 95]]}",
        "rules: [{roi: left, min_length_mm: 3}]",
    )
    inspector = SegmenterInspector()
    inspector.prepare(version)
    station = Station("s", ledger, inspector, lambda: version)
    shots = {"left": [(30, 40, 8)], "right": [(100, 40, 8)], "small": [(30, 40, 1)], "none": []}
    pending_parts = {name: station.offer(Frame(name, 0, image=make_part(spots=spots)), key=name) for name, spots in shots.items()}
    station.close()
    assert {name: pending.result.verdict for name, pending in pending_parts.items() if pending.result} == {
        "left": Verdict.FAIL,
        "right": Verdict.PASS,
        "small": Verdict.PASS,
        "none": Verdict.PASS,
    }
    (finding,) = pending_parts["left"].result.findings  # type: ignore[union-attr]
    assert finding["roi"] == "left" and 6 <= finding["length_mm"] <= 10
    assert check_ledger(ledger.folder).faults == []

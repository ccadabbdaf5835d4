"""What the ledger promises: nothing lost, nothing twice, whatever moment the process dies at and however full the disk is."""

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from agvas_core.contract.errors import LedgerError
from agvas_runtime.line.ledger.check import check_ledger
from agvas_runtime.line.ledger.disk_reserve import DiskLevel, DiskReserve
from agvas_runtime.line.ledger.ledger import Ledger
from agvas_runtime.line.ledger.part_result import Cause, PartResult, without_verdict
from agvas_runtime.line.recipe.file import RecipeVersion
from agvas_runtime.line.station.outbox import message_of
from agvas_runtime.line.station.station import Station
from agvas_runtime.masks.result import Verdict

from .conftest import PacedInspector, grey, small_reserve

ROOT = Path(__file__).parents[3]


def settled(ledger: Ledger, key: str) -> int:
    """A part with NO_VERDICT."""
    part = ledger.open_part("s", key, deadline_ms=100)
    ledger.settle(part.seq, without_verdict(Cause.ENGINE, "test", 1.0))
    return part.seq


def test_a_verdict_stands(ledger: Ledger) -> None:
    seq = settled(ledger, "1")
    with pytest.raises(LedgerError, match="has a verdict already"):
        ledger.settle(seq, without_verdict(Cause.DISK, "again", 1.0))
    for statement in ("UPDATE parts SET cause = 'disk'", "DELETE FROM parts", "UPDATE parts SET verdict = NULL, cause = NULL"):
        with pytest.raises(LedgerError, match=r"stands|never removed"):
            ledger.write(statement, [()])


def test_the_tables_take_no_late_pass_and_no_pass_without_its_hashes(
    ledger: Ledger, recipe: Callable[..., RecipeVersion]
) -> None:
    version = recipe()
    ledger.know_engine("e", {})
    whole = {"image_sha256": "a", "recipe": version.sha256, "bundle": "b", "engine": "e", "score": 0.1}
    for ms, fields in [(100.1, whole), (1.0, whole | {"image_sha256": None}), (1.0, whole | {"recipe": None})]:
        part = ledger.open_part("s", f"{ms} {fields}", deadline_ms=100)
        with pytest.raises(LedgerError, match="CHECK"):
            ledger.settle(part.seq, PartResult(Verdict.PASS, ms, **fields))


def test_a_second_writer_is_refused_and_a_reader_is_not(ledger: Ledger) -> None:
    settled(ledger, "1")
    with pytest.raises(LedgerError, match="in use by another process"):
        Ledger(ledger.folder)
    assert check_ledger(ledger.folder).triggers == 1


def test_a_trigger_left_by_a_killed_process_gets_its_no_verdict_and_its_message(tmp_path: Path) -> None:
    with Ledger(tmp_path, sinks=["a"], reserve=small_reserve(tmp_path)) as ledger:
        settled(ledger, "1")
        ledger.open_part("s", "2", deadline_ms=100, frame="in/2.png")
    assert check_ledger(tmp_path).unsettled == 1
    with Ledger(tmp_path, sinks=["a", "b"], reserve=small_reserve(tmp_path)) as ledger:
        assert ledger.recovered == 1
        assert ledger.read("SELECT cause, frame FROM parts WHERE seq = 2") == [("engine", "in/2.png")]
        assert ledger.read("SELECT sink, seq FROM deliveries") == [("a", 1), ("a", 2)]
        settled(ledger, "3")
        assert ledger.read("SELECT sink FROM deliveries WHERE seq = 3 ORDER BY 1") == [("a",), ("b",)]
    assert check_ledger(tmp_path).faults == []


def test_sinks_that_come_and_go_owe_no_messages_of_the_time_between(tmp_path: Path) -> None:
    for number, sinks in enumerate([["a"], [], ["a"]]):
        with Ledger(tmp_path, sinks=sinks, reserve=small_reserve(tmp_path)) as ledger:
            settled(ledger, str(number))
    assert check_ledger(tmp_path).faults == []
    assert check_ledger(tmp_path).deliveries == {"a": {"pending": 2}}


def test_verify_sees_a_lost_message_a_swapped_image_and_a_broken_file(tmp_path: Path) -> None:
    with Ledger(tmp_path, sinks=["a"], reserve=small_reserve(tmp_path)) as ledger:
        seq = settled(ledger, "1")
        ledger.write("DELETE FROM deliveries", [()])
        ledger.note_image(seq, "kept", "images/none.png")
    faults = check_ledger(tmp_path, images=True).faults
    assert any("no message" in fault for fault in faults) and any("is gone" in fault for fault in faults)


def test_another_schema_is_named_and_a_folder_that_sqlite_may_not_write_to_is_to_be_copied(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        path = ledger.path
    (tmp_path / f"{path.name}-wal").mkdir()  # as where the folder may only be read
    with pytest.raises(LedgerError, match="copy the folder"):
        check_ledger(tmp_path)
    (tmp_path / f"{path.name}-wal").rmdir()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 7")
    for look in (Ledger, check_ledger):
        with pytest.raises(LedgerError, match="a ledger of schema 7, and this agvas reads schema 1"):
            look(tmp_path)


def test_a_foreign_database_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        db.execute("CREATE TABLE x (y)")
    db.close()
    for open_it in (Ledger, check_ledger):
        with pytest.raises(LedgerError, match="no ledger of agvas"):
            open_it(tmp_path)
    (tmp_path / "ledger.sqlite").write_bytes(b"not a database at all" * 100)
    for open_it in (Ledger, check_ledger):
        with pytest.raises(LedgerError, match="restore it from a copy"):
            open_it(tmp_path)


def test_a_message_is_the_same_whenever_it_is_made(tmp_path: Path) -> None:
    with Ledger(tmp_path, reserve=small_reserve(tmp_path)) as ledger:
        first = message_of(ledger, settled(ledger, "1")).encode()
    with Ledger(tmp_path, reserve=small_reserve(tmp_path)) as ledger:
        assert message_of(ledger, 1).encode() == first


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 4 MB."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small tmpfs")
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True).returncode != 0:
        pytest.skip("this machine does not let us mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_loses_images_first_and_no_verdict_ever(small_disk: Path) -> None:
    from agvas_runtime.line.ledger.images import ImageStore
    from agvas_runtime.line.recipe.file import parse_recipe

    reserve = DiskReserve(small_disk / "line", size_mb=1.0, reserve_mb=0.3, images_reserve_mb=1.0)
    version = parse_recipe("product: part\nkeep: {sample_every: 1}\ndeadline_ms: 60000", "test")
    with Ledger(small_disk / "line", reserve=reserve) as ledger:
        ledger.know_recipe(version.sha256, "part", version.text)
        images = ImageStore(ledger)
        station = Station("s", ledger, PacedInspector(), lambda: version, images=images, queue_parts=1000)
        for number in range(10):
            station.offer(grey(200), key=f"fine {number}").wait()
        filler = (small_disk / "filler").open("wb")
        left = int(reserve.free_mb * 1e6)
        filler.write(bytes(left - 900_000))  # room for verdicts, none for images
        filler.flush()
        for number in range(10):
            station.offer(grey(200), key=f"short {number}").wait()
        with pytest.raises(OSError):
            while True:  # to the last byte
                filler.write(bytes(4096))
                filler.flush()
        ends = [station.offer(grey(200), key=f"full {number}").wait() for number in range(200)]
        assert all(end is not None and end.cause is Cause.DISK for end in ends)
        filler.close()
        os.unlink(small_disk / "filler")
        assert reserve.level() is DiskLevel.FINE and reserve.held
        assert station.offer(grey(200), key="again").wait().verdict is Verdict.PASS  # type: ignore[union-attr]
        station.close()
        images.close()
    check = check_ledger(small_disk / "line", images=True)
    assert check.faults == [] and check.triggers == 221
    assert check.verdicts == {"PASS": 21, "NO_VERDICT": 200}
    assert check.images["dropped"] >= 10


def test_where_even_the_reserve_is_used_up_a_trigger_is_refused_and_no_pass_is_given(small_disk: Path) -> None:
    reserve = DiskReserve(small_disk / "line", size_mb=0.01, reserve_mb=0.01, images_reserve_mb=0.01)
    with Ledger(small_disk / "line", reserve=reserve) as ledger:
        settled(ledger, "1")
        (small_disk / "filler").touch()
        with pytest.raises(OSError), (small_disk / "filler").open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        with pytest.raises(LedgerError, match="disk is full"):
            for number in range(10_000):
                settled(ledger, f"more {number}")
        os.unlink(small_disk / "filler")
        settled(ledger, "again")
    check = check_ledger(small_disk / "line")
    assert check.faults == []


def test_killed_at_random_moments_nothing_is_lost_and_nothing_comes_twice(tiny_bundle: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "tests" / "soak" / "kill_line.py"),
        "--kills",
        "10",
        "--alive-s",
        "0.4",
        "--model",
        str(tiny_bundle),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["kept"] and result["kills"] == 10 and result["in_ledger"] >= 6


def test_whoever_may_not_read_a_ledger_is_told_who_may() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users from above
        folder = Path(name) / "line"
        with Ledger(folder, reserve=small_reserve(folder)):
            pass
        Path(name).chmod(0o755)
        (folder / "ledger.sqlite").chmod(0o644)
        root = os.geteuid() == 0
        for mode in (0o000, 0o555):
            folder.chmod(mode)
            if root:
                os.seteuid(65534)  # whom modes keep out
            try:
                with pytest.raises(LedgerError, match="as root or as the station's user"):
                    check_ledger(folder)
            finally:
                if root:
                    os.seteuid(0)
                folder.chmod(0o755)

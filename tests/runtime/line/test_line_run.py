"""What the command on the line promises: run as a user runs it, with a real process, real files and real signals."""

import csv
import http.client
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import yaml

from agvas.fitting.calibrate_cli import calibrate
from agvas.line import line as line_verb
from agvas.run import run as app
from agvas_core.contract.command_line import exit_code_of
from agvas_runtime.line.app import run as run_module
from agvas_runtime.line.app.metrics import Metrics, MetricsServer
from agvas_runtime.line.calibration.cli import with_keys
from agvas_runtime.line.ledger.check import check_ledger
from agvas_runtime.line.ledger.cli import export, show, verify
from agvas_runtime.line.ledger.images import wanted
from agvas_runtime.line.ledger.ledger import LEDGER_NAME, Ledger
from agvas_runtime.line.ledger.part_result import Cause, without_verdict
from agvas_runtime.line.recipe.cli import activate, lint
from agvas_runtime.line.recipe.file import parse_recipe, read_recipe
from agvas_runtime.line.recipe.image_limits import DirtWatch, image_facts, image_fault
from agvas_runtime.line.recipe.recipe import Calibration, ImageLimits, Keep
from agvas_runtime.line.recipe.store import RecipeStore
from agvas_runtime.line.station.drift import ScoreDrift
from agvas_runtime.line.station.reloader import RecipeFollower
from agvas_runtime.masks.result import Verdict

from .conftest import small_reserve, write_part

MakePart = Callable[..., np.ndarray]


@pytest.fixture
def parts(tmp_path: Path, make_part: MakePart) -> Path:
    """Twelve good parts of which two are mottled, and in ``bad`` three with a large spot."""
    for number in range(12):
        spots = [(20, 20, 2)] if number in (3, 7) else []
        write_part(tmp_path / "good" / f"{number:02d}.png", make_part(spots=spots))
    for number in range(3):
        write_part(tmp_path / "bad" / f"{number}.png", make_part(spots=[(60, 40, 9 + number)]))
    return tmp_path


def run(*arguments: object) -> int:
    return exit_code_of(lambda: app, name="agvas-run", arguments=[str(argument) for argument in arguments])


def call(command: Callable[..., None], *arguments: object) -> int:
    return exit_code_of(lambda: command, name="agvas", arguments=[str(argument) for argument in arguments])


def test_a_folder_goes_through_the_line_once_however_often_it_is_run(
    parts: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, state, lines = parts / "r.yaml", parts / "line", parts / "v.jsonl"
    recipe.write_text(f"product: part\nmodel: {tiny_bundle}\ndeadline_ms: 60000\n")
    (parts / "bad" / "1.png").rename(
        os.fsdecode(os.fsencode(parts / "bad") + b"/1-\xe4.png")
    )  # Latin-1, as an old camera PC writes
    for _ in range(2):
        assert run(parts / "bad", "--recipe", recipe, "--state", state, "--sink", f"jsonl:{lines}", "--log", "json") == 0
    said = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["verdict"] for line in said if line["event"] == "part"] == ["FAIL"] * 3
    assert [json.loads(line)["verdict"] for line in lines.read_text().splitlines()] == ["FAIL"] * 3
    assert call(verify, state, "--images", "--delivered") == 0
    assert "verified" in capsys.readouterr().out
    assert call(show, state) == call(show, state, "--events") == 0
    assert call(export, state, "--format", "csv", "-o", parts / "e.csv") == 0
    assert len((parts / "e.csv").read_text().splitlines()) == 4
    assert check_ledger(state).images == {"kept": 3}


def test_the_verb_line_does_what_run_does_with_a_recipe(
    parts: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (parts / "r.yaml").write_text(f"product: part\nmodel: {tiny_bundle}\ndeadline_ms: 60000\n")
    told = {}
    for name, started in (("agvas-run", run), ("agvas line", partial(call, line_verb))):
        state, lines = parts / name, parts / f"{name}.jsonl"
        arguments = [parts / "bad", "--recipe", parts / "r.yaml", "--state", state, "--sink", f"jsonl:{lines}", "--log", "json"]
        assert started(*arguments, "--threads", 1) == 0
        said = [json.loads(row) for row in capsys.readouterr().err.splitlines()]
        told[name] = [(row["frame"], row["verdict"], row["score"]) for row in said if row["event"] == "part"]
        assert len(lines.read_text().splitlines()) == 3
    assert told["agvas line"] == told["agvas-run"] and [verdict for _, verdict, _ in told["agvas-run"]] == ["FAIL"] * 3


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["parts"], "--recipe"),
        (["--recipe", "r.yaml"], "--camera"),
        (["parts", "--camera", "0", "--recipe", "r.yaml"], "both"),
        (["parts", "--recipe", "r.yaml", "--threshold", "0.5"], "--threshold"),
        (["parts", "--recipe", "r.yaml", "--backend", "cuda"], "--backend"),
    ],
)
def test_a_line_that_is_not_whole_is_refused(arguments: list[str], fact: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(line_verb, *arguments) == 2
    assert fact in capsys.readouterr().err


def test_what_a_recipe_decides_cannot_be_given_beside_it(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(parts, "--recipe", "r.yaml", "--threshold", "0.5") == 2
    assert run(parts, "--recipe", "r.yaml", "--json") == 2
    assert run(parts, "--metrics", "9100") == 2
    assert run(parts, "--recipe", parts / "none.yaml", "--state", parts / "line") == 2
    assert "agvas recipe new" in capsys.readouterr().err


def test_the_check_says_what_is_wrong_and_leaves(parts: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (parts / "r.yaml").write_text(
        f"product: part\nmodel: {tiny_bundle}\ndeadline_ms: 60000\nframe: {{width_px: 128, height_px: 96}}\n"
    )
    arguments = [parts / "good", "--recipe", parts / "r.yaml", "--state", parts / "line", "--check"]
    assert run(*arguments) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["ok", what] for what in ("recipe", "model", "source", "rate", "disk")
    ]
    (parts / "r.yaml").write_text(f"product: part\nmodel: {tiny_bundle}\nframe: {{width_px: 64, height_px: 64}}\n")
    assert run(*arguments, "--sink", "webhook:x") != 0
    out = capsys.readouterr().out
    assert "FAIL  source" in out and "64x64" in out and "FAIL  sink" in out


def test_the_check_does_not_wait_for_parts_and_looks_at_the_ledger(
    parts: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (parts / "r.yaml").write_text(f"product: part\nmodel: {tiny_bundle}\ndeadline_ms: 60000\n")
    (parts / "in").mkdir()
    arguments = ["--camera", f"watch:{parts / 'in'}", "--recipe", parts / "r.yaml", "--state", parts / "line", "--check"]
    assert run(*arguments) == 0
    assert "no image came to" in capsys.readouterr().out
    (parts / "good" / "00.png").rename(parts / "in" / "00.png")
    assert run(*arguments) == 0
    assert "ok    rate" in capsys.readouterr().out
    with Ledger(parts / "line"):
        assert run(*arguments) == 0  # a station that runs may be looked at
    with closing(sqlite3.connect(parts / "line" / LEDGER_NAME)) as db:
        db.execute("PRAGMA user_version = 7")
    assert run(*arguments) == 3
    assert "schema 7" in capsys.readouterr().out


def test_figures_are_not_for_a_name_that_was_pointed_at_this_machine() -> None:
    server = MetricsServer(Metrics(), lambda: True)
    try:
        for host, status in (("127.0.0.1:9", 200), ("localhost", 200), ("[::1]:9", 200), ("rebound.example", 403), ("[x", 403)):
            connection = http.client.HTTPConnection("127.0.0.1", server.port)
            connection.request("GET", "/metrics", headers={"Host": host})
            assert connection.getresponse().status == status, host
    finally:
        server.close()


def test_a_running_station_takes_recipes_between_two_parts_tells_its_figures_and_ends_in_order(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    store = RecipeStore(tmp_path / "recipes")
    text = f"product: part\nmodel: {tiny_bundle}\ndeadline_ms: 60000\nnote: "
    store.activate(parse_recipe(text + "one", "x"))
    # A camera that is not there: the station waits for it, and for ever.
    command = [
        "--camera",
        "http://127.0.0.1:9/",
        "--recipe",
        str(store.folder),
        "--state",
        str(tmp_path / "line"),
        "--metrics",
        "0",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "agvas.cli", "run", *command, "--log", "json"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said: list[dict[str, str]] = []

    def until(what: str) -> str:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(json.loads(line))
            if what in said[-1].get("message", ""):
                return said[-1]["message"]
        raise AssertionError(f"{what} was never said: {said}")

    try:
        address = until("metrics at").removeprefix("metrics at ")
        until("source-lost")
        text_of = urllib.request.urlopen(address, timeout=60).read().decode()
        assert 'agvas_source_up{station="camera-127.0.0.1-9"} 0' in text_of and "agvas_disk_level 0" in text_of
        second = parse_recipe(text + "two", "x")
        store.activate(second)
        until(f"recipe {second.identity} goes")
        (store.folder / "versions" / f"{second.sha256[:12]}.yaml").write_text("product: part\nwrong: 1\n")
        os.utime(store.folder / "active.json")
        until("recipe refused")
        assert second.identity in said[-1]["message"]
    finally:
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=120)[1]
    assert process.returncode == 143, rest
    assert check_ledger(tmp_path / "line").faults == []


def test_calibration_writes_a_recipe_that_keeps_its_promise_and_its_comments(
    parts: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = parts / "r.yaml"
    recipe.write_text(
        f"product: part  # mine\nmodel: {tiny_bundle}\nthresholds:\n  threshold: 0.4\n  seed_threshold: 0.5\n# the last word\ndeadline_ms: 900\n"
    )
    options = ["--good", parts / "good", "--bad", parts / "bad", "--recipe", recipe]
    assert call(calibrate, *options, "--max-false-reject", 0.3, "--confidence", 0.9) == 0
    out = capsys.readouterr().out
    found = read_recipe(parts / "r-calibrated.yaml")
    assert "# mine" in found.text and "# the last word" in found.text and found.text.count("\nthresholds:") == 1
    record = found.recipe.calibration
    assert record is not None and (record.good_parts, record.bad_parts, record.escapes) == (12, 3, 0)
    assert found.recipe.bundle == record.bundle and found.recipe.frame is not None
    assert "missing" not in out
    page = (parts / "r-calibrated.html").read_text()
    assert page.count('<svg class="chart"') == 2 and "http" not in page.replace("http-equiv", "")
    (parts / "r-calibrated.yaml").unlink()
    assert call(calibrate, *options) == 4
    assert "586 more" in capsys.readouterr().err
    assert read_recipe(parts / "r-calibrated.yaml").recipe.calibration is not None


def test_a_run_without_a_verdict_is_no_success(parts: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (parts / "r.yaml").write_text(f"product: part\nmodel: {tiny_bundle}\nframe: {{width_px: 7, height_px: 7}}\n")
    started = [parts / "bad", "--recipe", parts / "r.yaml", "--state", parts / "line", "--threads", 1]
    assert run(*started) == 5
    assert "none of the parts has a verdict" in capsys.readouterr().err


def test_a_clock_that_jumps_is_an_event(parts: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (parts / "r.yaml").write_text(f"product: part\nmodel: {tiny_bundle}\ndeadline_ms: 60000\n")
    real = time.time
    asked = iter(range(10**9))
    monkeypatch.setattr(
        run_module, "time", SimpleNamespace(monotonic=time.monotonic, time=lambda: real() + 7200 * (next(asked) > 0))
    )
    assert run(parts / "good", "--recipe", parts / "r.yaml", "--state", parts / "line", "--threads", 1) == 0
    with Ledger(parts / "line") as ledger:
        (detail,) = (row[0] for row in ledger.read("SELECT detail FROM events WHERE kind = 'clock'"))
    assert "+7200" in detail


def test_the_first_parts_are_kept_whatever_their_verdict() -> None:
    keep = Keep(first=3, sample_every=5)
    assert [number for number in range(1, 12) if wanted(keep, Verdict.PASS, number)] == [1, 2, 3, 5, 10]
    assert Keep().first == 200


def test_the_check_reaches_webhooks(parts: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (parts / "r.yaml").write_text(f"product: part\nmodel: {tiny_bundle}\ndeadline_ms: 60000\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        sink = f"http://127.0.0.1:{free.getsockname()[1]}/hook"  # bound, and nobody listens
        started = [parts / "good", "--recipe", parts / "r.yaml", "--state", parts / "line", "--sink", sink, "--threads", 1]
        assert run(*started, "--check") == 3
    assert "FAIL  sink" in capsys.readouterr().out


def test_a_spreadsheet_runs_nothing_of_an_export(tmp_path: Path) -> None:
    with Ledger(tmp_path / "line", reserve=small_reserve(tmp_path / "line")) as ledger:
        part = ledger.open_part("s", '=HYPERLINK("http://x")', deadline_ms=100)
        ledger.settle(part.seq, without_verdict(Cause.ENGINE, "+1", 1.0, frame="@x.png"))
    assert call(export, tmp_path / "line", "--format", "csv", "-o", tmp_path / "e.csv") == 0
    (row,) = csv.DictReader((tmp_path / "e.csv").read_text().splitlines())
    assert (row["trigger_key"], row["detail"], row["frame"]) == ('\'=HYPERLINK("http://x")', "'+1", "'@x.png")
    assert float(row["deadline_ms"]) == 100


@pytest.mark.parametrize(
    ("key", "value", "fact"),
    [
        ("thresholds", {"threshold": 0.4, "seed_threshold": 0.9999}, "0.9999"),
        ("product", "washer", "washer"),
        ("rules", [{"max_count": 50}], "rules"),
    ],
)
def test_a_recipe_that_was_edited_beside_its_calibration_record_goes_only_where_it_is_activated(
    parts: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str], key: str, value: object, fact: str
) -> None:
    (parts / "r.yaml").write_text(f"product: part\nmodel: {tiny_bundle}\ndeadline_ms: 60000\n")
    options = ["--max-false-reject", 0.3, "--confidence", 0.9]
    assert call(calibrate, "--good", parts / "good", "--recipe", parts / "r.yaml", *options) == 0
    path = parts / "r-calibrated.yaml"
    assert call(lint, path) == 0
    path.write_text(with_keys(path.read_text(), {"deadline_ms": 50000}))  # nothing that a verdict depends on
    assert call(lint, path) == 0
    path.write_text(with_keys(path.read_text(), {key: value}))
    capsys.readouterr()
    assert call(lint, path) == 2
    assert fact in capsys.readouterr().err
    started = [parts / "bad", "--state", parts / "line", "--threads", 1, "--recipe"]
    assert run(*started, path, "--check") == run(*started, path) == 2
    assert fact in capsys.readouterr().err
    store = parts / "store"
    assert call(activate, path, "--store", store) == 0
    assert run(*started, store) == 0
    with Ledger(parts / "line") as ledger:
        ((detail,),) = ledger.read("SELECT detail FROM events WHERE kind = 'not-calibrated'")
    assert fact in detail


def test_a_live_file_is_not_taken_for_another_product(tmp_path: Path) -> None:
    path, refused = tmp_path / "r.yaml", threading.Event()
    told: list[str] = []

    def refuse(why: str) -> None:
        told.append(why)
        refused.set()

    path.write_text("product: part\n")
    follower = RecipeFollower(
        path,
        prepare=lambda _: None,
        on_change=lambda version: told.append(version.recipe.product),
        on_refusal=refuse,
        poll_s=0.01,
    )
    try:
        path.write_text("product: washer\n")
        assert refused.wait(60)
        assert follower.current().recipe.product == "part" and told[0] == "part" and "washer" in told[1]
    finally:
        follower.close()


def test_what_calibration_leaves_out_and_does_not_know_comes_first(
    parts: Path, tiny_bundle: Path, make_part: MakePart, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = parts / "r.yaml"
    recipe.write_text(f"product: part\nmodel: {tiny_bundle}\n")
    options = ["--good", parts / "good", "--recipe", recipe, "--max-false-reject", 0.3, "--confidence", 0.9]
    assert call(calibrate, *options) == 0
    assert "nothing is known about defects" in capsys.readouterr().err
    for number in range(2):
        write_part(parts / "good" / f"z{number}.png", make_part(100, 130))
    assert call(calibrate, *options) == 4  # 2 of 14 are more than a tenth
    said = capsys.readouterr()
    assert said.err.index("2 of 14") < said.err.index("nothing is known") and "130x100" in said.err
    assert read_recipe(parts / "r-calibrated.yaml").recipe.calibration is not None
    page = (parts / "r-calibrated.html").read_text()
    assert "2 of 14" in page and "nothing is known" in page


def test_one_thing_is_calibrated(parts: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(calibrate, "--good", parts / "good") == 2
    assert call(calibrate, "--good", parts / "good", "--recipe", "r.yaml", "--product", tiny_bundle) == 2
    assert call(calibrate, "--good", parts / "good", "--product", tiny_bundle) == 2
    assert "never fitted" in capsys.readouterr().err


def test_keys_are_replaced_wherever_they_stand() -> None:
    for text in (
        "a: 1\nb:\n  c: 2\n  d: 3\n\n# end\ne: 4\n",
        "{a: 1, b: {c: 2, d: 3}, e: 4}",
        "b: {c: 2,\n  d: 3}\na: 1\ne: 4",
        "e: 4\na: 1\nb: 1",
    ):
        assert yaml.safe_load(with_keys(text, {"b": 9})) == {"a": 1, "b": 9, "e": 4}


def test_drift_is_told_and_its_absence_is_not() -> None:
    rng = np.random.default_rng(0)
    good = np.sort(rng.beta(2, 6, 2000))
    calibration = Calibration(
        date="2026", bundle="b", good_parts=2000, max_false_reject=0.005, confidence=0.95, false_rejects=3, false_reject_bound=0.005,
        score_quantiles=tuple(np.quantile(good, np.linspace(0, 1, 101))),
    )  # fmt: skip
    seed = float(good[-4])
    same, brighter, covered, worse = (ScoreDrift(calibration, seed) for _ in range(4))
    for _ in range(3000):
        score = float(rng.beta(2, 6))
        assert same.add(score) is None
        brighter.add(min(0.999 * seed, score + 0.1))
        covered.add(score * 0.3)
        worse.add(1.0 if rng.random() < 0.1 else score)
    assert [(monitor.alarm or "none").split(":")[0] for monitor in (same, brighter, covered, worse)] == [
        "none", "scores high", "scores low", "rejects",
    ]  # fmt: skip


def test_blur_darkness_and_dirt_are_seen(make_part: MakePart) -> None:
    sharp = make_part(spots=[(20, 20, 5), (60, 50, 9)])
    facts = image_facts(sharp)
    assert image_facts(np.asarray(cv2.GaussianBlur(sharp, (0, 0), 3), np.uint8)).focus < facts.focus / 3
    assert image_facts((sharp * 0.6).astype(np.uint8)).focus == pytest.approx(facts.focus, rel=0.1)
    limits = ImageLimits(min_focus=facts.focus / 2, min_mean=0.2, max_clipped=0.3)
    assert image_fault(facts, limits) is None
    assert "light" in (image_fault(image_facts((sharp * 0.1).astype(np.uint8)), ImageLimits(min_mean=0.2)) or "")
    watch, rng = DirtWatch(parts=20), np.random.default_rng(0)
    for number in range(60):
        score_map = np.zeros((96, 128), np.float32)
        score_map[rng.integers(0, 90), rng.integers(0, 120)] = 0.9
        if number >= 30:
            score_map[50, 70] = 0.9
        found = watch.add(score_map, 0.5)
        assert (found is None) == (number < 47), number
    assert found is not None and abs(found[0] - 70) < 4 and abs(found[1] - 50) < 4

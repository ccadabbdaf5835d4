"""The scripts that make the figures of docs/reliability.md, each for as long as a test may take."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


def run(script: str, *options: str, cwd: Path) -> list[dict[str, Any]]:
    """What a script prints as JSON; it ends with 0."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "soak" / script), *options],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_malformed_recipes_images_requests_and_triggers_end_in_no_crash_and_no_hang(tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="the extra web is not installed")
    found = run("fuzz_line.py", "--cases", "600", cwd=tmp_path)
    targets = ("recipes", "images", "http", "http-trigger", "mqtt-trigger", "modbus-trigger")
    assert {one["target"]: one["faults"] for one in found} == dict.fromkeys(targets, 0)
    assert all(0 < one["refused"] <= one["cases"] == 100 for one in found)


def test_a_fault_is_found_and_told_with_its_case(tmp_path: Path) -> None:
    """Otherwise no faults would mean nothing."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, agvas_runtime.images.read as file\n"
        "decode = file.decode_image\n"
        "def deadly(data, **options):\n"
        "    os.kill(os.getpid(), 11) if b'PNG' not in data else None\n"
        "    return decode(data, **options)\n"
        "file.decode_image = deadly\n"
    )
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "soak" / "fuzz_line.py"), "--cases", "200", "--only", "images"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    (found,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert found["ended_with"] == -11
    assert b"PNG" not in (tmp_path / found["case"]).read_bytes()


def test_memory_and_ledger_are_looked_at_over_many_parts(tmp_path: Path) -> None:
    (found,) = run("endure_line.py", "--parts", "240", cwd=tmp_path)
    assert found["parts"] == found["lines"] == 240 and found["verdicts"] == {"FAIL": 30, "PASS": 210}


@pytest.mark.skipif(
    shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin") is None,
    reason="mosquitto is not installed",
)
def test_a_broker_that_is_away_under_load_gets_every_message(tmp_path: Path) -> None:
    (found,) = run("broker_outage.py", "--down-s", "1", "--before-s", "0.5", cwd=tmp_path)
    assert found["kept"] and found["missing"] == 0 and found["waiting_when_it_came_back"] > 0


@pytest.mark.parametrize(("at", "least"), [("Ctrl-C", 2), ("camera ", 1)], ids=["as it runs", "as it starts"])
def test_the_demo_leaves_no_process_behind_when_its_terminal_is_closed(tmp_path: Path, at: str, least: int) -> None:
    demo = subprocess.Popen(
        [
            sys.executable,
            "-u",
            str(ROOT / "examples" / "demo_line.py"),
            "--kind",
            "mjpeg",
            "--model",
            "nano",
            "--state",
            str(tmp_path / "line"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert demo.stdout is not None
    said = []
    while not said or at not in said[-1]:
        said.append(demo.stdout.readline())
        assert said[-1], "it ended by itself"
    demo.send_signal(signal.SIGHUP)
    said += demo.communicate(timeout=120)[0].splitlines()
    started = [int(line.split("process ")[1].split(":")[0]) for line in said if " process " in line]
    left = [number for number in started if Path(f"/proc/{number}").exists()]
    for number in left:
        os.kill(number, signal.SIGKILL)
    assert len(started) >= least and not left

"""``benchmarks/gpu_figures.sh``, the one command for a machine with a GPU: here at tiny size on a CPU, from its first step to its table."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/gpu_figures.sh"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    return subprocess.run([str(SCRIPT), *arguments], capture_output=True, text=True, env=environment, check=False)


def test_a_dry_run_names_every_step_and_a_whole_one_ends_within_twenty_minutes() -> None:
    done = run("--dry-run")
    assert done.returncode == 0, done.stderr
    for step in ("machine", "tests", "ratio-ov-7b", "ratio-ov-0.5b-vit-b", "ratio-ov-7b-fp8", "train-ov-7b", "profile-nano"):
        assert f"{step} " in done.stdout
    assert "budget=1170" in SCRIPT.read_text(encoding="utf-8")


def test_what_makes_no_sense_is_refused() -> None:
    assert run("--device", "cpu").returncode == 2 and "needs --tiny" in run("--device", "cpu").stderr
    assert "is no option" in run("--fast").stderr


@pytest.mark.slow
def test_every_step_runs_at_tiny_size_and_the_table_says_that_it_means_nothing(tmp_path: Path) -> None:
    done = run("--device", "cpu", "--tiny", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert set(found["ratios"]) == {"ov-7b", "ov-7b-fp8", "ov-0.5b-vit-b"} and set(found["training"]) == {
        "train-ov-7b",
        "train-ov-0.5b",
    }
    for name, ratio in found["ratios"].items():  # the paper's generate and our one prefill: the same masks
        assert ratio["off_by"] < (8e-2 if "fp8" in name else 2e-2), name
    assert all(target["measured"] != "not measured" for target in found["targets"])
    page = (tmp_path / "figures.md").read_text(encoding="utf-8")
    assert "no figure in it means anything" in page and "**no**" not in page
    assert len(list(tmp_path.iterdir())) == 5  # what a lent machine sends back

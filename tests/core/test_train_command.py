"""``agvas train``, as a user types it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from agvas.cli import main
from agvas_core.model.config import load_preset, parse_config

pytestmark = pytest.mark.slow

TrainHere = Callable[..., tuple[int, str, str]]

TRAIN = """
[train]
images = 10
workers = 0
learning_rate = 1.0e-3
warmup_steps = 2
loss = { bce = 2.0, dice = 0.5, positive_weight = 5.0, dice_on_empty = false }
phases = [{ share = 1.0, batch = 1, cuts = [{ weight = 1.0, canvas = [96, 96], size = [64, 64], how = "crop" }] }]
"""


def train(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from agvas.cli import main; main()", "train", "--preset", "small.toml"]
    plain = {**os.environ, "TERM": "dumb", "COLUMNS": "200"}
    return subprocess.run([*command, "--threads", "1", *arguments], cwd=folder, env=plain, capture_output=True, text=True)


@pytest.fixture
def train_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[TrainHere]:
    """The same in this process, which has imported torch already: exit code, stdout and stderr."""
    threads = torch.get_num_threads()
    monkeypatch.setattr("signal.signal", lambda *_: None)  # the process of the tests keeps its own end

    def call(folder: Path, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["agvas", "train", "--preset", "small.toml", "--threads", "1", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out, said.err

    yield call
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with ``small.toml``: nano's model, and a run of ten steps."""
    preset = Path(__file__).parents[2] / "agvas_core/presets/nano.toml"
    model, train_table, _ = preset.read_text(encoding="utf-8").partition("\n[train]\n")
    assert train_table, "the preset of nano has lost its [train] table"
    (tmp_path / "small.toml").write_text(model + TRAIN, encoding="utf-8")
    return tmp_path


def test_a_run_shows_its_progress_ends_with_a_plot_and_goes_on_when_asked(folder: Path, train_here: TrainHere) -> None:
    assert parse_config(load_preset(folder / "small.toml")["model"]).name == "nano"
    done = train(folder, "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "10/10" in done.stdout and "images" in done.stdout and "loss" in done.stdout
    assert "agvas-export bundle run" in done.stdout
    made = {path.name for path in (folder / "run").iterdir()}
    assert made >= {
        "config.json",
        "log.jsonl",
        "loss.png",
        "model.safetensors",
        "state.safetensors",
        "tokenizer.json",
        "training.json",
    }

    code, _, errors = train_here(folder, "--out", "run")
    assert code == 2 and "--resume" in errors and "Traceback" not in errors
    weights = (folder / "run/model.safetensors").read_bytes()
    assert train_here(folder, "--out", "run", "--resume")[0] == 0
    assert (folder / "run/model.safetensors").read_bytes() == weights, "a finished run has nothing left to do"


def test_a_run_too_short_for_a_plot_names_none(folder: Path, train_here: TrainHere) -> None:
    code, said, errors = train_here(folder, "--out", "run", "--images", "2")
    assert code == 0, errors
    assert "loss plot" not in said and not (folder / "run/loss.png").exists()

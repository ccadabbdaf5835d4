"""``agvas train``, as it is typed."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from agvas.cli import main
from agvas_core.contract.errors import SetupError, UsageError
from agvas_core.model.config import parse_config
from agvas_core.model.preset import ablation_names, load_preset, preset_names
from agvas_core.train.cli import merged_with, train
from agvas_core.train.config import TrainConfig, parse_train_config
from agvas_core.train.engine import Engine, deepspeed_config
from agvas_core.train.schedule import Shares


def test_a_dry_run_estimates_every_gpu_and_loads_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    train(preset="ov-7b", out=Path("nowhere"), dry_run=True, deepspeed="zero2")
    shown = capsys.readouterr().out
    assert "A100 40 GB" in shown and "M parameters trained" in shown and "none of it was measured on a GPU" in shown
    assert not Path("nowhere").exists()
    train(preset="nano", out=Path("nowhere"), dry_run=True)
    assert "steps of 12 and 16 images" in capsys.readouterr().out


def test_sharding_takes_memory_off_each_gpu_and_bigger_batches_add_to_it() -> None:
    from agvas_core.model.weights.pretrained_config import resolve_config
    from agvas_core.train.estimate import work_of

    work = work_of(resolve_config(merged_with("ov-7b", None)["model"]), TrainConfig())
    assert work.memory_gb(2, 4, "zero3") < work.memory_gb(2, 4, "zero2") < work.memory_gb(2, 4, None)
    assert work.memory_gb(1, 1, None) < work.memory_gb(2, 1, None) < work.memory_gb(8, 1, None)
    kept = work_of(resolve_config(merged_with("ov-7b", None)["model"]), TrainConfig(gradient_checkpointing=False))
    assert kept.waiting_bytes > work.waiting_bytes and kept.tflop < work.tflop


def test_options_that_do_not_fit_the_preset_are_refused() -> None:
    for options, message in (
        ({"preset": "nano", "sets": Path("x")}, 'examples = "sets"'),
        ({"preset": "nano", "steps": 5}, "phases have batches of their own"),
        ({"preset": "ov-7b"}, "names no set"),
        ({"preset": "ablations/no-general"}, "names no set"),
        ({"preset": "ov-7b", "calibrate_only": "nano"}, r"no \[train.calibration\]"),
        ({"preset": "nano", "calibrate_only": "nano", "images": 5}, "leave out --images"),
    ):
        with pytest.raises(UsageError, match=message):
            train(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [*preset_names(), *ablation_names()])
def test_every_preset_says_how_it_is_trained(name: str) -> None:
    settings = parse_train_config(merged_with(name, None).get("train", {}))
    assert settings.examples == ("generated" if name == "nano" else "sets")


def test_one_file_of_data_and_schedule_goes_over_any_preset(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(
        '[mixture]\nsets = [{ name = "road", path = "road" }]\n[train]\nsteps = 7\nwarmup_steps = 1\n', encoding="utf-8"
    )
    tables = merged_with("ablations/no-general", mine)
    assert tables["mixture"] == {"drop": ["general"], "sets": [{"name": "road", "path": "road"}]}
    assert tables["train"]["steps"] == 7 and tables["model"]["name"] == "ov-7b-no-general"
    mine.write_text("[trian]\nsteps = 7\n", encoding="utf-8")
    with pytest.raises(UsageError, match="did you mean train"):
        merged_with("ov-7b", mine)
    mine.write_text("[fit]\nsteps = 7\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"\[fit\] is now \[train\]"):
        merged_with("ov-7b", mine)


def test_deepspeed_configurations_get_the_numbers_of_the_run(tmp_path: Path) -> None:
    for name, stage in (("zero2", 2), ("zero3", 3)):
        config = deepspeed_config(TrainConfig(deepspeed=name), Shares(80, 2, 0, 4))
        assert config["zero_optimization"]["stage"] == stage
        assert config["train_micro_batch_size_per_gpu"] == 2 and config["gradient_accumulation_steps"] == 10
    own = tmp_path / "own.json"
    own.write_text('{"zero_optimization": {"stage": 1}, "gradient_clipping": 5.0}', encoding="utf-8")
    with pytest.raises(UsageError, match=r"gradient_clipping is 5\.0, the run has 1\.0"):
        deepspeed_config(TrainConfig(deepspeed=str(own)), Shares(80, 2))
    own.write_text('{"optimizer": {}}', encoding="utf-8")
    with pytest.raises(UsageError, match="optimizer belongs to"):
        deepspeed_config(TrainConfig(deepspeed=str(own)), Shares(80, 2))
    with pytest.raises(UsageError, match="give zero2, zero3"):
        deepspeed_config(TrainConfig(deepspeed="zero4"), Shares(80, 2))


def test_deepspeed_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agvas_core.train.engine.find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"agvas\[deepspeed\]"):
        Engine.start(TrainConfig(deepspeed="zero2"))


@pytest.mark.slow
def test_the_command_trains_and_says_what_comes_next(
    tables: dict[str, Any],
    as_toml: Callable[[dict[str, Any]], str],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    preset, out = tmp_path / "tiny.toml", tmp_path / "run"
    preset.write_text(as_toml(tables | {"mixture": {"held_out": 0.65}}), encoding="utf-8")
    arguments = ["train", "--preset", str(preset), "--sets", str(folder / "sets"), "--out", str(out), "--steps", "4"]
    monkeypatch.setattr(sys, "argv", ["agvas", *arguments])
    monkeypatch.setattr("signal.signal", lambda *_: None)  # the process of the tests keeps its own end
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    assert "4/4" in said.out and "agvas-export bundle" in said.out and "agvas eval --predictor checkpoint" in said.out
    assert (out / "loss.png").stat().st_size > 5000
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and "--resume" in capsys.readouterr().err


# Generated images.

TrainHere = Callable[..., tuple[int, str, str]]

TRAIN = """
[train]
examples = "generated"
images = 10
workers = 1
precision = "fp32"
gradient_checkpointing = false
schedule = "cosine"
learning_rate = 1.0e-3
warmup_steps = 2
loss = { bce = 2.0, dice = 0.5, positive_weight = 5.0, dice_on_empty = false }
phases = [{ share = 1.0, batch = 1, cuts = [{ weight = 1.0, canvas = [96, 96], size = [64, 64], how = "crop" }] }]
"""


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", "from agvas.cli import main; main()", "train", "--preset", "small.toml"]
    plain = {**os.environ, "TERM": "dumb", "COLUMNS": "200"}
    return subprocess.run([*words, "--threads", "1", *arguments], cwd=folder, env=plain, capture_output=True, text=True)


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
def small(tmp_path: Path) -> Path:
    """A folder with ``small.toml``: nano's model, and a run of ten steps."""
    preset = Path(__file__).parents[3] / "agvas_core/presets/nano.toml"
    model, train_table, _ = preset.read_text(encoding="utf-8").partition("\n[train]\n")
    assert train_table, "the preset of nano has lost its [train] table"
    (tmp_path / "small.toml").write_text(model + TRAIN, encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_a_run_shows_its_progress_ends_with_a_plot_and_goes_on_when_asked(small: Path, train_here: TrainHere) -> None:
    assert parse_config(load_preset(small / "small.toml")["model"]).name == "nano"
    done = command(small, "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "10/10" in done.stdout and "steps" in done.stdout and "loss" in done.stdout
    assert "agvas-export bundle run" in done.stdout
    made = {path.name for path in (small / "run").iterdir()}
    assert made >= {
        "config.json",
        "log.jsonl",
        "loss.png",
        "model.safetensors",
        "state.safetensors",
        "tokenizer.json",
        "training.json",
    }

    code, _, errors = train_here(small, "--out", "run")
    assert code == 2 and "--resume" in errors and "Traceback" not in errors
    weights = (small / "run/model.safetensors").read_bytes()
    assert train_here(small, "--out", "run", "--resume")[0] == 0
    assert (small / "run/model.safetensors").read_bytes() == weights, "a finished run has nothing left to do"

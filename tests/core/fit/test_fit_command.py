"""``agvas train`` on data sets, as it is typed."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agvas.cli import main
from agvas_core.contract.errors import SetupError, UsageError
from agvas_core.train.cli import train
from agvas_core.train.fit.command import Options, merged_with, train_on_mixture, trains_on_mixture
from agvas_core.train.fit.config import FitConfig
from agvas_core.train.fit.engine import Engine, deepspeed_config
from agvas_core.train.fit.schedule import Shares


def test_a_dry_run_estimates_every_gpu_and_loads_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    train_on_mixture(merged_with("ov-7b", None), Path("nowhere"), Options(dry_run=True, deepspeed="zero2"))
    shown = capsys.readouterr().out
    assert "A100 40 GB" in shown and "M parameters trained" in shown and "none of it was measured on a GPU" in shown
    assert not Path("nowhere").exists()


def test_sharding_takes_memory_off_each_gpu_and_bigger_batches_add_to_it() -> None:
    from agvas_core.model.weights.pretrained_config import resolve_config
    from agvas_core.train.fit.estimate import work_of

    work = work_of(resolve_config(merged_with("ov-7b", None)["model"]), FitConfig())
    assert work.memory_gb(2, 4, "zero3") < work.memory_gb(2, 4, "zero2") < work.memory_gb(2, 4, None)
    assert work.memory_gb(1, 1, None) < work.memory_gb(2, 1, None) < work.memory_gb(8, 1, None)
    kept = work_of(resolve_config(merged_with("ov-7b", None)["model"]), FitConfig(gradient_checkpointing=False))
    assert kept.waiting_bytes > work.waiting_bytes and kept.tflop < work.tflop


def test_options_of_the_other_training_are_refused() -> None:
    for options, message in (
        ({"preset": "ov-7b", "sets": Path("x"), "images": 5}, "--images"),
        ({"preset": "nano", "overfit": 2}, "--overfit"),
        ({"preset": "ov-7b"}, r"has no \[train\] table"),
        ({"preset": "ablations/no-general"}, "names no set"),
    ):
        with pytest.raises(UsageError, match=message):
            train(**options)  # type: ignore[arg-type]


def test_one_file_of_data_and_schedule_goes_over_any_preset(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(
        '[mixture]\nsets = [{ name = "road", path = "road" }]\n[fit]\nsteps = 7\nwarmup_steps = 1\n', encoding="utf-8"
    )
    tables = merged_with("ablations/no-general", mine)
    assert tables["mixture"] == {"drop": ["general"], "sets": [{"name": "road", "path": "road"}]}
    assert tables["fit"]["steps"] == 7 and tables["model"]["name"] == "ov-7b-no-general"
    assert trains_on_mixture(tables, Options()) and not trains_on_mixture(merged_with("nano", None), Options())
    mine.write_text("[fitt]\nsteps = 7\n", encoding="utf-8")
    with pytest.raises(UsageError, match="did you mean fit"):
        merged_with("ov-7b", mine)


def test_deepspeed_configurations_get_the_numbers_of_the_run(tmp_path: Path) -> None:
    for name, stage in (("zero2", 2), ("zero3", 3)):
        config = deepspeed_config(FitConfig(deepspeed=name), Shares(80, 2, 0, 4))
        assert config["zero_optimization"]["stage"] == stage
        assert config["train_micro_batch_size_per_gpu"] == 2 and config["gradient_accumulation_steps"] == 10
    own = tmp_path / "own.json"
    own.write_text('{"zero_optimization": {"stage": 1}, "gradient_clipping": 5.0}', encoding="utf-8")
    with pytest.raises(UsageError, match=r"gradient_clipping is 5\.0, the run has 1\.0"):
        deepspeed_config(FitConfig(deepspeed=str(own)), Shares(80, 2))
    own.write_text('{"optimizer": {}}', encoding="utf-8")
    with pytest.raises(UsageError, match="optimizer belongs to"):
        deepspeed_config(FitConfig(deepspeed=str(own)), Shares(80, 2))
    with pytest.raises(UsageError, match="give zero2, zero3"):
        deepspeed_config(FitConfig(deepspeed="zero4"), Shares(80, 2))


def test_deepspeed_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agvas_core.train.fit.engine.find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"agvas\[deepspeed\]"):
        Engine.start(FitConfig(deepspeed="zero2"))


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
    preset.write_text(as_toml(tables | {"mixture": {"held_out": 0.3}}), encoding="utf-8")
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

"""`agvas train`: what it leaves, and that a kill loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from agvas_core.contract.errors import SetupError, UsageError
from agvas_core.contract.prompts import Anchor
from agvas_core.data.synthetic.tokenizer import train_tokenizer
from agvas_core.model.config import ModelConfig, load_preset, parse_config
from agvas_core.model.fusion import anomaly_probability
from agvas_core.model.weights.checkpoint import load_checkpoint
from agvas_core.train.batches import SyntheticBatches
from agvas_core.train.calibration import lowered
from agvas_core.train.config import TrainConfig, parse_train_config
from agvas_core.train.loop import STATE, train_model
from agvas_core.train.plot import plot_log

STEPS = 20


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums depend on how many threads share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def configs() -> tuple[ModelConfig, TrainConfig]:
    """Nano's model, and a run of 20 small steps without workers."""
    table = load_preset("nano")
    table["train"] |= {
        "images": 2 * STEPS,
        "workers": 0,
        "calibration": {"images": 6, "sizes": [[96, 96]], "kept_px": 96},
        "phases": [
            {"share": 0.5, "batch": 2, "cuts": [{"weight": 1.0, "canvas": [96, 96], "size": [64, 64], "how": "crop"}]},
            {"share": 0.5, "batch": 2, "cuts": [{"weight": 1.0, "canvas": [96, 128], "size": [96, 128], "how": "crop"}]},
        ],
    }
    return parse_config(table["model"]), parse_train_config(table["train"])


@pytest.fixture(scope="module")
def whole_run(_one_thread: None, configs: tuple[ModelConfig, TrainConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_model(*configs, tmp_path_factory.mktemp("whole") / "run")


def same_weights(one: Path, other: Path) -> bool:
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_leaves_a_checkpoint_its_log_and_a_plot(configs: tuple[ModelConfig, TrainConfig], whole_run: Path) -> None:
    checkpoint = load_checkpoint(whole_run)
    assert checkpoint.config == configs[0].model_copy(update={"decision": checkpoint.config.decision})
    assert set(checkpoint.config.decision.operating_points) == {"balanced", "strict"}
    assert checkpoint.training["step"] == checkpoint.training["steps"] == STEPS
    assert checkpoint.training["images"] == 2 * STEPS
    assert not checkpoint.model.training
    rows = [json.loads(line) for line in (whole_run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20]
    plot_log(whole_run / "log.jsonl", whole_run / "loss.png")
    assert (whole_run / "loss.png").stat().st_size > 5000


def test_calibration_moves_the_bias_of_the_masks_and_nothing_else(
    configs: tuple[ModelConfig, TrainConfig], whole_run: Path
) -> None:
    calibration = load_checkpoint(whole_run).training["calibration"]
    balance = {row["shift"]: row["iou_ano"] * row["iou_nor"] for row in calibration["shifts"]}
    assert balance[calibration["shift"]] == max(balance.values())
    trained, shipped = load_file(whole_run / STATE), load_file(whole_run / "model.safetensors")
    changed = [name for name in shipped if not torch.equal(shipped[name], trained[f"ema.{name}"])]
    assert changed == (["agmd.bias"] if calibration["shift"] else [])


def test_lowered_logits_lower_the_map_everywhere() -> None:
    logits = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert (anomaly_probability(lowered(logits, 1.5)) < anomaly_probability(logits)).all()
    assert torch.equal(lowered(logits, 0.0), logits)
    logits[:, Anchor.SEG] = logits[:, Anchor.ANO] - logits[:, Anchor.NOR]  # both maps alike, so P has their logits
    raised = torch.logit(anomaly_probability(logits)) - torch.logit(anomaly_probability(lowered(logits, 1.5)))
    torch.testing.assert_close(raised, torch.full_like(raised, 1.5), atol=1e-4, rtol=0)


# The child saves after each step; the test kills it with no warning, somewhere in the middle.
CHILD = """
import json, sys, torch
from pathlib import Path
from agvas_core.model.config import parse_config
from agvas_core.train.config import parse_train_config
from agvas_core.train.loop import train_model

torch.set_num_threads(1)
tables = json.loads(Path(sys.argv[1]).read_text())
train_model(parse_config(tables["model"]), parse_train_config(tables["train"]), Path(sys.argv[2]), save_every_s=0.0)
"""


def test_a_killed_run_resumes_to_the_same_weights(
    configs: tuple[ModelConfig, TrainConfig], whole_run: Path, tmp_path: Path
) -> None:
    """So the same seed gives the same weights, too: the two runs have nothing else in common."""
    model, train = configs
    (tmp_path / "config.json").write_text(
        json.dumps({"model": model.model_dump(mode="json"), "train": train.model_dump(mode="json")})
    )
    out = tmp_path / "killed"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "config.json"), str(out)])
    while not (out / STATE).exists():
        assert child.poll() is None, "the run ended before it was killed"
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert child.returncode == -signal.SIGKILL
    with pytest.raises(UsageError, match="--resume"):
        train_model(model, train, out)
    assert same_weights(train_model(model, train, out, resume=True), whole_run)


def test_a_resumed_run_refuses_another_configuration(configs: tuple[ModelConfig, TrainConfig], whole_run: Path) -> None:
    model, train = configs
    changed = train.model_copy(update={"learning_rate": 1.0})
    with pytest.raises(UsageError, match=r"train\.learning_rate = 0.001, now it is 1.0"):
        train_model(model, changed, whole_run, resume=True)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(
    configs: tuple[ModelConfig, TrainConfig], tmp_path: Path
) -> None:
    model, train = configs
    wild = train.model_copy(update={"learning_rate": 1e30, "warmup_steps": 0})
    with pytest.raises(SetupError, match=r"at step \d+ \(seed"):
        train_model(model, wild, tmp_path / "wild")


def test_a_model_with_frozen_parts_is_refused(configs: tuple[ModelConfig, TrainConfig], tmp_path: Path) -> None:
    model, train = configs
    with pytest.raises(UsageError, match="trains only spam"):
        train_model(model.model_copy(update={"trained": ("spam",)}), train, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_is_a_function_of_seed_and_step(configs: tuple[ModelConfig, TrainConfig]) -> None:
    model, train = configs
    tokenizer = train_tokenizer(model.lmm.vocab_size)
    first, again = SyntheticBatches(train, model, tokenizer)[3], SyntheticBatches(train, model, tokenizer)[3]
    other = SyntheticBatches(train.model_copy(update={"seed": 1}), model, tokenizer)[3]
    assert torch.equal(first.pixel, again.pixel) and torch.equal(first.input_ids, again.input_ids)
    assert not torch.equal(first.pixel, other.pixel)
    assert first.pixel.shape[1:3] == first.mask.shape[1:]


def test_only_the_answer_is_learned(configs: tuple[ModelConfig, TrainConfig]) -> None:
    model, train = configs
    tokenizer = train_tokenizer(model.lmm.vocab_size)
    batch = SyntheticBatches(train, model, tokenizer)[0]
    for ids, labels, start in zip(batch.input_ids, batch.labels, batch.answer_start, strict=True):
        assert (labels[:start] == -100).all()
        taught = labels != -100
        if taught.sum() == 1:  # an answer that should not have been given: its first token alone is taught, and it is another
            assert taught[start] and labels[start] != ids[start]
            assert tokenizer.decode(labels[taught].tolist()) == "There"
            continue
        assert torch.equal(labels[taught], ids[taught])
        assert tokenizer.decode(labels[taught].tolist(), skip_special_tokens=False).endswith("<|im_end|>")


def test_the_command_line_names_a_preset_that_cannot_be_trained() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from agvas_core.train.cli import train; train(preset='ov-7b')"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert "preset ov-7b has no [train] table" in done.stderr

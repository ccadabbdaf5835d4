"""A run on the mixture: what it leaves, that nothing ends it without a trace, and that a kill loses nothing."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agvas_core.contract.errors import OutputError, SetupError, UsageError
from agvas_core.model.weights.checkpoint import load_checkpoint, start_model
from agvas_core.model.weights.pretrained_config import resolve_config
from agvas_core.train.fit.config import parse_fit_config, parse_mixture_config
from agvas_core.train.fit.loop import SKIPPED, fit_model
from agvas_core.train.fit.predictor import open_predictor
from agvas_core.train.fit.state import STATE

Tables = dict[str, Any]


def run(tables: Tables, out: Path, **options: Any) -> Path:
    return fit_model(
        resolve_config(tables["model"]), parse_mixture_config(tables["mixture"]), parse_fit_config(tables["fit"]), out, **options
    )


def changed(tables: Tables, **fit: Any) -> Tables:
    return tables | {"fit": tables["fit"] | fit}


def rows(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def same_tensors(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def whole_run(tables: Tables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tables, tmp_path_factory.mktemp("whole") / "run")


def test_a_run_leaves_a_checkpoint_of_what_was_trained_and_nothing_else(tables: Tables, whole_run: Path) -> None:
    names = set(load_file(whole_run / "model.safetensors"))
    assert names and not any(name.startswith(("semantic_encoder.", "pixel_encoder.backbone.")) for name in names)
    assert not any(".base_layer." in name for name in names) and any(".lora_A." in name for name in names)
    found = load_checkpoint(whole_run)
    started = start_model(resolve_config(tables["model"]))
    frozen, moved = (dict(model.named_parameters()) for model in (found.model, started))
    differ = {name for name, parameter in frozen.items() if not torch.equal(parameter, moved[name])}
    assert differ and not any(name.startswith(("semantic_encoder.", "pixel_encoder.")) for name in differ)
    assert found.training["step"] == found.training["steps"] == 6 and found.training["images"] == 24


def test_a_run_leaves_its_log_its_events_and_the_metrics_of_held_out_images(whole_run: Path) -> None:
    assert [row["step"] for row in rows(whole_run / "log.jsonl")] == [2, 4, 6]
    validated = rows(whole_run / "validation.jsonl")
    assert [row["step"] for row in validated] == [3, 6] and all(0 <= row["ap"] <= 1 for row in validated)
    events = EventAccumulator(str(whole_run / "events"))
    events.Reload()
    assert {"train/loss", "train/learning_rate", "train/grad_norm", "validation/ap"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4, 6]
    assert events.Scalars("train/loss")[0].value == pytest.approx(rows(whole_run / "log.jsonl")[0]["loss"], abs=1e-4)


def test_a_checkpoint_can_be_scored_without_being_exported(whole_run: Path, folder: Path) -> None:
    score_map, mask, verdict = open_predictor(whole_run).predict(folder / "sets/parts/bolt/test/scratch/001.png")
    assert score_map.shape == mask.shape == (24, 32) and 0 <= score_map.min() <= score_map.max() <= 1
    assert verdict == ("FAIL" if mask.any() else "PASS")


# The child saves every second step; the test kills it with no warning, somewhere behind the first.
CHILD = """
import json, sys, torch
from pathlib import Path
from agvas_core.model.weights.pretrained_config import resolve_config
from agvas_core.train.fit.config import parse_fit_config, parse_mixture_config
from agvas_core.train.fit.loop import fit_model

torch.set_num_threads(1)
tables = json.loads(Path(sys.argv[1]).read_text())
fit_model(resolve_config(tables["model"]), parse_mixture_config(tables["mixture"]), parse_fit_config(tables["fit"]), Path(sys.argv[2]))
"""


def test_a_killed_run_resumes_to_the_bit(tables: Tables, whole_run: Path, tmp_path: Path) -> None:
    (tmp_path / "tables.json").write_text(json.dumps(tables), encoding="utf-8")
    out = tmp_path / "killed"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "tables.json"), str(out)], stderr=subprocess.DEVNULL)
    while not (out / STATE).exists():
        assert child.poll() is None, "the run ended before it was killed"
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert child.returncode == -signal.SIGKILL
    with safe_open(out / STATE, framework="pt") as state:
        assert int(state.metadata()["step"]) < 6
    with pytest.raises(UsageError, match="--resume"):
        run(tables, out)
    run(tables, out, resume=True)
    assert same_tensors(out / "model.safetensors", whole_run / "model.safetensors")
    assert same_tensors(out / STATE, whole_run / STATE)
    for name in ("log.jsonl", "validation.jsonl"):
        assert rows(out / name) == rows(whole_run / name), name


def test_a_resumed_run_shows_what_changed_and_refuses(tables: Tables, whole_run: Path) -> None:
    other = changed(tables, learning_rate=0.5, batch=8)
    with pytest.raises(UsageError, match=r"fit\.batch was 4, is 8; fit\.learning_rate was 0\.001, is 0\.5: use the same"):
        run(other, whole_run, resume=True)
    run(changed(tables, micro_batch=1, workers=0, attention="eager"), whole_run, resume=True)  # speed and memory alone


def test_sets_that_changed_since_are_refused(tables: Tables, whole_run: Path) -> None:
    fewer = tables | {"mixture": tables["mixture"] | {"sets": tables["mixture"]["sets"][:-1]}}
    with pytest.raises(UsageError, match=r"mixture\.records was"):
        run(fewer, whole_run, resume=True)


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_batch(tables: Tables, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"(loss|norm) is (nan|inf) at step \d"):
        run(changed(tables, learning_rate=1e30, warmup_steps=0, save_every=1), tmp_path / "run")
    saved = tmp_path / "run/not-finite-rank0.safetensors"
    with safe_open(saved, framework="pt") as file:
        assert len(json.loads(file.metadata()["names"])) == 4
        assert file.get_tensor("0.pixel").shape == (2, 32, 32, 3)
    if (tmp_path / "run" / STATE).exists():
        assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "run" / STATE).values())


def test_broken_images_are_skipped_counted_and_listed(tables: Tables, folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "parts"
    (root / "bolt/test/good").mkdir(parents=True)
    good = (folder / "sets/parts/bolt/test/good/000.png").read_bytes()
    for number in range(6):
        (root / f"bolt/test/good/{number}.png").write_bytes(good if number % 2 else good[:100])
    mixture = {"sets": [{"name": "mvtec", "path": str(root)}], "shares": {"seg": 1}}
    broken = changed(tables, steps=4, warmup_steps=0)
    broken["fit"].pop("validation")
    run(broken | {"mixture": mixture}, tmp_path / "run")
    listed = rows(tmp_path / "run" / SKIPPED)
    assert {row["name"] for row in listed} <= {f"bolt/test/good/{number}.png" for number in (0, 2, 4)} and listed
    assert sum(int(row["times"]) for row in listed) == rows(tmp_path / "run/log.jsonl")[-1]["skipped"]
    assert "cut short" in str(listed[0]["reason"]) or "decoded" in str(listed[0]["reason"])


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond ``size`` bytes: the operating system refuses, as where the disk is full."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_fills_leaves_the_last_good_checkpoint(tables: Tables, whole_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def fill(done: int, total: int, row: dict[str, float]) -> None:
        if done == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    plain = changed(tables)
    plain["fit"].pop("validation")
    with full_disk(1 << 40), pytest.raises(OutputError, match=r"the last one is whole|what was saved before is whole"):
        run(plain, out, progress=fill)
    with safe_open(out / STATE, framework="pt") as state:
        assert int(state.metadata()["step"]) == 2
    assert load_checkpoint(out).training["step"] == 2
    assert not list(out.glob("*.part"))
    run(plain, out, resume=True)
    assert load_checkpoint(out).training["step"] == 6


def test_a_few_examples_can_be_learned_by_heart(tables: Tables, tmp_path: Path) -> None:
    table = changed(tables, steps=40, batch=2, learning_rate=2e-2, log_every=10, save_every=40)
    table["fit"].pop("validation")
    run(table, tmp_path / "run", overfit=2)
    logged = rows(tmp_path / "run/log.jsonl")
    assert logged[-1]["loss"] < 0.6 * logged[0]["loss"]


def test_a_model_that_trains_nothing_is_refused(tables: Tables, tmp_path: Path) -> None:
    nothing = tables | {"model": {key: value for key, value in tables["model"].items() if key != "lora"} | {"trained": []}}
    with pytest.raises(UsageError, match="trains nothing"):
        run(nothing, tmp_path / "run")


def test_bf16_and_a_model_of_ones_own_train_too(tables: Tables, tmp_path: Path) -> None:
    table = changed(tables, steps=2, warmup_steps=1, precision="bf16")
    table["fit"].pop("validation")
    run(table, tmp_path / "run")
    assert all(
        tensor.dtype == torch.float32 for name, tensor in load_file(tmp_path / "run/model.safetensors").items() if "spam" in name
    )


@pytest.mark.slow
def test_two_processes_see_the_losses_of_one_with_twice_the_batch(
    tables: Tables, as_toml: Callable[[Tables], str], tmp_path: Path
) -> None:
    calm = tables | {"model": tables["model"] | {"lora": {"rank": 2, "alpha": 4, "dropout": 0.0}}}  # dropout differs by process
    calm = changed(calm, micro_batch=2)
    run(changed(calm, micro_batch=4), tmp_path / "one")
    (tmp_path / "two.toml").write_text(as_toml(calm), encoding="utf-8")
    agvas = [sys.executable, "-c", "from agvas.cli import main; main()"]
    script = tmp_path / "agvas.py"
    script.write_text(agvas[2], encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), "train"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TERM": "dumb"}
    done = subprocess.run(
        [*command, "--preset", str(tmp_path / "two.toml"), "--out", str(tmp_path / "two")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    one, two = rows(tmp_path / "one/log.jsonl"), rows(tmp_path / "two/log.jsonl")
    assert len(one) == len(two) == 3
    for alone, shared in zip(one, two, strict=True):
        assert alone == pytest.approx(shared, rel=1e-4, abs=1e-5)
    assert rows(tmp_path / "one/validation.jsonl")[-1] == pytest.approx(rows(tmp_path / "two/validation.jsonl")[-1], rel=1e-2)

"""A run, on data sets and on generated images: what it leaves, that nothing ends it without a trace, and that a kill loses nothing."""

import json
import os
import resource
import shutil
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
from agvas_core.evaluation.checkpoint import open_predictor
from agvas_core.model.weights.checkpoint import load_checkpoint, start_model
from agvas_core.model.weights.pretrained_config import resolve_config
from agvas_core.train.config import parse_mixture_config, parse_train_config
from agvas_core.train.engine import refuse_rounded
from agvas_core.train.log import plot_log
from agvas_core.train.loop import SKIPPED, train_model
from agvas_core.train.state import STATE

Tables = dict[str, Any]


def run(tables: Tables, out: Path, **options: Any) -> Path:
    mixture = parse_mixture_config(tables["mixture"]) if "mixture" in tables else None
    return train_model(resolve_config(tables["model"]), parse_train_config(tables["train"]), out, mixture=mixture, **options)


def changed(tables: Tables, **train: Any) -> Tables:
    return tables | {"train": tables["train"] | train}


def without_validation(tables: Tables, **train: Any) -> Tables:
    return tables | {"train": {key: value for key, value in changed(tables, **train)["train"].items() if key != "validation"}}


def rows(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def same_tensors(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def whole_run(tables: Tables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On data sets."""
    return run(tables, tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def generated_run(generated: Tables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved after its first phase, and at its end."""
    out = tmp_path_factory.mktemp("generated") / "run"

    def keep(done: int, total: int, row: dict[str, float]) -> None:
        if done == 5:  # step 4 was saved before it
            shutil.copy(out / STATE, out / "frozen.safetensors")
            shutil.copy(out / "model.safetensors", out / "frozen-average.safetensors")

    return run(generated, out, progress=keep)


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
    score_map, mask, verdict, *_ = open_predictor(whole_run).predict(folder / "sets/parts/bolt/test/scratch/001.png")
    assert score_map.shape == mask.shape == (24, 32) and 0 <= score_map.min() <= score_map.max() <= 1
    assert verdict == ("FAIL" if mask.any() else "PASS")


def test_a_run_on_generated_images_leaves_a_whole_checkpoint_its_log_and_a_plot(generated: Tables, generated_run: Path) -> None:
    found, config = load_checkpoint(generated_run), resolve_config(generated["model"])
    assert found.config == config.model_copy(update={"decision": found.config.decision})
    assert set(found.config.decision.operating_points) == {"balanced", "strict"}
    assert found.training["step"] == found.training["steps"] == 12 and found.training["images"] == 24
    assert not (generated_run / "base.json").exists() and not found.model.training
    logged = rows(generated_run / "log.jsonl")
    assert [row["step"] for row in logged] == [4, 8, 12] and {"kinds", "patches", "asked", "chosen"} <= logged[0].keys()
    assert plot_log(generated_run / "log.jsonl", generated_run / "loss.png")
    assert (generated_run / "loss.png").stat().st_size > 5000


def test_calibration_moves_the_bias_of_the_masks_and_nothing_else(generated_run: Path) -> None:
    calibration = load_checkpoint(generated_run).training["calibration"]
    balance = {row["shift"]: row["iou_ano"] * row["iou_nor"] for row in calibration["shifts"]}
    assert balance[calibration["shift"]] == max(balance.values())
    trained, shipped = load_file(generated_run / STATE), load_file(generated_run / "model.safetensors")
    moved = [name for name in shipped if not torch.equal(shipped[name], trained[f"ema.{name}"])]
    assert moved == (["agmd.bias"] if calibration["shift"] else [])


def test_what_a_phase_freezes_stays_until_the_next_one(generated: Tables, generated_run: Path) -> None:
    torch.manual_seed(generated["train"]["seed"])
    started = start_model(resolve_config(generated["model"])).state_dict()
    frozen, whole = load_file(generated_run / "frozen.safetensors"), load_file(generated_run / STATE)
    encoders = ("pixel_encoder.", "semantic_encoder.")
    for name, tensor in started.items():
        key = f"model.{name}"
        if name.startswith(encoders) and key in frozen:  # weights and running statistics
            assert torch.equal(frozen[key], tensor), name
    assert not torch.equal(frozen["model.agmd.bias"], started["agmd.bias"])
    assert not any(name.startswith(("exp_avg.model.pixel_encoder", "exp_avg.model.semantic_encoder")) for name in frozen)
    assert any(not torch.equal(whole[f"model.{name}"], started[name]) for name in started if name.startswith("pixel_encoder."))
    with safe_open(generated_run / STATE, framework="pt") as state:  # AdamW corrects its moments by how often it has moved each
        moved = json.loads(state.metadata()["moved"])
    assert set(moved.values()) == {6} and all(name.startswith(tuple(f"model.{each}" for each in encoders)) for name in moved)


# The child saves after every step or every second one; the test kills it with no warning, somewhere behind the first.
CHILD = """
import json, sys, torch
from pathlib import Path
from agvas_core.model.weights.pretrained_config import resolve_config
from agvas_core.train.config import parse_mixture_config, parse_train_config
from agvas_core.train.loop import train_model

torch.set_num_threads(1)
tables = json.loads(Path(sys.argv[1]).read_text())
mixture = parse_mixture_config(tables["mixture"]) if "mixture" in tables else None
train_model(resolve_config(tables["model"]), parse_train_config(tables["train"]), Path(sys.argv[2]), mixture=mixture)
"""


@pytest.mark.parametrize("which", ["sets", "generated"])
def test_a_killed_run_resumes_to_the_bit(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """So the same seed gives the same weights, too: the two runs have nothing else in common."""
    tables: Tables = request.getfixturevalue("tables" if which == "sets" else "generated")
    whole: Path = request.getfixturevalue("whole_run" if which == "sets" else "generated_run")
    often = changed(tables, save_every=2)
    (tmp_path / "tables.json").write_text(json.dumps(often), encoding="utf-8")
    out = tmp_path / "killed"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "tables.json"), str(out)], stderr=subprocess.DEVNULL)
    while not (out / STATE).exists():
        assert child.poll() is None, "the run ended before it was killed"
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert child.returncode == -signal.SIGKILL
    with safe_open(out / STATE, framework="pt") as state:
        assert int(state.metadata()["step"]) < sum(parse_train_config(tables["train"]).phase_steps)
    with pytest.raises(UsageError, match="--resume"):
        run(often, out)
    run(often, out, resume=True)
    assert same_tensors(out / "model.safetensors", whole / "model.safetensors")
    assert same_tensors(out / STATE, whole / STATE)
    for name in ("log.jsonl", *(["validation.jsonl"] if which == "sets" else [])):
        assert rows(out / name) == rows(whole / name), name


def test_the_best_checkpoint_is_kept_beside_the_last_also_over_a_resume(tables: Tables, tmp_path: Path) -> None:
    """By a metric of the validation; learning that goes astray makes the first the best."""
    chosen = changed(tables, learning_rate=0.3, warmup_steps=0, save_every=1, validation={"every_steps": 1, "best": "ap"})
    for name, slices in (("whole", 0), ("sliced", 3)):
        for number in range(slices):  # no time: one step
            run(chosen, tmp_path / name, minutes=0.0, resume=bool(number))
        run(chosen, tmp_path / name, resume=bool(slices))
    whole, sliced = tmp_path / "whole", tmp_path / "sliced"
    values = {row["step"]: row["ap"] for row in rows(whole / "validation.jsonl")}
    best = load_checkpoint(whole / "best").training
    assert best["step"] == max(values, key=values.__getitem__) and best["best"]["value"] == pytest.approx(
        max(values.values()), abs=1e-6
    )
    assert best["step"] < 6 == load_checkpoint(whole).training["step"]
    assert not same_tensors(whole / "best/model.safetensors", whole / "model.safetensors")
    assert same_tensors(whole / "best/model.safetensors", sliced / "best/model.safetensors")
    assert load_checkpoint(sliced / "best").training["best"] == best["best"]


def test_images_that_a_run_is_validated_on_are_not_trained_on(tables: Tables, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "sets/parts/bolt", tmp_path / "validation/renamed")
    with pytest.raises(UsageError, match=r"images of \w+ are test images of .*validation"):
        run(changed(tables, validation={"data": str(tmp_path / "validation")}), tmp_path / "run")


def test_a_run_in_slices_of_time_ends_with_the_same_weights(generated: Tables, generated_run: Path, tmp_path: Path) -> None:
    out, slices = tmp_path / "run", 0
    sliced = changed(generated, workers=1)
    while not (out / "model.safetensors").exists() or load_checkpoint(out).training["step"] < 12:
        run(sliced, out, minutes=0.0 if slices < 2 else None, resume=bool(slices))  # no time: one step
        slices += 1
    assert slices == 3
    assert same_tensors(out / STATE, generated_run / STATE)
    assert same_tensors(out / "model.safetensors", generated_run / "model.safetensors")


def test_a_resumed_run_shows_what_changed_and_refuses(tables: Tables, whole_run: Path) -> None:
    other = changed(tables, learning_rate=0.5, batch=8)
    with pytest.raises(UsageError, match=r"train\.batch was 4, is 8; train\.learning_rate was 0\.001, is 0\.5: use the same"):
        run(other, whole_run, resume=True)
    run(changed(tables, micro_batch=1, workers=0, attention="eager"), whole_run, resume=True)  # speed and memory alone


def test_sets_that_changed_since_are_refused(tables: Tables, whole_run: Path) -> None:
    fewer = tables | {"mixture": tables["mixture"] | {"sets": tables["mixture"]["sets"][:-1]}}
    with pytest.raises(UsageError, match=r"mixture\.records was"):
        run(fewer, whole_run, resume=True)


@pytest.mark.parametrize(("which", "shape"), [("tables", (2, 32, 32, 3)), ("generated", (2, 64, 64, 3))])
def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_batch(
    which: str, shape: tuple[int, ...], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    tables: Tables = request.getfixturevalue(which)
    with pytest.raises(SetupError, match=r"(loss|norm) is (nan|inf) at step \d"):
        run(changed(tables, learning_rate=1e30, warmup_steps=0, save_every=1), tmp_path / "run")
    saved = tmp_path / "run/not-finite-rank0.safetensors"
    with safe_open(saved, framework="pt") as file:
        names = json.loads(file.metadata()["names"])
        assert len(names) == (4 if which == "tables" else 2)
        assert file.get_tensor("0.pixel").shape == shape
    if which == "generated":
        assert f"(seed {tables['train']['seed']})" in names[0]  # from which the image can be made again
    if (tmp_path / "run" / STATE).exists():
        assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "run" / STATE).values())


def test_broken_images_are_skipped_counted_and_listed(tables: Tables, folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "parts"
    (root / "bolt/test/good").mkdir(parents=True)
    good = (folder / "sets/parts/bolt/test/good/000.png").read_bytes()
    for number in range(6):
        (root / f"bolt/test/good/{number}.png").write_bytes(good if number % 2 else good[:100])
    mixture = {"sets": [{"name": "mvtec", "path": str(root)}], "shares": {"seg": 1}}
    broken = without_validation(tables, steps=4, warmup_steps=0)
    told: list[str] = []
    steps: list[int] = []
    run(
        broken | {"mixture": mixture},
        tmp_path / "run",
        listed=lambda text: told.append(text) if not steps else None,
        progress=lambda done, total, row: steps.append(done),
    )
    (unusable,) = [text for text in told if "cannot be used" in text]  # before the first step
    assert "3 images" in unusable and "bolt/test/good/0.png" in unusable
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

    plain = without_validation(tables)
    with full_disk(1 << 40), pytest.raises(OutputError, match=r"the last one is whole|what was saved before is whole"):
        run(plain, out, progress=fill)
    with safe_open(out / STATE, framework="pt") as state:
        assert int(state.metadata()["step"]) == 2
    assert load_checkpoint(out).training["step"] == 2
    assert not list(out.glob("*.part"))
    run(plain, out, resume=True)
    assert load_checkpoint(out).training["step"] == 6


def test_a_few_examples_can_be_learned_by_heart(tables: Tables, tmp_path: Path) -> None:
    table = without_validation(tables, steps=40, batch=2, learning_rate=2e-2, log_every=10, save_every=40)
    run(table, tmp_path / "run", overfit=2)
    logged = rows(tmp_path / "run/log.jsonl")
    assert logged[-1]["loss"] < 0.6 * logged[0]["loss"]


def test_a_model_that_trains_nothing_is_refused(tables: Tables, tmp_path: Path) -> None:
    nothing = tables | {"model": {key: value for key, value in tables["model"].items() if key != "lora"} | {"trained": []}}
    with pytest.raises(UsageError, match="trains nothing"):
        run(nothing, tmp_path / "run")


def test_bf16_and_a_model_of_ones_own_train_too(tables: Tables, tmp_path: Path) -> None:
    table = without_validation(tables, steps=2, warmup_steps=1, precision="bf16")
    run(table, tmp_path / "run")
    assert all(
        tensor.dtype == torch.float32 for name, tensor in load_file(tmp_path / "run/model.safetensors").items() if "spam" in name
    )


def test_frozen_parts_from_scratch_are_refused(generated: Tables, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="trains only spam"):
        run(generated | {"model": generated["model"] | {"trained": ["spam"]}}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_examples_and_data_sets_go_together(tables: Tables, generated: Tables, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='examples = "sets"'):
        run(generated | {"mixture": tables["mixture"]}, tmp_path / "run")
    with pytest.raises(UsageError, match="--sets DIR"):
        run({key: tables[key] for key in ("model", "train")}, tmp_path / "run")


def test_names_in_rates_and_frozen_are_of_parts(generated: Tables, tmp_path: Path) -> None:
    first, second = generated["train"]["phases"]
    for wrong, said in (
        ({"frozen": ["pixl"]}, "frozen names pixl.*pixel_encoder"),
        ({"rates": {"agm.": 1.0}}, r"rates names agm\."),
    ):
        with pytest.raises(UsageError, match=said):
            run(changed(generated, phases=[first | wrong, second]), tmp_path / "names")
    with pytest.raises(UsageError, match=r"phases\.1 trains nothing"):
        run(changed(generated, phases=[first, second | {"frozen": [""]}]), tmp_path / "nothing")


@pytest.mark.slow
@pytest.mark.parametrize("which", ["sets", "generated"])
def test_two_processes_see_the_losses_of_one_with_twice_the_batch(
    which: str, request: pytest.FixtureRequest, as_toml: Callable[[Tables], str], tmp_path: Path
) -> None:
    if which == "sets":
        tables: Tables = request.getfixturevalue("tables")
        calm = tables | {
            "model": tables["model"] | {"lora": {"rank": 2, "alpha": 4, "dropout": 0.0}}
        }  # dropout differs by process
        calm = changed(calm, micro_batch=2)
    else:
        # Batch norm sees what passes through at once, so its encoder is frozen in one phase and all encoders in the other.
        tables = request.getfixturevalue("generated")
        first, second = tables["train"]["phases"]
        second = second | {"frozen": ["pixel_encoder"]}
        calm = changed(tables, phases=[first | {"batch": 4}, second | {"batch": 2}], micro_batch=1, log_every=1, images=12)
    run(changed(calm, micro_batch=2 * calm["train"]["micro_batch"]), tmp_path / "one")
    (tmp_path / "two.toml").write_text(as_toml(calm), encoding="utf-8")
    script = tmp_path / "agvas.py"
    script.write_text("from agvas.cli import main; main()", encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), "train"]
    done = subprocess.run(
        [*command, "--preset", str(tmp_path / "two.toml"), "--out", str(tmp_path / "two")],
        env=os.environ | {"OMP_NUM_THREADS": "1", "TERM": "dumb"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    one, two = rows(tmp_path / "one/log.jsonl"), rows(tmp_path / "two/log.jsonl")
    assert len(one) == len(two) >= 3
    for alone, shared in zip(one, two, strict=True):
        assert alone == pytest.approx(shared, rel=1e-4, abs=1e-5)
    if which == "sets":
        validated = [rows(tmp_path / name / "validation.jsonl")[-1] for name in ("one", "two")]
        assert validated[0] == pytest.approx(validated[1], rel=1e-2)


def test_a_buffer_that_deepspeed_rounded_is_refused() -> None:
    exact = {"model.rotary.inv_freq": torch.ones(3), "model.steps": torch.zeros((), dtype=torch.long)}
    before = {name: buffer.dtype for name, buffer in exact.items()}
    refuse_rounded(before, exact)
    with pytest.raises(SetupError, match=r"model.rotary.inv_freq from torch.float32 to torch.bfloat16.*deepspeed>=0.19.8"):
        refuse_rounded(before, exact | {"model.rotary.inv_freq": torch.ones(3, dtype=torch.bfloat16)})

"""DeepSpeed on two CPU processes, where it is installed: pip install 'agvas[deepspeed]'. On a CPU it needs DS_ACCELERATOR=cpu."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from agvas_core.model.weights.checkpoint import load_checkpoint
from agvas_core.train.engine import DEEPSPEED_CONFIGS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")]


@pytest.mark.parametrize("stage", DEEPSPEED_CONFIGS)
def test_a_stage_of_zero_trains_saves_what_was_trained_and_goes_on(
    tables: dict[str, Any], as_toml: Callable[[dict[str, Any]], str], tmp_path: Path, stage: str
) -> None:
    train = tables["train"] | {"deepspeed": stage, "micro_batch": 1, "precision": "bf16", "steps": 4, "save_every": 2}
    (tmp_path / "zero.toml").write_text(as_toml(tables | {"train": train}), encoding="utf-8")
    (tmp_path / "start.py").write_text("from agvas.cli import main; main()", encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "start.py")]
    arguments = ["train", "--preset", str(tmp_path / "zero.toml"), "--out", str(tmp_path / "run")]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TERM": "dumb"}
    for more in ([], ["--resume"]):  # nothing is left for the second, but everything has to be put back
        done = subprocess.run([*launch, *arguments, *more], env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] == [2, 4] and all(0 < row["loss"] < 100 for row in rows)
    assert load_checkpoint(tmp_path / "run").training["step"] == 4
    with safe_open(tmp_path / "run/state.safetensors", framework="pt") as state:
        assert any(name.startswith("exp_avg_sq.model.agmd") for name in state.keys())  # noqa: SIM118

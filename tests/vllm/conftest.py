"""The real vLLM, on a CPU. ``make test-vllm`` runs these in its environment; elsewhere they are not collected.

Two models: nano itself, and a small one with other numbers of heads and two LoRA adapters. Torch is the reference of both.
"""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from agvas_core.contract.command_line import exit_code_of
from agvas_core.model.config import parse_config
from agvas_core.model.weights.checkpoint import (
    Checkpoint,
    base_digests,
    load_checkpoint,
    save_checkpoint,
    start_model,
    start_tokenizer,
)
from agvas_core.model.weights.trained import kept_state, make_trainable
from agvas_runtime.bundle import Bundle, load_bundle
from agvas_runtime.stages.open import Stages, StageSettings, open_stages
from agvas_runtime.stages.protocol import Features

if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def nano() -> Bundle:
    return load_bundle("nano")


@pytest.fixture(scope="session")
def reference(nano: Bundle) -> Stages:
    return open_stages(nano, vision="torch", lmm="torch", decoder="torch", settings=StageSettings(threads=1))


@pytest.fixture(scope="session")
def features(reference: Stages) -> Features:
    """Of three images."""
    rng = np.random.default_rng(3)
    views = rng.integers(0, 256, (3, 128, 128, 3), np.uint8), rng.integers(0, 256, (3, 160, 192, 3), np.uint8)
    return reference.vision(*views)


@pytest.fixture(scope="session")
def lmm_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nano's, made by the command."""
    from agvas_export.cli import app

    out = tmp_path_factory.mktemp("vllm") / "nano"
    assert exit_code_of(lambda: app, name="agvas-export", arguments=["vllm", "nano", "-o", str(out)]) == 0
    yield out


@pytest.fixture(scope="session")
def whole_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nano with every form of its language model, made by the command."""
    from agvas_export.cli import app

    out = tmp_path_factory.mktemp("bundle") / "nano"
    arguments = ["bundle", "nano", "-o", str(out), "--lmm", "onnx,vllm,torch"]
    assert exit_code_of(lambda: app, name="agvas-export", arguments=arguments) == 0
    return out


@pytest.fixture(scope="session")
def few_shot(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """Two checkpoints of nano with LoRA that has learned something, by name."""
    made = {}
    for seed, name in enumerate(("left", "right")):
        table = load_checkpoint("nano").config.model_dump(mode="json")
        lora = {"rank": 4, "alpha": 8.0, "targets": ["q_proj", "v_proj", "down_proj"]}
        config = parse_config(table | {"name": name, "base": "nano", "trained": ["refiner"], "lora": lora})
        model, tokenizer = start_model(config), start_tokenizer(config)
        assert tokenizer is not None
        make_trainable(model, config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, parameter in model.lmm.named_parameters():
                if ".lora_" in key:
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        folder = tmp_path_factory.mktemp("few-shot") / name
        save_checkpoint(folder, kept_state(model, config), config, tokenizer, {}, base_digests(config))
        made[name] = load_checkpoint(folder)
    return made


@pytest.fixture(scope="session")
def adapted_folder(lmm_folder: Path, few_shot: dict[str, Checkpoint]) -> Path:
    """Nano's folder with both adapters in it."""
    from agvas_export.cli import app

    for checkpoint in few_shot.values():
        assert (
            exit_code_of(
                lambda: app, name="agvas-export", arguments=["adapter", str(checkpoint.folder), "--into", str(lmm_folder)]
            )
            == 0
        )
    return lmm_folder

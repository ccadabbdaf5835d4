"""A checkpoint that holds only what was trained beside another one is exported like any other: its adapters are merged."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from agvas_core.contract.command_line import exit_code_of
from agvas_core.contract.errors import BundleError, SetupError
from agvas_core.contract.lmm_folder import find_lmm_folder, read_lmm_folder
from agvas_core.contract.manifest import read_manifest
from agvas_core.model.config import ModelConfig, parse_config
from agvas_core.model.weights.checkpoint import base_digests, load_checkpoint, save_checkpoint, start_model, start_tokenizer
from agvas_core.model.weights.trained import kept_state, make_trainable
from agvas_export.bundle import Form, export_bundle
from agvas_export.cli import app
from agvas_runtime.bundle import load_bundle


@pytest.fixture
def few_shot(tmp_path: Path, tiny_checkpoint_folder: Path) -> Path:
    """LoRA and a decoder, trained a little further than the tiny checkpoint."""
    table = load_checkpoint(tiny_checkpoint_folder).config.model_dump(mode="json")
    changes = {"name": "few-shot", "base": str(tiny_checkpoint_folder), "trained": ["agmd"], "lora": {"rank": 2}}
    config: ModelConfig = parse_config(table | changes)
    model, tokenizer = start_model(config), start_tokenizer(config)
    assert tokenizer is not None
    make_trainable(model, config)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    save_checkpoint(tmp_path / "few-shot", kept_state(model, config), config, tokenizer, {}, base_digests(config))
    return tmp_path / "few-shot"


@pytest.mark.slow
def test_adapters_are_exported_merged_and_for_vllm_apart(
    tmp_path: Path, few_shot: Path, tiny_checkpoint_folder: Path, adapted: Callable[..., Path]
) -> None:
    bundle = tmp_path / "bundle"
    done = export_bundle(few_shot, bundle, form=Form(lmm=("onnx", "vllm")))  # compares the graphs with the merged model
    assert all(each.error <= each.tolerance for each in done.parity.comparisons)
    manifest = read_manifest(tmp_path / "bundle")
    assert manifest.name == "few-shot"
    assert manifest.provenance["model"]["lora"]["rank"] == 2
    spec = read_lmm_folder(find_lmm_folder(bundle))
    assert spec.checkpoint_sha256 == manifest.provenance["checkpoint"]["sha256"] and spec.adapter == "few-shot"
    assert {"vllm/model.safetensors", "vllm/adapters/few-shot/adapter_model.safetensors"} <= manifest.files.keys()
    other = adapted(tiny_checkpoint_folder, tmp_path / "other", "other", 1, ["agmd"])
    arguments = ["adapter", str(other), "--into", str(bundle)]
    assert exit_code_of(lambda: app, name="agvas-export", arguments=arguments) == 0
    assert load_bundle(bundle).folder == bundle  # an adapter that came later has hashes of its own
    (bundle / "vllm/model-extra.safetensors").write_bytes(b"")
    with pytest.raises(BundleError, match="does not list"):
        load_bundle(bundle)
    assert b"lora" not in (tmp_path / "bundle" / manifest.graphs["lmm"].file).read_bytes()


def test_a_base_that_changed_is_not_exported(tmp_path: Path, few_shot: Path) -> None:
    base = json.loads((few_shot / "base.json").read_text(encoding="utf-8"))
    base["checkpoint"]["sha256"] = "0" * 64
    (few_shot / "base.json").write_text(json.dumps(base), encoding="utf-8")
    with pytest.raises(SetupError, match="put the same weights there"):
        export_bundle(few_shot, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()

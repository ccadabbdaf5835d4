"""The folder for vLLM holds the checkpoint's language model, its trained tables in the base and its adapter apart."""

import importlib.util
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, Qwen2Model

from agvas_core.contract.command_line import exit_code_of
from agvas_core.contract.errors import BundleError, UsageError
from agvas_core.contract.lmm_folder import LmmFolder, find_lmm_folder, read_adapter, read_lmm_folder
from agvas_core.contract.prompts import FIXED_ANSWER, NO_ANOMALY_ANSWER
from agvas_core.model.weights.checkpoint import Checkpoint, load_checkpoint
from agvas_export import vllm_folder
from agvas_export import vllm_folder as shards
from agvas_export.bundle import prompt_of
from agvas_export.cli import app
from agvas_export.source import read_checkpoint
from agvas_runtime.stages.vllm.arguments import as_flags
from agvas_runtime.stages.vllm.serve import serve_lmm

Adapted = Callable[[Path, Path, str, int, list[str]], Path]


def export(checkpoint: Path, out: Path, *options: str) -> int:
    return exit_code_of(lambda: app, name="agvas-export", arguments=["vllm", str(checkpoint), "-o", str(out), *options])


@pytest.fixture(scope="module")
def folder(tiny_checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vllm") / "tiny"
    assert export(tiny_checkpoint_folder, out) == 0
    return out


def language_model(folder: Path) -> tuple[Qwen2Model, dict[str, Any]]:
    """As anyone else would read it."""
    tensors = {name: tensor for file in folder.glob("model*.safetensors") for name, tensor in load_file(file).items()}
    model = Qwen2Model(AutoConfig.from_pretrained(folder).text_config).eval()
    rest = {name.removeprefix("model.language_model."): tensor for name, tensor in tensors.items() if "lm_head" not in name}
    model.load_state_dict(rest)
    return model, tensors


@torch.no_grad()
def test_transformers_reads_the_language_model_of_the_checkpoint_out_of_it(folder: Path, tiny_checkpoint: Checkpoint) -> None:
    model, _ = language_model(folder)
    ids = torch.tensor([[1, 20, 4, 5, 6, 40]])
    mine, theirs = model(ids).last_hidden_state, tiny_checkpoint.model.lmm.language_model(ids).last_hidden_state
    assert torch.equal(mine, theirs)


def test_it_says_whose_it_is_and_what_it_takes(folder: Path, tiny_checkpoint_folder: Path, tiny_checkpoint: Checkpoint) -> None:
    spec = read_lmm_folder(folder)
    assert spec.checkpoint_sha256 == read_checkpoint(tiny_checkpoint_folder)[1]
    assert spec.anchor_ids == tiny_checkpoint.model.lmm.anchor_ids and spec.adapter is None
    assert (spec.layers, spec.dim, spec.visual_tokens) == (2, 32, 32)
    prompt = prompt_of(tiny_checkpoint.config)
    assert spec.max_length == 32 + prompt.max_tokens + prompt.max_new_tokens + 1
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["AgvasForConditionalGeneration"] and config["visual_tokens"] == 32


@torch.no_grad()
def test_the_direction_of_acceptance_is_that_of_the_head(folder: Path, tiny_checkpoint: Checkpoint) -> None:
    hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    answer, refusal = (tiny_checkpoint.tokenizer.encode(text).ids[0] for text in (FIXED_ANSWER, NO_ANOMALY_ANSWER))
    logits = tiny_checkpoint.model.lmm.head(hidden)
    direction = load_file(folder / "accept/direction.safetensors")["direction"]
    assert torch.allclose(hidden @ direction, logits[:, answer] - logits[:, refusal], atol=1e-5)


def test_adapters_stay_apart_and_merged_give_the_trained_model(
    tmp_path: Path, tiny_checkpoint_folder: Path, adapted: Adapted
) -> None:
    trained = adapted(tiny_checkpoint_folder, tmp_path / "own", "own", 0, ["lmm.anchor_rows"])
    assert export(trained, tmp_path / "out") == 0
    spec = read_lmm_folder(tmp_path / "out")
    assert spec.adapter == "own" and read_adapter(tmp_path / "out/adapters/own", spec).rank == 2
    settings = json.loads((tmp_path / "out/adapters/own/adapter_config.json").read_text())
    assert settings["modules_to_save"] is None and settings["r"] == 2
    _, plain = language_model(tmp_path / "out")
    lora = load_file(tmp_path / "out/adapters/own/adapter_model.safetensors")
    merged = load_checkpoint(trained).model.lmm.language_model.state_dict()
    for layer, target in ((0, "q_proj"), (1, "v_proj")):
        name = f"layers.{layer}.self_attn.{target}"
        a, b = (lora[f"base_model.model.model.language_model.{name}.lora_{side}.weight"] for side in "AB")
        assert torch.allclose(plain[f"model.language_model.{name}.weight"] + 2.0 * b @ a, merged[f"{name}.weight"], atol=1e-6)
    assert torch.equal(plain["model.language_model.embed_tokens.weight"], merged["embed_tokens.weight"])  # with the trained rows


def test_another_adapter_joins_a_folder_whose_tables_it_was_trained_with_and_no_other(
    tmp_path: Path, folder: Path, tiny_checkpoint_folder: Path, adapted: Adapted, capsys: pytest.CaptureFixture[str]
) -> None:
    base = shutil.copytree(folder, tmp_path / "base")
    fits = adapted(tiny_checkpoint_folder, tmp_path / "fits", "fits", 1, ["agmd"])
    other = adapted(tiny_checkpoint_folder, tmp_path / "other", "other", 2, ["lmm.anchor_rows"])
    for checkpoint, code in ((fits, 0), (other, 3), (tiny_checkpoint_folder, 2), (fits, 2)):
        arguments = ["adapter", str(checkpoint), "--into", str(base)]
        assert exit_code_of(lambda: app, name="agvas-export", arguments=arguments) == code
    told = capsys.readouterr().err
    assert "trained with tables" in told and "has no adapter" in told and "has an adapter fits already" in told
    assert sorted(path.name for path in (base / "adapters").iterdir()) == ["fits"]
    assert read_lmm_folder(base)  # which an adapter does not change


def test_half_the_size_on_request(tmp_path: Path, tiny_checkpoint_folder: Path) -> None:
    assert export(tiny_checkpoint_folder, tmp_path / "half", "--dtype", "bfloat16") == 0
    spec = read_lmm_folder(tmp_path / "half")
    assert spec.dtype == "bfloat16"
    assert {tensor.dtype for tensor in language_model(tmp_path / "half")[1].values()} == {torch.bfloat16}


def test_large_weights_come_in_several_files(
    tmp_path: Path, tiny_checkpoint_folder: Path, tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "MAX_SHARD_BYTES", 40_000)
    assert export(tiny_checkpoint_folder, tmp_path / "out") == 0
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    model, _ = language_model(tmp_path / "out")
    assert all(
        torch.equal(mine, tiny_checkpoint.model.lmm.language_model.state_dict()[name])
        for name, mine in model.state_dict().items()
    )


def test_only_such_a_folder_is_replaced(tmp_path: Path, tiny_checkpoint_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/picture.jpg").write_bytes(b"x")
    assert export(tiny_checkpoint_folder, tmp_path / "mine", "--overwrite") == 2
    assert (tmp_path / "mine/picture.jpg").exists() and "empty it yourself" in capsys.readouterr().err
    assert export(tiny_checkpoint_folder, tmp_path / "new") == 0
    assert export(tiny_checkpoint_folder, tmp_path / "new") == 2
    assert export(tiny_checkpoint_folder, tmp_path / "new", "--overwrite") == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "config.json").write_text("{}"), "was changed or cut off"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "lacks tokenizer.json"),
        (lambda folder: (folder / "extra.safetensors").write_bytes(b""), "does not list"),
        (lambda folder: changed_spec(folder, vllm="0.99.0"), "made for vLLM 0.99.0, this agvas is for 0.32.0"),
        (lambda folder: changed_spec(folder, schema_version=9), "schema 9"),
        (lambda folder: changed_spec(folder, files={"../x": "0"}), "outside the folder"),
        (lambda folder: (folder / "agvas.json").write_text("["), "cannot be read"),
    ],
)
def test_a_folder_that_was_changed_is_refused(tmp_path: Path, folder: Path, change: Any, message: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    change(copy)
    with pytest.raises(BundleError, match=message):
        read_lmm_folder(copy)


def changed_spec(folder: Path, **changes: Any) -> None:
    path = folder / "agvas.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_it_is_found_inside_a_bundle_and_missed_with_the_remedy(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder, tmp_path / "bundle/vllm")
    assert find_lmm_folder(tmp_path / "bundle") == tmp_path / "bundle/vllm"
    with pytest.raises(BundleError, match="agvas-export vllm"):
        find_lmm_folder(tmp_path)


def test_a_name_that_is_a_path_is_no_adapter(folder: Path, tiny_checkpoint: Checkpoint) -> None:
    with pytest.raises(UsageError, match="choose another --name"):
        vllm_folder.write_adapter(tiny_checkpoint, "0" * 64, folder, "../x")
    assert isinstance(read_lmm_folder(folder), LmmFolder)


def serve(*arguments: str) -> int:
    return exit_code_of(lambda: serve_lmm, name="agvas serve-lmm", arguments=list(arguments))


def test_the_server_refuses_what_cannot_be_served_before_it_loads_anything(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve(str(tmp_path)) == 3 and "agvas-export vllm" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert serve(str(folder), "--port", port) == 2 and "choose another --port" in capsys.readouterr().err
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "model.safetensors").write_bytes(b"")
    assert serve(str(copy)) == 3 and "changed or cut off" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_a_missing_vllm_is_named_with_its_extra(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    assert serve(str(folder), "--port", port) == 3 and "pip install 'agvas[vllm]'" in capsys.readouterr().err


def test_the_options_of_the_server_are_those_of_the_engine() -> None:
    given = {
        "model": "m",
        "max_model_len": 641,
        "enable_lora": True,
        "enforce_eager": False,
        "async_scheduling": False,
        "names": ["a", "b"],
        "kv": {"x": [1]},
    }
    flags = ["m", "--max-model-len", "641", "--enable-lora", "--no-async-scheduling", "--names", "a", "b", "--kv", '{"x": [1]}']
    assert as_flags(given) == flags

"""A language model that is never whole in memory gives the graph that it gives otherwise."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from agvas_core.contract.errors import SetupError, UsageError
from agvas_core.contract.lmm_folder import read_lmm_folder
from agvas_core.model.weights.checkpoint import Checkpoint
from agvas_export import vllm_folder as shards
from agvas_export.bundle import Form, prompt_of, read_source
from agvas_export.graphs import export_stage
from agvas_export.precision import in_precision
from agvas_export.stages import make_stages
from agvas_export.streaming import read_without_lmm
from agvas_export.vllm_folder import write_vllm_folder


def answers(path: Path, given: dict[str, np.ndarray]) -> list[np.ndarray]:
    return list(ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, given))


def test_weights_that_go_from_file_to_file_give_the_same_answers(
    tiny_checkpoint: Checkpoint, exported_folder: Path, tmp_path: Path
) -> None:
    source, weights = read_without_lmm(tiny_checkpoint.folder)
    assert all(parameter.device.type == "meta" for parameter in source.model.lmm.parameters())
    whole = tiny_checkpoint.model.state_dict()
    for name, tensor in source.model.state_dict().items():
        if not name.startswith("lmm."):
            assert tensor.equal(whole[name]), name
    stage = next(stage for stage in make_stages(source.model, source.config) if stage.name == "lmm")
    spec = export_stage(in_precision(stage, "fp32"), tmp_path, fill=weights.fill)
    given_by = next(stage for stage in make_stages(tiny_checkpoint.model, tiny_checkpoint.config) if stage.name == "lmm")
    given = {name: tensor.numpy() for name, tensor in given_by.inputs.items()}
    for value, truth in zip(answers(tmp_path / spec.file, given), answers(exported_folder / "lmm.onnx", given), strict=True):
        np.testing.assert_allclose(value, truth, rtol=0, atol=1e-6)
    # Weights beyond 2 GB could not stand in the graph's own file; here all of them stand beside it.
    assert (tmp_path / "lmm.onnx.data").stat().st_size > (tmp_path / "lmm.onnx").stat().st_size
    external = [tensor for tensor in onnx.load(tmp_path / "lmm.onnx", load_external_data=False).graph.initializer]
    assert any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in external)


def test_a_part_of_a_model_cannot_be_streamed_and_a_damaged_one_is_refused(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "base.json").write_text(json.dumps({}))
    with pytest.raises(UsageError, match="merged in memory"):
        read_source(tmp_path, Form(stream=True))
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((tiny_checkpoint.folder / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(SetupError, match="is damaged"):
        read_without_lmm(tmp_path)


def test_the_folder_for_vllm_is_the_same_whether_or_not_the_weights_were_in_memory(
    tiny_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "MAX_SHARD_BYTES", 40_000)
    source, weights = read_without_lmm(tiny_checkpoint.folder)
    prompt = prompt_of(source.config)
    for folder, given, lazy in (("whole", tiny_checkpoint, None), ("streamed", source, weights)):
        (tmp_path / folder).mkdir()
        write_vllm_folder(given, "0" * 64, prompt, tmp_path / folder, dtype="bfloat16", weights=lazy)
    one, other = (read_lmm_folder(tmp_path / folder) for folder in ("whole", "streamed"))
    assert one == other and len(one.files) > 6  # hashes of all files, of several shards among them

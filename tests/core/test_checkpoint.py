"""A checkpoint gives back the model that was saved, and what does not fit is named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models

from agvas_core.contract.errors import SetupError, UsageError
from agvas_core.model.agvas import AgVas
from agvas_core.model.build import build_model
from agvas_core.model.config import ModelConfig, load_preset, parse_config
from agvas_core.model.weights.checkpoint import load_checkpoint, save_checkpoint

torch.set_num_threads(1)  # such small tensors only wait for each other's threads

FILES = {"config.json", "model.safetensors", "tokenizer.json", "training.json"}
HEAD, EMBEDDINGS = "lmm.head.weight", "lmm.language_model.embed_tokens.weight"


def small(**text: Any) -> ModelConfig:
    """Nano with fewer layers."""
    table = load_preset("nano")["model"]
    table["lmm"]["vision"] |= {"num_hidden_layers": 1, "intermediate_size": 64}
    table["lmm"]["text"] |= {"num_hidden_layers": 1, "intermediate_size": 64} | text
    return parse_config(table)


def trained(config: ModelConfig) -> AgVas:
    """Weights and running statistics that are not those of a new model."""
    torch.manual_seed(1)
    model = build_model(config)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.dtype.is_floating_point:
                tensor.add_(0.02 * torch.rand(tensor.shape))  # running variances stay positive
    return model.eval()


def saved(folder: Path, config: ModelConfig) -> AgVas:
    model = trained(config)
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    save_checkpoint(folder, model.state_dict(), config, tokenizer, {"images": 12})
    return model


def outputs(model: AgVas) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    semantic = torch.randint(0, 256, (1, 128, 128, 3), generator=generator, dtype=torch.uint8)
    pixel = torch.randint(0, 256, (1, 64, 96, 3), generator=generator, dtype=torch.uint8)
    ids = torch.tensor([[10, *[3] * 128, 11, 4, 5, 6, 2]])
    with torch.no_grad():
        output = model(semantic, pixel, ids)
    return output.mask_logits, output.text_logits


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_gives_back_the_same_model(tmp_path: Path, tied: bool) -> None:
    config = small(tie_word_embeddings=tied)
    model = saved(tmp_path / "run", config)
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint.config == config
    assert checkpoint.training == {"images": 12}
    assert checkpoint.tokenizer.get_vocab() == {"a": 0, "b": 1}
    assert not checkpoint.model.training
    for name, tensor in checkpoint.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    for one, other in zip(outputs(checkpoint.model), outputs(model), strict=True):
        assert one.isfinite().all()
        assert torch.equal(one, other)


def test_tied_embeddings_are_written_once_and_stay_tied(tmp_path: Path) -> None:
    from safetensors import safe_open

    model = saved(tmp_path, small())
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert len({HEAD, EMBEDDINGS} & names) == 1
    loaded = load_checkpoint(tmp_path).model
    assert loaded.lmm.head.weight is loaded.get_parameter(EMBEDDINGS)
    assert torch.equal(loaded.get_parameter(EMBEDDINGS), model.get_parameter(EMBEDDINGS))


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path: Path) -> None:
    saved(tmp_path, small())
    for name in FILES - {"model.safetensors"}:
        json.loads((tmp_path / name).read_text(encoding="utf-8"))
    weights = (tmp_path / "model.safetensors").read_bytes()
    json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])  # the header of safetensors
    pickles = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))  # safetensors begins with a length, which may be 0x..80
    for content in (path.read_bytes() for path in tmp_path.iterdir()):
        assert not content.startswith((*pickles, b"PK"))  # torch.save's zip


def test_weights_of_another_size_are_named(tmp_path: Path) -> None:
    saved(tmp_path, small())
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["pixel"]["arguments"]["detail_dim"] = 8
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(SetupError, match=r"of another shape \(first: pixel_encoder\.backbone\.to_detail\.bias"):
        load_checkpoint(tmp_path)


def test_missing_and_unexpected_weights_are_named(tmp_path: Path) -> None:
    saved(tmp_path, small())
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    for layers, message in (
        (2, "missing (first: lmm.language_model.layers.1"),
        (0, "unexpected (first: lmm.language_model.layers.0"),
    ):
        config["lmm"]["text"]["num_hidden_layers"] = layers
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        with pytest.raises(SetupError) as caught:
            load_checkpoint(tmp_path)
        assert message in str(caught.value)


def test_a_folder_that_is_no_checkpoint_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"lacks config\.json, model\.safetensors, tokenizer\.json.*agvas train"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_file_that_was_cut_off_is_reported(tmp_path: Path, name: str) -> None:
    saved(tmp_path, small())
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(SetupError, match=r"is damaged .* copy the checkpoint again"):
        load_checkpoint(tmp_path)


def test_a_crash_while_writing_leaves_the_old_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = saved(tmp_path, small())

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("agvas_core.model.weights.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space"):
        saved(tmp_path, small())
    assert torch.equal(load_checkpoint(tmp_path).model.get_parameter(HEAD), model.get_parameter(HEAD))

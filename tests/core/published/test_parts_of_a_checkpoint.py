"""A checkpoint holds what was trained and refers to the rest, which must still be what it was."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from agvas_core.contract.errors import SetupError, UsageError
from agvas_core.model.agvas import AgVas
from agvas_core.model.build import visual_tokens
from agvas_core.model.config import ModelConfig
from agvas_core.model.weights.checkpoint import base_digests, load_checkpoint, save_checkpoint, start_model, start_tokenizer
from agvas_core.model.weights.pretrained_config import resolve_config
from agvas_core.model.weights.trained import kept_state, make_trainable, merge, train_mode

Get = Callable[[str], Path]
Table = Callable[..., dict[str, Any]]

FROZEN = ("semantic_encoder.", "pixel_encoder.backbone.")


def outputs(model: AgVas, config: ModelConfig) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sides = [config.semantic_view.size_px, config.pixel_view.size_px]
    semantic, pixel = (torch.randint(0, 256, (1, side, side, 3), generator=generator, dtype=torch.uint8) for side in sides)
    ids = torch.tensor([[40, *[config.lmm.image_token_id] * visual_tokens(config), 41, *config.lmm.anchor_ids]])
    with torch.no_grad():
        output = model(semantic, pixel, ids)
    assert output.text_logits is not None
    return output.mask_logits, output.text_logits


def trained(config: ModelConfig) -> AgVas:
    """In training form, every trained number moved."""
    torch.manual_seed(9)
    model = start_model(config)
    make_trainable(model, config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def saved(folder: Path, config: ModelConfig) -> AgVas:
    model, tokenizer = trained(config), start_tokenizer(config)
    assert tokenizer is not None
    save_checkpoint(folder, kept_state(model, config), config, tokenizer, {"images": 3}, base_digests(config))
    return model


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA and whole tables": ("onevision", {}),
    "LoRA and tied tables": ("onevision-tied", {}),
    "LoRA and the anchors' rows": ("onevision", {"trained": ["lmm.anchor_rows", "linear_p", "spam", "refiner", "agmd"]}),
    "LoRA and tied rows": ("onevision-tied", {"trained": ["lmm.anchor_rows", "linear_p", "spam", "refiner", "agmd"]}),
    "rows that no one trains": ("onevision-full", {"trained": ["linear_p", "spam", "refiner", "agmd"]}),
    "no LoRA": ("llava", {"lora": None}),
    "LISA": (
        "llava",
        {
            "anchors": ["SEG"],
            "decision": {"alpha": 1},
            "spam": False,
            "decoder": "sam",
            "trained": ["lmm.head", "refiner", "agmd"],
        },
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_checkpoint_without_its_base_gives_back_the_same_model(
    tmp_path: Path, published: Get, model_table: Table, variant: str
) -> None:
    lmm, changes = VARIANTS[variant]
    config = resolve_config(model_table(published(lmm), published("sam.pth"), **changes))
    model = saved(tmp_path, config)
    expected = outputs(model, config)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.config == config
    for one, other in zip(outputs(checkpoint.model, config), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6)  # adapters are merged into the weights, which rounds
    assert not any("lora" in name or ".rows" in name for name, _ in checkpoint.model.named_parameters())


def test_only_what_was_trained_is_written(tmp_path: Path, published: Get, model_table: Table) -> None:
    parts = ["lmm.anchor_rows", "linear_p", "spam", "refiner", "agmd"]
    config = resolve_config(model_table(published("onevision"), published("sam.pth"), trained=parts))
    saved(tmp_path, config)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    layers = [f"lmm.language_model.layers.{layer}.self_attn.{which}_proj" for layer in range(2) for which in "qv"]
    assert {name for name in names if name.startswith("lmm.")} == {
        *(f"{layer}.lora_{half}.default.weight" for layer in layers for half in "AB"),
        "lmm.language_model.embed_tokens.rows",
        "lmm.head.rows",
    }
    assert not any(name.startswith(FROZEN) for name in names)
    assert "agmd.position.frequencies" in names  # drawn once, not trained: nobody could draw it again
    base = json.loads((tmp_path / "base.json").read_text(encoding="utf-8"))
    assert {part: entry["name"] for part, entry in base.items()} == {
        "lmm": str(published("onevision")),
        "pixel": str(published("sam.pth")),
    }


def test_merging_changes_no_answer_and_leaves_a_plain_model(published: Get, model_table: Table) -> None:
    config = resolve_config(model_table(published("onevision"), published("sam.pth")))
    model, plain = trained(config), start_model(config)
    expected = outputs(model, config)
    merge(model)
    for one, other in zip(outputs(model, config), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6)
    assert model.state_dict().keys() == plain.state_dict().keys()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merge(model)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_the_same_base_elsewhere_is_the_same_and_another_is_refused(tmp_path: Path, published: Get, model_table: Table) -> None:
    base, moved, run = tmp_path / "base", tmp_path / "moved", tmp_path / "run"
    shutil.copytree(published("onevision"), base)
    saved(run, resolve_config(model_table(base, published("sam.pth"))))
    shutil.move(base, moved)
    with pytest.raises(UsageError, match=r"base is not here, and is no hub id"):
        load_checkpoint(run)
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    config["lmm"]["pretrained"] = str(moved)
    (run / "config.json").write_text(json.dumps(config), encoding="utf-8")
    load_checkpoint(run)
    shard = sorted(moved.glob("model-*.safetensors"))[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(SetupError, match=r"trained beside .* with sha256 .*: put the same weights there"):
        load_checkpoint(run)


def test_a_part_that_does_not_fit_is_named(tmp_path: Path, published: Get, model_table: Table) -> None:
    saved(tmp_path, resolve_config(model_table(published("onevision"), published("sam.pth"))))
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["lora"]["targets"] = ["q_proj"]
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(SetupError, match=r"4 unexpected \(first: lmm\.language_model\.layers\.0\.self_attn\.v_proj\.lora_A"):
        load_checkpoint(tmp_path)


def few_shot(base: Path, table: dict[str, Any], **changes: Any) -> ModelConfig:
    return resolve_config({**table, "name": "few-shot", "base": str(base), **changes})


@pytest.mark.parametrize("lora", [None, {"rank": 2, "targets": ["q_proj", "down_proj"]}])
def test_a_checkpoint_can_start_from_another(
    tmp_path: Path, published: Get, model_table: Table, lora: dict[str, Any] | None
) -> None:
    table = model_table(published("onevision"), published("sam.pth"))
    saved(tmp_path / "base", resolve_config(table))
    config = few_shot(tmp_path / "base", table, trained=["agmd"], lora=lora)
    model = saved(tmp_path / "shot", config)
    with safe_open(tmp_path / "shot" / "model.safetensors", framework="pt") as file:
        assert all(name.startswith("agmd.") or ".lora_" in name for name in file.keys())  # noqa: SIM118 - no dict
    # Loading merges the adapters, and a merged weight is rounded once more: 3e-6 at outputs of 3, by processor.
    allowed = 2e-6 if lora is None else 1e-5
    for one, other in zip(outputs(load_checkpoint(tmp_path / "shot").model, config), outputs(model, config), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=allowed)
    (tmp_path / "base" / "model.safetensors").write_bytes((tmp_path / "shot" / "model.safetensors").read_bytes())
    with pytest.raises(SetupError, match="trained beside"):
        load_checkpoint(tmp_path / "shot")


def test_nano_can_be_the_base_of_a_few_shots(tmp_path: Path) -> None:
    base = load_checkpoint("nano")
    table = base.config.model_dump(mode="json")
    config = few_shot(Path("nano"), table, trained=["agmd"], lora={"rank": 2})
    model = start_model(config)
    make_trainable(model, config)
    own = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad and ".lora_" not in name}
    assert own == {"agmd"}
    train_mode(model)
    norms = [module for module in model.pixel_encoder.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms)  # frozen: its running statistics stay
    assert model.agmd.training
    tokenizer = start_tokenizer(config)
    assert tokenizer is not None and tokenizer.get_vocab() == base.tokenizer.get_vocab()
    save_checkpoint(tmp_path, kept_state(model, config), config, tokenizer, {}, base_digests(config))
    assert (tmp_path / "model.safetensors").stat().st_size < 3_000_000
    load_checkpoint(tmp_path)


def test_a_base_of_another_make_is_refused(tmp_path: Path, published: Get, model_table: Table) -> None:
    table = model_table(published("onevision"), published("sam.pth"))
    saved(tmp_path, resolve_config(table))
    config = few_shot(tmp_path, table, agmd={"depth": 1, "heads": 2, "mlp_dim": 24})
    with pytest.raises(UsageError, match=r"model\.agmd is not that of base = .*depth is 2 there, 1 here"):
        start_model(config)


def test_a_disk_that_fills_while_saving_leaves_the_last_checkpoint(
    tmp_path: Path, published: Get, model_table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = resolve_config(model_table(published("onevision"), published("sam.pth")))
    model = saved(tmp_path, config)

    def full(_: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("agvas_core.model.weights.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space"):
        saved(tmp_path, config)
    assert not list(tmp_path.glob("*.part"))
    for one, other in zip(outputs(load_checkpoint(tmp_path).model, config), outputs(model, config), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6)

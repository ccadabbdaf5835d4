"""Wrong or missing files and keys: which, what was expected, what is nearest."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from agvas_core.contract.errors import SetupError, UsageError
from agvas_core.model.weights.pretrained import pretrained_model
from agvas_core.model.weights.pretrained_config import resolve_config
from agvas_core.model.weights.trained import make_trainable

Get = Callable[[str], Path]
Table = Callable[..., dict[str, Any]]


def build(table: dict[str, Any]) -> None:
    pretrained_model(resolve_config(table))


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


@pytest.fixture
def onevision(tmp_path: Path, published: Get) -> Path:
    """One to break."""
    return Path(shutil.copytree(published("onevision"), tmp_path / "onevision"))


def test_a_folder_that_is_not_there_names_the_nearest(onevision: Path, published: Get, model_table: Table) -> None:
    with pytest.raises(UsageError, match=r"onevison is not here, and is no hub id \(OWNER/NAME\); did you mean onevision\?"):
        build(model_table(onevision.with_name("onevison"), published("sam.pth")))
    with pytest.raises(UsageError, match=r"sam_vit_h is not here"):
        build(model_table(onevision, onevision.parent / "sam_vit_h"))


def test_a_hub_that_does_not_answer_says_what_to_do(published: Get, model_table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    table = model_table(Path("someone/llava-onevision-none"), published("sam.pth"))
    with pytest.raises(SetupError, match=r"hf download someone/llava-onevision-none --local-dir DIR, and give DIR"):
        build(table)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_missing_file_is_named_with_what_is_there(onevision: Path, published: Get, model_table: Table, name: str) -> None:
    (onevision / name).rename(onevision / f"{name}.orig")
    with pytest.raises(UsageError, match=rf"onevision has no {name}; it has .*did you mean {name}\.orig\?"):
        build(model_table(onevision, published("sam.pth")))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors.index.json"])
def test_a_file_that_was_cut_off_is_reported(onevision: Path, published: Get, model_table: Table, name: str) -> None:
    content = (onevision / name).read_bytes()
    (onevision / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(SetupError, match=rf"{name} .*again"):
        build(model_table(onevision, published("sam.pth")))


def test_a_folder_without_weights_and_one_with_half_of_them(onevision: Path, published: Get, model_table: Table) -> None:
    config = resolve_config(model_table(onevision, published("sam.pth")))
    shards = sorted(onevision.glob("model-*.safetensors"))
    shards[1].unlink()
    with pytest.raises(UsageError, match=f"onevision has no {shards[1].name}; it has .*did you mean"):
        pretrained_model(config)
    for path in onevision.glob("model*"):
        path.unlink()
    with pytest.raises(UsageError, match=r"has no weights: expected model\.safetensors, pytorch_model\.bin or their shards"):
        pretrained_model(config)


def test_a_tensor_that_is_missing_or_of_another_shape_is_never_random(
    onevision: Path, published: Get, model_table: Table
) -> None:
    config = resolve_config(model_table(onevision, published("sam.pth")))
    index = json.loads((onevision / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
    key = "language_model.model.layers.0.self_attn.o_proj.weight"
    path = onevision / index[key]
    state = load_file(path)
    save_file({**state, key: state[key][:8].contiguous()}, path, {"format": "pt"})
    with pytest.raises(
        UsageError, match=r"layers\.0\.self_attn\.o_proj\.weight is \[8, 32\], its own configuration says \[32, 32\]"
    ):
        pretrained_model(config)
    value = state.pop(key)
    save_file({**state, key.replace("o_proj", "out_proj"): value}, path, {"format": "pt"})
    with pytest.raises(
        UsageError, match=r"lacks model\.language_model\.layers\.0\.self_attn\.o_proj\.weight \(it has .*out_proj"
    ):
        pretrained_model(config)


def test_a_model_of_another_family_is_refused(onevision: Path, published: Get, model_table: Table) -> None:
    with pytest.raises(UsageError, match=r"clip is a clip; AG-VAS takes llava_onevision and llava"):
        build(model_table(published("clip"), published("sam.pth")))
    with pytest.raises(UsageError, match=r"onevision is a llava_onevision; a pixel encoder is sam, dinov2"):
        build(model_table(onevision, onevision))
    text = json.loads((onevision / "config.json").read_text(encoding="utf-8"))["text_config"]
    change_json(onevision / "config.json", text_config=text | {"model_type": "qwen3"})
    with pytest.raises(UsageError, match=r"a text_config of qwen3; AG-VAS takes a llava_onevision with qwen2"):
        build(model_table(onevision, published("sam.pth")))


@pytest.mark.parametrize(
    "part, key, wrong, right",
    [("text", "hidden_size", 64, 32), ("text", "rms_norm_eps", 1e-5, 1e-6), ("vision", "num_attention_heads", 4, 2)],
)
def test_a_configuration_that_contradicts_the_model_is_refused(
    published: Get, model_table: Table, part: str, key: str, wrong: Any, right: Any
) -> None:
    config = resolve_config(model_table(published("onevision"), published("sam.pth")))
    table = config.model_dump(mode="json")
    table["lmm"][part][key] = wrong
    with pytest.raises(UsageError, match=rf"lmm\.{part}\.{key} is {wrong}, .*onevision has {right}: correct it, or leave out"):
        build(table)


def test_sizes_of_pixel_encoders_that_contradict_their_files_are_refused(published: Get, model_table: Table) -> None:
    table = model_table(published("onevision"), published("sam.pth"))
    table["pixel"]["arguments"] = {"window": 5}
    with pytest.raises(UsageError, match=r"pixel\.arguments\.window is 5, .*sam\.pth has 3"):
        build(table)
    table = model_table(published("onevision"), published("dinov2-l"), 28)
    table["pixel"]["arguments"] = {"num_attention_heads": 4}
    with pytest.raises(UsageError, match=r"pixel\.arguments\.num_attention_heads is 4, .*dinov2-l has 2"):
        build(table)
    table = model_table(published("onevision"), published("sam.pth"))
    table["pixel"]["channels"] = 48
    with pytest.raises(UsageError, match=r"neck\.0\.weight is \[32, 16, 1, 1\] in the checkpoint, \[48, 16, 1, 1\]"):
        build(table)


class Sneaky:
    """Would print when a pickle of it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code was run",)


def test_a_pth_file_runs_no_code(tmp_path: Path, published: Get, model_table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weights": Sneaky()}, tmp_path / "sam.pth")
    with pytest.raises(UsageError, match=r"sam\.pth holds more than tensors, and would run code when loaded"):
        build(model_table(published("onevision"), tmp_path / "sam.pth"))
    assert "code was run" not in capsys.readouterr().out
    torch.save([torch.zeros(1)], tmp_path / "sam.pth")
    with pytest.raises(UsageError, match="no plain table of tensors"):
        build(model_table(published("onevision"), tmp_path / "sam.pth"))
    (tmp_path / "sam.pth").write_bytes(published("sam.pth").read_bytes()[:2000])
    with pytest.raises(SetupError, match=r"sam\.pth is damaged"):
        build(model_table(published("onevision"), tmp_path / "sam.pth"))


def test_tensors_that_are_not_sams_are_named(tmp_path: Path, published: Get, model_table: Table) -> None:
    state = torch.load(published("sam.pth"), weights_only=True)
    torch.save({key.replace("pos_embed", "pos_embeds"): value for key, value in state.items()}, tmp_path / "sam.pth")
    with pytest.raises(UsageError, match=r"not a SAM checkpoint: it lacks pos_embed \(nearest: pos_embeds\)"):
        build(model_table(published("onevision"), tmp_path / "sam.pth"))


def test_a_view_that_no_patches_fill_says_which_does(published: Get, model_table: Table) -> None:
    model = pretrained_model(resolve_config(model_table(published("onevision"), published("dinov2-l"), 32)))
    with pytest.raises(UsageError, match=r"32 x 32 px; this encoder has patches of 7: .* 35 x 35"):
        model.pixel_encoder(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))


def test_a_lora_target_that_matches_nothing_names_the_nearest(published: Get, model_table: Table) -> None:
    lora = {"rank": 2, "targets": ["q_proj", "query_proj"]}
    config = resolve_config(model_table(published("onevision"), published("sam.pth"), lora=lora))
    message = r"lora\.targets: 'query_proj' is no linear layer of the language model; did you mean .*_proj\?; there are down_proj, gate_proj"
    with pytest.raises(UsageError, match=message):
        make_trainable(pretrained_model(config), config)


@pytest.mark.parametrize(
    "trained, message",
    [
        (["refinr"], r"'refinr' is no part of this model; did you mean refiner\?"),
        (["lmm.embedding"], r"did you mean lmm\.embeddings\?"),
        (["pixel_encoder.adapter"], r"'pixel_encoder\.adapter' is no part of this model"),
        (["lmm.anchor_rows", "lmm.head"], r"name one of the two"),
    ],
)
def test_a_part_that_cannot_be_trained_is_named(published: Get, model_table: Table, trained: list[str], message: str) -> None:
    config = resolve_config(model_table(published("onevision"), published("sam.pth"), trained=trained))
    with pytest.raises(UsageError, match=message):
        make_trainable(pretrained_model(config), config)


def test_tiles_need_a_view_of_their_size_and_a_model_that_knows_them(published: Get, model_table: Table) -> None:
    table = model_table(published("onevision"), published("sam.pth"))
    table["lmm"]["tiles"] = 2
    with pytest.raises(UsageError, match=r"semantic_view\.size_px is 16; 2 x 2 tiles of the tower's 16 px need 32"):
        build(table)
    table = model_table(published("llava"), published("sam.pth"))
    table["lmm"]["tiles"], table["semantic_view"]["size_px"] = 2, 32
    with pytest.raises(UsageError, match=r"llava-1\.5 was not trained with tiles"):
        build(table)


def test_a_model_that_was_fetched_before_needs_no_network(
    tmp_path: Path, published: Get, model_table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache of huggingface_hub, as a download leaves it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name, source in (("someone/llava", "onevision"), ("someone/dino", "dinov2-l")):
        repository = tmp_path / f"models--{name.replace('/', '--')}"
        shutil.copytree(published(source), repository / "snapshots" / ("0" * 40))
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    build(model_table(Path("someone/llava"), Path("someone/dino"), 28))

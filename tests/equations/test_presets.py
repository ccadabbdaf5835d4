"""The presets of paper size: built without memory, their parameters counted by hand and against what was published."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from agvas_core.model.agvas import AgVas
from agvas_core.model.build import build_model, semantic_tokens
from agvas_core.model.config import ModelConfig, load_preset, parse_config, preset_names
from agvas_core.model.preset import ablation_names

PAPER_SIZE = ("ov-0.5b", "ov-7b", "llava-7b", "llava-13b")


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def siglip_so400m() -> int:
    """26 layers of width 1152 over 27 x 27 patches, a last norm, no pooling head."""
    d, hidden = 1152, 4304
    layer = 4 * linear(d, d) + linear(d, hidden) + linear(hidden, d) + 2 * 2 * d
    return linear(3 * 14 * 14, d) + 27 * 27 * d + 26 * layer + 2 * d


def clip_vit_l_336() -> int:
    """24 layers of width 1024 over a class token and 24 x 24 patches; patches without bias; a norm before and one after."""
    d = 1024
    layer = 4 * linear(d, d) + linear(d, 4 * d) + linear(4 * d, d) + 2 * 2 * d
    return 3 * 14 * 14 * d + d + (24 * 24 + 1) * d + 24 * layer + 2 * 2 * d


def projector(vision: int, d: int) -> int:
    return linear(vision, d) + linear(d, d)


def qwen2(d: int, layers: int, heads: int, kv_heads: int, mlp: int, vocab: int, tied: bool) -> int:
    kv = d // heads * kv_heads
    layer = linear(d, d) + 2 * linear(d, kv) + d * d + 3 * d * mlp + 2 * d  # only q, k and v have a bias
    return vocab * d * (1 if tied else 2) + layers * layer + d


def llama(d: int, layers: int, mlp: int, vocab: int) -> int:
    return 2 * vocab * d + layers * (4 * d * d + 3 * d * mlp + 2 * d) + d


def sam_vit_h() -> int:
    """32 blocks of width 1280, 16 heads of 80; 4 blocks see 64 x 64, 28 see windows of 14 x 14; relative positions each way."""
    d, head = 1280, 80
    block = linear(d, 3 * d) + linear(d, d) + linear(d, 4 * d) + linear(4 * d, d) + 2 * 2 * d
    relative = 4 * 2 * (2 * 64 - 1) * head + 28 * 2 * (2 * 14 - 1) * head
    neck = d * 256 + 2 * 256 + 9 * 256 * 256 + 2 * 256
    return linear(3 * 16 * 16, d) + 64 * 64 * d + 32 * block + relative + neck


def agmd() -> int:
    """SAM's two-way transformer and upscaling at width 256, three queries, three MLPs, three biases."""
    d, inner, up1, up2 = 256, 128, 64, 32
    cross = 3 * linear(d, inner) + linear(inner, d)
    block = 4 * linear(d, d) + 2 * cross + linear(d, 2048) + linear(2048, d) + 4 * 2 * d
    upscale = d * up1 * 4 + up1 + 2 * up1 + up1 * up2 * 4 + up2
    mlps = 3 * (2 * linear(d, d) + linear(d, up2))
    return 3 * d + 2 * block + cross + 2 * d + upscale + mlps + 3


def ours(d: int) -> dict[str, int]:
    """The paper's own parts at the LMM's width."""
    return {
        "linear_p": 2 * 256 + linear(256, d),
        "spam": 2 * d + 4 * linear(d, d),
        "refiner": linear(d, d) + linear(d, 256),
        "agmd": agmd(),
    }


BY_HAND = {
    "ov-0.5b": {
        "semantic_encoder": siglip_so400m() + projector(1152, 896),
        "pixel_encoder": sam_vit_h(),
        "lmm": qwen2(896, 24, 14, 2, 4864, 152000, tied=True),
        **ours(896),
    },
    "ov-7b": {
        "semantic_encoder": siglip_so400m() + projector(1152, 3584),
        "pixel_encoder": sam_vit_h(),
        "lmm": qwen2(3584, 28, 28, 4, 18944, 152128, tied=False),
        **ours(3584),
    },
    "llava-7b": {
        "semantic_encoder": clip_vit_l_336() + projector(1024, 4096),
        "pixel_encoder": sam_vit_h(),
        "lmm": llama(4096, 32, 11008, 32064),
        **ours(4096),
    },
    "llava-13b": {
        "semantic_encoder": clip_vit_l_336() + projector(1024, 5120),
        "pixel_encoder": sam_vit_h(),
        "lmm": llama(5120, 40, 13824, 32064),
        **ours(5120),
    },
}

# The base LMMs as published, in billions. (They hold one row more, the end-of-line embedding, which a single view does not use.)
PUBLISHED_BILLIONS = {"ov-0.5b": "0.89", "ov-7b": "8.03", "llava-7b": "7.06", "llava-13b": "13.35"}


class NothingAllocated(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails on any tensor of a million numbers or more that is not on the meta device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                assert tensor.numel() < 1_000_000, f"{func} allocates {list(tensor.shape)}"
        return out


@pytest.fixture(scope="module", params=PAPER_SIZE)
def built(request: pytest.FixtureRequest) -> tuple[ModelConfig, AgVas]:
    config = parse_config(load_preset(request.param)["model"])
    with NothingAllocated():  # type: ignore[no-untyped-call]
        model = build_model(config, device="meta")
    return config, model


def test_it_is_built_without_memory(built: tuple[ModelConfig, AgVas]) -> None:
    for name, tensor in (*built[1].named_parameters(), *built[1].named_buffers()):
        assert tensor.is_meta, name


def test_parameter_counts_are_those_counted_by_hand(built: tuple[ModelConfig, AgVas], capsys: pytest.CaptureFixture[str]) -> None:
    config, model = built
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    total = sum(p.numel() for p in model.parameters())
    with capsys.disabled():
        print(f"\n{config.name:<18}{'parameters':>18}")
        for name, count in (*counts.items(), ("all", total)):
            print(f"  {name:<16}{count:>18,}")
    assert counts == BY_HAND[config.name]
    assert total == sum(BY_HAND[config.name].values())


def test_counts_by_hand_agree_with_what_was_published() -> None:
    for name, billions in PUBLISHED_BILLIONS.items():
        base = BY_HAND[name]["semantic_encoder"] + BY_HAND[name]["lmm"]
        assert f"{base / 1e9:.2f}" == billions, name
    assert sam_vit_h() == 637_026_048
    assert round(clip_vit_l_336() / 1e6, 1) == 303.5
    assert qwen2(3584, 28, 28, 4, 18944, 152064, tied=False) == 7_615_616_512  # Qwen2-7B with its own table
    assert qwen2(896, 24, 14, 2, 4864, 151936, tied=True) == 494_032_768  # Qwen2-0.5B
    assert llama(5120, 40, 13824, 32000) == 13_015_864_320  # LLaMA-2-13B


def test_the_sizes_of_each_joint_are_the_papers(built: tuple[ModelConfig, AgVas]) -> None:
    config, model = built
    width = config.lmm.text["hidden_size"]
    tokens = {"llava-onevision": 27 * 27, "llava-1.5": 24 * 24}[config.lmm.family]
    assert semantic_tokens(config) == tokens
    sides = [config.semantic_view.size_px, config.pixel_view.size_px]
    semantic, pixel = (torch.empty(1, side, side, 3, dtype=torch.uint8, device="meta") for side in sides)
    f_s, f_align, features = model.see(semantic, pixel)
    # transformers looks at values to make its masks, so the LLM itself does not run without memory.
    masks = model.decode(torch.empty(1, 3, width, device="meta"), features)
    assert f_s.shape == f_align.shape == (1, tokens, width)
    assert features.f_p.shape == (1, 256, 64, 64)
    assert model.lmm.head.weight.shape == (config.lmm.vocab_size, width)
    assert model.lmm.embed_text(torch.empty(1, 5, dtype=torch.long, device="meta")).shape == (1, 5, width)
    assert masks.shape == (1, 3, 256, 256)


def test_spam_has_heads_of_128(built: tuple[ModelConfig, AgVas]) -> None:
    config, _ = built
    assert config.lmm.text["hidden_size"] == 128 * config.spam.heads


@pytest.mark.parametrize("name", preset_names())
def test_anchors_follow_the_tokenizers_last_word_and_have_rows(name: str) -> None:
    lmm = parse_config(load_preset(name)["model"]).lmm
    last = {"ov-0.5b": 151647, "ov-7b": 151647, "paper": 151647, "llava-7b": 32001, "llava-13b": 32001}.get(
        name, 3
    )  # nano and what extends it
    assert lmm.anchor_ids == (last + 1, last + 2, last + 3)
    assert max(lmm.anchor_ids) < lmm.vocab_size


@pytest.mark.parametrize("name", PAPER_SIZE)
def test_only_the_parts_that_the_paper_trains_are_trained(name: str) -> None:
    config = parse_config(load_preset(name)["model"])
    assert set(config.trained) == {"lmm.embeddings", "lmm.head", "linear_p", "spam", "refiner", "agmd"}
    assert (config.decision.alpha, config.decision.point().threshold, config.decision.point().plain) == (0.5, 0.5, True)


def test_the_vision_tower_is_the_one_that_transformers_gives_llava_onevision() -> None:
    from transformers import LlavaOnevisionConfig

    published: Any = LlavaOnevisionConfig().vision_config
    for name in ("ov-0.5b", "ov-7b"):
        for key, value in parse_config(load_preset(name)["model"]).lmm.vision.items():
            assert getattr(published, key) == value, key


# Of the pixel encoders as published, without text halves and pooling heads; those of CLIP and SigLIP counted by hand above.
PIXEL_MILLIONS = {
    "encoder-clip-l": clip_vit_l_336() / 1e6,
    "encoder-siglip": (siglip_so400m() + 4 * linear(1152, 1152) + linear(1152, 4304) + linear(4304, 1152) + 4 * 1152) / 1e6,
    "encoder-dinov2-l": 304.4,
    "encoder-dinov2-g": 1136.5,
    "encoder-dinov3-h": 840.5,
    "encoder-sam-ft": sam_vit_h() / 1e6,
}


@pytest.mark.parametrize("name", ablation_names())
def test_an_ablation_is_its_base_but_for_what_it_is_about(name: str) -> None:
    table = load_preset(name)
    config, base = parse_config(table["model"]), parse_config(load_preset("llava-13b" if "13b" in name else "ov-7b")["model"])
    changed = {key for key, value in config.model_dump().items() if value != base.model_dump()[key]}
    about = {
        "no-seg": {"anchors", "decision"},
        "no-nor-ano": {"anchors", "decision"},
        "no-spam": {"spam", "trained"},
        "lisa": {"anchors", "decision", "spam", "decoder", "trained"},
        "alpha": {"decision"},
        "encoder-sam-ft": {"pixel", "trained"},
        "encoder-dinov3": {"pixel", "trained"},  # at SAM's own size and normalisation
        "encoder": {"pixel", "pixel_view", "trained"},
        "no": set(),  # without a source of data
        "agmd-from-sam": {"agmd"},
        "eq-6-literal": {"agmd"},
    }
    kind = name.removeprefix("ablations/")
    wanted = next(keys for start, keys in about.items() if kind.startswith(start))
    assert changed == wanted | {"name"}
    assert config.name.endswith(kind) or kind == "lisa-llava-13b"
    assert ("mixture" in table) == (wanted == set() or kind == "no-seg")  # whose general data teaches what is left


@pytest.mark.parametrize("name, millions", PIXEL_MILLIONS.items())
def test_the_pixel_encoders_of_table_6_have_their_parameters_and_the_grid_of_sam(name: str, millions: float) -> None:
    config = parse_config(load_preset(f"ablations/{name}")["model"])
    encoder = build_model(config, device="meta").pixel_encoder
    count = sum(parameter.numel() for parameter in encoder.backbone.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=2e-3)
    side = config.pixel_view.size_px
    features = encoder(torch.empty(1, side, side, 3, dtype=torch.uint8, device="meta"))
    assert features.f_p.shape == (1, 256, 64, 64)

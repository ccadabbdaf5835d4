"""Published models at tiny size, made on the spot in their original formats: names of tensors, shards, configurations, tokenizers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SamConfig,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
)

from agvas_core.model.encoders.sam import SamImageEncoder
from agvas_core.model.sam_decoder import SamMaskDecoder

torch.set_num_threads(1)

CHARS = [chr(code) for code in range(32, 127)] + ["\n"]
SPECIAL = {
    "qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"],
    "vicuna": ["<unk>", "<s>", "</s>", "<image>", "<pad>"],
}
TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SAM = {"image_px": 32, "patch_px": 4, "dim": 16, "depth": 2, "heads": 2, "window": 3, "global_blocks": (1,), "out_dim": 32}


def write_tokenizer(folder: Path, chat: str, more: tuple[str, ...] = ()) -> Tokenizer:
    """A tokenizer of single characters that, like the published ones, adds a first token of its own where LLaMA's does."""
    words = [*CHARS, *SPECIAL[chat], *more]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in (*SPECIAL[chat], *more)])
    if chat == "vicuna":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def rename(folder: Path, change: Callable[[str], str]) -> None:
    """Gives the tensors of every file other names, and writes the index anew."""
    for path in folder.glob("*.safetensors"):
        save_file({change(key): value for key, value in load_file(path).items()}, path, {"format": "pt"})
    for index in folder.glob("*.index.json"):
        table = json.loads(index.read_text(encoding="utf-8"))
        table["weight_map"] = {change(key): file for key, file in table["weight_map"].items()}
        index.write_text(json.dumps(table), encoding="utf-8")


def as_on_the_hub(key: str) -> str:
    """LLaVA's names as they stand in the published files, which are older than transformers 5."""
    return key if key.startswith("vision_tower.vision_model.") else key.replace("vision_tower.", "vision_tower.vision_model.", 1)


def random(model: Any) -> Any:
    """Weights far from their start."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def make_onevision(folder: Path, rows: int = 128, tied: bool = False, words: tuple[str, ...] = ()) -> Path:
    """LLaVA-OneVision in shards."""
    tokenizer = write_tokenizer(prepared(folder), "qwen", words)
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**TOWER, image_size=16, patch_size=8, vision_use_head=False),
        text_config=Qwen2Config(**TEXT, vocab_size=rows, tie_word_embeddings=tied, bos_token_id=0, eos_token_id=0),
        image_token_index=tokenizer.token_to_id("<image>"),
        tie_word_embeddings=tied,
    )
    random(LlavaOnevisionForConditionalGeneration(config)).save_pretrained(folder, max_shard_size="30KB")
    rename(folder, as_on_the_hub)
    return folder


def make_llava(folder: Path, rows: int = 101) -> Path:
    """LLaVA-1.5 in one file."""
    tokenizer = write_tokenizer(prepared(folder), "vicuna")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**TOWER, image_size=16, patch_size=8),
        text_config=LlamaConfig(**TEXT | {"num_key_value_heads": 4}, vocab_size=rows),
        image_token_index=tokenizer.token_to_id("<image>"),
    )
    random(LlavaForConditionalGeneration(config)).save_pretrained(folder)
    rename(folder, as_on_the_hub)
    return folder


def segment_anything_state() -> dict[str, Tensor]:
    """As ``sam_vit_*.pth`` holds it, with the parts that no one reads here."""
    torch.manual_seed(4)
    decoder = random(SamMaskDecoder(32, heads=2, mlp_dim=24)).state_dict()
    prompt = {
        "no_mask_embed.weight": "prompt_encoder.no_mask_embed.weight",
        "position.frequencies": "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    }
    state = {f"image_encoder.{key}": value for key, value in random(SamImageEncoder(**SAM)).state_dict().items()}
    state |= {prompt.get(key, f"mask_decoder.{key}"): value for key, value in decoder.items()}
    for other in range(1, 4):
        state[f"mask_decoder.output_hypernetworks_mlps.{other}.layers.0.weight"] = torch.zeros(32, 32)
    return state | {
        "mask_decoder.iou_prediction_head.layers.0.weight": torch.zeros(32, 32),
        "prompt_encoder.point_embeddings.0.weight": torch.zeros(1, 32),
    }


def make_sam_folder(folder: Path) -> Path:
    """SAM as transformers keeps it."""
    config = SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=16,
            output_channels=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=4,
            window_size=3,
            global_attn_indexes=[1],
            mlp_dim=64,
        ),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=32, num_attention_heads=2, mlp_dim=24, layer_norm_eps=1e-5, iou_head_hidden_dim=16
        ),
        prompt_encoder_config=SamPromptEncoderConfig(hidden_size=32, image_size=32, patch_size=4, mask_input_channels=4),
    )
    config.vision_config.num_pos_feats = 16
    random(SamModel(config)).save_pretrained(prepared(folder))
    return folder


def make_vit(folder: Path, kind: str) -> Path:
    """DINOv2 (large, and giant with its gated MLP), DINOv3; CLIP and SigLIP with the text halves that they are published with."""
    text = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    built: dict[str, Callable[[], Any]] = {
        "dinov2-l": lambda: Dinov2Model(Dinov2Config(**VIT, mlp_ratio=2, image_size=28, patch_size=7)),
        "dinov2-g": lambda: Dinov2Model(Dinov2Config(**VIT, mlp_ratio=2, image_size=28, patch_size=7, use_swiglu_ffn=True)),
        "dinov3": lambda: DINOv3ViTModel(
            DINOv3ViTConfig(
                **VIT,
                intermediate_size=24,
                image_size=32,
                patch_size=8,
                num_register_tokens=4,
                use_gated_mlp=True,
                hidden_act="silu",
            )
        ),
        "clip": lambda: CLIPModel(
            CLIPConfig(
                vision_config={**TOWER, "image_size": 24, "patch_size": 6, "projection_dim": 16},
                text_config=text | ends,
                projection_dim=16,
            )
        ),
        "siglip": lambda: SiglipModel(
            SiglipConfig(vision_config={**TOWER, "image_size": 24, "patch_size": 6}, text_config=text | ends)
        ),
    }
    torch.manual_seed(6)
    random(built[kind]()).save_pretrained(prepared(folder))
    return folder


def prepared(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(3)
    return folder


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Path of a tiny published model by its name here; made once, to be read only."""
    root, made = tmp_path_factory.mktemp("published"), dict[str, Path]()

    def make(name: str) -> Path:
        path = root / name
        if name == "sam.pth":
            torch.save(segment_anything_state(), path)
        elif name == "sam.safetensors":
            save_file(segment_anything_state(), path)
        elif name == "sam":
            make_sam_folder(path)
        elif name.startswith("onevision"):
            make_onevision(path, rows=101 if name == "onevision-full" else 128, tied=name == "onevision-tied")
        elif name == "llava":
            make_llava(path)
        else:
            make_vit(path, name)
        return path

    def get(name: str) -> Path:
        if name not in made:
            made[name] = make(name)
        return made[name]

    return get


def table(lmm: Path, pixel: Path, size_px: int = 32, **changes: Any) -> dict[str, Any]:
    """A ``model`` table that leaves to the published models what they say themselves."""
    half = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    return {
        "name": "tiny",
        "semantic_view": {"fit": "stretch", "size_px": 16, **half},
        "pixel_view": {"fit": "letterbox", "size_px": size_px, **half},
        "lmm": {"pretrained": str(lmm)},
        "pixel": {"pretrained": str(pixel), "channels": 32},
        "spam": {"heads": 2},
        "agmd": {"depth": 2, "heads": 2, "mlp_dim": 24},
        "lora": {"rank": 2, "alpha": 4, "dropout": 0.0},
        **changes,
    }


@pytest.fixture(scope="session")
def model_table() -> Callable[..., dict[str, Any]]:
    return table

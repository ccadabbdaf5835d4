"""What a model is made of, as data. Only ``build.py`` reads it; the modules take plain arguments.

Presets are TOML files in ``agvas_core/presets``.
"""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agvas_core.contract.errors import UsageError
from agvas_core.contract.manifest import Decision, TilingSpec
from agvas_core.contract.preprocess import ViewSpec
from agvas_core.model.validation import did_you_mean, validated

__all__ = [
    "AgmdConfig",
    "LmmConfig",
    "ModelConfig",
    "PixelConfig",
    "SpamConfig",
    "load_preset",
    "parse_config",
    "preset_names",
]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LmmConfig(_Part):
    """The large multimodal model: a transformers configuration, written out, so that no hub is needed to build it."""

    family: Literal["llava-onevision", "llava-1.5"]
    vision: dict[str, Any]
    """SiglipVisionConfig or CLIPVisionConfig, by keyword."""
    text: dict[str, Any]
    """Qwen2Config or LlamaConfig, by keyword; without ``vocab_size`` and ``pad_token_id``, which stand here."""
    chat: Literal["qwen", "vicuna"]
    vocab_size: int
    """Rows of embeddings and head: all of the tokenizer's, the anchors', and those that no token uses yet."""
    anchor_ids: tuple[int, int, int]
    image_token_id: int
    pad_token_id: int
    end_token_id: int

    @model_validator(mode="after")
    def _ids_have_rows(self) -> Self:
        special = (*self.anchor_ids, self.image_token_id, self.pad_token_id, self.end_token_id)
        if not 0 <= min(special) <= max(special) < self.vocab_size:
            raise ValueError(f"token ids {special} do not lie in 0..{self.vocab_size - 1}: raise vocab_size or change the ids")
        if len(set(special[:4])) < 4:
            raise ValueError(f"anchor_ids {self.anchor_ids} and image_token_id {self.image_token_id} must all differ")
        return self


class PixelConfig(_Part):
    """The pixel encoder."""

    kind: Literal["nano", "sam"]
    channels: int
    """C of f_p."""
    arguments: dict[str, Any] = {}
    """Keyword arguments of the encoder."""


class SpamConfig(_Part):
    heads: int
    bottleneck: int | None = None


class AgmdConfig(_Part):
    depth: int = 2  # L of eq. 5; B.4
    heads: int = 8  # as SAM; the paper leaves it open
    mlp_dim: int = 2048  # as SAM
    upscale: int = 4
    mask_dim: int | None = None
    detail: bool = False


class ModelConfig(_Part):
    """One AG-VAS model."""

    name: str
    semantic_view: ViewSpec
    pixel_view: ViewSpec
    lmm: LmmConfig
    pixel: PixelConfig
    spam: SpamConfig
    agmd: AgmdConfig = AgmdConfig()
    decision: Decision = Decision()
    tiling: TilingSpec = TilingSpec()
    trained: tuple[str, ...] = Field(default=("lmm.embeddings", "lmm.head", "linear_p", "spam", "refiner", "agmd"))
    """Parts that get gradients besides the LoRA weights (B.2; Linear_p and the refiner are not in its list, but nothing else could
    learn them); ``all`` for training from scratch, which is the only training there is yet."""


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    return sorted(
        path.name.removesuffix(".toml") for path in resources.files("agvas_core.presets").iterdir() if path.name.endswith(".toml")
    )


def load_preset(name: str | Path) -> dict[str, Any]:
    """The tables of a preset, by name or as a path of a TOML file.

    Raises:
        UsageError: no such preset, or not TOML.
    """
    path = Path(name)
    if path.suffix == ".toml":
        if not path.is_file():
            raise UsageError(f"no configuration {path}: give a preset ({', '.join(preset_names())}) or an existing .toml file")
        text = path.read_text(encoding="utf-8")
    elif str(name) in preset_names():
        text = (resources.files("agvas_core.presets") / f"{name}.toml").read_text(encoding="utf-8")
    else:
        names = preset_names()
        raise UsageError(f"no preset {str(name)!r}; there are {', '.join(names)}{did_you_mean(str(name), names)}")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{name} is not TOML: {error}") from error


def parse_config(table: dict[str, Any]) -> ModelConfig:
    """Validates the ``model`` table of a preset or a checkpoint.

    Raises:
        UsageError: names the key, and for an unknown key the nearest that exists.
    """
    return validated(ModelConfig, table, "model configuration")

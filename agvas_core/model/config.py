"""The configuration of a model. Only ``build.py`` and its callers read it; the modules take plain arguments.

Presets are TOML files in ``agvas_core/presets`` (``preset.py``).
"""

from typing import Any, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from agvas_core.contract.decision import Decision
from agvas_core.contract.manifest import TilingSpec
from agvas_core.contract.preprocess import Scales, ViewSpec, check_scales
from agvas_core.contract.prompts import Anchor
from agvas_core.contract.validation import StrictModel, validated
from agvas_core.model.preset import load_preset, preset_names

__all__ = [
    "AgmdConfig",
    "LmmConfig",
    "LoraConfig",
    "ModelConfig",
    "PixelConfig",
    "SpamConfig",
    "load_preset",
    "parse_config",
    "preset_names",
]

AnchorName = Literal["NOR", "ANO", "SEG"]
_ANCHOR_SETS: Final[tuple[tuple[AnchorName, ...], ...]] = (
    ("NOR", "ANO", "SEG"),
    ("NOR", "ANO"),
    ("SEG",),
)  # the paper's, and what table 3 leaves of them


class LmmConfig(StrictModel):
    """The large multimodal model: a transformers configuration, written out, so that no hub is needed to build it.

    Of a published model everything but ``pretrained`` may be left out; ``published.resolve_config`` fills it in.
    """

    pretrained: str | None = None
    """Hub id or folder of the published model whose weights training starts from; None for weights of one's own."""
    family: Literal["llava-onevision", "llava-1.5"]
    vision: dict[str, Any]
    """SiglipVisionConfig or CLIPVisionConfig, by keyword."""
    text: dict[str, Any]
    """Qwen2Config or LlamaConfig, by keyword; without ``vocab_size`` and ``pad_token_id``, which stand here."""
    norm_visual: bool = False
    """Layer norms on f_s and f_align: for towers that are trained from scratch."""
    tiles: int = Field(default=1, ge=1, le=3)
    """Any-resolution tiling with one grid for all images: the semantic view is cut into so many tiles per side, which follow the whole
    in f_s. LLaVA-OneVision's ``anyres_max_9``, so 3 at most; it chooses the grid per image, which leaves rows of unlike length."""
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


class PixelConfig(StrictModel):
    """The pixel encoder."""

    pretrained: str | None = None
    """Hub id, folder or file (SAM's ``.pth``, safetensors) of the published weights; None for weights of one's own."""
    kind: Literal["nano", "lite", "sam", "dinov2", "dinov3", "clip", "siglip"]
    channels: int = 256  # SAM's
    """C of f_p."""
    linear: bool = False
    """A linear layer after SAM that is trained with the rest (table 6: SAM-FT). The other published encoders always have one: their
    width is not C."""
    arguments: dict[str, Any] = {}
    """Keyword arguments of the encoder: its own for nano, lite (EfficientNet-Lite with a feature pyramid) and SAM, those of its
    transformers configuration for the others."""


class SpamConfig(StrictModel):
    heads: int
    bottleneck: int | None = None
    positions: bool = False
    """Queries and keys know their places from the first step (spam.py): for models trained from scratch."""
    interleaved: bool = False
    """Each head sees sine and cosine of a position; without it some see cosines alone, to which a place and its mirror look alike."""


class LoraConfig(StrictModel):
    """Low-rank adapters of the language model, and of nothing else."""

    rank: int = Field(default=16, ge=1)  # sec. 4.1; the paper names neither of the others, they are LISA's in the same proportion
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    targets: tuple[str, ...] = Field(default=("q_proj", "v_proj"), min_length=1)
    """Linear layers, by the end of their names."""


class AgmdConfig(StrictModel):
    depth: int = 2  # L of eq. 5; B.4
    heads: int = 8  # as SAM; the paper leaves it open
    mlp_dim: int = 2048  # as SAM
    upscale: int = 4
    mask_dim: int | None = None
    detail: bool = False
    literal: bool = False
    """Eq. 6 and 7 as they are written; see agmd.py."""
    start: Literal["random", "sam"] = "random"
    """``sam``: blocks, upscaling and MLPs begin with the weights of SAM's mask decoder, which lie in the file of the pixel encoder."""


class ModelConfig(StrictModel):
    """One AG-VAS model."""

    name: str
    base: str | None = None
    """A checkpoint of ours, by name or folder, that training starts from instead of published or random weights (few-shot adaptation)."""
    semantic_view: ViewSpec
    pixel_view: ViewSpec
    scales: Scales = (1.0,)
    lmm: LmmConfig
    pixel: PixelConfig
    anchors: tuple[AnchorName, ...] = _ANCHOR_SETS[0]
    """Those that answers name and the decoder reads; fewer for the paper's ablations (table 3). Ids and logits keep their three places."""
    spam: SpamConfig | None
    """``false`` for none: the language model then sees f_s alone."""
    agmd: AgmdConfig = AgmdConfig()
    decoder: Literal["agmd", "sam"] = "agmd"
    """``sam``: SAM's own mask decoder, whose prompt is [SEG], as in LISA."""
    decision: Decision = Decision()
    tiling: TilingSpec = TilingSpec()
    lora: LoraConfig | None = None
    trained: tuple[str, ...] = Field(default=("lmm.embeddings", "lmm.head", "linear_p", "spam", "refiner", "agmd"))
    """Parts that get gradients besides the LoRA weights (B.2; Linear_p and the refiner are not in its list, but nothing else could
    learn them). ``all``, a part of the model by its path, or ``lmm.embeddings``, ``lmm.head``, and ``lmm.anchor_rows``: of these two
    the anchors' rows alone."""

    @field_validator("spam", mode="before")
    @classmethod
    def _false_is_none(cls, given: Any) -> Any:
        """TOML knows no null."""
        return None if given is False else given

    @model_validator(mode="after")
    def _anchors_suit_the_decision(self) -> Self:
        if self.anchors not in _ANCHOR_SETS:
            raise ValueError(f"anchors {list(self.anchors)}: there are {', '.join(str(list(each)) for each in _ANCHOR_SETS)}")
        if self.decoder == "sam" and self.anchors != ("SEG",):
            raise ValueError(f'decoder "sam" has one prompt, anchors are {list(self.anchors)}: set anchors = ["SEG"]')
        if self.agmd.start == "sam" and (self.decoder != "agmd" or self.pixel.kind != "sam" or self.pixel.pretrained is None):
            raise ValueError(
                'agmd.start is "sam", which needs decoder "agmd" and the published SAM as pixel encoder: leave it out'
            )
        alpha = {("NOR", "ANO"): 0.0, ("SEG",): 1.0}.get(self.anchors, self.decision.alpha)
        if self.decision.alpha != alpha:
            raise ValueError(
                f"decision.alpha is {self.decision.alpha}, and of P_seg and P_ano (eq. 8) anchors {list(self.anchors)} give one: "
                f"set alpha = {alpha}"
            )
        return self

    @model_validator(mode="after")
    def _scales_suit_the_view(self) -> Self:
        check_scales(self.pixel_view, self.scales)
        return self

    @property
    def ablation(self) -> str:
        """What of the paper's model is missing, in words; empty for a whole one."""
        lacks = [f"[{anchor.name}]" for anchor in Anchor if anchor.name not in self.anchors]
        return ", ".join([*lacks, *(["SPAM"] if self.spam is None else []), *(["AGMD"] if self.decoder == "sam" else [])])


def parse_config(table: dict[str, Any]) -> ModelConfig:
    """Validates the ``model`` table of a preset or a checkpoint.

    Raises:
        UsageError: names the key, and for an unknown key the nearest that exists.
    """
    return validated(ModelConfig, table, "model configuration")

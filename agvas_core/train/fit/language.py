"""How the language model computes in training: its attention, and whether it keeps or recomputes what lies between its layers."""

from importlib.util import find_spec
from typing import Any

from agvas_core.contract.errors import SetupError
from agvas_core.model.agvas import AgVas
from agvas_core.train.fit.config import FitConfig

__all__ = ["prepare_language_model"]

_ATTENTION = {"sdpa": "sdpa", "flash": "flash_attention_2", "eager": "eager"}


def prepare_language_model(model: AgVas, fit: FitConfig) -> None:
    """Sets both, in place.

    Raises:
        SetupError: flash-attn is asked for and not installed.
    """
    if fit.attention == "flash" and find_spec("flash_attn") is None:
        raise SetupError(
            "fit.attention is 'flash' and flash-attn is not installed: pip install flash-attn, or set attention = \"sdpa\""
        )
    language_model: Any = model.lmm.language_model
    language_model.set_attn_implementation(_ATTENTION[fit.attention])
    if fit.gradient_checkpointing:
        # transformers 5.24 gave it another name, and warns of the old one.
        enable = getattr(language_model, "activation_checkpointing_enable", language_model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})

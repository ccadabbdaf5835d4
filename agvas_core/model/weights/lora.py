"""Low-rank adapters of the language model (sec. 4.1, B.2), by peft. The only module that imports it."""

import peft
from peft.tuners.lora import LoraLayer
from torch import nn

from agvas_core.contract.errors import UsageError
from agvas_core.contract.validation import did_you_mean
from agvas_core.model.config import LoraConfig

__all__ = ["add_lora", "lora_parameters", "merge_lora"]


def add_lora(language_model: nn.Module, config: LoraConfig) -> None:
    """Puts adapters beside the target layers, in place; they start as nothing (B is zero).

    Raises:
        UsageError: a target matches no linear layer; names the nearest.
    """
    linear = {name for name, module in language_model.named_modules() if isinstance(module, nn.Linear)}
    for target in config.targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            ends = sorted({name.rpartition(".")[2] for name in linear})
            raise UsageError(
                f"lora.targets: {target!r} is no linear layer of the language model{did_you_mean(target, ends)}; there are {', '.join(ends)}"
            )
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # declared an int, used as a number
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
        bias="none",
    )
    peft.inject_adapter_in_model(settings, language_model)


def lora_parameters(language_model: nn.Module) -> list[nn.Parameter]:
    """Those of the adapters; none where there are none."""
    return [parameter for name, parameter in language_model.named_parameters() if ".lora_" in name]


def merge_lora(language_model: nn.Module) -> None:
    """Adds the adapters to the layers that they stand beside and takes them away: plain layers, with plain names.

    Raises:
        ValueError: an adapter holds numbers that are not finite.
    """
    for name, module in list(language_model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(language_model.get_submodule(parent), child, module.get_base_layer())
    if hasattr(language_model, "peft_config"):  # what peft remembers by; others may be added to the plain model
        del language_model.peft_config

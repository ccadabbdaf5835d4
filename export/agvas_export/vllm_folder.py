"""Checkpoint -> the folder that vLLM serves: the language model, its adapter apart, and what says which model that is.

Only the language model goes in: vision and SPAM run outside, and f_s and f_align arrive as the embeddings of one image. The trained tables
(token embeddings and head) are written into the base, for vLLM takes no adapter that brings its own; LoRA stays apart, to be swapped.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Final, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlavaOnevisionConfig, SiglipVisionConfig

from agvas_core.contract.errors import UsageError
from agvas_core.contract.lmm_folder import (
    ACCEPT_NAME,
    ADAPTER_NAME,
    ADAPTERS,
    LMM_FOLDER_NAME,
    AdapterSpec,
    LmmFolder,
    digest_of_tensors,
    read_adapter,
    read_lmm_folder,
    write_spec,
)
from agvas_core.contract.manifest import PromptSpec, sha256_of
from agvas_core.model.agvas import AgVas
from agvas_core.model.build import TEXT_CONFIGS, visual_tokens
from agvas_core.model.config import LmmConfig, LoraConfig
from agvas_core.model.weights.checkpoint import Checkpoint
from agvas_export.reference import encode
from agvas_export.streaming import LmmWeights

__all__ = ["ARCHITECTURE", "MAX_SHARD_BYTES", "Stored", "write_adapter", "write_shards", "write_vllm_folder"]


# Weights in one file, or in several of bounded size with the index that transformers and vLLM read; each tensor is read when it is written.


MAX_SHARD_BYTES: Final = 2_000_000_000
"""Of one file, except for a tensor that is larger by itself; and so of what is held while it is written."""


@dataclass(frozen=True)
class Stored:
    """A tensor that lies somewhere, in memory or in a file."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @classmethod
    def held(cls, tensor: Tensor) -> "Stored":
        """One that is in memory."""
        return cls(tuple(tensor.shape), lambda: tensor)


def write_shards(tensors: Mapping[str, Stored], dtype: torch.dtype, folder: Path) -> None:
    """Writes them as ``dtype`` in their order: ``model.safetensors``, or ``model-00001-of-00002.safetensors`` and so on."""
    sizes = {name: prod(tensor.shape) * dtype.itemsize for name, tensor in tensors.items()}
    shards: list[list[str]] = [[]]
    room = MAX_SHARD_BYTES
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = MAX_SHARD_BYTES
        shards[-1].append(name)
        room -= size
    several = len(shards) > 1
    files = {
        f"model-{index:05}-of-{len(shards):05}.safetensors" if several else "model.safetensors": names
        for index, names in enumerate(shards, 1)
    }
    for file, names in files.items():
        save_file({name: tensors[name].read().to(dtype).contiguous() for name in names}, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # safetensors writes for the owner alone
    if several:
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": {name: file for file, names in files.items() for name in names},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


ARCHITECTURE: Final = "AgvasForConditionalGeneration"
_DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_LANGUAGE, _HEAD = "model.language_model.", "lm_head."  # as transformers writes a LLaVA-OneVision
_EMBEDDINGS = _LANGUAGE + "embed_tokens.weight"


def write_vllm_folder(
    source: Checkpoint,
    sha256: str,
    prompt: PromptSpec,
    folder: Path,
    *,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    max_lora_rank: int = 16,
    weights: LmmWeights | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> LmmFolder:
    """Writes a checkpoint's language model into the empty folder ``folder``.

    Args:
        source: of ``load_checkpoint(merged=False)``: adapters beside their layers, where there are any.
        sha256: of its weights.
        dtype: of the weights that are written, and that vLLM computes in.
        max_lora_rank: the highest that adapters loaded later may have; at least that of the model's own.
        weights: of a language model that is not in memory (``read_without_lmm``).
    """
    config, lmm = source.config, source.model.lmm
    progress("writing the language model")
    plain, adapter = split(source.model, weights)
    tables = table_digest(plain)
    write_shards(plain, _DTYPES[dtype], folder)
    answer, refusal = (encode(source.tokenizer, text)[0] for text in (prompt.answer, prompt.refusal))
    # What answering has over refusing at the position before the answer: a difference of two logits, so of two rows of the head.
    head = plain.get(_HEAD + "weight", plain[_EMBEDDINGS]).read()
    (folder / ACCEPT_NAME).parent.mkdir()
    save_file({"direction": (head[answer].float() - head[refusal].float()).contiguous()}, folder / ACCEPT_NAME)
    write_configs(source, folder, dtype)
    rank, text = config.lora.rank if config.lora is not None else 1, text_config(config.lmm, dtype)
    spec = LmmFolder(
        name=config.name,
        checkpoint_sha256=sha256,
        tables_sha256=tables,
        dtype=dtype,
        layers=text.num_hidden_layers,
        dim=text.hidden_size,
        visual_tokens=visual_tokens(config),
        # One more than can be said: an anchor that comes last is read, too.
        max_length=visual_tokens(config) + prompt.max_tokens + prompt.max_new_tokens + 1,
        anchor_ids=lmm.anchor_ids,
        image_id=config.lmm.image_token_id,
        end_id=config.lmm.end_token_id,
        max_lora_rank=max(max_lora_rank, rank),
        adapter=config.name if adapter else None,
        files={file.relative_to(folder).as_posix(): sha256_of(file) for file in sorted(folder.rglob("*")) if file.is_file()},
    )
    write_spec(folder, spec)
    if adapter:
        assert config.lora is not None, "adapters come from config.lora"
        progress("writing the adapter")
        _write_adapter(adapter, config.lora, config.name, sha256, tables, folder / ADAPTERS / config.name)
    read_lmm_folder(folder)
    return spec


def write_adapter(source: Checkpoint, sha256: str, base: Path, name: str) -> AdapterSpec:
    """Adds the adapter of another checkpoint to a folder whose tables it was trained with.

    Raises:
        UsageError: the checkpoint has no adapter, the name cannot be one, or is taken.
        BundleError: other tables.
    """
    if not ADAPTER_NAME.fullmatch(name):
        raise UsageError(f"the name {name!r} is not 1 to 64 letters, digits, dots, dashes and underscores: choose another --name")
    spec, folder = read_lmm_folder(base), base / ADAPTERS / name
    if folder.exists():
        raise UsageError(f"{base} has an adapter {name} already: choose another --name, or remove {folder}")
    plain, adapter = split(source.model)
    if source.config.lora is None or not adapter:
        raise UsageError(
            f"{source.folder} has no adapter; it was trained without model.lora: export it whole with agvas-export vllm"
        )
    aside = folder.with_name(f".{name}.part")
    _write_adapter(adapter, source.config.lora, name, sha256, table_digest(plain), aside)
    try:
        written = read_adapter(aside, spec)
        aside.rename(folder)
    finally:
        if aside.exists():
            for file in aside.iterdir():
                file.unlink()
            aside.rmdir()
    return written


def split(model: AgVas, weights: LmmWeights | None = None) -> tuple[dict[str, Stored], dict[str, Tensor]]:
    """The language model by the names that transformers gives a LLaVA-OneVision, and LoRA by those of peft."""

    def stored(name: str, tensor: Tensor) -> Stored:
        return Stored.held(tensor) if weights is None else Stored(tuple(tensor.shape), partial(weights.read, name))

    plain, adapter = {}, {}
    for name, tensor in model.lmm.language_model.state_dict().items():
        if ".lora_" in name:
            adapter[f"base_model.model.{_LANGUAGE}{name.replace('.default.', '.')}"] = tensor
        else:
            plain[_LANGUAGE + name.replace(".base_layer.", ".")] = stored(f"language_model.{name}", tensor)
    if model.lmm.head.get_parameter("weight") is not model.lmm.language_model.get_input_embeddings().weight:  # type: ignore[operator]
        plain |= {_HEAD + name: stored(f"head.{name}", tensor) for name, tensor in model.lmm.head.state_dict().items()}
    return plain, adapter


def table_digest(plain: dict[str, Stored]) -> str:
    """Of token embeddings and head, in float32: whatever they are written in, the same tables have the same."""
    tables = sorted(name for name in plain if name.startswith(_HEAD) or name == _EMBEDDINGS)
    return digest_of_tensors((name, plain[name].read().float().contiguous().view(torch.uint8).numpy().data) for name in tables)


def write_configs(source: Checkpoint, folder: Path, dtype: str) -> None:
    """What transformers and vLLM want to find beside the weights."""
    config = source.config.lmm
    shell = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(vision_use_head=False),  # never built: images come as embeddings
        text_config=text_config(config, dtype),
        image_token_index=config.image_token_id,
        tie_word_embeddings=bool(config.text.get("tie_word_embeddings", False)),
        architectures=[ARCHITECTURE],
        dtype=dtype,
    )
    extra = {"anchor_token_ids": list(source.model.lmm.anchor_ids), "visual_tokens": visual_tokens(source.config)}
    _write_json(folder / "config.json", shell.to_dict() | extra)
    _write_json(folder / "generation_config.json", {"eos_token_id": config.end_token_id, "pad_token_id": config.pad_token_id})
    source.tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    special = {
        "eos_token": source.tokenizer.id_to_token(config.end_token_id),
        "pad_token": source.tokenizer.id_to_token(config.pad_token_id),
    }
    _write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **special},
    )


def text_config(config: LmmConfig, dtype: str) -> Any:
    """transformers' configuration of the language model."""
    kind = TEXT_CONFIGS[config.family]
    return kind(**config.text, vocab_size=config.vocab_size, pad_token_id=config.pad_token_id, dtype=dtype)


def _write_adapter(tensors: dict[str, Tensor], lora: LoraConfig, name: str, sha256: str, tables: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").chmod(0o644)
    settings = {
        "peft_type": "LORA",
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": list(lora.targets),
        "bias": "none",
        "modules_to_save": None,
        "base_model_name_or_path": None,
    }
    _write_json(folder / "adapter_config.json", settings)
    files = {file.name: sha256_of(file) for file in sorted(folder.iterdir())}
    write_spec(folder, AdapterSpec(name=name, rank=lora.rank, checkpoint_sha256=sha256, tables_sha256=tables, files=files))
    assert LMM_FOLDER_NAME not in files


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

"""The folder that vLLM serves, as ``agvas-export vllm`` writes it and the runtime opens it.

    agvas.json            what the folder is, and the hash of each file; this module
    config.json           for vLLM: the language model, and that images come as embeddings
    model.safetensors     the language model with the trained tables in it (in several files where it is large)
    accept/direction.safetensors  the direction in which answering differs from refusing
    tokenizer.json, tokenizer_config.json, generation_config.json
    adapters/NAME/        LoRA weights apart, each with an agvas.json of its own

It may lie anywhere, or as ``vllm/`` inside a bundle. Nothing in it is opened before its sha256 was compared.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath
from typing import Any, Final, Literal, TypeVar

from pydantic import Field, ValidationError

from agvas_core.contract.errors import BundleError
from agvas_core.contract.manifest import ADAPTERS, IN_BUNDLE, MANIFEST_NAME, sha256_of
from agvas_core.contract.validation import StrictModel

__all__ = [
    "ACCEPT_NAME",
    "ADAPTERS",
    "ADAPTER_NAME",
    "IN_BUNDLE",
    "LMM_FOLDER_NAME",
    "VLLM_VERSION",
    "AdapterSpec",
    "LmmFolder",
    "digest_of_tensors",
    "find_lmm_folder",
    "read_adapter",
    "read_lmm_folder",
    "write_spec",
]

LMM_FOLDER_NAME: Final = "agvas.json"
ACCEPT_NAME: Final = "accept/direction.safetensors"  # apart: vLLM takes every *.safetensors beside its own for weights
VLLM_VERSION: Final = "0.32.0"
"""The release that the plugin was written for and is tested with; vLLM's inner interfaces change with each."""
SCHEMA_VERSION: Final = 1
ADAPTER_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class _Spec(StrictModel):
    schema_version: int = SCHEMA_VERSION
    checkpoint_sha256: str
    """Of the weights of the checkpoint that it was made from; a bundle's provenance has the same."""
    tables_sha256: str
    """Of token embeddings and head: an adapter is worth nothing with others than it was trained with."""
    files: dict[str, str]
    """Path inside the folder -> sha256."""


class LmmFolder(_Spec):
    """``agvas.json`` of the folder."""

    kind: Literal["lmm"] = "lmm"
    name: str
    vllm: str = VLLM_VERSION
    dtype: Literal["float32", "float16", "bfloat16"]
    layers: int = Field(ge=1)
    dim: int = Field(ge=1)
    """D, the width of states and embeddings."""
    visual_tokens: int = Field(ge=1)
    """Of one image: those of f_s and of f_align."""
    max_length: int = Field(ge=2)
    """Image, prompt and answer together, in tokens."""
    anchor_ids: tuple[int, int, int]
    image_id: int
    end_id: int
    max_lora_rank: int = Field(default=16, ge=1)
    adapter: str | None = None
    """The adapter that belongs to the model; it answers where no other is asked for."""


class AdapterSpec(_Spec):
    """``agvas.json`` of an adapter."""

    kind: Literal["adapter"] = "adapter"
    name: str
    rank: int = Field(ge=1)


Spec = TypeVar("Spec", LmmFolder, AdapterSpec)


def find_lmm_folder(path: Path) -> Path:
    """The folder itself, or the one inside a bundle.

    Raises:
        BundleError: neither.
    """
    for folder in (path, path / IN_BUNDLE):
        if (folder / LMM_FOLDER_NAME).is_file():
            return folder
    what = "a bundle without one" if (path / MANIFEST_NAME).is_file() else "something else"
    raise BundleError(
        f"{path} has no language model for vLLM in it (it is {what}): make one with agvas-export vllm CHECKPOINT -o DIR, and name DIR"
    )


def read_lmm_folder(folder: Path) -> LmmFolder:
    """Reads ``agvas.json`` and compares every file that it lists.

    Raises:
        BundleError: none, another schema, made for another vLLM, or a file that is missing or differs.
    """
    spec = _read(folder, LmmFolder)
    if spec.vllm != VLLM_VERSION:
        raise BundleError(
            f"{folder} was made for vLLM {spec.vllm}, this agvas is for {VLLM_VERSION}: export it again with agvas-export vllm"
        )
    return spec


def read_adapter(folder: Path, base: LmmFolder) -> AdapterSpec:
    """Reads an adapter's ``agvas.json``, compares its files, and checks that it goes with ``base``.

    Raises:
        BundleError: as ``read_lmm_folder``; trained with other tables; or of a higher rank than ``base`` takes.
    """
    spec = _read(folder, AdapterSpec)
    if spec.tables_sha256 != base.tables_sha256:
        raise BundleError(
            f"the adapter {folder} was trained with tables {spec.tables_sha256[:12]}..., {base.name} has {base.tables_sha256[:12]}...: "
            "export the model that it belongs to, with agvas-export vllm"
        )
    if spec.rank > base.max_lora_rank:
        raise BundleError(
            f"the adapter {folder} has rank {spec.rank}, {base.name} takes {base.max_lora_rank} at most: export the base again with "
            f"--max-lora-rank {spec.rank}"
        )
    return spec


def write_spec(folder: Path, spec: LmmFolder | AdapterSpec) -> None:
    """Writes ``agvas.json``."""
    (folder / LMM_FOLDER_NAME).write_text(json.dumps(spec.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")


def digest_of_tensors(tensors: Iterable[tuple[str, memoryview]]) -> str:
    """sha256 over names and bytes, ascending by name; each is looked at once, so they may be read one after the other."""
    digest = hashlib.sha256()
    for name, data in tensors:
        digest.update(name.encode() + b"\0")
        digest.update(data)
    return digest.hexdigest()


def _read(folder: Path, kind: type[Spec]) -> Spec:
    path = folder / LMM_FOLDER_NAME
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"{path} has schema {version}; this agvas reads {SCHEMA_VERSION}: export it again with agvas-export vllm"
            )
        spec = kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path}: {where}: {first['msg']}: copy or export it again") from error
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read ({error}): copy or export it again") from error
    for name, expected in spec.files.items():
        parts = PureWindowsPath(name)  # knows \ and drives beside what a POSIX path can do
        if parts.anchor or ".." in parts.parts or name.startswith("/"):
            raise BundleError(f"{path} names {name}, which lies outside the folder: do not use it")
        file = folder / name
        if not file.is_file():
            raise BundleError(f"{folder} lacks {name}: copy or export it again")
        if (actual := sha256_of(file)) != expected:
            raise BundleError(
                f"{file} has sha256 {actual[:12]}..., {LMM_FOLDER_NAME} says {expected[:12]}...: the file was changed or cut off; copy "
                "or export it again"
            )
    # vLLM reads every *.safetensors that it finds there.
    if unknown := sorted({file.name for file in folder.iterdir() if file.is_file()} - spec.files.keys() - {LMM_FOLDER_NAME}):
        raise BundleError(f"{folder} has {unknown[0]}, which its {LMM_FOLDER_NAME} does not list: remove it, or export it again")
    return spec

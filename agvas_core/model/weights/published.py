"""Published models as files: from a hub id, a folder or a file to configuration, weights and digest.

Read as data only: JSON, safetensors, and torch's own format with ``weights_only``, which runs no code.
"""

import hashlib
import json
import pickle
import re
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from agvas_core.contract.errors import SetupError, UsageError
from agvas_core.contract.manifest import sha256_of
from agvas_core.contract.validation import did_you_mean

__all__ = ["digest_of", "read_published_config", "read_published_tokenizer", "read_weights", "weight_files"]

_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")
_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"
_WEIGHTS: Final = ("model.safetensors", "pytorch_model.bin")  # in order of preference; each also as shards with an index


def read_published_config(name: str) -> dict[str, Any]:
    """``config.json`` of a published model.

    Raises:
        UsageError, SetupError: there is none (see ``weight_files``), or it is not JSON.
    """
    path = _need(name, _CONFIG)
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SetupError(f"{path} is not JSON ({error}): download {name} again") from error
    if not isinstance(table, dict):
        raise SetupError(f"{path} is no table: download {name} again")
    return table


def read_published_tokenizer(name: str) -> Tokenizer:
    """``tokenizer.json`` of a published model.

    Raises:
        UsageError, SetupError: there is none (see ``weight_files``), or it cannot be read.
    """
    path = _need(name, _TOKENIZER)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise SetupError(f"{path} cannot be read ({error}): download {name} again") from error


def weight_files(name: str) -> list[Path]:
    """The files that hold the weights of a published model, in a fixed order.

    Raises:
        UsageError: neither a file nor a folder here nor a hub id, or one without weights; names what is there and the nearest.
        SetupError: the hub cannot be reached or has no such model; or shards are missing.
    """
    if Path(name).is_file():
        return [Path(name)]
    for file in _WEIGHTS:
        if (index := _find(name, f"{file}.index.json")) is not None:
            try:
                shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, AttributeError) as error:
                raise SetupError(f"{index} is damaged ({error}): download {name} again") from error
            return [_need(name, shard) for shard in shards]
        if (whole := _find(name, file)) is not None:
            return [whole]
    raise UsageError(
        f"{name} has no weights: expected {', '.join(_WEIGHTS)} or their shards with an index{_nearby(name, _WEIGHTS[0])}"
    )


def read_weights(name: str) -> dict[str, Tensor]:
    """All tensors of a published model, by its own names.

    Raises:
        UsageError: a file that would run code when loaded, or that holds no table of tensors; and as ``weight_files``.
        SetupError: a damaged file.
    """
    state: dict[str, Tensor] = {}
    for path in weight_files(name):
        state |= _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return state


def digest_of(name: str) -> str:
    """sha256 over those of the weight files: the same for the same weights, wherever they lie."""
    return hashlib.sha256("".join(sha256_of(path) for path in weight_files(name)).encode()).hexdigest()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise SetupError(f"{path} is damaged ({error}): download or copy it again") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{path} holds more than tensors, and would run code when loaded: save its state_dict alone, or give a safetensors file"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise SetupError(
            f"{path} is damaged or no checkpoint of torch ({str(error).splitlines()[0]}): download or copy it again"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"{path} holds no plain table of tensors: save the model's state_dict alone")
    return state


def _need(name: str, file: str) -> Path:
    if (path := _find(name, file)) is None:
        raise UsageError(f"{name} has no {file}{_nearby(name, file)}")
    return path


def _find(name: str, file: str) -> Path | None:
    """Where ``file`` of the model lies; None where the model is known and has none."""
    folder = Path(name)
    if folder.is_dir():
        return folder / file if (folder / file).is_file() else None
    if folder.is_file():
        return None
    if not _HUB_ID.fullmatch(name) or folder.parent.is_dir():  # ./x, /x and DIR/x are paths, not hub ids
        names = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise UsageError(f"{name} is not here, and is no hub id (OWNER/NAME){did_you_mean(folder.name, names)}")
    try:
        return Path(hf_hub_download(name, file))
    except LocalEntryNotFoundError as error:  # no network: what was fetched before is enough, if it was fetched whole
        if isinstance(try_to_load_from_cache(name, _CONFIG), str):
            return None
        raise _unreachable(name, error) from error
    except EntryNotFoundError:
        return None
    except OSError as error:  # no such model, or one that has to be asked for
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> SetupError:
    return SetupError(
        f"{name} is no folder here, and the hub does not give it ({str(error).strip().splitlines()[0]}): where there is a network, "
        f"hf download {name} --local-dir DIR, and give DIR"
    )


def _nearby(name: str, wanted: str) -> str:
    """What a folder has instead."""
    if not Path(name).is_dir():
        return ""
    names = sorted(path.name for path in Path(name).iterdir())
    return f"; it has {', '.join(names[:8]) or 'nothing'}{did_you_mean(wanted, names)}"

"""How vLLM is started: the arguments of its engine and its environment. Imports nothing heavy, so that a supervisor stays small."""

import json
import os
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from agvas_core.contract.errors import SetupError
from agvas_core.contract.lmm_folder import VLLM_VERSION, LmmFolder

__all__ = ["DIRECT_ONLY", "FOLDER", "MIDDLEWARE", "as_flags", "engine_arguments", "environment", "state_folder"]


FOLDER: Final = "AGVAS_LMM_FOLDER"
"""What ``service`` finds in the environment: the folder that is served."""
DIRECT_ONLY: Final = "AGVAS_LMM_DIRECT_ONLY"
"""And whether it is served for direct mode alone."""
MIDDLEWARE: Final = "agvas_runtime.stages.vllm.service.AnchorService"

_LORA_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM has room for
_MAX_LORAS: Final = 4  # adapters in one batch


def environment(*, own_process: bool) -> dict[str, str]:
    """What vLLM must find in the environment: no network, no usage statistics, and where its engine runs; on a CPU, how much it caches."""
    return {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # In GiB, read on a CPU alone; without it vLLM wants 92 % of all memory to be free.
        "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"),
        "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(own_process)),
    }


def engine_arguments(folder: Path, spec: LmmFolder, *, all_modes: bool, states: Path) -> dict[str, Any]:
    """For ``vllm.LLM``, and as options for ``vllm serve``.

    Args:
        all_modes: False starts the pooling runner: direct mode alone, without an output head.
        states: folder that the connector writes into.

    Raises:
        SetupError: no vLLM, or another than the plugin was written for.
    """
    try:
        found, _, build = version("vllm").partition("+")
    except PackageNotFoundError as error:
        raise SetupError("vllm is not installed: pip install 'agvas[vllm]'") from error
    if found != VLLM_VERSION:
        raise SetupError(f"vLLM is {found}; this agvas works with {VLLM_VERSION} alone: pip install 'vllm=={VLLM_VERSION}'")
    arguments = {
        "model": str(folder),
        "served_model_name": [spec.name],
        "dtype": spec.dtype,
        "max_model_len": spec.max_length,
        "limit_mm_per_prompt": {"image": 0},  # no pictures, only what enable_mm_embeds lets in
        "enable_mm_embeds": True,
        "enforce_eager": build == "cpu",  # there, compiling takes minutes and gains nothing in one prefill
        "enable_lora": True,
        "max_lora_rank": next(rank for rank in _LORA_RANKS if rank >= spec.max_lora_rank),
        "max_loras": _MAX_LORAS,
    }
    if not all_modes:
        return arguments | {
            "runner": "pooling",
            "convert": "embed",
            "pooler_config": {"task": "token_embed", "use_activation": False},
            "enable_prefix_caching": False,  # a state that was cached would not come out of the pooler
        }
    layer = {"eagle_aux_hidden_state_layer_ids": [spec.layers]}
    return arguments | {
        "runner": "generate",
        "generation_config": "vllm",  # sampling is ours alone
        "async_scheduling": False,  # vLLM 56417: with it, states and words can come from different steps on a GPU
        "speculative_config": {
            "method": "extract_hidden_states",
            "num_speculative_tokens": 1,
            "draft_model_config": {"hf_config": layer},
        },
        "kv_transfer_config": {
            "kv_connector": "AnchorStatesConnector",
            "kv_connector_module_path": "agvas_runtime.stages.vllm.connector",
            "kv_role": "kv_producer",
            "kv_connector_extra_config": {"shared_storage_path": str(states)},
        },
    }


def state_folder() -> Path:
    """A new folder in memory, for this user alone."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="agvas-states-", dir=memory if memory.is_dir() else None))


# Arguments of vLLM's engine as the options of ``vllm serve``.


def as_flags(arguments: Mapping[str, Any]) -> list[str]:
    """``{"max_model_len": 641, "enable_lora": True}`` -> ``["--max-model-len", "641", "--enable-lora"]``; ``model`` goes first, bare."""
    flags = [str(arguments["model"])]
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        match value:
            case _ if name == "model":
                continue
            case True:
                flags.append(f"--{flag}")
            case False:
                # vLLM's own switches have a form with no-; a switch of its server that is off is left out.
                flags += [f"--no-{flag}"] if name in ("async_scheduling", "enable_prefix_caching") else []
            case list():
                flags += [f"--{flag}", *map(str, value)]
            case dict():
                flags += [f"--{flag}", json.dumps(value)]
            case _:
                flags += [f"--{flag}", str(value)]
    return flags

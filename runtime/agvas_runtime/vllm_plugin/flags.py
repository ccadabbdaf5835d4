"""Arguments of vLLM's engine as the options of ``vllm serve``."""

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["as_flags"]


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

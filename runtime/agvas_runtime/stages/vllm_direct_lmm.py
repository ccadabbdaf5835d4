"""Joint 2 on vLLM in this process, for direct mode alone: no output head, no cache of states."""

from agvas_runtime.bundle import Bundle
from agvas_runtime.stages.vllm_lmm import open_vllm
from agvas_runtime.stages.asking_lmm import AskingLmm
from agvas_runtime.stages.settings import StageSettings

__all__ = ["open_vllm_direct"]


def open_vllm_direct(bundle: Bundle, settings: StageSettings) -> AskingLmm:
    """As ``open_vllm``; other modes are refused with a UsageError."""
    return open_vllm(bundle, settings, all_modes=False)

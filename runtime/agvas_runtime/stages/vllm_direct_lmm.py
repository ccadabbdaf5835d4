"""Joint 2 on vLLM in this process, for direct mode alone: no output head, no cache of states."""

from agvas_runtime.bundle import Bundle
from agvas_runtime.stages import vllm_lmm
from agvas_runtime.stages.asking_lmm import AskingLmm
from agvas_runtime.stages.settings import StageSettings

__all__ = ["open_stage"]


def open_stage(bundle: Bundle, settings: StageSettings) -> AskingLmm:
    """As ``vllm_lmm.open_stage``; other modes are refused with a UsageError."""
    return vllm_lmm.open_stage(bundle, settings, all_modes=False)

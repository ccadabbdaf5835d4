"""Joint 2 on vLLM in this process."""

from agvas_core.contract.lmm_folder import find_lmm_folder
from agvas_runtime.bundle import Bundle
from agvas_runtime.stages.asking_lmm import AskingLmm
from agvas_runtime.stages.settings import StageSettings
from agvas_runtime.vllm_plugin.local import open_local

__all__ = ["open_vllm"]


def open_vllm(bundle: Bundle, settings: StageSettings, *, all_modes: bool = True) -> AskingLmm:
    """Starts vLLM on the folder of ``settings``, or on the one inside the bundle.

    Raises:
        BundleError: there is none, or it belongs to another checkpoint.
        SetupError: another vLLM than the plugin was written for.
        UsageError: vLLM runs in this process already, with another folder or other modes.
        StageError: vLLM does not start.
    """
    folder = find_lmm_folder(settings.lmm_folder or bundle.folder)
    return AskingLmm(bundle, open_local(folder, all_modes=all_modes), settings.adapter)

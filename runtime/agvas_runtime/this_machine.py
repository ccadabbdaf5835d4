"""Which machine this is: its CPU, the cores that we may use, the GPU that a backend computes on, the memory that is free."""

import os
from collections.abc import Iterable
from pathlib import Path

from agvas_core.contract.errors import SetupError
from agvas_core.contract.gpu import cuda_gpu, this_machine

__all__ = ["cpu_name", "free_memory_bytes", "gpu_name", "usable_cores"]


def cpu_name() -> str:
    """As certificates have it."""
    return this_machine().cpu


def usable_cores() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory_bytes() -> int | None:
    """What programs may still take without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None  # not Linux


def gpu_name(backends: Iterable[str]) -> str | None:
    """The GPU that stages on these backends compute on; None where they are on the CPU, or no GPU can be asked."""
    names = set(backends)
    if any(name.startswith(("torch-cuda", "vllm")) for name in names):
        import torch  # these backends have loaded it

        return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    if names & {"trt", "ort-cuda"}:
        try:
            return cuda_gpu().name
        except SetupError:
            return None
    return None

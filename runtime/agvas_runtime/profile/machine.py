"""The limits of this machine: rate of a matrix product and of a memory copy, measured at run time.

Both are taken as the best of several, for a floor is what the hardware allows and not what a busy machine leaves.
"""

import os
import platform
import resource
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np

from agvas_runtime.profile.record import GpuSample, Machine
from agvas_runtime.this_machine import cpu_name

__all__ = ["GpuSampler", "copy_rate", "describe_machine", "load_average", "matmul_rate", "peak_memory_mb"]


MATRIX = 1536  # 7.2 GFLOP: a tenth of a second on two cores, and far beyond the caches
COPY_BYTES = 256 << 20
REPEATS = 5


def describe_machine(*, threads: int | None, gpu: str, load_before: float, rates: bool = True) -> Machine:
    """Names the machine and measures it.

    Args:
        threads: as many as the model has; all cores where None.
        gpu: what the GPU's sampler said of it.
        rates: measure; else both are None.
    """
    return Machine(
        cpu=cpu_name(),
        cores=os.cpu_count() or 1,
        memory_gb=round(_memory_bytes() / 1e9, 1),
        system=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        matmul_gflops=round(matmul_rate() / 1e9, 1) if rates else None,
        copy_gbs=round(copy_rate(threads or os.cpu_count() or 1) / 1e9, 1) if rates else None,
        load_before=round(load_before, 2),
        gpu=gpu,
    )


def load_average() -> float:
    """How many processes wanted a core, averaged over the last minute."""
    return os.getloadavg()[0]


def peak_memory_mb() -> float:
    """Most resident memory that this process had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def matmul_rate(side: int = MATRIX, repeats: int = REPEATS) -> float:
    """FLOP/s of a float32 product of two matrices by NumPy's BLAS, on its own threads."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((side, side), np.float32) for _ in range(2))
    out = a @ b  # also warms the threads up
    best = min(_seconds(lambda: np.matmul(a, b, out=out)) for _ in range(repeats))
    return 2.0 * side**3 / best


def copy_rate(threads: int, size: int = COPY_BYTES, repeats: int = REPEATS) -> float:
    """Bytes/s of copying memory, read plus written, on ``threads`` threads together."""
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    edges = np.linspace(0, size, threads + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:

        def once() -> None:
            for done in [pool.submit(np.copyto, target[a:b], source[a:b]) for a, b in pairwise(edges)]:
                done.result()

        once()
        return 2.0 * size / min(_seconds(once) for _ in range(repeats))


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return max(time.perf_counter() - began, 1e-9)


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


# Clock, power, temperature and memory of the GPU while something else runs, through NVML.
#
# Where there is no NVML or no GPU the profile says so in words; nothing is guessed.


EVERY_S = 0.1


class GpuSampler:
    """Samples one GPU in a thread between ``__enter__`` and ``__exit__``; does nothing where there is none.

    ``about`` says which GPU and driver, or why there is none.
    """

    def __init__(self, index: int = 0) -> None:
        self.samples: list[GpuSample] = []
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._nvml: Any = None
        self._handle: Any = None
        self.about = self._open(index)

    def __enter__(self) -> "GpuSampler":
        if self._handle is not None:
            self._thread = threading.Thread(target=self._run, args=(time.perf_counter(),), name="agvas-nvml", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._nvml.nvmlShutdown()

    def _open(self, index: int) -> str:
        if find_spec("pynvml") is None:
            return "not looked at: nvidia-ml-py is not installed (pip install 'agvas[gpu]')"
        import pynvml

        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            self._nvml = pynvml
            return f"{pynvml.nvmlDeviceGetName(self._handle)}, driver {pynvml.nvmlSystemGetDriverVersion()}"
        except pynvml.NVMLError as error:
            self._handle = None
            return f"none: {error}"

    def _run(self, began: float) -> None:
        while not self._stopped.wait(EVERY_S):
            try:
                self.samples.append(self._sample(time.perf_counter() - began))
            except self._nvml.NVMLError as error:  # the GPU vanished; the computation on it will report that
                self.about += f"; lost after {len(self.samples)} samples: {error}"
                return

    def _sample(self, at_s: float) -> GpuSample:
        nvml, handle = self._nvml, self._handle
        return GpuSample(
            at_s=round(at_s, 3),
            clock_mhz=int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            power_w=nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            temperature_c=int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            memory_mb=nvml.nvmlDeviceGetMemoryInfo(handle).used / 1e6,
            utilisation=int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        )

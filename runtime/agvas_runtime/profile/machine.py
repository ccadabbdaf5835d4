"""The limits of this machine: rate of a matrix product and of a memory copy, measured at run time.

Both are taken as the best of several, for a floor is what the hardware allows and not what a busy machine leaves.
"""

import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from agvas_runtime.profile.record import Machine
from agvas_runtime.this_machine import cpu_name

__all__ = ["copy_rate", "describe_machine", "load_average", "matmul_rate", "peak_memory_mb"]

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

"""Clock, power, temperature and memory of the GPU while something else runs, through NVML.

Where there is no NVML or no GPU the profile says so in words; nothing is guessed.
"""

import threading
import time
from importlib.util import find_spec
from typing import Any

from agvas_runtime.profile.record import GpuSample

__all__ = ["GpuSampler"]

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

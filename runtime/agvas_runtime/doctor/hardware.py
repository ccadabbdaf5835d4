"""The machine: system, GPUs, cameras, disk."""

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from agvas_core import __version__
from agvas_runtime.doctor.finding import Finding, State
from agvas_runtime.this_machine import free_memory_bytes, usable_cores

__all__ = ["Gpu", "find_gpus", "look_at_hardware"]

LITTLE_DISK_BYTES = 2 << 30
LITTLE_MEMORY_BYTES = 1 << 30
NVIDIA_SMI_TIMEOUT_S = 20.0


class Gpu(NamedTuple):
    """As nvidia-smi says it."""

    name: str
    driver: str
    memory_mb: int

    @property
    def driver_major(self) -> int:
        """The number before the first dot."""
        return int(self.driver.partition(".")[0])


def find_gpus() -> list[Gpu]:
    """NVIDIA GPUs; none where there is no nvidia-smi, or it fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=True).stdout
        rows = [[part.strip() for part in line.split(",")] for line in told.splitlines() if line.strip()]
        return [Gpu(name, driver, int(memory)) for name, driver, memory in rows]
    except (subprocess.SubprocessError, OSError, ValueError):
        return []


def look_at_hardware(gpus: list[Gpu]) -> Iterator[Finding]:
    """System, GPUs, cameras, disk."""
    yield Finding("system", "agvas", State.OK, f"{__version__} at {Path(__file__).parents[1]}")
    yield Finding(
        "system",
        "python",
        State.OK,
        f"{platform.python_version()}, {platform.system()} {platform.machine()}, {usable_cores()} cores",
    )
    yield from _memory()
    for what, folder in (("disk here", Path.cwd()), ("disk for temporary files", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free
        little = free < LITTLE_DISK_BYTES
        yield Finding(
            "system",
            what,
            State.WARN if little else State.OK,
            f"{free / 1e9:.1f} GB free at {folder}",
            "free some space" if little else "",
        )
    for gpu in gpus:
        yield Finding("device", "gpu", State.OK, f"{gpu.name}, {gpu.memory_mb / 1024:.0f} GiB, driver {gpu.driver}")
    if not gpus:
        why = "nvidia-smi is not here" if shutil.which("nvidia-smi") is None else "nvidia-smi shows none, or fails"
        yield Finding("device", "gpu", State.ABSENT, why, "install the NVIDIA driver where there is a GPU")
    yield from _cameras()


def _memory() -> Iterator[Finding]:
    if (free := free_memory_bytes()) is None:
        return
    little = free < LITTLE_MEMORY_BYTES
    yield Finding(
        "system",
        "memory",
        State.WARN if little else State.OK,
        f"{free / 1e9:.1f} GB free",
        "end other programs" if little else "",
    )


def _cameras() -> Iterator[Finding]:
    found = sorted(Path("/dev").glob("video*"))
    for camera in found:
        allowed = os.access(camera, os.R_OK | os.W_OK)
        yield Finding(
            "device",
            "camera",
            State.OK if allowed else State.WARN,
            f"{camera}" if allowed else f"{camera} may not be opened by this user",
            "" if allowed else "sudo usermod -aG video $USER, then log in again",
        )
    if not found:
        yield Finding(
            "device", "camera", State.ABSENT, "no /dev/video*; cameras on the network are not looked for", "plug one in"
        )

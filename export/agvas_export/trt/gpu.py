"""Which GPU is here, as its driver names it: by nvidia-smi, or by the device tree on a Jetson."""

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from agvas_core.contract.errors import SetupError

__all__ = ["Gpu", "this_gpu"]

_DEVICE_TREE = Path("/proc/device-tree/model")


class Gpu(NamedTuple):
    """A GPU's model and its driver."""

    name: str
    compute_capability: str
    driver: str


def this_gpu() -> Gpu:
    """The first GPU of this machine.

    Raises:
        SetupError: there is none, or its driver does not answer.
    """
    program = shutil.which("nvidia-smi")
    if program is not None:
        asked = [program, "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=60)
        fields = [field.strip() for field in done.stdout.partition("\n")[0].split(",")]
        if done.returncode == 0 and len(fields) == 3 and "N/A" not in fields[0]:
            return Gpu(*fields)
        if not _DEVICE_TREE.is_file():
            said = " ".join((done.stderr or done.stdout).split())[:200]
            raise SetupError(
                f"nvidia-smi found no GPU ({said or 'it said nothing'}): install the driver, or name --target and use --dry-run"
            )
    if _DEVICE_TREE.is_file() and "Jetson" in (
        model := _DEVICE_TREE.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    ):
        capability = "11.0" if "Thor" in model else "8.7" if "Orin" in model else "unknown"
        return Gpu(model, capability, "JetPack")
    raise SetupError(
        "there is no NVIDIA GPU here (no nvidia-smi): engines are built where they run; --check needs none, nor does --dry-run --target NAME"
    )

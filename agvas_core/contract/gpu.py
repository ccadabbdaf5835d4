"""Which GPU and which machine this is. The GPU as its driver names it: by nvidia-smi, by the device tree on a Jetson, or by CUDA."""

import platform
import re
import shutil
import subprocess
import uuid
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from agvas_core.contract.errors import SetupError
from agvas_core.contract.validation import StrictModel

__all__ = ["Gpu", "Hardware", "cuda_gpu", "cuda_version", "jetson_model", "refuse_without_gpu", "this_gpu", "this_machine"]


_DEVICE_TREE = Path("/proc/device-tree/model")
ASK_TIMEOUT_S = 60


class Gpu(NamedTuple):
    """A GPU's model and its driver."""

    name: str
    compute_capability: str
    driver: str


def jetson_model() -> str | None:
    """``NVIDIA Jetson AGX Orin Developer Kit``; None on any other machine. CUDA names every Jetson of a kind alike, engines differ."""
    if not _DEVICE_TREE.is_file():
        return None
    model = _DEVICE_TREE.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    return model if "Jetson" in model else None


def this_gpu() -> Gpu:
    """The GPU of this machine as nvidia-smi names it; of several kinds the one that CUDA puts first, which builds engines and runs them.

    Raises:
        SetupError: there is none, or its driver does not answer; there are several kinds, and CUDA cannot be asked.
    """
    if (model := jetson_model()) is not None:
        capability = "11.0" if "Thor" in model else "8.7" if "Orin" in model else "unknown"
        return Gpu(model, capability, "JetPack")
    program = shutil.which("nvidia-smi")
    if program is None:
        raise SetupError(
            "there is no NVIDIA GPU here (no nvidia-smi): engines are built where they run; --check needs none, nor does --dry-run --target NAME"
        )
    asked = [program, "--query-gpu=name,compute_cap,driver_version,uuid", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=ASK_TIMEOUT_S)
    rows = [[field.strip() for field in line.split(",")] for line in done.stdout.splitlines()]
    rows = [row for row in rows if len(row) == 4 and "N/A" not in row[0]]
    if done.returncode == 0 and rows:
        return Gpu(*_first(rows)[:3])
    said = " ".join((done.stderr or done.stdout).split())[:200]
    raise SetupError(
        f"nvidia-smi found no GPU ({said or 'it said nothing'}): install the driver, or name --target and use --dry-run"
    )


def _first(rows: Sequence[Sequence[str]]) -> Sequence[str]:
    """Of nvidia-smi's GPUs, which it lists by their slots, the one that CUDA puts first: the fastest, or as CUDA_DEVICE_ORDER and
    CUDA_VISIBLE_DEVICES say."""
    if len({(name, capability) for name, capability, *_ in rows}) == 1:
        return rows[0]
    first = _first_of_cuda()
    if (found := next((row for row in rows if row[3] == first), None)) is not None:
        return found
    raise SetupError(
        f"there are several kinds of GPU here ({', '.join(row[0] for row in rows)}), and which of them CUDA puts first is unknown: pip "
        "install 'agvas[trt]', or name --target"
    )


def _first_of_cuda() -> str | None:
    """``GPU-...`` as nvidia-smi writes it; None where cuda-bindings is not installed."""
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        return None
    from cuda.bindings import runtime as cudart

    refuse_without_gpu(cudart)
    _, properties = cudart.cudaGetDeviceProperties(0)
    return f"GPU-{uuid.UUID(bytes=bytes(properties.uuid.bytes))}"


def cuda_gpu() -> Gpu:
    """The GPU that CUDA puts first: of several, and of a slice of one (MIG), the one that engines are built on and run on.

    Raises:
        SetupError: cuda-bindings is missing, there is no driver, it is too old, or it shows no GPU.
    """
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        raise SetupError("cuda-bindings is not installed: pip install 'agvas[trt]'")
    from cuda.bindings import runtime as cudart

    refuse_without_gpu(cudart)
    _, properties = cudart.cudaGetDeviceProperties(0)
    _, driver = cudart.cudaDriverGetVersion()
    name = jetson_model() or properties.name.decode().rstrip("\0")
    return Gpu(name, f"{properties.major}.{properties.minor}", cuda_version(driver))


def refuse_without_gpu(cudart: Any) -> None:
    """Raises SetupError where CUDA's runtime finds no GPU to compute on, with the reason and what helps.

    Args:
        cudart: ``cuda.bindings.runtime``, which is never imported here on its own account.
    """
    code, count = cudart.cudaGetDeviceCount()
    if int(code) == 0 and count:
        return
    name = cudart.cudaGetErrorName(code)[1].decode()
    _, driver = cudart.cudaDriverGetVersion()
    _, runtime = cudart.getLocalRuntimeVersion() if hasattr(cudart, "getLocalRuntimeVersion") else cudart.cudaRuntimeGetVersion()
    if name == "cudaErrorInsufficientDriver" and driver:
        raise SetupError(
            f"the NVIDIA driver is for CUDA {cuda_version(driver)}, and cuda-bindings needs {cuda_version(runtime)}: update the driver, or pip "
            f"install 'cuda-bindings=={driver // 1000}.*'"
        )
    if name == "cudaErrorInsufficientDriver":
        raise SetupError("there is no NVIDIA driver here, so no CUDA: run it where there is a GPU, or choose the backend onnx")
    why = "no GPU is visible" if name in ("cudaErrorNoDevice", "cudaSuccess") else f"it does not start ({name})"
    raise SetupError(f"CUDA is here, but {why}: look at nvidia-smi and CUDA_VISIBLE_DEVICES, or choose the backend onnx")


def cuda_version(number: int) -> str:
    """12040 -> 12.4."""
    return f"{number // 1000}.{number % 1000 // 10}"


# The machine in words: a certificate says where it was made, and a run compares that with the machine it is on.


_CPUINFO = Path("/proc/cpuinfo")
_GPUS = Path("/proc/driver/nvidia/gpus")
_MODEL = re.compile(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", re.MULTILINE)


class Hardware(StrictModel):
    """Two machines that are equal here may be expected to give the same numbers with the same software."""

    system: str
    """``Linux x86_64``."""
    cpu: str
    gpus: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join([self.cpu, *self.gpus])


def this_machine(cpuinfo: Path = _CPUINFO, gpus: Path = _GPUS) -> Hardware:
    """Reads what the kernel says; starts no driver."""
    found = _MODEL.search(cpuinfo.read_text(encoding="utf-8", errors="replace")) if cpuinfo.is_file() else None
    cards = sorted(path.read_text(encoding="utf-8", errors="replace") for path in gpus.glob("*/information"))
    return Hardware(
        system=f"{platform.system()} {platform.machine()}",
        cpu=" ".join(found[1].split()) if found else platform.processor() or platform.machine(),
        gpus=tuple(" ".join(name[1].split()) for card in cards if (name := _MODEL.search(card))),
    )

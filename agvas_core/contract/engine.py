"""TensorRT engines built from a bundle's graphs, the reasons to refuse them elsewhere, and the library that runs them.

A folder of engines belongs to one GPU model, one TensorRT version and one set of graphs. ``engines.json`` says which, and has the hash of
every file; all of it is compared before TensorRT reads an engine.
"""

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from agvas_core.contract.durable import write_whole
from agvas_core.contract.errors import SetupError
from agvas_core.contract.manifest import MANIFEST_NAME, Manifest, sha256_of
from agvas_core.contract.validation import StrictModel

__all__ = [
    "DEFAULT_STORE",
    "ENGINES_NAME",
    "EngineSet",
    "EngineSpec",
    "Flavour",
    "engine_folder",
    "engine_sets",
    "error_logger",
    "installed_flavours",
    "open_library",
    "parse_version",
    "read_engines",
    "refuse_foreign",
    "write_engines",
]


ENGINES_NAME = "engines.json"
SCHEMA_VERSION = 1
DEFAULT_STORE = Path.home() / ".cache" / "agvas" / "engines"
"""Where engines are built to and looked for."""

Shape = tuple[int, ...]


class EngineSpec(StrictModel):
    """One engine: the file, the graph it came from, and the shapes that it takes."""

    file: str
    sha256: str
    graph_sha256: str
    shapes: dict[str, tuple[Shape, Shape, Shape]]
    """Input -> least, usual and largest shape."""
    build_s: float = Field(ge=0)


class EngineSet(StrictModel):
    """Contents of ``engines.json``."""

    schema_version: int = SCHEMA_VERSION
    bundle: str
    """Name of the bundle."""
    gpu: str
    """Its model as the driver names it, or ``ahead of time``."""
    compute_capability: str
    """``8.7``."""
    flavour: Literal["tensorrt", "tensorrt-rtx"]
    version: str
    """Of TensorRT."""
    precision: str
    recipe: str
    created: str
    engines: dict[str, EngineSpec]
    """Stage -> engine; a stage without one runs elsewhere."""


def engine_folder(store: Path, manifest: Manifest, bundle: Path, gpu: str, flavour: str, version: str) -> Path:
    """Where the engines of a bundle for a GPU and a TensorRT lie: one folder per combination, so that none replaces another's."""
    slug = "-".join("".join(letter if letter.isalnum() else " " for letter in gpu).lower().split())
    return _of_bundle(store, manifest, bundle) / f"{slug}-{flavour}-{version}"


def engine_sets(store: Path, manifest: Manifest, bundle: Path) -> list[Path]:
    """The folders of engines that were built from a bundle, for whatever GPU and TensorRT."""
    return sorted(path.parent for path in _of_bundle(store, manifest, bundle).glob(f"*/{ENGINES_NAME}"))


def _of_bundle(store: Path, manifest: Manifest, bundle: Path) -> Path:
    return store / f"{manifest.name}-{sha256_of(bundle / MANIFEST_NAME)[:12]}"


def write_engines(folder: Path, engines: EngineSet) -> None:
    """Writes ``engines.json``, last of all files."""
    write_whole(folder / ENGINES_NAME, json.dumps(engines.model_dump(mode="json"), indent=1) + "\n")


def read_engines(folder: Path) -> EngineSet:
    """Reads and validates.

    Raises:
        SetupError: there are none, or a newer schema, or not ours.
    """
    path = folder / ENGINES_NAME
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SetupError(
            f"there are no engines in {folder} ({error.strerror}): build them with agvas-export trt BUNDLE on this machine"
        ) from error
    except (ValueError, RecursionError) as error:
        raise SetupError(f"{path} cannot be read as JSON ({error}): build the engines again with agvas-export trt") from error
    if isinstance(raw, dict) and isinstance(raw.get("schema_version"), int) and raw["schema_version"] > SCHEMA_VERSION:
        raise SetupError(
            f"{path} has schema {raw['schema_version']}; this agvas reads {SCHEMA_VERSION}: pip install --upgrade agvas"
        )
    try:
        return EngineSet.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SetupError(f"{path}: {where}: {first['msg']}: build the engines again with agvas-export trt") from error


def refuse_foreign(folder: Path, engines: EngineSet, stage: str, graph: Path, *, gpu: str, flavour: str, version: str) -> Path:
    """The engine's file, once nothing speaks against it.

    Raises:
        SetupError: it was built for another GPU, TensorRT or graph, is missing or was changed; names the command that builds it again.
    """
    again = f"build it here with agvas-export trt {graph.parent}"
    spec = engines.engines.get(stage)
    if spec is None:
        raise SetupError(f"{folder} has no engine for {stage} (it has {', '.join(engines.engines) or 'none'}): {again}")
    for what, built, here in (
        ("GPU", engines.gpu, gpu),
        ("TensorRT flavour", engines.flavour, flavour),
        ("TensorRT", engines.version, version),
        ("graph", spec.graph_sha256[:12], sha256_of(graph)[:12]),
    ):
        if built != here:
            raise SetupError(f"the {stage} engine in {folder} was built for the {what} {built}, and this is {here}: {again}")
    path = folder / spec.file
    if Path(spec.file).name != spec.file or not path.is_file():
        raise SetupError(f"{folder} lacks {spec.file}: {again}")
    if (actual := sha256_of(path)) != spec.sha256:
        raise SetupError(
            f"{path} has sha256 {actual[:12]}..., {ENGINES_NAME} says {spec.sha256[:12]}...: it was changed or cut off; {again}"
        )
    return path


# The library: TensorRT or TensorRT-RTX, two packages with one interface.


Flavour = Literal["tensorrt", "tensorrt-rtx"]
OLDEST = (10, 3)  # JetPack 6.1
NEWEST_MAJOR = 11


def open_library(flavour: Flavour) -> Any:
    """The module.

    Raises:
        SetupError: it is not installed, or of a version that this code was not written for.
    """
    if flavour == "tensorrt-rtx":
        if find_spec("tensorrt_rtx_bindings") is None:
            raise SetupError("TensorRT-RTX is not installed: pip install 'agvas[trt-check]'")
        import_module("tensorrt_rtx_libs")
        return import_module("tensorrt_rtx_bindings")
    if find_spec("tensorrt") is None:
        raise SetupError(
            "TensorRT is not installed: pip install 'agvas[trt]', or on Jetson apt install python3-libnvinfer and a virtual environment with "
            "--system-site-packages"
        )
    library = import_module("tensorrt")
    version = parse_version(library.__version__)
    if version < OLDEST or version[0] > NEWEST_MAJOR:
        raise SetupError(f"this is TensorRT {library.__version__}; 10.3 to 11 are known: install one of these")
    return library


def parse_version(text: str) -> tuple[int, ...]:
    """``10.3.0.post1`` -> (10, 3, 0)."""
    numbers = []
    for part in text.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def installed_flavours() -> tuple[Flavour, ...]:
    """Those that can be imported, the full TensorRT first."""
    packages: dict[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx_bindings"}
    return tuple(flavour for flavour, package in packages.items() if find_spec(package) is not None)


def error_logger(library: Any) -> Any:
    """A logger of TensorRT that prints nothing and keeps its last error in ``last``, for messages of ours."""

    class Logger(library.ILogger):  # type: ignore[misc]
        """As above."""

        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity <= library.ILogger.Severity.ERROR:
                self.last = " ".join(message.split())

    return Logger()

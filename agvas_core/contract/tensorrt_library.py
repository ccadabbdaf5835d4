"""TensorRT or TensorRT-RTX, whichever is asked for: two packages with one interface."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

from agvas_core.contract.errors import SetupError

__all__ = ["Flavour", "error_logger", "installed_flavours", "open_library", "parse_version"]

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

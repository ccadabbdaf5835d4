"""How a command ends: one line on stderr and an exit code, never a traceback for a foreseeable failure.

0    fine
1    rejects were found (agvas run --fail-on-reject), faults in data (agvas data check), or a rate that is not held (agvas profile)
2    usage
3    environment: a missing package, an unusable bundle, an output folder that cannot be written
4    an export that does not give the model's own answer; a product or recipe that is written, and promises less than was asked for, or
     more than a tenth of the images was left out
5    a camera or stream that is not there, or stopped
70   a bug of ours, with its traceback (EX_SOFTWARE of sysexits.h, so that it is never read as "rejects found")
130  interrupted
141  the reader of our output went away (128 + SIGPIPE)
143  ended by SIGTERM (128 + 15); a command that may be interrupted ends in the same order
"""

import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Final, NoReturn

import typer

from agvas_core.contract.errors import EXIT_OK, AgvasError, SetupError, UsageError

__all__ = [
    "DECISION",
    "EXIT_BROKEN_PIPE",
    "EXIT_BUG",
    "EXIT_INTERRUPTED",
    "EXIT_TERMINATED",
    "EXTRA_OF_PACKAGE",
    "INPUT",
    "LINE",
    "MANY_OPTIONS",
    "MODEL",
    "OUTPUT",
    "SPEED",
    "Terminated",
    "exit_code_of",
    "interrupt_code",
    "needs_packages",
    "prepared",
    "printable",
    "run_command",
]

# Panels of the help, for commands with many options.
INPUT: Final = "Input"
MODEL: Final = "Model"
DECISION: Final = "Decision"
OUTPUT: Final = "Output"
SPEED: Final = "Speed"
LINE: Final = "Line"

EXIT_BUG = 70
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
EXIT_TERMINATED = 143

EXTRA_OF_PACKAGE: Final[dict[str, str]] = {
    "torch": "train",
    "transformers": "train",
    "peft": "train",
    "accelerate": "train",
    "tensorboard": "train",
    "safetensors": "train",
    "matplotlib": "train",
    "httpx": "train",
    "pycocotools": "train",
    "scipy": "train",
    "onnx": "export",
    "onnxscript": "export",
    "openvino": "openvino",
    "tensorrt": "trt",
    "tensorrt_rtx": "trt-check",
    "tensorrt_rtx_bindings": "trt-check",
    "tensorrt_rtx_libs": "trt-check",
    "cuda": "trt",
    "pynvml": "gpu",
    "imagecodecs": "images",
    "av": "video",
    "vllm": "vllm",
    "pycuda": "pycuda",
    "paho": "line",
    "asyncua": "line",
    "pymodbus": "line",
    "fastapi": "web",
    "uvicorn": "web",
    "starlette": "web",
    "python_multipart": "web",
    "prometheus_client": "web",
    "huggingface_hub": "hub",
    "pandas": "pandas",
    "ray": "scale",
    "pyarrow": "scale",
    "fsspec": "scale",
    "deepspeed": "deepspeed",
}
"""Name one imports -> the extra of pyproject.toml that brings it."""

_BASE_PACKAGES = ("cv2", "numpy", "onnxruntime", "pydantic", "rich", "tokenizers", "yaml")


class Terminated(KeyboardInterrupt):
    """SIGTERM, as ``run_command`` raises it: whatever tidies up after Ctrl-C does so here."""


def interrupt_code(error: BaseException) -> int:
    """130 for Ctrl-C, 143 for SIGTERM, also where Typer's Abort stands in front of it."""
    return EXIT_TERMINATED if isinstance(error, Terminated) or isinstance(error.__cause__, Terminated) else EXIT_INTERRUPTED


def _missing_package(error: ModuleNotFoundError) -> SetupError | None:
    """The error to show for a package that is not installed; None where the module is none of our dependencies (a bug)."""
    package = (error.name or "").partition(".")[0]
    if package in EXTRA_OF_PACKAGE:
        return SetupError(f"{package} is not installed: pip install 'agvas[{EXTRA_OF_PACKAGE[package]}]'")
    if package in _BASE_PACKAGES:
        return SetupError(f"{package} is not installed though agvas needs it everywhere: pip install --force-reinstall agvas")
    return None


@contextmanager
def needs_packages() -> Iterator[None]:
    """Around an import of an extra's package: where it is not installed, SetupError names the extra.

    A module that is none of our dependencies stays ModuleNotFoundError: that is a bug.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (missing := _missing_package(error)) is None:
            raise
        raise missing from error


def exit_code_of(load: Callable[[], Any], *, name: str, arguments: Sequence[str], examples: Sequence[str] = ()) -> int:
    """Runs a command to its end and says how it ended; failures are printed on stderr as ``name: message``.

    Args:
        load: returns the ``typer.Typer``, command or plain function to run. It is called here, so that a package which its
            module needs and which is missing is reported like any other failure.
        name: what the user typed, ``agvas-run`` or ``agvas train``.
        arguments: what followed it.
        examples: command lines that the end of the help shows.
    """
    try:
        with needs_packages():
            return _invoke(prepared(load(), examples), name, list(arguments))
    except AgvasError as error:
        _complain(name, error)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort) as error:
        code = interrupt_code(error)
        print(f"{name}: {'terminated' if code == EXIT_TERMINATED else 'interrupted'}", file=sys.stderr)
        return code
    except (BrokenPipeError, SystemExit) as error:
        # Typer turns a broken pipe into exit code 1, which means something else here.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        # The interpreter flushes stdout once more at exit, and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except BaseException:  # the last stop before the shell, where Python's own exit code would be 1; Rust panics are no Exception
        return _bug(name)


def printable(text: str) -> str:
    """Text of foreign origin without what could steer a terminal or cannot be encoded: control characters, broken Unicode."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def run_command(load: Callable[[], Any], *, name: str, examples: Sequence[str] = ()) -> NoReturn:
    """The whole of a ``main()``: runs the command with the arguments of this process and leaves with its exit code."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _raise_terminated)
    sys.exit(exit_code_of(load, name=name, arguments=sys.argv[1:], examples=examples))


def _raise_terminated(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_DFL)  # a second SIGTERM ends the process at once
    raise Terminated


MANY_OPTIONS: Final = 10
"""A command with more options than this can read them from a file."""

# Options that users of other tools type, and what does it here; said where the command has the second one.
_OTHER_OPTIONS: Final = {
    **dict.fromkeys(("--device", "--gpu", "--cuda"), ("--backend", "--backend ort-cuda runs on an NVIDIA GPU")),
    **dict.fromkeys(("--source", "--input"), ("--camera", "files and folders are given without an option")),
    **dict.fromkeys(("--weights", "--bundle"), ("--model", "the model is chosen with --model NAME or FOLDER")),
    **dict.fromkeys(("--conf", "--confidence"), ("--threshold", "the threshold of scores is --threshold")),
    **dict.fromkeys(("--output", "--project"), ("--out", "the folder of the results is --out DIR")),
}


def prepared(command: Any, examples: Sequence[str] = ()) -> Any:
    """The click command of a function or a ``typer.Typer``: with examples at the end of its help, and with ``--config`` where it has many
    options."""
    if not isinstance(command, typer.Typer) and not hasattr(command, "make_context"):
        function, command = command, typer.Typer(add_completion=False, rich_markup_mode="rich")
        command.command()(function)
    if isinstance(command, typer.Typer):
        command = typer.main.get_command(command)
    if examples:
        command.epilog = "\n\n".join(("Examples:", *examples))
    for one in _leaves(command):
        one.help = one.help and _SOFT_BREAK.sub(" ", one.help)  # rich keeps the line breaks of a docstring
        options = [param for param in one.params if param.param_type_name == "option"]
        if len(options) > MANY_OPTIONS and all(param.name != "config" for param in options):
            one.params.append(_config_option())
    return command


_SOFT_BREAK: Final = re.compile(r"(?<!\n)\n(?!\n)")


def _leaves(command: Any) -> list[Any]:
    """The command itself, or those of a group."""
    below = getattr(command, "commands", None)
    return [command] if below is None else [leaf for one in below.values() for leaf in _leaves(one)]


_CONFIG_FILE: Final = "agvas.config"


def _config_option() -> Any:
    app = typer.Typer(add_completion=False)

    @app.command()
    def _(
        config: Annotated[
            Path | None,
            typer.Option(
                "--config",
                metavar="FILE.yaml",
                is_eager=True,
                expose_value=False,
                callback=_read_config,
                help="Take options from a file, key by option name; the command line goes before it.",
            ),
        ] = None,
    ) -> None: ...

    return typer.main.get_command(app).params[0]


def _read_config(context: typer.Context, path: Path | None) -> None:
    """Makes the options of the file the defaults of this command."""
    if path is None or context.resilient_parsing:
        return
    options = {
        name.lstrip("-"): param
        for param in context.command.params
        if param.param_type_name == "option" and param.name not in ("config", "help", "version")
        for name in param.opts
        if name.startswith("--")
    }
    found: dict[str, Any] = {}
    for key, value in _config_table(path).items():
        param = options.get(key.replace("_", "-"))
        if param is None:
            from agvas_core.contract.validation import did_you_mean

            raise UsageError(
                f"--config {path} has {key!r}, which is no option of {context.command_path}{did_you_mean(key, options)}"
            )
        found[param.name] = _config_value(path, key, value, param)
    context.meta[_CONFIG_FILE] = path
    context.default_map = {**(context.default_map or {}), **found}


def _config_table(path: Path) -> dict[str, Any]:
    import yaml

    try:
        # Every value stays the text that stands there, as on the command line: `off` is no truth value, and 007 no 7.
        table = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise UsageError(f"--config {path} cannot be read ({error.strerror}): check the path") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(
            f"--config {path} is no YAML ({' '.join(str(error).split())}): write option: value, one a line"
        ) from error
    if not isinstance(table, dict):
        raise UsageError(f"--config {path} has no options: write option: value, one a line")
    return {str(key): value for key, value in table.items()}


def _config_value(path: Path, key: str, value: Any, param: Any) -> Any:
    """The value as the command line would have given it."""
    several = param.multiple or param.nargs != 1
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(each, str) for each in values) or (isinstance(value, list) and not several):
        takes = "a list of values" if several else "one value"
        raise UsageError(f"--config {path} has {value!r} for {key}; it takes {takes}")
    return values if several else value


def _invoke(command: Any, name: str, arguments: list[str]) -> int:
    # Typer carries a click of its own since 0.26 and uses the real one before: this finds the class in both.
    usage_error: type[Any] = next(parent for parent in typer.BadParameter.__mro__ if parent.__name__ == "ClickException")
    try:
        # What `command.main` does, less its handling of Ctrl-C: that is Abort in some releases and exit code 130, whatever the signal, in others.
        with command.make_context(name, arguments) as context:
            code = command.invoke(context)
    except typer.Exit as error:
        return int(error.exit_code)
    except usage_error as error:
        option = str(getattr(error, "option_name", ""))
        other, hint = _OTHER_OPTIONS.get(option, ("", ""))
        where = getattr(error, "ctx", None)
        if hint and any(other in param.opts for param in getattr(where, "command", command).params):
            raise UsageError(f"there is no option {option}: {hint}") from error
        error.show()
        if where is not None and (file := where.meta.get(_CONFIG_FILE)):
            print(f"{name}: options were also read from {file}", file=sys.stderr)
        return int(error.exit_code)
    return code if isinstance(code, int) else EXIT_OK


def _complain(name: str, error: AgvasError) -> None:
    print(f"{name}: {printable(' '.join(str(error).splitlines()))}", file=sys.stderr)


def _bug(name: str) -> int:
    traceback.print_exc()
    print(f"{name}: this is a bug in agvas; please report it with the lines above", file=sys.stderr)
    return EXIT_BUG

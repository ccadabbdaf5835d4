"""The ``agvas`` command and the way that all commands end."""

import itertools
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import typer

from agvas_core.command import build, summary
from agvas_core.contract.command_line import EXTRA_OF_PACKAGE, exit_code_of
from agvas_core.contract.errors import OutputError, ParityError, SourceError, UsageError

NUMBERS = itertools.count()
Plugin = Callable[[str], EntryPoint]


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plugin:
    """``plugin(source)``: an entry point of a package whose module ``tool`` has that source and a function ``work``."""

    def write(source: str) -> EntryPoint:
        package = f"agvas_plugin_{next(NUMBERS)}"  # modules stay imported from test to test
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
        (tmp_path / package / "tool.py").write_text(source)
        return EntryPoint("work", f"{package}.tool:work", "agvas.commands")

    monkeypatch.syspath_prepend(tmp_path)
    return write


def agvas(entry: EntryPoint, *arguments: str) -> int:
    return exit_code_of(lambda: build([entry]), name="agvas", arguments=arguments)


def test_help_lists_subcommands_without_importing_them(plugin: Plugin, capsys: pytest.CaptureFixture[str]) -> None:
    entry = plugin('import torch_is_not_here\ndef work() -> None:\n    """Does the work.\n\n    At length."""\n')
    assert agvas(entry, "--help") == 0
    shown = capsys.readouterr().out
    assert "work" in shown and "Does the work." in shown and "At length" not in shown


def test_a_broken_subcommand_does_not_take_the_others_along(plugin: Plugin, capsys: pytest.CaptureFixture[str]) -> None:
    entry = plugin("def work(:\n")
    assert agvas(entry, "--help") == 0
    assert "work" in capsys.readouterr().out


def test_arguments_and_exit_code_pass_through(plugin: Plugin, capsys: pytest.CaptureFixture[str]) -> None:
    source = "import typer\ndef work(name: str, count: int = 1) -> None:\n    print(name, count)\n    raise typer.Exit(4)\n"
    assert agvas(plugin(source), "work", "part", "--count", "3") == 4
    assert capsys.readouterr().out == "part 3\n"


def test_a_subcommand_explains_itself(plugin: Plugin, capsys: pytest.CaptureFixture[str]) -> None:
    assert agvas(plugin('def work(name: str) -> None:\n    """Does the work."""\n'), "work", "--help") == 0
    assert "agvas work" in capsys.readouterr().out


@pytest.mark.parametrize(("package", "extra"), [("torch", "train"), ("onnxscript", "export"), ("paho.mqtt", "line")])
def test_a_missing_package_names_its_extra(package: str, extra: str, plugin: Plugin, capsys: pytest.CaptureFixture[str]) -> None:
    entry = plugin(f"raise ModuleNotFoundError('not there', name={package!r})\n")
    assert agvas(entry, "work") == 3
    said = capsys.readouterr().err
    assert said == f"agvas work: {package.partition('.')[0]} is not installed: pip install 'agvas[{extra}]'\n"


def test_the_extras_that_are_named_exist() -> None:
    with (Path(__file__).parents[2] / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    assert set(EXTRA_OF_PACKAGE.values()) <= extras.keys()
    for package, extra in EXTRA_OF_PACKAGE.items():
        names = " ".join(extras[extra]).lower().replace("-", "_")
        # What is imported under another name than it is installed by, and what comes with another package.
        distribution = {"pynvml": "nvidia_ml_py", "starlette": "fastapi"}.get(package, package)
        distribution = distribution.replace("tensorrt_rtx", "tensorrt_rtx_cu13") if extra == "trt-check" else distribution
        assert distribution.lower() in names, f"{package} does not come with agvas[{extra}]"


@pytest.mark.parametrize(
    ("error", "code"), [(UsageError("a"), 2), (OutputError("b"), 3), (ParityError("c"), 4), (SourceError("d"), 5)]
)
def test_our_errors_are_one_line_and_their_exit_code(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise error

    assert exit_code_of(lambda: work, name="agvas-run", arguments=[]) == code
    assert capsys.readouterr().err == f"agvas-run: {error}\n"


def test_a_bug_has_its_traceback_and_is_not_taken_for_a_reject(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise ZeroDivisionError("ours")

    assert exit_code_of(lambda: work, name="agvas-run", arguments=[]) == 70
    said = capsys.readouterr().err
    assert "Traceback" in said and "report it" in said


def test_a_missing_module_that_is_no_dependency_is_a_bug(plugin: Plugin, capsys: pytest.CaptureFixture[str]) -> None:
    assert agvas(plugin("import agvas_core.no_such_room\n"), "work") == 70
    assert "no_such_room" in capsys.readouterr().err


def test_an_interrupt_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise KeyboardInterrupt

    assert exit_code_of(lambda: work, name="agvas-run", arguments=[]) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["work", "--bogus"], ["wrok"], ["--bogus"]])
def test_wrong_usage_is_2(arguments: list[str], plugin: Plugin, capsys: pytest.CaptureFixture[str]) -> None:
    assert agvas(plugin("def work() -> None:\n    pass\n"), *arguments) == 2
    assert capsys.readouterr().err


def test_a_typer_app_is_a_subcommand_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer()

    @app.command()
    def work(name: str) -> None:
        print(name)

    assert exit_code_of(lambda: app, name="agvas work", arguments=["part"]) == 0
    assert capsys.readouterr().out == "part\n"


def test_the_summary_of_a_module_that_is_nowhere_is_empty() -> None:
    assert summary(EntryPoint("work", "agvas_plugin_nowhere.tool:work", "agvas.commands")) == ""


def test_agvas_help_leaves_torch_unimported() -> None:
    code = (
        "import sys; sys.argv = ['agvas', '--help']\n"
        "from agvas_core.command import main\n"
        "try:\n    main()\n"
        "finally:\n    print('torch' in sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "False\n"
    assert "Usage: agvas" in done.stdout


def test_a_dot_in_a_name_makes_a_group(plugin: Plugin, capsys: pytest.CaptureFixture[str]) -> None:
    first = plugin('def work(name: str) -> None:\n    """Does the work."""\n    print(name)\n')
    entries = [
        EntryPoint("parts.work", first.value, first.group),
        EntryPoint("parts.broken", "agvas_plugin_nowhere.tool:work", first.group),
    ]
    for arguments, shown in (
        (["--help"], "parts"),
        (["parts", "--help"], "Does the work."),
        (["parts", "work", "--help"], "agvas parts work"),
        (["parts", "work", "bolt"], "bolt"),
    ):
        assert exit_code_of(lambda: build(entries), name="agvas", arguments=arguments) == 0
        assert shown in capsys.readouterr().out
    assert exit_code_of(lambda: build(entries), name="agvas", arguments=["parts", "wrok"]) == 2

"""The ``agvas`` command and the way that all commands end."""

import itertools
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from agvas.cli import VERBS, Verb, build
from agvas_core.contract.command_line import EXTRA_OF_PACKAGE, MANY_OPTIONS, exit_code_of, prepared
from agvas_core.contract.errors import OutputError, ParityError, SourceError, UsageError

NUMBERS = itertools.count()
Plugin = Callable[..., Verb]


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plugin:
    """``plugin(source)``: a row for a package whose module ``tool`` has that source and a function ``work``."""

    def write(source: str, name: str = "work", **row: Any) -> Verb:
        package = f"agvas_plugin_{next(NUMBERS)}"  # modules stay imported from test to test
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
        (tmp_path / package / "tool.py").write_text(source)
        return Verb(name, f"{package}.tool:work", "Tools", "Does the work.", **{"examples": ("agvas work",), **row})

    monkeypatch.syspath_prepend(tmp_path)
    return write


def agvas(verb: Verb, *arguments: str) -> int:
    return exit_code_of(lambda: build((verb,)), name="agvas", arguments=arguments)


def test_help_lists_verbs_without_importing_them(plugin: Plugin, capsys: pytest.CaptureFixture[str]) -> None:
    assert agvas(plugin("import torch_is_not_here\n"), "--help") == 0
    shown = capsys.readouterr().out
    assert "work" in shown and "Does the work." in shown and "Tools" in shown


def test_a_broken_subcommand_does_not_take_the_others_along(plugin: Plugin, capsys: pytest.CaptureFixture[str]) -> None:
    entry = plugin("def work(:\n")
    assert agvas(entry, "--help") == 0
    assert "work" in capsys.readouterr().out


def test_arguments_and_exit_code_pass_through(plugin: Plugin, capsys: pytest.CaptureFixture[str]) -> None:
    source = "import typer\ndef work(name: str, count: int = 1) -> None:\n    print(name, count)\n    raise typer.Exit(4)\n"
    assert agvas(plugin(source), "work", "part", "--count", "3") == 4
    assert capsys.readouterr().out == "part 3\n"


def test_a_subcommand_explains_itself(plugin: Plugin, capsys: pytest.CaptureFixture[str]) -> None:
    verb = plugin('def work(name: str) -> None:\n    """Does it.\n\n    At\n    length."""\n', examples=("agvas work bolt",))
    assert agvas(verb, "work", "--help") == 0
    shown = capsys.readouterr().out
    assert "Usage: agvas work" in shown and "At length." in shown and shown.rstrip().endswith("agvas work bolt")


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


def test_agvas_help_leaves_torch_unimported() -> None:
    code = (
        "import sys; sys.argv = ['agvas', '--help']\n"
        "from agvas.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    print('torch' in sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "False\n"
    assert "Usage: agvas" in done.stdout


def test_the_package_is_light_until_a_name_is_used() -> None:
    code = "import sys, agvas; print({'cv2', 'numpy', 'onnxruntime'} & set(sys.modules), agvas.SegmentOptions().model)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set() nano\n"


def test_two_words_make_a_group(plugin: Plugin, capsys: pytest.CaptureFixture[str]) -> None:
    first = plugin('def work(name: str) -> None:\n    """Does the work."""\n    print(name)\n', "parts work")
    verbs = (first, plugin("def work(:\n", "parts broken"))
    for arguments, shown in (
        (["--help"], "parts"),
        (["parts", "--help"], "Does the work."),
        (["parts", "work", "--help"], "agvas parts work"),
        (["parts", "work", "bolt"], "bolt"),
    ):
        assert exit_code_of(lambda: build(verbs), name="agvas", arguments=arguments) == 0
        assert shown in capsys.readouterr().out
    assert exit_code_of(lambda: build(verbs), name="agvas", arguments=["parts", "wrok"]) == 2
    assert "did you mean agvas parts work?" in capsys.readouterr().err


# --- the table of verbs


def verb_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert exit_code_of(build, name="agvas", arguments=[*arguments, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_verb_explains_itself(verb: Verb, capsys: pytest.CaptureFixture[str]) -> None:
    shown = " ".join(verb_help(verb.name.split(), capsys).split())
    assert f"Usage: agvas {verb.name}" in shown
    assert verb.examples and all(" ".join(example.split()[:3]) in shown for example in verb.examples)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if len(verb.name.split()) == 1], ids=lambda verb: verb.name)
def test_a_command_with_many_options_has_panels_and_takes_them_from_a_file(verb: Verb) -> None:
    command = prepared(verb.load())
    for name, one in getattr(command, "commands", {verb.name: command}).items():
        options = [param for param in one.params if param.param_type_name == "option" and param.name != "config"]
        many = len(options) > MANY_OPTIONS
        assert any(param.name == "config" for param in one.params) == many, name
        alone = [param.name for param in options if getattr(param, "rich_help_panel", None) is None and param.name != "version"]
        assert alone == [] or not many, f"{name}: these options have no panel"


def test_a_verb_stands_once_in_the_table() -> None:
    assert len({verb.name for verb in VERBS}) == len({verb.place for verb in VERBS}) == len(VERBS)


def test_examples_use_options_that_exist() -> None:
    for verb in VERBS:
        command = prepared(verb.load(), verb.examples)
        groups = getattr(command, "commands", None)
        lines = verb.examples if groups is None else [line for one in groups.values() for line in one.epilog.split("\n\n")[1:]]
        for line in lines:
            first, *rest = line.removeprefix(f"agvas {verb.name} ").split() if groups else ("", *line.split())
            known = {option for param in (groups[first] if groups else command).params for option in param.opts}
            assert {word for word in rest if word.startswith("-")} <= known, line


def test_text_of_a_help_is_no_markup() -> None:
    for verb in VERBS:
        command = prepared(verb.load(), verb.examples)
        for one in getattr(command, "commands", {"": command}).values():
            texts = [one.help, one.epilog, *(getattr(param, "help", "") for param in one.params)]
            assert not [text for text in texts if text and "[" in text], "rich takes what stands in brackets for markup"


@pytest.mark.parametrize(
    ("typed", "meant"), [("rnu", "agvas run"), ("predict", "agvas run"), ("calibrat", "agvas calibrate"), ("test", "agvas eval")]
)
def test_an_unknown_verb_names_the_nearest(typed: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(build, name="agvas", arguments=[typed, "parts"]) == 2
    said = capsys.readouterr().err
    assert typed in said and meant in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [("agvas ru", {"run"}), ("agvas recipe li", {"lint", "list"}), ("agvas run --thre", {"--threads", "--threshold"})],
)
def test_a_shell_completes_verbs_and_options(words: str, expected: set[str]) -> None:
    asked = {"_AGVAS_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = subprocess.run(
        [sys.executable, "-c", "from agvas.cli import main; main()"], env=os.environ | asked, capture_output=True, text=True
    )
    assert set(done.stdout.split()) == expected, done.stderr


# --- options from a file


def listing(
    parts: list[str],
    one: int = 1,
    two: float = 0.5,
    three: Annotated[bool, typer.Option("--three")] = False,
    four: str | None = None,
    five_words: Annotated[list[str] | None, typer.Option("--five-word")] = None,
    pair: tuple[Path, Path] | None = None,
    six: int = 0,
    seven: int = 0,
    eight: int = 0,
    nine: int = 0,
    ten: int = 0,
) -> None:
    print(parts, one, two, three, four, five_words, pair and [str(path) for path in pair])


@pytest.fixture
def configured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """``configured(yaml, *arguments)``: exit code, and what was printed."""

    def run(text: str, *arguments: str) -> tuple[int, str]:
        (tmp_path / "file.yaml").write_text(text, encoding="utf-8")
        code = exit_code_of(lambda: listing, name="list", arguments=["x", "--config", str(tmp_path / "file.yaml"), *arguments])
        output = capsys.readouterr()
        return code, (output.err if code else output.out).strip()

    return run


def test_a_file_gives_options_and_the_command_line_goes_before_it(configured: Callable[..., tuple[int, str]]) -> None:
    text = "one: 2\ntwo: 0.25\nthree: true\nfour: off\nfive-word: [a, b]\npair: [c, d]\n"
    assert configured(text) == (0, "['x'] 2 0.25 True off ['a', 'b'] ['c', 'd']")
    assert configured(text, "--one", "7", "--five-word", "z") == (0, "['x'] 7 0.25 True off ['z'] ['c', 'd']")
    assert configured("five_word: a\nthree: no\n") == (0, "['x'] 1 0.5 False None ['a'] None")
    assert configured("{}") == (0, "['x'] 1 0.5 False None None None")


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("fuor: x\n", ("'fuor'", "four")),
        ("one: [1, 2]\n", ("one", "['1', '2']")),
        ("four: {a: b}\n", ("four", "{'a': 'b'}")),
        ("- one\n", ("file.yaml",)),
        ("one: [\n", ("file.yaml", "YAML")),
        ("one: two\n", ("--one", "file.yaml")),
        ("config: other.yaml\n", ("'config'",)),
    ],
)
def test_a_file_that_is_wrong_is_refused(text: str, facts: tuple[str, ...], configured: Callable[..., tuple[int, str]]) -> None:
    code, said = configured(text)
    assert code == 2 and all(fact in said for fact in facts)


def test_a_file_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(lambda: listing, name="list", arguments=["x", "--config", "nowhere.yaml"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--device", "--gpu"])
def test_options_of_other_tools_name_ours(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(build, name="agvas", arguments=["run", "parts", option, "cuda"]) == 2
    assert "--backend ort-cuda" in capsys.readouterr().err

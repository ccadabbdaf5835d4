"""What the documents say is so: paths exist, links lead somewhere, commands are understood, the quick start runs."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from agvas.cli import GROUPS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ["README.md", "CONTRIBUTING.md"]
COMMANDS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]

PATH_LIKE = re.compile(r"[\w./-]+")
SOURCE_LIKE = (".py", ".md", ".toml", ".sh", ".txt")  # manifest.json and its kind are files of a bundle or a run, not of ours
WITHOUT_HELP = {"curl", "find", "make", "pip"}

# Help is wrapped to the width of the terminal; options cut in two would not be found.
PLAIN_TERMINAL = {**os.environ, "COLUMNS": "400", "TERM": "dumb", "NO_COLOR": "1", "_TYPER_FORCE_DISABLE_TERMINAL": "1"}


def fenced(document: str, language: str) -> Iterator[str]:
    """The fenced blocks of a document, e.g. every ``bash`` block."""
    text = (ROOT / document).read_text(encoding="utf-8")
    yield from re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(document: str) -> list[str]:
    """The command lines of a document, continued lines joined."""
    lines = "\n".join(fenced(document, "bash")).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def entry(name: str) -> list[str]:
    """How a command of ours is started by this interpreter, whatever the PATH holds."""
    module, _, function = COMMANDS[name].partition(":")
    return [sys.executable, "-c", f"import sys, {module}; sys.argv[0] = {name!r}; sys.exit({module}.{function}())"]


def verb_of(name: str, arguments: list[str]) -> tuple[str, ...]:
    """The words of a command line that say whose help explains it."""
    if name == "agvas-run":
        return ()
    two = name == "agvas" and arguments[0] in (*GROUPS, "export")
    return tuple(word for word in arguments[: 2 if two else 1] if not word.startswith("-"))


@cache
def help_of(name: str, verb: tuple[str, ...]) -> str:
    done = subprocess.run(
        [*entry(name), *verb, "--help"],
        cwd=ROOT,
        env=PLAIN_TERMINAL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{name} {' '.join(verb)} --help: {done.stderr}"
    return "\n".join(line.strip("│* ") for line in done.stdout.splitlines())  # of the panels, what is in them


def required(help_text: str) -> list[str]:
    """The lines of a help text about options that cannot be left out."""
    return [line for line in help_text.splitlines() if line.strip().startswith("-") and line.rstrip().endswith("[required]")]


def words(command: str) -> list[list[str]]:
    """The words of a command line, one list for each part of a pipe."""
    parts: list[list[str]] = [[]]
    for word in shlex.split(command, comments=True):
        if word == "|":
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def runs_here(command: str) -> bool:
    """Whether a command is a run of the bundled model on the bundled pictures, which takes no camera and no training."""
    ours = "agvas-run" in command or "agvas run" in command
    return ours and "examples/parts" in command and "--model" not in command


@pytest.fixture
def folder(root: Path, tmp_path: Path) -> Path:
    """An empty folder with examples/ in it, as a reader of the README sees it, so that no run writes into the checkout."""
    (tmp_path / "examples").symlink_to(root / "examples")
    return tmp_path


@pytest.fixture
def shell(folder: Path) -> dict[str, str]:
    """Environment with the commands of pyproject.toml on the PATH, run by this interpreter."""
    (folder / "bin").mkdir()
    for name in COMMANDS:
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {shlex.join(entry(name))} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    return {**PLAIN_TERMINAL, "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}


def test_every_path_of_the_architecture_exists(root: Path) -> None:
    quoted = re.findall(r"`([^`\n]+)`", (root / "ARCHITECTURE.md").read_text(encoding="utf-8"))
    paths = {word for word in quoted if PATH_LIKE.fullmatch(word) and ("/" in word or word.endswith(SOURCE_LIKE))}
    assert len(paths) > 20, "if the document names this few paths, the pattern above has lost them"
    homes = (root, root / "runtime" / "agvas_runtime")  # short paths are the runtime's
    assert sorted(path for path in paths if not any((home / path).exists() for home in homes)) == []


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "trt_engines/README.md"])
def test_links_and_quoted_documents_exist(root: Path, document: str) -> None:
    text = (root / document).read_text(encoding="utf-8")
    linked = {target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target}
    quoted = {word for word in re.findall(r"`([\w./-]+\.md)`", text)}
    assert sorted(path for path in linked if path and not (root / document).parent.joinpath(path).exists()) == []
    assert sorted(path for path in quoted if not (root / path).exists()) == []


@pytest.mark.parametrize(("document", "command"), [(document, line) for document in DOCUMENTS for line in commands(document)])
def test_documented_commands_are_understood(root: Path, project: dict[str, Any], document: str, command: str) -> None:
    for name, *arguments in words(command):
        assert name in COMMANDS or name in WITHOUT_HELP, f"{document} uses {name!r}; teach this test how to check it"
        if name == "make":
            subprocess.run(["make", "--dry-run", *arguments], cwd=root, check=True, capture_output=True)
        if name == "pip":
            asked = {extra for word in arguments for found in re.findall(r"\[(.+)\]", word) for extra in found.split(",")}
            assert asked <= set(project["project"]["optional-dependencies"])
        if name in COMMANDS:
            shown = help_of(name, verb_of(name, arguments))
            known = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", shown))
            needed = [set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", line)) for line in required(shown)]
            given = {word for word in arguments if re.fullmatch(r"--?[a-zA-Z].*", word)}
            assert given <= known
            assert all(given & names for names in needed), f"{command!r} lacks one of {needed}"


def test_every_command_of_ours_stands_in_the_readme() -> None:
    assert {part[0] for line in commands("README.md") for part in words(line)} >= set(COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize("command", [line for line in commands("README.md") if runs_here(line)])
def test_the_quick_start_runs(folder: Path, shell: dict[str, str], command: str) -> None:
    done = subprocess.run(["sh", "-c", command], cwd=folder, env=shell, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    (results,) = folder.glob("runs/*/results.jsonl")
    pictures = list((folder / "examples/parts").iterdir())
    assert 0 < len(pictures) == len(results.read_text(encoding="utf-8").splitlines())


@pytest.mark.slow
def test_the_readme_learns_a_product_and_judges_parts(folder: Path, shell: dict[str, str]) -> None:
    lines = commands("README.md")
    fit = next(line for line in lines if line.startswith("agvas fit examples/"))
    run = next(line for line in lines if line.startswith("agvas run examples/lid/"))
    for command in (fit, run):
        done = subprocess.run(["sh", "-c", command], cwd=folder, env=shell, capture_output=True, text=True)
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    (results,) = folder.glob("runs/*/results.jsonl")
    verdicts = {
        Path(row["name"]).name: row["verdict"] for row in map(json.loads, results.read_text(encoding="utf-8").splitlines())
    }
    bad = {name: verdict for name, verdict in verdicts.items() if name.startswith("bad")}
    assert len(verdicts) == len(list((folder / "examples/lid/judge").iterdir()))
    assert set(bad.values()) == {"FAIL"}, bad


@pytest.mark.slow
@pytest.mark.parametrize("block", list(fenced("README.md", "python")))
def test_the_python_of_the_readme_runs(folder: Path, block: str) -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", block], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == len(list((folder / "examples/parts").iterdir()))


@pytest.mark.slow
def test_the_report_is_told_about(folder: Path, shell: dict[str, str]) -> None:
    command = ["agvas-run", "examples/parts", "--out", "runs/demo"]
    done = subprocess.run(command, cwd=folder, env=shell, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "runs/demo/report.html" in done.stdout + done.stderr
    report = (folder / "runs/demo/report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", report), "the report must open without a network"

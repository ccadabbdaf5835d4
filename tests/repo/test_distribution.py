"""Promises of pyproject.toml."""

import importlib
import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from agvas_core import __version__
from agvas_core.contract.command_line import EXTRA_OF_PACKAGE
from agvas_core.contract.lmm_folder import VLLM_VERSION

SCRIPTS = {"agvas", "agvas-run", "agvas-export"}


def test_the_three_commands_are_there(project: dict[str, Any]) -> None:
    assert set(project["project"]["scripts"]) == SCRIPTS


def test_every_entry_point_leads_somewhere(project: dict[str, Any]) -> None:
    groups = [project["project"]["scripts"], *project["project"]["entry-points"].values()]
    for name, target in (pair for group in groups for pair in group.items()):
        module, _, attribute = target.partition(":")
        found = getattr(importlib.import_module(module), attribute, None)
        assert callable(found), f"{name} = {target!r} leads to {found!r}"


def test_installed_subcommands_are_those_of_pyproject(project: dict[str, Any]) -> None:
    for group, expected in project["project"]["entry-points"].items():
        installed = {entry.name: entry.value for entry in entry_points(group=group) if entry.dist and entry.dist.name == "agvas"}
        assert installed == expected, "the installed entry points are old: make test installs them again"


def test_the_base_install_has_no_training_packages(project: dict[str, Any]) -> None:
    base = {re.split(r"[<>=\[ ]", line)[0] for line in project["project"]["dependencies"]}
    assert base.isdisjoint({"torch", "transformers", "accelerate", "peft", "onnx", "onnxscript", "matplotlib"})


def test_an_error_names_an_extra_that_exists(project: dict[str, Any]) -> None:
    assert set(EXTRA_OF_PACKAGE.values()) <= set(project["project"]["optional-dependencies"])


def test_vllm_is_pinned_to_the_release_that_the_plugin_is_for(project: dict[str, Any]) -> None:
    assert project["project"]["optional-dependencies"]["vllm"] == [f"vllm=={VLLM_VERSION}"]


def test_the_changelog_tells_of_this_version(root: Path) -> None:
    headings = re.findall(r"^## \[?([^\]\s]+)", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert __version__ in headings


def test_the_version_stands_in_one_place(root: Path, project: dict[str, Any], files: list[Path]) -> None:
    assert "version" in project["project"]["dynamic"]
    source = root / project["tool"]["scikit-build"]["metadata"]["version"]["input"]
    holders = [
        path for path in files if path.suffix == ".py" and re.search(r"^__version__ *=", (root / path).read_text(), re.MULTILINE)
    ]
    assert [root / path for path in holders] == [source]
    # Without this the build would read a version that is not the one Python sees.
    assert re.search(rf'^__version__ = "{re.escape(__version__)}"$', source.read_text(), re.MULTILINE)


@pytest.mark.parametrize("package", ["agvas_core", "agvas_export", "agvas_runtime"])
def test_packages_say_that_they_are_typed(package: str) -> None:
    folder = Path(str(importlib.import_module(package).__file__)).parent
    assert (folder / "py.typed").is_file()

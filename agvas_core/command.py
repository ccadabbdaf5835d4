"""The ``agvas`` command: a list of subcommands, none of which is imported before it is asked for.

Each package brings its own through the entry points of group ``agvas.commands``, so that no package imports another. A dot in a
name makes a group of commands: ``data.check`` is ``agvas data check``.
"""

import ast
import importlib.util
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import NoReturn

import typer

from agvas_core import __version__
from agvas_core.contract.command_line import exit_code_of, run_command

__all__ = ["build", "main", "summary"]

GROUP = "agvas.commands"
GROUP_HELP = {
    "data": "Data sets for training: look at what is there, write instructions for it.",
    "ledger": "The ledger of a line: count it, look at it, take it elsewhere.",
    "recipe": "Recipes: what decides about one product, as a file with versions.",
}

# Everything after the subcommand's name belongs to the subcommand, its --help too.
_PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False, "help_option_names": []}


def build(commands: list[EntryPoint]) -> typer.Typer:
    """The command group over the given entry points."""
    app = typer.Typer(
        name="agvas",
        help="Zero-shot visual anomaly segmentation: data, training, models. To look at pictures, use agvas-run.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
    )

    @app.callback(invoke_without_command=True)
    def top(version: bool = typer.Option(False, "--version", help="Print the version and leave.")) -> None:
        if version:
            print(f"agvas {__version__}")
            raise typer.Exit

    groups: dict[str, typer.Typer] = {}
    for entry in sorted(commands, key=lambda entry: entry.name):
        name, dot, below = entry.name.partition(".")
        if dot and name not in groups:
            groups[name] = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)
            groups[name].callback()(lambda: None)  # without it, a group of one command would be that command
            app.add_typer(groups[name], name=name, help=GROUP_HELP.get(name, ""))
        into = groups[name] if dot else app
        into.command(below or name, help=summary(entry), context_settings=dict(_PASS_ON))(_runner(entry))
    return app


def _runner(entry: EntryPoint) -> Callable[[typer.Context], None]:
    def run(context: typer.Context) -> None:
        raise typer.Exit(exit_code_of(entry.load, name=f"agvas {entry.name.replace('.', ' ')}", arguments=context.args))

    return run


def summary(entry: EntryPoint) -> str:
    """First sentence of a subcommand's docstring, read from the source: importing it may need torch."""
    top, _, rest = entry.module.partition(".")
    found = importlib.util.find_spec(top)
    folders = list(found.submodule_search_locations or []) if found else []
    for folder in map(Path, folders):
        stem = folder.joinpath(*rest.split("."))
        for path in (stem.with_name(stem.name + ".py"), stem / "__init__.py"):
            if path.is_file():
                try:
                    return _docstring(ast.parse(path.read_text(encoding="utf-8")), entry.attr)
                except SyntaxError:  # it says so when it is run; the list of commands is for the others, too
                    return ""
    return ""


def _docstring(module: ast.Module, attribute: str) -> str:
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == attribute]
    text = (ast.get_docstring(functions[0]) if functions else None) or ast.get_docstring(module) or ""
    return text.partition("\n\n")[0].replace("\n", " ")


def main() -> NoReturn:
    """Entry point of ``agvas``."""
    run_command(lambda: build(list(entry_points(group=GROUP))), name="agvas")

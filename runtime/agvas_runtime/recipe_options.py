"""Which options of ``agvas-run`` have no meaning beside ``--recipe``, and which have none without it."""

import typer

from agvas_core.contract.errors import UsageError

__all__ = ["refuse_beside_recipe", "refuse_without_recipe"]


def refuse_beside_recipe(context: typer.Context) -> None:
    """What a recipe decides, or what belongs to a run of files, cannot be given beside it.

    Raises:
        UsageError: it was.
    """
    for name in ("prompt", "mode", "normal_look", "model", "strict", "threshold", "tiling"):
        if _is_given(context, name):
            raise UsageError(
                f"--{name.replace('_', '-')} and --recipe are given, and the recipe says it: write it into the recipe"
            )
    for name in (
        "out",
        "save",
        "overwrite",
        "fail_on_reject",
        "json_lines",
        "every",
        "max_pixels",
        "quiet",
        "verbose",
        "profile",
    ):
        if _is_given(context, name):
            option = {"json_lines": "json"}.get(name, name).replace("_", "-")
            raise UsageError(f"--{option} has no meaning with --recipe, which keeps a ledger in --state: leave it out")


def refuse_without_recipe(context: typer.Context) -> None:
    """What a line alone has.

    Raises:
        UsageError: it was given, and --recipe was not.
    """
    for name in ("state", "station", "trigger", "queue", "sinks", "metrics", "page", "page_host", "log", "check"):
        if _is_given(context, name):
            option = {"sinks": "sink"}.get(name, name.replace("_", "-"))
            raise UsageError(f"--{option} needs --recipe FILE: agvas recipe new PRODUCT makes one")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"

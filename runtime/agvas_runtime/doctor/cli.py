"""``agvas doctor``."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer

from agvas_core import __version__
from agvas_core.contract.errors import UsageError
from agvas_runtime.doctor.finding import Finding, State

__all__ = ["doctor", "examine"]

EXIT_FAULT = 3
SIGN = {State.OK: "ok", State.ABSENT: "-", State.WARN: "!", State.FAULT: "FAULT"}
STYLE = {State.OK: "cyan", State.ABSENT: "dim", State.WARN: "yellow", State.FAULT: "bold red"}


def doctor(
    json_output: Annotated[bool, typer.Option("--json", help="Findings as JSON on stdout.")] = False,
    need: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A backend or extra that must work; may be given several times.")
    ] = None,
) -> None:
    """Say what is installed, which backends would work, and why the others would not.

    Opens no connection and installs nothing. Exit codes: 0 all that is here works, 3 something is broken, or what --need names is not there.
    """
    findings = list(examine())
    named = {finding.name: finding for finding in findings if finding.group in ("backend", "extra")}
    if unknown := [name for name in need or () if name not in named]:
        raise UsageError(f"--need names {unknown[0]!r}; it can be {', '.join(sorted(named))}")
    lacking = [named[name] for name in need or () if named[name].state is not State.OK]
    faults = [finding for finding in findings if finding.state is State.FAULT]
    if json_output:
        facts = {"version": __version__, "ok": not faults and not lacking, "findings": [asdict(finding) for finding in findings]}
        print(json.dumps(facts, indent=2))
    else:
        _print(findings, [*faults, *(one for one in lacking if one not in faults)])
    raise typer.Exit(EXIT_FAULT if faults or lacking else 0)


def examine() -> Iterator[Finding]:
    """Everything that the doctor looks at, in the order in which one thing needs another."""
    from agvas_runtime.doctor.hardware import find_gpus, look_at_hardware
    from agvas_runtime.doctor.packages import look_at_packages

    gpus = find_gpus()
    yield from look_at_hardware(gpus)
    packages = list(look_at_packages())
    yield from packages
    if any(finding.group == "package" and finding.detail.endswith("is not installed") for finding in packages):
        return  # what follows would not even import
    from agvas_runtime.doctor.backends import look_at_backends
    from agvas_runtime.doctor.models import look_at_models
    from agvas_runtime.doctor.tunings import look_at_tunings

    yield from look_at_models()
    yield from look_at_backends(gpus)
    yield from look_at_tunings()


def _print(findings: list[Finding], wrong: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in ("", "what", "", "how it stands"):
        table.add_column(heading)
    group = ""
    for finding in findings:
        detail = Text(finding.detail)
        if finding.remedy and finding.state is not State.OK:
            detail.append(f"\n{finding.remedy}", style="dim")
        shown = "" if finding.group == group else finding.group
        table.add_row(Text(shown, style="bold"), finding.name, Text(SIGN[finding.state], style=STYLE[finding.state]), detail)
        group = finding.group
    console = Console()
    console.print(table)
    for finding in wrong:
        console.print(f"\n{finding.name}: {finding.detail}: {finding.remedy}", style="bold red", markup=False)
    if not wrong:
        console.print("\nAll that is here works.", style="bold")

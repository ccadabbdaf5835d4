"""What is installed: versions against what ``pyproject.toml`` asks for, extra by extra. Nothing is imported."""

import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from agvas_runtime.doctor.finding import Finding, State

__all__ = ["installed", "look_at_packages", "newer_or_same"]

_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*(?P<bounds>[^;]*)(?:;.*extra\s*==\s*[\"'](?P<extra>[\w-]+)[\"'])?"
)
_BOUND = re.compile(r"(>=|==)\s*([\w.]+)")


def look_at_packages(distribution: str = "agvas") -> Iterator[Finding]:
    """The base packages one by one, each extra as a whole."""
    extras: dict[str, list[str]] = {}
    for requirement in requires(distribution) or ():
        found = _REQUIREMENT.match(requirement)
        if found is None or found["name"] == distribution:
            continue
        said = _said(found["name"], found["bounds"])
        if found["extra"] is None:
            state = State.FAULT if said else State.OK
            remedy = "pip install --force-reinstall agvas" if said else ""
            yield Finding("package", found["name"], state, said or f"{installed(found['name'])}", remedy)
        elif found["extra"] != "dev":
            extras.setdefault(found["extra"], []).extend([said] if said else [])
    yield from both_runtimes()
    for extra, lacking in sorted(extras.items()):
        state = State.ABSENT if lacking else State.OK
        yield Finding("extra", extra, state, ", ".join(lacking) or "whole", f"pip install 'agvas[{extra}]'" if lacking else "")


def both_runtimes() -> Iterator[Finding]:
    """The two wheels of ONNX Runtime write the same files: which one answers is chance."""
    wheels = [f"{name} {found}" for name in ("onnxruntime", "onnxruntime-gpu") if (found := installed(name))]
    if len(wheels) == 2:
        yield Finding(
            "package",
            "onnxruntime",
            State.FAULT,
            f"{' and '.join(wheels)} are both installed, and overwrite each other's files",
            "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install the one that is wanted",
        )


def installed(name: str) -> str | None:
    """Version of a distribution; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def newer_or_same(there: str, wanted: str) -> bool:
    """Compares the numbers of two versions, as far as both have any; a local part (``+cpu``) does not count."""
    rows = [[int(part) for part in re.findall(r"\d+", text.partition("+")[0])] for text in (there, wanted)]
    longest = max(map(len, rows))
    ours, theirs = (row + [0] * (longest - len(row)) for row in rows)
    return ours >= theirs


def _said(name: str, bounds: str) -> str:
    """What is wrong with a distribution; empty where nothing is."""
    there = installed(name)
    if there is None:
        return f"{name} is not installed"
    for kind, wanted in _BOUND.findall(bounds):
        fits = newer_or_same(there, wanted) and (kind == ">=" or newer_or_same(wanted, there))
        if not fits:
            return f"{name} is {there}, {kind}{wanted} is needed"
    return ""

"""The bundled models: whole, and what they were compared with."""

from collections.abc import Iterator

from agvas_core.contract.errors import AgvasError
from agvas_runtime.bundle import bundled_names, load_bundle
from agvas_runtime.doctor.finding import Finding, State

__all__ = ["look_at_models"]


def look_at_models() -> Iterator[Finding]:
    """Every hash of every bundled model."""
    names = bundled_names()
    for name in names:
        try:
            yield Finding("model", name, State.OK, f"{load_bundle(name).identity}, every hash compared")
        except AgvasError as error:
            yield Finding("model", name, State.FAULT, str(error), "pip install --force-reinstall agvas")
    if not names:
        yield Finding("model", "nano", State.FAULT, "no bundled model is here", "pip install --force-reinstall agvas")

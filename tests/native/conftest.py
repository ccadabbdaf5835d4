"""The native core as it was built into this environment; these tests fail in CI where it is missing, and skip elsewhere."""

import os
from collections.abc import Iterator
from types import ModuleType

import pytest

from agvas_runtime import native


@pytest.fixture(scope="session", autouse=True)
def core() -> ModuleType:
    """``agvas_runtime._native``."""
    if native.core is None:
        reason = "the native core was not built: install again where there is a C++ compiler (make test does)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return native.core


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def instructions(request: pytest.FixtureRequest, core: ModuleType) -> Iterator[str]:
    """Each instruction set that this machine has."""
    before = core.instructions()
    if not core.use_instructions(request.param):
        pytest.skip(f"this CPU has no {request.param}")
    yield request.param
    core.use_instructions(before)

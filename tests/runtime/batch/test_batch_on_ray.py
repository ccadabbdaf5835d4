"""What a batch promises, with the real Ray: an actor that is killed loses nothing and doubles nothing."""

import importlib.util
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="the extra scale is not installed")

from .conftest import check_rows, rows, start
from .test_batch import kill_a_worker


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'agvas[scale]'")
def test_an_actor_that_is_killed_loses_nothing_and_doubles_nothing(parts: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out, killed = tmp_path / "out", set[int]()
    process = start(parts, "--out", out, "--model", tiny_bundle, "--ray", "--workers", 2, "--threads", 1, "--shard", 4)
    try:
        kill_a_worker(out, process, killed)
        said = process.communicate(timeout=300)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, said
    check_rows(rows(out))

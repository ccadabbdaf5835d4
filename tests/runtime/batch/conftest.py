"""A folder of parts whose verdicts are known, a batch that is done with it, and the command as a user starts it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from agvas_core.contract.command_line import exit_code_of

IMAGES = 40
DONE_SHARD = 20


def start(*arguments: object) -> "subprocess.Popen[str]":
    """``agvas batch`` as a process, to be killed."""
    command = [sys.executable, "-c", "from agvas.cli import main; main()", "batch", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)


def batch_here(*arguments: object) -> int:
    """The command in this process; its workers are processes even so."""
    from agvas_runtime.batch.cli import batch

    return exit_code_of(lambda: batch, name="agvas batch", arguments=[str(one) for one in arguments])


def rows(out: Path) -> list[dict[str, Any]]:
    """All results, by index."""
    import pyarrow.dataset as dataset

    found: list[dict[str, Any]] = dataset.dataset(out / "results", format="parquet").to_table().to_pylist()
    return sorted(found, key=lambda row: row["index"])


def check_rows(found: list[dict[str, Any]]) -> None:
    """Each part once, with the verdict that it deserves."""
    assert [row["index"] for row in found] == list(range(IMAGES))
    verdicts = {Path(row["name"]).stem: row["verdict"] for row in found}
    assert len(verdicts) == IMAGES
    for number in range(IMAGES):
        want = "NO_VERDICT" if number == 1 else "FAIL" if number % 3 == 0 else "PASS"
        assert verdicts[f"part{number}"] == want, number


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 parts in three folders, each third with a dark spot, and one file that is no image."""
    folder = tmp_path_factory.mktemp("batch") / "parts"
    for number in range(IMAGES):
        place = folder / f"shift-{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        image = np.full((64, 64, 3), 210, np.uint8)
        if number % 3 == 0:
            image[20:40, 20:40] = 20
        cv2.imwrite(str(place / f"part{number}.png"), image)
    (folder / "shift-1" / "part1.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="session")
def done(parts: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A batch that was done by two workers; copy it to change it."""
    out = tmp_path_factory.mktemp("batch") / "done"
    assert batch_here(parts, "--out", out, "--model", tiny_bundle, "--workers", 2, "--threads", 1, "--shard", DONE_SHARD) == 0
    return out


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")

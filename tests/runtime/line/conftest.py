"""A line of the tiny bundle, which finds what is dark, and engines whose pace can be told beforehand."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from agvas_runtime.images.frame import Frame
from agvas_runtime.line.ledger.disk_reserve import DiskReserve
from agvas_runtime.line.ledger.ledger import Ledger
from agvas_runtime.line.recipe.file import RecipeVersion, parse_recipe
from agvas_runtime.line.recipe.rules import Judgement
from agvas_runtime.line.station.inspector import Inspection
from agvas_runtime.masks.result import Verdict


class PacedInspector:
    """An engine at the stage boundary that takes a given time; a part is FAIL where its first pixel is dark."""

    identity = "paced@000000000000"
    facts: Mapping[str, Any] = {"engine": "paced"}

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.error: Exception | None = None
        self.may_end = threading.Event()
        """Cleared, it holds the engine up."""
        self.may_end.set()
        self.looked: list[str] = []

    def prepare(self, version: RecipeVersion) -> None:
        """Is always ready."""

    def inspect(self, frame: Frame, version: RecipeVersion) -> Inspection:
        time.sleep(self.seconds)
        self.may_end.wait()
        self.looked.append(frame.name)
        if self.error is not None:
            raise self.error
        assert frame.image is not None
        is_dark = bool(frame.image[0, 0, 0] < 128)
        verdict = Verdict.FAIL if is_dark else Verdict.PASS
        empty = np.zeros(frame.image.shape[:2], np.float32)
        return Inspection(Judgement(verdict, float(is_dark), (), (), empty > 1), empty, "tiny@000000000000", {"total": 1.0})


def small_reserve(folder: Path) -> DiskReserve:
    """Reserves that suit a test."""
    folder.mkdir(parents=True, exist_ok=True)
    return DiskReserve(folder, size_mb=0.1, reserve_mb=0.1, images_reserve_mb=0.1)


def grey(value: int, name: str = "part") -> Frame:
    """A frame of one grey."""
    return Frame(name, 0, image=np.full((8, 8, 3), value, np.uint8))


def write_part(path: Path, picture: np.ndarray) -> None:
    """An RGB picture as a file, its folder made where there is none."""
    path.parent.mkdir(exist_ok=True)
    assert cv2.imwrite(str(path), np.ascontiguousarray(picture[:, :, ::-1]))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "line", reserve=small_reserve(tmp_path / "line")) as ledger:
        yield ledger


@pytest.fixture
def recipe(ledger: Ledger) -> Callable[..., RecipeVersion]:
    """``recipe("deadline_ms: 100")``: a recipe that the ledger knows."""

    def make(*lines: str) -> RecipeVersion:
        version = parse_recipe("\n".join(["product: part", *lines]), "test")
        ledger.know_recipe(version.sha256, version.recipe.product, version.text)
        return version

    return make

"""What a line on a watched folder promises: a batch that is dropped into it at once has real verdicts, however slow the engine is."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from agvas_runtime.line.calibration.part_scores import score_parts
from agvas_runtime.line.ledger.ledger import Ledger
from agvas_runtime.line.recipe.file import RecipeVersion
from agvas_runtime.line.station.inspector import SegmenterInspector
from agvas_runtime.line.station.runner import station_jobs
from agvas_runtime.line.station.source_loop import QueuePolicy, SourceLoop
from agvas_runtime.line.station.station import Station
from agvas_runtime.sources import FolderWatch

from .conftest import PacedInspector
from .test_delivery import until


@pytest.mark.parametrize("policy", [None, QueuePolicy.EVERY, QueuePolicy.BLOCK])
def test_files_wait_in_their_folder_and_the_deadline_of_each_begins_when_it_is_taken_up(
    ledger: Ledger, recipe: Callable[..., RecipeVersion], tmp_path: Path, policy: QueuePolicy | None
) -> None:
    """A hundred files, an engine of 20 ms, a deadline of a second: two seconds of work, and none is late."""
    version, folder, stop = recipe("deadline_ms: 1000"), tmp_path / "incoming", threading.Event()
    folder.mkdir()
    cv2.imwrite(str(tmp_path / "part.png"), np.full((16, 16, 3), 200, np.uint8))
    for number in range(100):
        shutil.copy(tmp_path / "part.png", folder / f"{number:03d}.png")
    station = Station("folder", ledger, PacedInspector(0.02), lambda: version, queue_parts=4)
    feed = SourceLoop(station, ledger, lambda: FolderWatch(folder), policy=policy)
    thread = threading.Thread(target=feed.run, args=(stop,))
    thread.start()
    until(lambda: feed.parts == 100)
    stop.set()
    thread.join()
    station.close()
    assert ledger.read("SELECT verdict, COUNT(*) FROM parts GROUP BY verdict") == [("PASS", 100)]


@pytest.mark.parametrize("source", ["watch:{}", "{}"], ids=["a watched folder", "files"])
def test_a_station_reads_files_of_twelve_bits_as_bright_as_they_are(source: str, tmp_path: Path) -> None:
    folder = tmp_path / "incoming"
    folder.mkdir()
    cv2.imwrite(str(folder / "part.tiff"), np.full((16, 16), 2048, np.uint16))
    named = source.format(folder)
    for bits, wanted in ((12, 128), (None, 8)):
        cameras, files = ([named], []) if named.startswith("watch:") else ([], [named])
        (lane,) = station_jobs(cameras, files, [tmp_path / "recipe.yaml"], bits=bits)
        with lane.open_source() as frames:
            image = next(iter(frames)).image
        assert image is not None and abs(int(image.mean()) - wanted) <= 1


def test_calibration_reads_them_so_too(recipe: Callable[..., RecipeVersion], tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "part.tiff"), np.full((64, 64), 2048, np.uint16))
    version, inspector = recipe("model: nano"), SegmenterInspector()
    inspector.prepare(version)
    seen = [score_parts(tmp_path, inspector, version, lambda _: (0.0,), bits=bits).facts[0].mean for bits in (12, None)]
    assert seen[0] > 10 * seen[1]

"""What a line on a watched folder promises: a batch that is dropped into it at once has real verdicts, however slow the engine is."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from agvas_runtime.line.feed import Feed
from agvas_runtime.line.ledger import Ledger
from agvas_runtime.line.queue_policy import QueuePolicy
from agvas_runtime.line.recipe_file import RecipeVersion
from agvas_runtime.line.station import Station
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
    feed = Feed(station, ledger, lambda: FolderWatch(folder), policy=policy)
    thread = threading.Thread(target=feed.run, args=(stop,))
    thread.start()
    until(lambda: feed.parts == 100)
    stop.set()
    thread.join()
    station.close()
    assert ledger.read("SELECT verdict, COUNT(*) FROM parts GROUP BY verdict") == [("PASS", 100)]

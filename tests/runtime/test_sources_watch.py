"""What a watched folder promises: each file once, and none before it is all there."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from agvas_core.contract.errors import ImageError, SourceError, UsageError
from agvas_runtime.images.frame import Frame
from agvas_runtime.sources import FolderWatch, open_source


def png(value: int) -> bytes:
    noise = np.random.default_rng(value).integers(0, 40, (40, 50, 3))
    return cv2.imencode(".png", (noise + value).astype(np.uint8))[1].tobytes()


def take(frames: Iterator[Frame], count: int) -> list[Frame]:
    return [next(frames) for _ in range(count)]


def test_a_file_that_is_written_slowly_is_taken_once_and_whole(tmp_path: Path) -> None:
    data = png(100)
    (tmp_path / "part-10.png").write_bytes(png(10))
    (tmp_path / "part-2.png").write_bytes(png(2))
    (tmp_path / ".hidden.png").write_bytes(png(3))
    (tmp_path / "later.png.part").write_bytes(png(3))

    def write() -> None:
        with (tmp_path / "slow.png").open("wb") as file:
            for start in range(0, len(data), len(data) // 4):
                file.write(data[start : start + len(data) // 4])
                file.flush()
                time.sleep(0.2)  # several looks, at which it stands still
        (tmp_path / "whole.png").write_bytes(png(50))

    with FolderWatch(tmp_path, look_s=0.02) as source:
        frames = iter(source)
        first = take(frames, 2)
        writer = threading.Thread(target=write)
        writer.start()
        rest = take(frames, 2)
        writer.join()
    assert [Path(frame.name).name for frame in (*first, *rest)] == ["part-2.png", "part-10.png", "slow.png", "whole.png"]
    assert all(frame.error is None for frame in (*first, *rest)) and rest[0].image is not None
    assert np.array_equal(rest[0].image[:, :, ::-1], cv2.imdecode(np.frombuffer(data, np.uint8), 1))
    assert sorted(path.name for path in tmp_path.iterdir())[-1] == "whole.png"


def test_a_file_that_never_becomes_whole_is_an_error_and_one_that_is_replaced_is_another_part(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(png(5)[:-500])
    with FolderWatch(tmp_path, look_s=0.02, patience_s=0.5) as source:
        frames = iter(source)
        (cut,) = take(frames, 1)
        (tmp_path / "cut.png").write_bytes(png(6))
        (again,) = take(frames, 1)
    assert isinstance(cut.error, ImageError) and again.image is not None and cut.trigger != again.trigger


def test_what_an_earlier_run_took_is_not_taken_again_and_a_folder_that_is_gone_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "old.png").write_bytes(png(1))
    with FolderWatch(folder, look_s=0.02) as source:
        key = take(iter(source), 1)[0].trigger
    (folder / "new.png").write_bytes(png(2))
    with FolderWatch(folder, look_s=0.02, known=lambda found: found == key) as source:
        frames = iter(source)
        assert Path(take(frames, 1)[0].name).name == "new.png"
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        with pytest.raises(SourceError, match="cannot be watched"):
            next(frames)


def test_what_may_not_be_looked_at_is_an_error_of_its_own_and_stops_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("b.png")
    (tmp_path / "b.png").symlink_to("a.png")
    (tmp_path / "nowhere.png").symlink_to("gone.png")
    (tmp_path / "whole.png").write_bytes(png(1))
    with FolderWatch(tmp_path, look_s=0.02, patience_s=0.3) as source:
        whole, *others = take(iter(source), 4)
    assert whole.error is None and Path(whole.name).name == "whole.png"
    assert [Path(frame.name).name for frame in others] == ["a.png", "b.png", "nowhere.png"]
    assert all(isinstance(frame.error, ImageError) for frame in others)


def test_a_name_that_is_no_utf8_is_text_in_whatever_is_said_of_the_file(tmp_path: Path) -> None:
    for name, data in ((b"\xe4.png", png(1)), (b"\xf6.png", png(1)), (b"z\xff.png", png(2)[:-500])):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(data)
    with FolderWatch(tmp_path, look_s=0.02, patience_s=0.3) as source:
        frames = take(iter(source), 3)
    for frame in frames:
        f"{frame.name} {frame.trigger} {frame.error}".encode()
    assert len({frame.trigger for frame in frames}) == 3 and isinstance(frames[2].error, ImageError)


def test_subfolders_are_watched_also_those_that_come_later(tmp_path: Path) -> None:
    (tmp_path / "2026-11-30").mkdir()
    (tmp_path / "2026-11-30" / "a.png").write_bytes(png(1))
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.png").write_bytes(png(9))
    (tmp_path / "2026-11-30" / "circle").symlink_to(tmp_path)
    with FolderWatch(tmp_path, look_s=0.02) as source:
        frames = iter(source)
        first = take(frames, 1)
        (tmp_path / "2026-12-01" / "camera 2").mkdir(parents=True)
        (tmp_path / "2026-12-01" / "camera 2" / "a.png").write_bytes(png(2))
        second = take(frames, 1)
    assert [Path(frame.name).relative_to(tmp_path).parts[0] for frame in (*first, *second)] == ["2026-11-30", "2026-12-01"]


@pytest.mark.parametrize("way", ["moved over", "written over"])
def test_pictures_that_are_overwritten_while_another_is_judged_are_counted(tmp_path: Path, way: str) -> None:
    path = tmp_path / "latest.png"
    path.write_bytes(png(1))
    with FolderWatch(tmp_path, look_s=0.02) as source:
        frames = iter(source)
        take(frames, 1)
        for value in (2, 3, 4):  # nobody takes frames meanwhile
            if way == "moved over":
                (tmp_path / "new.tmp").write_bytes(png(value))
                (tmp_path / "new.tmp").replace(path)
            else:
                path.write_bytes(png(value))
            time.sleep(0.3)
        (last,) = take(frames, 1)
        assert last.image is not None
        assert np.array_equal(last.image[:, :, ::-1], cv2.imdecode(np.frombuffer(png(4), np.uint8), 1))
        assert source.dropped == 2


def test_a_watched_folder_is_a_source_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    source = open_source(f"watch:{tmp_path}", limit=1)
    (frame,) = source
    assert frame.image is not None
    with pytest.raises(UsageError, match="is no folder"):
        open_source(f"watch:{tmp_path / 'none'}")

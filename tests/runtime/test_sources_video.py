"""What video files promise: every frame, and one frame with an error where frames are missing."""

import os
import re
import sys
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError, SetupError
from agvas_runtime.sources import VideoSource, open_source, prefetch
from agvas_runtime.sources.grabber import RtspGrabber

CASES = Path(__file__).parents[3] / "shared" / "cases"
cases = pytest.mark.skipif(not CASES.is_dir(), reason="needs the inputs from the field in ../shared/cases")
FRAMES = 40
# Container and codec pairs that OpenCV's wheel can write everywhere.
KINDS = {
    "clip.avi": "MJPG",
    "clip.mp4": "mp4v",
    "clip.mkv": "MJPG",
    "clip.webm": "VP80",
    "clip.mov": "MJPG",
    "clip.mpg": "MPG1",
    "clip.ts": "MPG1",
}
STREAMS = ["clip.mpg", "clip.ts"]  # these announce no count


def grey(number: int) -> int:
    return 20 + 5 * number


def write_video(path: Path, codec: str, frames: int = FRAMES) -> Path:
    """Frame n is grey 20 + 5 n with a red upper half, over noise that gives it a size in bytes."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 25, (96, 64))
    assert writer.isOpened(), f"{codec} cannot be written here"
    noise = np.random.default_rng(3).integers(-8, 9, (frames, 64, 96, 1))
    for number in range(frames):
        bgr = np.full((64, 96, 3), grey(number))
        bgr[:32] = (0, 0, 230)
        writer.write(np.clip(bgr + noise[number], 0, 255).astype(np.uint8))
    writer.release()
    return path


def numbers_shown(images: list[NDArray[np.uint8] | None]) -> list[int]:
    """The frame number that each picture shows, from its grey."""
    return [round((float(image[40:].mean()) - 20) / 5) for image in images if image is not None]


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_of_a_video_is_given_once_and_in_rgb(tmp_path: Path, name: str) -> None:
    source = open_source(write_video(tmp_path / name, KINDS[name]))
    assert source.total == (None if name in STREAMS else FRAMES)
    frames = list(source)
    assert [frame.name for frame in frames] == [f"{tmp_path}/{name}#{number:06d}" for number in range(FRAMES)]
    assert [frame.index for frame in frames] == list(range(FRAMES))
    assert all(frame.error is None and frame.path == tmp_path / name for frame in frames)
    np.testing.assert_allclose(numbers_shown([frame.image for frame in frames]), range(FRAMES), atol=1)
    assert frames[0].image is not None
    np.testing.assert_allclose(frames[0].image[:24].mean((0, 1)), [230, 0, 0], atol=16)


@pytest.mark.parametrize("name", ["clip.avi", "clip.mkv", "clip.webm"])
def test_a_video_cut_short_gives_its_frames_then_one_error_and_the_run_goes_on(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, KINDS[name])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    after = tmp_path / "after.png"
    cv2.imwrite(str(after), np.zeros((4, 4, 3), np.uint8))
    *given, broken, last = open_source([path, after])
    assert 10 < len(given) < FRAMES and all(frame.error is None for frame in given[:-1])  # the last one may be cut
    assert isinstance(broken.error, ImageError) and broken.image is None
    assert broken.name == f"{path}#{len(given):06d}"
    assert f"gave {len(given)} of {FRAMES} frames" in str(broken.error)
    assert last.name == str(after) and last.image is not None
    assert [frame.index for frame in (*given, broken, last)] == list(range(len(given) + 2))


@pytest.mark.parametrize("name", KINDS)
def test_a_video_damaged_in_the_middle_ends_with_an_error(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, KINDS[name])
    data = bytearray(path.read_bytes())
    middle, length = len(data) // 2, len(data) // 8
    data[middle : middle + length] = bytes(length)
    path.write_bytes(data)
    frames = list(open_source(path))
    whole = [frame for frame in frames if frame.error is None]
    assert 10 < len(whole) < FRAMES
    if len(frames) != FRAMES or name in STREAMS:  # else each damaged frame has its own error
        found = re.search(r"gave (\d+) of \d+ frames", str(frames[-1].error))
        assert found and int(found[1]) == len(frames) - 1
    # What has no error shows what was written, one frame behind the other.
    shown = numbers_shown([frame.image for frame in whole])
    assert all(a < b + 2 for a, b in pairwise(shown))


@cases
def test_frames_whose_size_changes_keep_each_its_own() -> None:
    frames = list(VideoSource(CASES / "size_change.ts"))
    assert [frame.image.shape[:2] for frame in frames if frame.image is not None] == [(240, 320)] * 20 + [(480, 640)] * 20


@cases
def test_a_trimmed_video_has_the_frames_that_a_player_shows() -> None:
    video = VideoSource(CASES / "editlist.mp4")
    assert video.total == 24
    assert [frame.error for frame in video] == [None] * 24


@cases
def test_av1_is_read_or_its_codec_is_said_to_be_missing() -> None:
    frames = list(VideoSource(CASES / "av1.mp4"))
    assert len(frames) == 30 and all(frame.error is None for frame in frames)


def test_a_codec_that_nobody_knows_is_said_to_be_missing(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.avi", "MJPG", 5)
    path.write_bytes(path.read_bytes().replace(b"MJPG", b"QQ9Z"))
    (frame,) = open_source(path)
    assert "codec" in str(frame.error)


def test_what_is_no_video_is_one_frame_with_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, content, reason in (
        ("text.mp4", b"this is a note", "not a video"),
        ("empty.avi", b"", r"0 bytes"),
        ("noise.mkv", bytes(range(256)) * 20, "not a video"),
    ):
        (tmp_path / name).write_bytes(content)
        source = open_source(tmp_path / name)
        assert source.total == 1
        (frame,) = source
        assert isinstance(frame.error, ImageError) and reason in str(frame.error) and name in str(frame.error)
    (tmp_path / "folder.mp4").mkdir()
    (frame,) = VideoSource(tmp_path / "folder.mp4")
    assert "cannot be opened" in str(frame.error)
    assert capfd.readouterr().err == ""


def test_a_cut_mp4_whose_index_is_gone_is_an_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", "mp4v")
    path.write_bytes(path.read_bytes()[:-2000])
    (frame,) = open_source(path)
    assert frame.error is not None


def test_every_runs_on_across_images_and_videos(tmp_path: Path) -> None:
    first, clip, last = tmp_path / "a.png", write_video(tmp_path / "b.avi", "MJPG", 10), tmp_path / "c.png"
    for path in (first, last):
        cv2.imwrite(str(path), np.zeros((4, 4, 3), np.uint8))
    source = open_source([first, clip, last], every=4)
    # Items: 0 is a.png, 1 to 10 are the frames 0 to 9 of the clip, 11 is c.png.
    assert [frame.name for frame in source] == [str(first), f"{clip}#000003", f"{clip}#000007"]
    assert source.total == 3
    np.testing.assert_allclose(numbers_shown([frame.image for frame in source][1:]), [3, 7], atol=1)
    assert VideoSource(clip, every=4, skip=3).total == 2


def test_frames_beyond_the_pixel_cap_are_one_error(tmp_path: Path) -> None:
    (frame,) = open_source(write_video(tmp_path / "a.avi", "MJPG", 5), max_pixels=1000)
    assert "96x64 px" in str(frame.error) and "--max-pixels 6144" in str(frame.error)


def test_a_video_left_early_can_be_read_again(tmp_path: Path) -> None:
    source = prefetch(open_source(write_video(tmp_path / "a.avi", "MJPG")), depth=2)
    for frame in source:
        if frame.index == 5:
            break
    assert len(list(source)) == FRAMES
    source.close()


def test_a_pipe_or_device_named_like_a_video_is_one_error_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").symlink_to("/dev/zero")
    source = open_source([tmp_path / "a.mp4", tmp_path / "b.mp4"])
    assert source.total == 2
    errors = [str(frame.error) for frame in source]
    assert len(errors) == 2 and all("is a device or a pipe" in error for error in errors)


def test_without_the_reader_of_videos_each_is_one_error_that_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "agvas_runtime.sources.ffmpeg", raising=False)
    monkeypatch.setitem(sys.modules, "av", None)  # as if it were not installed
    (tmp_path / "clip.mp4").write_bytes(b"video")
    cv2.imwrite(str(tmp_path / "part.png"), np.zeros((32, 32, 3), np.uint8))
    clip, part = open_source([tmp_path / "clip.mp4", tmp_path / "part.png"])
    assert part.error is None and isinstance(clip.error, ImageError) and "agvas[video]" in str(clip.error)
    with pytest.raises(SetupError, match=r"agvas\[video\]"):
        RtspGrabber("rtsp://127.0.0.1/none", 1.0, 1.0)

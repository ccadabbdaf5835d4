"""What sources of files and arrays promise: everything named is given, in a settled order, and nothing left out silently."""

import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from agvas_core.contract.errors import ImageError, SetupError, UsageError
from agvas_runtime.images.frame import Frame
from agvas_runtime.sources import ArraySource, FileSource, Source, limit, open_source, prefetch


def put(path: Path, grey: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((6, 8, 3), grey, np.uint8))
    return path


def names(source: Source, root: Path) -> list[str]:
    return [frame.name.removeprefix(f"{root}/") for frame in source]


def test_a_folder_is_read_recursively_in_natural_order_images_only(tmp_path: Path) -> None:
    for name in ("part10.png", "part2.png", "b/x.JPG", "a10/x.png", "a9/x.png", ".hidden.png", ".git/x.png"):
        put(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    source = open_source(tmp_path)
    assert source.total == 5
    assert names(source, tmp_path) == ["a9/x.png", "a10/x.png", "b/x.JPG", "part2.png", "part10.png"]
    assert [frame.index for frame in source] == [0, 1, 2, 3, 4]


def test_names_are_paths_as_the_user_gave_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "parts/a.png")
    monkeypatch.chdir(tmp_path)
    (frame,) = open_source("parts")
    assert frame.name == "parts/a.png" and frame.path == Path("parts/a.png") and frame.read_ms > 0
    assert frame.image is not None and frame.image.shape == (6, 8, 3)


def test_folders_linked_in_a_circle_are_read_once(tmp_path: Path) -> None:
    put(tmp_path / "a/x.png")
    (tmp_path / "a/again").symlink_to(tmp_path)
    assert open_source(tmp_path).total == 1


def test_mask_folders_are_skipped_unless_named(tmp_path: Path) -> None:
    put(tmp_path / "bottle/test/broken/000.png")
    put(tmp_path / "bottle/ground_truth/broken/000_mask.png")
    source = open_source(tmp_path)
    assert names(source, tmp_path) == ["bottle/test/broken/000.png"]
    assert len(source.notes) == 1 and "ground_truth" in source.notes[0]
    assert open_source(tmp_path / "bottle/ground_truth").total == 1


def test_results_of_earlier_runs_are_skipped_unless_named(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    put(tmp_path / "runs/run-001/masks/a.png")
    (tmp_path / "runs/run-001/run.json").write_text("{}")
    source = open_source(tmp_path)
    assert source.total == 1
    assert len(source.notes) == 1 and "earlier runs" in source.notes[0]
    assert open_source(tmp_path / "runs/run-001").total == 1


def test_videos_in_a_folder_are_pointed_out(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").touch()
    with pytest.raises(UsageError, match=r"0 images.*1 video file, which are read only when named"):
        open_source(tmp_path)
    put(tmp_path / "a.png")
    assert "1 video file" in open_source(tmp_path).notes[0]


def test_an_empty_folder_says_which_files_count(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"0 images; at least one is needed: files that count end in .*\.jpg.*\.png"):
        open_source(tmp_path)


def test_no_such_path_suggests_what_is_there(tmp_path: Path) -> None:
    put(tmp_path / "bottles/a.png")
    with pytest.raises(UsageError, match=r"no such file or folder.*has no 'botles'.*did you mean bottles"):
        open_source(str(tmp_path / "botles/a.png"))
    with pytest.raises(UsageError, match="check the path"):
        open_source(str(tmp_path / "zzz.png"))
    with pytest.raises(UsageError, match="--camera 7"):
        open_source("7")
    with pytest.raises(UsageError, match=r"cannot be a path|no such file"):
        open_source("a\0b")
    with pytest.raises(UsageError, match="an empty name"):
        open_source("")


def test_a_folder_that_may_not_be_listed_is_not_passed_over(tmp_path: Path) -> None:
    put(tmp_path / "open/a.png")
    put(tmp_path / "open/shut/b.png")
    (tmp_path / "open/shut").chmod(0)
    root = os.geteuid() == 0
    here = os.getcwd()
    os.chdir(tmp_path / "open")  # pytest's own folders above are closed to others
    (tmp_path / "open").chmod(0o755)
    try:
        if root:
            os.seteuid(65534)
        with pytest.raises(SetupError, match="shut cannot be listed"):
            open_source(".")
    finally:
        if root:
            os.seteuid(0)
        os.chdir(here)
        (tmp_path / "open/shut").chmod(0o755)


def test_a_glob_is_expanded_and_a_name_with_its_signs_is_a_name(tmp_path: Path) -> None:
    for name in ("a1.png", "a[1].png", "b/c.png"):
        put(tmp_path / name)
    (tmp_path / "a.txt").touch()
    assert names(open_source(f"{tmp_path}/a*"), tmp_path) == ["a1.png", "a[1].png"]
    assert "1 file that" in open_source(f"{tmp_path}/a*").notes[0]
    assert names(open_source(f"{tmp_path}/a[1].png"), tmp_path) == ["a[1].png"]
    assert names(open_source(f"{tmp_path}/**"), tmp_path) == ["a1.png", "a[1].png", "b/c.png"]
    assert names(open_source(f"{tmp_path}/?"), tmp_path) == ["b/c.png"]
    with pytest.raises(UsageError, match="matches 0 paths"):
        open_source(f"{tmp_path}/*.webp")


def test_a_glob_follows_no_circle_of_links(tmp_path: Path) -> None:
    put(tmp_path / "a/b/c.png")
    for name in ("1", "2", "3"):  # with one way round the number of paths is 40, with three it is 3**40
        (tmp_path / "a" / name).symlink_to(tmp_path / "a")
    (tmp_path / "linked").symlink_to(tmp_path / "a/b")
    assert names(open_source(f"{tmp_path}/**/*.png"), tmp_path) == ["a/b/c.png"]
    assert names(open_source(f"{tmp_path}/linked/*.png"), tmp_path) == ["linked/c.png"]


def test_a_list_comes_from_stdin(tmp_path: Path) -> None:
    put(tmp_path / "a b.png")
    put(tmp_path / "folder/c.png")
    listed = io.StringIO(f"{tmp_path}/a b.png\n\n{tmp_path}/folder\r\n")
    assert names(FileSource(["-"], stdin=listed), tmp_path) == ["a b.png", "folder/c.png"]
    with pytest.raises(UsageError, match="0 paths"):
        open_source("-", stdin=io.StringIO("\n"))


def test_a_list_may_name_files_that_are_no_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strange = os.fsencode(tmp_path) + b"/\xff.png"
    put(tmp_path / "a.png").rename(os.fsdecode(strange))
    listed = io.TextIOWrapper(io.BytesIO(strange + b"\n"), encoding="utf-8", errors="strict")
    monkeypatch.setattr("sys.stdin", listed)
    (frame,) = open_source("-")
    assert frame.image is not None and frame.path == Path(os.fsdecode(strange))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_list_that_windows_wrote_is_read(tmp_path: Path, encoding: str) -> None:
    text = f"{tmp_path}/\u00e4 1.png\r\n{tmp_path}/b.png\r\n"
    for name in ("b.png", "\u00e4 1.png"):
        (tmp_path / name).write_bytes(b"")
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    listed = io.TextIOWrapper(io.BytesIO((mark + text).encode(encoding)))
    assert [path.name for path in FileSource(["-"], stdin=listed).files] == ["\u00e4 1.png", "b.png"]


def test_a_closed_stdin_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UsageError, match="stdin is closed"):
        open_source("-")


def test_a_bad_image_is_a_frame_with_the_reason_and_the_others_follow(tmp_path: Path) -> None:
    put(tmp_path / "1.png")
    (tmp_path / "2.png").write_text("text")
    cut = put(tmp_path / "3.jpg")
    cut.write_bytes(cut.read_bytes()[:-20])
    put(tmp_path / "4.png")
    gone = put(tmp_path / "5.png")
    source = open_source(tmp_path)
    gone.unlink()  # after it was listed
    frames = list(source)
    assert [frame.error is None for frame in frames] == [True, False, False, True, False]
    assert [frame.image is None for frame in frames] == [False, True, True, False, True]
    assert all(isinstance(frame.error, ImageError) for frame in frames if frame.error is not None)
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]


def test_a_file_name_that_is_no_utf8_can_be_printed(tmp_path: Path) -> None:
    source = put(tmp_path / "a.png")
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    source.rename(strange)
    (frame,) = open_source(tmp_path)
    assert frame.image is not None
    assert frame.name.encode().endswith(b"/\\udcff.png")


def test_every_and_limit_choose_and_count(tmp_path: Path) -> None:
    for number in range(10):
        put(tmp_path / f"{number}.png")
    source = open_source(tmp_path, every=3)
    assert source.total == 4
    assert names(source, tmp_path) == ["0.png", "3.png", "6.png", "9.png"]
    assert [frame.index for frame in source] == [0, 1, 2, 3]
    few = open_source(tmp_path, every=3, limit=2)
    assert few.total == 2 and names(few, tmp_path) == ["0.png", "3.png"]
    with pytest.raises(UsageError, match="every is 0"):
        open_source(tmp_path, every=0)
    with pytest.raises(UsageError, match="limit is 0"):
        open_source(tmp_path, limit=0)
    with pytest.raises(UsageError, match="bits is 40"):
        open_source(tmp_path, bits=40)


def test_the_pixel_cap_and_the_depth_reach_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.full((6, 8), 1023, np.uint16))
    (frame,) = open_source(path, max_pixels=40)
    assert "--max-pixels 48" in str(frame.error)
    (frame,) = open_source(path, bits=10)
    assert frame.image is not None and (frame.image == 255).all()
    source = open_source([path, path])
    assert len(list(source)) == 2
    assert len(source.notes) == 1 and "--bits 10" in source.notes[0]


def test_arrays_are_sources() -> None:
    rgb = np.zeros((4, 5, 3), np.uint8)
    rgb[..., 0] = 255
    (frame,) = open_source(rgb)
    assert frame.name == "array-000000" and frame.image is not None
    np.testing.assert_array_equal(frame.image, rgb)
    mixed = [rgb, rgb[..., 0], rgb / 255, rgb.astype(np.uint16) * 257, np.dstack([rgb, np.full((4, 5), 255, np.uint8)])]
    frames = list(open_source(mixed))
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
    for frame in (frames[0], *frames[2:]):
        np.testing.assert_array_equal(frame.image, rgb)
    assert len(list(open_source(np.stack([rgb] * 3)))) == 3
    assert open_source(np.stack([rgb] * 3), every=2).total == 2
    assert open_source(array for array in mixed).total is None


def test_a_bad_array_does_not_stop_the_others() -> None:
    good = np.zeros((4, 5), np.uint8)
    frames = list(ArraySource([good, np.zeros((4, 5, 7), np.uint8), np.zeros((0, 5)), good.astype(np.int64), good - 0.5, good]))
    assert [frame.error is None for frame in frames] == [True, False, False, False, False, True]
    assert "[4, 5, 7]" in str(frames[1].error)


def test_frames_pass_through_with_their_names_and_errors() -> None:
    given = Frame("line-3", 7, error=ImageError("dark"))
    (frame,) = open_source([given])
    assert frame.name == "line-3" and frame.index == 0 and frame.error is given.error


@pytest.mark.parametrize("spec", [3.5, None, {"a": 1}, b"bytes", ["a.png", 3]])
def test_what_cannot_be_a_source_is_a_usage_error(spec: object) -> None:
    with pytest.raises(UsageError):
        list(open_source(spec))


def test_no_source_at_all_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no source is given"):
        FileSource([])


def test_prefetch_gives_the_same_frames_in_the_same_order(tmp_path: Path) -> None:
    for number in range(20):
        put(tmp_path / f"{number}.png", number)
    (tmp_path / "7.png").write_text("broken")
    plain = list(open_source(tmp_path))
    with prefetch(open_source(tmp_path), depth=3) as source:
        assert source.total == 20
        ahead = list(source)
    assert [frame.name for frame in ahead] == [frame.name for frame in plain]
    for one, other in zip(ahead, plain, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
    assert [thread for thread in threading.enumerate() if thread.name == "agvas-prefetch"] == []


def counted(taken: list[int]) -> Iterator[np.ndarray]:
    for number in range(1000):
        taken.append(number)
        yield np.zeros((2, 2), np.uint8)


@pytest.mark.parametrize("way", ["break", "close", "raise"])
def test_prefetch_reads_no_further_than_its_depth_and_ends_with_its_consumer(way: str) -> None:
    taken: list[int] = []
    source = prefetch(ArraySource(counted(taken)), depth=2)
    frames = iter(source)
    if way == "close":
        next(frames)
        source.close()
        assert list(frames) == []
    elif way == "break":
        for _ in source:
            break
    else:
        with pytest.raises(ZeroDivisionError):
            for frame in source:
                frame.index / 0
    # One given, two in the queue, one in the thread's hands and, while it is being stopped, one more.
    assert len(taken) <= 6
    assert [thread for thread in threading.enumerate() if thread.name == "agvas-prefetch"] == []


def test_prefetch_carries_errors_over_after_the_frames_before_them() -> None:
    def failing() -> Iterator[np.ndarray]:
        yield np.zeros((2, 2), np.uint8)
        raise OSError("disk gone")

    seen = []
    with pytest.raises(OSError, match="disk gone"), prefetch(ArraySource(failing())) as source:
        for frame in source:
            seen.append(frame.index)
    assert seen == [0]


def test_limit_around_prefetch_and_prefetch_around_limit(tmp_path: Path) -> None:
    for number in range(9):
        put(tmp_path / f"{number}.png")
    with limit(prefetch(open_source(tmp_path)), 4) as source:
        assert len(list(source)) == 4
    with prefetch(open_source(tmp_path, limit=4)) as other:
        assert len(list(other)) == 4


def test_prefetch_carries_over_an_error_before_the_first_frame() -> None:
    class Locked(ArraySource):
        def __iter__(self) -> Iterator[Frame]:
            raise OSError("locked")

        def __enter__(self) -> "Locked":
            return self

    with pytest.raises(OSError, match="locked"), prefetch(Locked([])) as source:
        list(source)


def test_a_limit_beyond_any_count_is_no_limit(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    with prefetch(open_source(tmp_path, limit=10**30)) as source:
        assert len(list(source)) == 1

"""What a run leaves on disk: names, contents, and that it is valid whatever happens."""

import json
import os
import shutil
import subprocess
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agvas_core.contract.errors import OutputError, UsageError
from agvas_runtime.masks.result import Result, Verdict
from agvas_runtime.sinks.image_files import ImageFiles, encode_npy, encode_png16
from agvas_runtime.sinks.output_names import OutputNames, common_root
from agvas_runtime.sinks.run_folder import RunFolder, encode_line


def a_result(name: str = "part.png", *, side_px: int = 48, verdict: Verdict = Verdict.FAIL) -> Result:
    scores = np.zeros((side_px, side_px), np.float32)
    scores[5:15, 5:15] = 0.9
    image = np.random.default_rng(0).integers(0, 255, (side_px, side_px, 3), np.uint8)
    return Result(name, 0, verdict, 0.9, "balanced", 0.5, 0.5, "find", "tiny@0", image=image, score_map=scores, mask=scores > 0.5)


def files_under(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# --- names


def test_names_stay_readable_and_relative_to_what_was_named() -> None:
    names = OutputNames(Path("/data/parts"))
    assert names.stem("/data/parts/broken/000.png") == "broken/000"
    assert names.stem("/elsewhere/000.png") == "elsewhere/000"
    assert OutputNames().stem("../up/./x.tiff") == "up/x"
    assert OutputNames().stem("clip.mp4#000120") == "clip.mp4/000120"
    assert OutputNames().stem("camera-0#000007") == "camera-0/000007"


def test_names_that_differ_little_do_not_overwrite_each_other() -> None:
    names = OutputNames()
    given = ["a/x.png", "b/x.png", "a/x.jpg", "A/X.PNG", "a/x.png", "a/x.png", "a/x?.png", "a/x*.png", "x.png/y.png", "x.jpg"]
    stems = [names.stem(name) for name in given]
    assert len({stem.casefold() for stem in stems}) == len(given)
    assert stems[:3] == ["a/x", "b/x", "a/x.jpg"]


def test_no_folder_is_in_the_way_of_a_file(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open({})
    names = OutputNames()
    # The last two are one name to macOS: the same syllable, in parts and as a whole.
    given_names = ("a.png.part/x.png", "a.png/x.png", "a.PART/x.png", "a.png", "A.jpg", "\u1100\u1161.png", "\uac00.png")
    stored = [folder.store(f"masks/{names.stem(name)}.png", b"") for name in given_names]
    assert len({unicodedata.normalize("NFC", path.casefold()) for path in stored}) == len(given_names)
    folder.close()


def test_a_file_whose_name_looks_like_a_video_frame_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "part#12").write_text("")
    assert OutputNames(tmp_path).stem(str(tmp_path / "part#12")) == "part_12"


@given(st.lists(st.text(min_size=1, max_size=300), max_size=8))
def test_any_name_gives_a_safe_path_of_its_own(given_names: list[str]) -> None:
    names = OutputNames()
    stems = [names.stem(name) for name in given_names]
    assert len({stem.casefold() for stem in stems}) == len(stems)
    for stem in stems:
        for part in stem.split("/"):
            assert part not in ("", ".", "..") and not part.startswith(".")
            assert len(part.encode()) < 200
            assert not set(part) & set('\\:*?"<>|\0\n\x1b')


def test_the_common_root_is_where_all_sources_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("data/a", "data/b"):
        (tmp_path / folder).mkdir(parents=True)
    assert common_root(["data/a"]) == tmp_path / "data/a"
    assert common_root(["data/a", "data/b/x.png"]) == tmp_path / "data"
    assert common_root(["data/*/good/*.png"]) == tmp_path / "data"
    assert common_root(["-"]) is None
    assert common_root([]) is None


# --- images


def test_masks_are_full_size_and_exact(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open({})
    result = a_result("b/part.png", side_px=2000)
    files = ImageFiles(folder, OutputNames(), ["mask", "overlay"]).write(result)
    assert files == {"mask": "masks/b/part.png", "overlay": "overlays/b/part.jpg"}
    mask = cv2.imread(str(folder.path / files["mask"]), cv2.IMREAD_UNCHANGED)
    assert mask.dtype == np.uint8 and np.array_equal(mask, result.mask * np.uint8(255))
    assert max(cv2.imread(str(folder.path / files["overlay"])).shape) == 1600


def test_scores_are_kept_in_16_bits_or_floats() -> None:
    scores = np.random.default_rng(1).random((31, 17), np.float32)
    scores[0, :2] = 0, 1
    grey = cv2.imdecode(np.frombuffer(encode_png16(scores), np.uint8), cv2.IMREAD_UNCHANGED)
    assert grey.dtype == np.uint16 and np.abs(grey / 65535 - scores).max() <= 0.5 / 65535 + 1e-7
    assert encode_npy(scores)[:6] == b"\x93NUMPY"


def test_score_maps_come_back_as_they_were(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open({})
    result = a_result()
    files = ImageFiles(folder, OutputNames(), ["score", "score-npy"]).write(result)
    assert np.array_equal(np.load(folder.path / files["score-npy"]), result.score_map)
    assert files["score"] == "scores/part.png"


def test_no_verdict_leaves_no_images(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open({})
    result = Result("part.png", 0, Verdict.NO_VERDICT, None, "balanced", 0.5, 0.5, "find", "tiny@0", error="broken")
    assert ImageFiles(folder, OutputNames(), ["mask", "overlay", "score"]).write(result) == {}


# --- the folder


def test_lines_are_on_disk_as_soon_as_they_are_added(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open({})
    for index in range(3):
        folder.add({"index": index})
        lines = (tmp_path / "run/results.jsonl").read_text().splitlines()
        assert [json.loads(line)["index"] for line in lines] == list(range(index + 1))
    assert folder.saved == 3
    folder.close()


@pytest.mark.parametrize("what", ["removed", "moved", "taken"])
def test_a_folder_that_is_no_longer_ours_gets_nothing_more(tmp_path: Path, what: str) -> None:
    path = tmp_path / "run"
    folder = RunFolder(path)
    folder.open({})
    folder.store("masks/a.png", b"a")
    folder.add({"index": 0})
    if what == "removed":
        shutil.rmtree(path)
    elif what == "moved":
        path.rename(tmp_path / "elsewhere")
    else:
        other = RunFolder(path, overwrite=True)
        other.open({})
        other.close()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        OutputError, match=r"removed, moved or taken by another run, after 1 results: run again with another --out"
    ):
        folder.store("masks/b.png", b"b")
    with pytest.raises(OutputError, match="taken by another run"):
        folder.add({"index": 1})
    folder.close()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_name_with_broken_unicode_is_still_a_line_of_json() -> None:
    line = encode_line({"name": os.fsdecode(b"caf\xe9-\xc3\xa9\n.png")})
    assert line.count(b"\n") == 1
    assert os.fsencode(json.loads(line)["name"]) == b"caf\xe9-\xc3\xa9\n.png"


def test_runs_are_numbered_and_gaps_are_not_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/run-007").mkdir(parents=True)
    (tmp_path / "runs/run-old").mkdir()
    for number in ("008", "009"):
        folder = RunFolder(None)
        folder.open({})
        folder.close()
        assert folder.path == Path("runs") / f"run-{number}"


def test_a_folder_with_files_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"not empty.*--out.*--overwrite"):
        RunFolder(tmp_path).check()
    with pytest.raises(UsageError, match="is a file"):
        RunFolder(tmp_path / "notes.txt").check()
    RunFolder(tmp_path / "new").check()
    assert files_under(tmp_path) == {"notes.txt"}


def test_overwrite_never_touches_a_folder_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/truth.png").write_text("labelled by hand")
    (tmp_path / "results.jsonl").write_text("{}\n")
    with pytest.raises(UsageError, match="no agvas-run wrote"):
        RunFolder(tmp_path, overwrite=True).open({})
    assert files_under(tmp_path) == {"masks/truth.png", "results.jsonl"}


def test_overwrite_replaces_an_earlier_run_and_keeps_what_was_put_beside(tmp_path: Path) -> None:
    earlier = RunFolder(tmp_path / "run")
    earlier.open({})
    images = ImageFiles(earlier, OutputNames(), ["mask"])
    earlier.add({"files": images.write(a_result("old/part.png"))})
    earlier.store("report.html", b"old")
    earlier.close()
    (earlier.path / "masks/old/remarks.txt").write_text("mine")
    (earlier.path / "remarks.txt").write_text("mine")
    again = RunFolder(tmp_path / "run", overwrite=True)
    again.open({})
    again.close()
    assert files_under(again.path) == {"run.json", "results.jsonl", "remarks.txt", "masks/old/remarks.txt"}
    assert (again.path / "results.jsonl").read_bytes() == b""


def test_overwrite_does_not_follow_links_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/truth.png").write_text("mine")
    earlier = RunFolder(tmp_path / "run")
    earlier.open({})
    earlier.close()
    (earlier.path / "masks").symlink_to(tmp_path / "outside")
    RunFolder(tmp_path / "run", overwrite=True).open({})
    assert (tmp_path / "outside/truth.png").exists()


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Root may write everywhere: such a test runs as nobody."""
    if not hasattr(os, "geteuid"):
        pytest.skip("permissions work otherwise on this system")
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_place_that_may_not_be_written_is_an_output_error(tmp_path: Path, unprivileged: None) -> None:
    if os.getuid() != 0:
        tmp_path.chmod(0o555)
    with pytest.raises(OutputError, match=r"cannot be written \(Permission denied\).*--out") as caught:
        RunFolder(tmp_path / "run").open({})
    assert caught.value.exit_code == 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "agvas-test", str(disk)]
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root and the right to mount")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_whole_lines_and_whole_images_and_says_how_many(small_disk: Path) -> None:
    folder = RunFolder(small_disk / "run")
    folder.open({})
    images = ImageFiles(folder, OutputNames(), ["mask", "score-npy"])
    with pytest.raises(OutputError, match=r"disk is full.*results are safe") as caught:
        for index in range(1000):
            folder.add({"files": images.write(a_result(f"{index}.png"))})
    folder.close()
    records = [json.loads(line) for line in (folder.path / "results.jsonl").read_text().splitlines()]
    assert 0 < len(records) == folder.saved < 1000
    assert f"{folder.saved} results are safe" in str(caught.value)
    for record in records:
        assert np.load(folder.path / record["files"]["score-npy"]).shape == (48, 48)
        assert cv2.imread(str(folder.path / record["files"]["mask"])).shape == (48, 48, 3)
    assert not [name for name in files_under(folder.path) if name.endswith(".part")]


def test_a_line_that_does_not_fit_is_taken_back(small_disk: Path) -> None:
    folder = RunFolder(small_disk / "run")
    folder.open({})
    with pytest.raises(OutputError, match="disk is full"):
        for index in range(1000):
            folder.add({"index": index, "text": "x" * 3000})
    folder.close()
    lines = (folder.path / "results.jsonl").read_text().splitlines(keepends=True)
    assert [json.loads(line)["index"] for line in lines] == list(range(folder.saved))
    assert lines[-1].endswith("\n")

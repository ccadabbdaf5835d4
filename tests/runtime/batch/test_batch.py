"""What a batch promises: one result for each image, whoever is killed and whenever; the same command goes on."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="the extra scale is not installed")

from agvas_runtime.batch.plan import PART_SHARDS, BatchJob, make_plan, read_plan
from agvas_runtime.batch.shard_worker import Claim

from .conftest import DONE_SHARD, IMAGES, batch_here, check_rows, rows, start


def kill_a_worker(out: Path, process: Any, killed: set[int]) -> None:
    """One that has a shard, and was not killed before."""
    while process.poll() is None:
        for path in (out / "open").glob("shard-*"):
            try:
                worker = json.loads(path.read_text())["pid"]
                if worker not in killed:
                    os.kill(worker, signal.SIGKILL)
                    killed.add(worker)
                    return
            except (FileNotFoundError, ValueError, ProcessLookupError):
                continue
        time.sleep(0.002)
    raise AssertionError(f"it was over before a worker could be killed: {process.stderr.read()}")


def results(out: Path) -> dict[Path, int]:
    """Files, and when they were written."""
    return {path: path.stat().st_mtime_ns for path in (out / "results").rglob("shard-*.parquet")}


@pytest.fixture
def again(done: Path, tmp_path: Path) -> Path:
    """A copy of the batch that is done."""
    return shutil.copytree(done, tmp_path / "again")


def test_each_image_has_one_result_with_its_verdict(done: Path) -> None:
    found = rows(done)
    check_rows(found)
    bad = next(row for row in found if row["verdict"] == "FAIL")
    (region,) = bad["regions"]
    assert 300 < region["area_px"] < 500 and bad["width"] == 64 and len(bad["image_sha256"]) == 64
    assert "convert it" in next(row["error"] for row in found if row["verdict"] == "NO_VERDICT")
    assert not (done / "open").exists()


def test_a_file_of_several_pages_is_told_once(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    page = np.full((64, 64, 3), 128, np.uint8)
    cv2.imwrite(str(folder / "0.png"), page)
    for name in ("1.tif", "2.tif"):
        cv2.imwritemulti(str(folder / name), [page, page])
    assert batch_here(folder, "--out", tmp_path / "out", "--model", tiny_bundle, "--workers", "1") == 0
    said = capsys.readouterr().err
    assert said.count("2 pages") == 1 and "1.tif" in said
    assert len(rows(tmp_path / "out")) == 3


def test_what_is_done_is_not_done_again(done: Path, parts: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = results(done)
    assert batch_here(parts, "--out", done, "--model", tiny_bundle, "--fail-on-reject") == 1
    assert "40 of 40 images are done already" in capsys.readouterr().err
    assert results(done) == before


def test_workers_that_are_killed_lose_nothing_and_double_nothing(parts: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out, killed = tmp_path / "out", set[int]()
    process = start(parts, "--out", out, "--model", tiny_bundle, "--workers", 2, "--threads", 1, "--shard", 5)
    for _ in range(2):
        kill_a_worker(out, process, killed)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    assert "workers died; their shards were done by others" in said
    check_rows(rows(out))


def test_a_batch_that_is_killed_whole_goes_on_with_the_same_command(
    parts: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = (parts, "--out", out, "--model", tiny_bundle, "--workers", 1, "--threads", 1, "--shard", 2)
    process = start(*arguments)
    while len(results(out)) < 2:
        assert process.poll() is None
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)  # the crew alone: its worker has to notice
    process.communicate()
    before = results(out)
    assert 2 <= len(before) < 20
    assert batch_here(*arguments) == 0
    assert "images are done already" in capsys.readouterr().err
    assert before.items() <= results(out).items()
    check_rows(rows(out))


def test_an_image_that_kills_its_worker_is_left_alone_and_the_others_are_not(
    parts: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The interpreter of a worker is told to die as a decoder with a fault would: without a word.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'agvas_runtime.batch.worker_process' in ' '.join(sys.orig_argv):\n"
        "    import agvas_runtime.images.read as image_file\n"
        "    read = image_file.read_image\n"
        "    def deadly(path, **options):\n"
        "        if str(path).endswith('part17.png'): os.kill(os.getpid(), 9)\n"
        "        return read(path, **options)\n"
        "    image_file.read_image = deadly\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert (
        batch_here(parts, "--out", tmp_path / "out", "--model", tiny_bundle, "--workers", 1, "--threads", 1, "--shard", 20) == 0
    )
    assert "3 workers died" in capsys.readouterr().err
    found = {Path(row["name"]).stem: row for row in rows(tmp_path / "out")}
    assert len(found) == IMAGES
    assert "2 workers died" in found["part17"]["error"] and found["part17"]["verdict"] == "NO_VERDICT"
    assert sum(row["verdict"] == "NO_VERDICT" for row in found.values()) == 2


def test_a_listing_may_name_anything_and_keeps_its_order(
    parts: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = os.fsdecode(b"gr\xfcn.png")
    Path(odd).write_bytes((parts / "shift-0" / "part0.png").read_bytes())
    names = [
        str(parts / "shift-2" / "part2.png"),
        (parts / "shift-0" / "part0.png").as_uri(),
        "gone.png",
        odd,
        "file:///gone.png",
    ]
    Path("list.txt").write_bytes(b"\n\n".join(map(os.fsencode, names)))
    assert batch_here("list.txt", "--out", "out", "--model", tiny_bundle, "--workers", 1, "--threads", 1) == 0
    found = rows(Path("out"))
    assert [row["verdict"] for row in found] == ["PASS", "FAIL", "NO_VERDICT", "FAIL", "NO_VERDICT"]
    assert [row["name"] for row in found] == [*names[:3], "gr\\udcfcn.png", names[4]]


def test_an_address_and_a_recipe_go_together(parts: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(f"product: part\nmodel: {json.dumps(str(tiny_bundle))}\nrules: [{{min_area_px: 3000}}]\n")
    out = tmp_path / "out"
    assert (
        batch_here(parts.as_uri(), "--out", out, "--recipe", tmp_path / "r.yaml", "--workers", 1, "--threads", 1, "--shard", 50)
        == 0
    )
    found = rows(out)
    assert len(found) == IMAGES and {row["verdict"] for row in found} == {"PASS", "NO_VERDICT"}  # no spot is as large


def test_other_options_are_refused_with_what_differs(
    again: Path, parts: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert batch_here(parts, "--out", again, "--model", tiny_bundle, "--threshold", 0.7) == 2
    assert "threshold is 0.7, and was None" in capsys.readouterr().err
    assert batch_here(parts, "--out", again, "--model", tiny_bundle, "--shard", 3) == 2
    assert batch_here(parts, "--out", parts, "--model", tiny_bundle) == 2
    assert "no agvas batch wrote" in capsys.readouterr().err
    assert batch_here(parts / "none", "--out", tmp_path / "o", "--model", tiny_bundle) == 2
    (tmp_path / "empty.txt").write_text("\n\n")
    assert batch_here(tmp_path / "empty.txt", "--out", tmp_path / "o", "--model", tiny_bundle) == 2
    assert batch_here("nowhere://x/y", "--out", tmp_path / "o", "--model", tiny_bundle) == 2
    assert batch_here(parts, "--out", tmp_path / "o", "--model", tiny_bundle, "--recipe", "x", "--prompt", "y") == 2
    assert "given beside --recipe" in capsys.readouterr().err


def test_results_that_are_damaged_or_of_another_batch_are_told(
    again: Path, parts: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = sorted(results(again))
    kept = second.read_bytes()
    for wrong, message in ((first.read_bytes(), "of shard 0"), (b"PAR1", "damaged")):
        second.write_bytes(wrong)
        assert batch_here(parts, "--out", again, "--model", tiny_bundle) == 3
        assert message in (said := capsys.readouterr().err) and "remove it" in said
    second.write_bytes(kept)
    plan = read_plan(again)
    assert plan is not None
    (again / "plan.json").write_text(plan.model_copy(update={"identity": "another"}).model_dump_json())
    assert batch_here(parts, "--out", again, "--model", tiny_bundle) == 3
    assert "and plan" in capsys.readouterr().err


def test_a_folder_that_is_away_is_no_million_of_missing_files(
    again: Path, parts: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    next(iter(results(again))).unlink()
    parts.rename(parts.with_name("away"))
    try:
        assert batch_here(parts, "--out", again, "--model", tiny_bundle, "--workers", 1, "--threads", 1) == 5
    finally:
        parts.with_name("away").rename(parts)
    assert "is away" in capsys.readouterr().err
    assert len(rows(again)) == IMAGES - DONE_SHARD


def test_a_plan_cuts_many_names_into_parts_and_gives_each_once(tmp_path: Path) -> None:
    job = BatchJob(source="x", base="/", model="nano", bundle="tiny@0", max_pixels=1)
    names = [f"image-{number}.png" for number in range(4 * PART_SHARDS + 3)]
    plan = make_plan(tmp_path, job, iter(names), shard_images=2, left_out={})
    assert plan == read_plan(tmp_path) and plan.shards == 2 * PART_SHARDS + 2
    assert len(list((tmp_path / "plan").iterdir())) == 3
    looked = [0, 1, PART_SHARDS - 1, PART_SHARDS, 2 * PART_SHARDS, plan.shards - 1]
    assert [plan.shard(tmp_path, number).names for number in looked] == [names[2 * n : 2 * n + 2] for n in looked]


def test_a_second_holder_of_a_shard_waits_and_works_with_care(tmp_path: Path) -> None:
    first = Claim(tmp_path, 3)
    assert not first.careful
    taken: list[Claim] = []
    other = threading.Thread(target=lambda: taken.append(Claim(tmp_path, 3)))
    other.start()
    time.sleep(0.05)
    assert not taken
    os.close(first._file)  # as its death would
    other.join()
    assert taken[0].careful and taken[0].deadly(7) == 0
    for _ in range(2):
        taken[-1].at(7)
        os.close(taken[-1]._file)
        taken.append(Claim(tmp_path, 3))
    assert taken[-1].deadly(7) == 2 and taken[-1].deadly(8) == 0
    taken[-1].finish()
    fresh = Claim(tmp_path, 3)
    assert not fresh.careful
    fresh.finish()

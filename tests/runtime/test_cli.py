"""``agvas-run`` as a user meets it: what it takes, leaves behind, says, and ends with."""

import http.server
import io
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from agvas.run import run as app
from agvas_core.contract.command_line import exit_code_of

Run = Callable[..., int]
COMMAND = [sys.executable, "-c", "from agvas.cli import agvas_run; agvas_run()"]


@pytest.fixture
def run(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command in this process, in an empty folder, with the tiny bundle unless another model is named."""
    monkeypatch.chdir(tmp_path)

    def agvas_run(*arguments: str | Path) -> int:
        given = [str(argument) for argument in arguments]
        model = [] if "--model" in given else ["--model", str(tiny_bundle)]
        return exit_code_of(lambda: app, name="agvas-run", arguments=[*given, *model])

    return agvas_run


@pytest.fixture
def parts(tmp_path: Path, make_part: Callable[..., NDArray[np.uint8]]) -> Path:
    """``good/x.png`` passes, ``bad/x.png`` fails, ``bad/text.png`` is no image."""
    folder = tmp_path / "parts"
    for name in ("good", "bad"):
        (folder / name).mkdir(parents=True)
    cv2.imwrite(str(folder / "good/x.png"), make_part())
    cv2.imwrite(str(folder / "bad/x.png"), make_part(spots=[(40, 40, 12)]))
    (folder / "bad/text.png").write_text("hello")
    return folder


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def verdicts(records: list[dict[str, Any]]) -> dict[str, str]:
    return {record["name"]: record["verdict"] for record in records}


# --- the main job


def test_a_folder_gives_a_line_a_mask_and_an_overlay_each_and_a_report(run: Run, parts: Path, tmp_path: Path) -> None:
    assert run("parts") == 0
    out = tmp_path / "runs/run-001"
    records = lines(out)
    assert verdicts(records) == {"parts/bad/text.png": "NO_VERDICT", "parts/bad/x.png": "FAIL", "parts/good/x.png": "PASS"}
    bad, text, good = (
        next(record for record in records if record["name"].endswith(end)) for end in ("bad/x.png", "text.png", "good/x.png")
    )
    assert bad["files"] == {"mask": "masks/bad/x.png", "overlay": "overlays/bad/x.jpg"}
    mask = cv2.imread(str(out / bad["files"]["mask"]), cv2.IMREAD_UNCHANGED)
    assert mask[40, 40] == 255 and mask[5, 5] == 0 and mask.shape == (96, 128)
    assert (mask > 0).sum() == sum(region["area_px"] for region in bad["regions"])
    assert not cv2.imread(str(out / good["files"]["mask"]), cv2.IMREAD_UNCHANGED).any()
    assert text["files"] == {} and text["score"] is None and "hello" in text["error"]
    assert "parts/bad/x.png" in (out / "report.html").read_text()
    assert json.loads((out / "run.json").read_text())["model"].startswith("tiny@")


def test_the_summary_counts_everything_and_names_what_could_not_be_judged(
    run: Run, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("parts", "--out", "out")
    said = capsys.readouterr().out
    words = {line.split()[0]: line.split()[1] for line in said.splitlines() if line.split()[:1] and line.split()[0].isupper()}
    assert words == {"PASS": "1", "FAIL": "1", "NO_VERDICT": "1"}
    assert "parts/bad/text.png: file starts with" in said and "out/report.html" in said


def test_json_has_stdout_for_itself_and_is_what_the_file_says(run: Run, parts: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("parts", "--json", "--out", "out") == 0
    output = capfd.readouterr()
    assert [json.loads(line) for line in output.out.splitlines()] == lines(Path("out"))
    assert "report.html" in output.err


def test_quiet_says_nothing(run: Run, parts: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("parts", "--quiet") == 0
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("kinds", "there"),
    [
        ("jsonl", {"results.jsonl"}),
        ("mask", {"masks/bad/x.png", "masks/good/x.png"}),
        ("score,score-npy", {f"scores/{part}/x.{kind}" for part in ("bad", "good") for kind in ("png", "npy")}),
        ("report", {"report.html"}),
    ],
)
def test_save_chooses_what_is_written(kinds: str, there: set[str], run: Run, parts: Path) -> None:
    assert run("parts", "--save", kinds, "--out", "out") == 0
    written = {path.relative_to("out").as_posix() for path in Path("out").rglob("*") if path.is_file()}
    assert written == there | {"run.json"}


def test_save_none_writes_nothing(run: Run, parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("parts", "--save", "none", "--json") == 0
    assert not Path("runs").exists()


def test_rejects_are_exit_code_1_when_asked_for(run: Run, parts: Path) -> None:
    assert run("parts/good", "--fail-on-reject", "--quiet") == 0
    assert run("parts/bad/x.png", "--fail-on-reject", "--quiet") == 1
    assert run("parts/bad/text.png", "--fail-on-reject", "--quiet") == 1  # NO_VERDICT is never PASS


def test_an_image_too_long_to_be_saved_stops_nothing(run: Run, parts: Path) -> None:
    Path("line.pgm").write_bytes(b"P5\n1000500 1\n255\n" + b"\xd0" * 1000500)
    assert run("line.pgm", "parts/good", "--out", "out", "--quiet") == 0
    records = lines(Path("out"))
    assert [record["verdict"] for record in records] == ["NO_VERDICT", "PASS"]
    assert "1000500" in records[0]["error"] and "1000000" in records[0]["error"]


def test_limit_and_every(run: Run, tmp_path: Path, make_part: Callable[..., NDArray[np.uint8]]) -> None:
    (tmp_path / "many").mkdir()
    for number in range(10):
        cv2.imwrite(str(tmp_path / f"many/{number}.png"), make_part())
    assert run("many", "--every", "3", "--out", "a", "--quiet") == 0
    assert run("many", "--limit", "2", "--out", "b", "--quiet") == 0
    assert [record["name"] for record in lines(Path("a"))] == [f"many/{number}.png" for number in (0, 3, 6, 9)]
    assert len(lines(Path("b"))) == 2


def test_pages_of_a_tiff_are_images_of_their_own(
    run: Run, tmp_path: Path, make_part: Callable[..., NDArray[np.uint8]], capsys: pytest.CaptureFixture[str]
) -> None:
    part, bad = make_part(), make_part(spots=[(40, 40, 12)])
    cv2.imwritemulti(str(tmp_path / "scan.tif"), [part, bad, part])
    assert run("scan.tif", "--pages", "--out", "each", "--quiet") == 0
    assert [record["verdict"] for record in lines(Path("each"))] == ["PASS", "FAIL", "PASS"]
    assert [record["name"] for record in lines(Path("each"))] == [f"scan.tif#{page:06d}" for page in range(3)]
    capsys.readouterr()
    assert run("scan.tif", "--out", "first") == 0
    said = capsys.readouterr()
    assert "3 pages" in said.out + said.err and "--pages" in said.out + said.err
    assert verdicts(lines(Path("first"))) == {"scan.tif": "PASS"}
    assert run("--camera", "0", "--pages") == 2


def test_the_prompt_and_the_threshold_reach_the_model(run: Run, parts: Path) -> None:
    assert run("parts/good/x.png", "--prompt", "find the bright spots", "--threshold", "0.9", "--out", "out", "--quiet") == 0
    (record,) = lines(Path("out"))
    assert (record["verdict"], record["prompt"], record["threshold"]) == ("FAIL", "find the bright spots", 0.9)
    assert (record["operating_point"], record["seed_threshold"]) == ("threshold", 0.9)


def test_anchors_in_the_prompt_are_stripped_with_a_warning(run: Run, parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("parts", "--prompt", "find [SEG] the dark spots", "--out", "out") == 0
    assert "[SEG]" in capsys.readouterr().err
    assert lines(Path("out"))[0]["prompt"] == "find the dark spots"


def test_a_list_of_paths_comes_from_stdin(run: Run, parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("parts/good/x.png\nparts/bad/x.png\n"))
    assert run("-", "--out", "out", "--quiet") == 0
    assert verdicts(lines(Path("out"))) == {"parts/good/x.png": "PASS", "parts/bad/x.png": "FAIL"}


def test_same_names_in_two_folders_keep_their_own_files(run: Run, parts: Path) -> None:
    assert run("parts/good", "parts/bad/x.png", "--out", "out", "--quiet") == 0
    files = [record["files"]["mask"] for record in lines(Path("out"))]
    assert sorted(files) == ["masks/bad/x.png", "masks/good/x.png"]


def test_a_hostile_file_name_harms_neither_report_nor_terminal(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "<script>alert(1)<script>\x1b[31m.png").write_text("no image")
    (folder / os.fsdecode(b"caf\xe9.png")).write_text("no image")
    assert run("odd", "--out", "out") == 5  # not one verdict
    assert "\x1b" not in capsys.readouterr().out
    assert "<script>alert" not in (tmp_path / "out/report.html").read_text()
    assert len(lines(Path("out"))) == 2


def test_progress_is_lines_where_there_is_no_terminal(
    run: Run, parts: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agvas_runtime.report.progress.LINE_EVERY_S", 0.0)
    assert run("parts", "--out", "out") == 0
    err = capfd.readouterr().err
    assert "3 of 3 images" in err and "images/s" in err and "\x1b" not in err


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere"], 2, "no such file or folder"),
        (["parts", "--camera", "0"], 2, "leave one out"),
        (["parts", "--save", "maks"], 2, "did you mean mask"),
        (["parts", "--save", ","], 2, "--save is empty"),
        (["parts", "--threshold", "1.5"], 2, "1.5"),
        (["parts", "--strict"], 2, "no operating point 'strict'"),
        (["parts", "--strict", "--threshold", "0.4"], 2, "leave one out"),
        (["parts", "--limit", "0"], 2, "--limit"),
        (["parts", "--prompt", "spots " * 200], 2, "tokens long"),
        (["parts", "--prompt", "\udcff"], 2, "UTF-8"),
        (["parts", "--tiling", "sometimes"], 2, "--tiling"),
        (["parts", "--bogus"], 2, "--bogus"),
        (["parts", "--model", "nanno"], 2, "nanno"),
        (["parts", "--out", "parts"], 2, "--overwrite"),
        (["parts", "--out", "parts", "--overwrite"], 2, "no agvas-run wrote"),
        (["parts", "--out", "parts/good/x.png"], 2, "is a file"),
        (["--camera", "99"], 5, "camera 99"),
    ],
)
def test_what_cannot_be_done_is_said_once_and_leaves_nothing(
    arguments: list[str], code: int, words: str, run: Run, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path for path in Path().rglob("*")}
    assert run(*arguments) == code
    said = capsys.readouterr()
    assert words in said.err and said.err.count(words) == 1 and "Traceback" not in said.err
    assert {path for path in Path().rglob("*")} == before


def test_a_broken_bundle_is_environment(run: Run, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/manifest.json").write_text("{}")
    assert run("parts", "--model", "model") == 3
    assert capsys.readouterr().err.startswith("agvas-run: ")


def test_overwrite_replaces_only_an_earlier_run(run: Run, parts: Path) -> None:
    assert run("parts", "--out", "out", "--quiet") == 0
    assert run("parts/good", "--out", "out", "--quiet") == 2
    assert run("parts/good", "--out", "out", "--quiet", "--overwrite") == 0
    assert [path.relative_to("out").as_posix() for path in Path("out").rglob("*.png")] == ["masks/x.png"]


def test_without_a_source_there_is_help_and_exit_code_2(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    output = capsys.readouterr()
    assert output.out == "" and "Usage: agvas-run" in output.err


@pytest.mark.parametrize(
    ("entry", "arguments", "words"),
    [
        ("agvas_run", ["agvas-run", "--help"], "SOURCE"),
        ("agvas_run", ["agvas-run", "--version"], "agvas-run "),
        ("main", ["agvas", "--help"], "calibrate"),
        ("main", ["agvas", "run", "--help"], "SOURCE"),
        ("main", ["agvas", "line", "--help"], "--recipe"),
        ("main", ["agvas", "batch", "--help"], "--workers"),
        ("main", ["agvas", "serve", "--help"], "--port"),
        ("main", ["agvas", "profile", "--help"], "--soak"),
    ],
)
def test_help_and_version_load_no_heavy_library(entry: str, arguments: list[str], words: str) -> None:
    code = (
        f"import sys; sys.argv = {arguments!r}\nfrom agvas.cli import {entry}\n"
        f"try:\n    {entry}()\nfinally:\n    print({{'cv2', 'onnxruntime', 'numpy', 'torch'}} & set(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert words in done.stdout and done.stderr == "set()\n"


# --- what happens on the way


class Camera:
    """A real MJPEG camera on loopback; ends the stream after ``frames``, or never."""

    def __init__(self, picture: bytes, frames: int | None) -> None:
        class Stream(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                sent = 0
                try:
                    while frames is None or sent < frames:
                        self.wfile.write(
                            b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(picture), picture)
                        )
                        sent += 1
                        time.sleep(0.05)
                except OSError:
                    return

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stream)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()
        self.url = f"http://user:secret@127.0.0.1:{self.server.server_port}/video"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def camera(make_part: Callable[..., NDArray[np.uint8]]) -> Iterator[Callable[[int | None], str]]:
    cameras: list[Camera] = []

    def start(frames: int | None) -> str:
        cameras.append(Camera(cv2.imencode(".jpg", make_part(spots=[(40, 40, 12)]))[1].tobytes(), frames))
        return cameras[-1].url

    yield start
    for started in cameras:
        started.close()


def test_a_camera_that_stops_ends_with_5_and_keeps_what_it_gave(
    run: Run, camera: Callable[[int | None], str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--camera", camera(4), "--out", "out") == 5
    records = lines(Path("out"))
    assert records and all(record["verdict"] == "FAIL" for record in records)
    assert "The source was lost after" in (Path("out") / "report.html").read_text()
    assert "agvas-run: camera" in capsys.readouterr().err


def test_passwords_of_cameras_are_written_nowhere(
    run: Run, camera: Callable[[int | None], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = camera(None).replace("user:secret@", "user:p@secret@") + "?user=u&pwd=secret"
    monkeypatch.setattr(sys, "argv", ["agvas-run", f"--camera={url}"])
    assert run("--camera", url, "--limit", "2", "--out", "out", "--quiet") == 0
    about = json.loads(Path("out/run.json").read_text())
    assert about["source"] in about["command"] and about["source"].startswith("http://***@127.0.0.1:")
    for path in Path("out").rglob("*"):
        assert "secret" not in path.name and (path.is_dir() or b"secret" not in path.read_bytes())


def heed_interrupts() -> None:
    """A shell that puts its tests into the background has them ignore SIGINT, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def started(tiny_bundle: Path, url: str, folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """The command in a process of its own, once it has written three results."""
    arguments = ["--camera", url, "--model", str(tiny_bundle), "--out", "out", "--threads", "1", *options]
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=heed_interrupts,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        results = folder / "out/results.jsonl"
        if results.exists() and results.read_bytes().count(b"\n") >= 3:
            return process
        time.sleep(0.02)
    process.kill()
    raise AssertionError(process.communicate()[1].decode())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_keeps_the_results_writes_the_report_and_has_its_code(
    tiny_bundle: Path, tmp_path: Path, camera: Callable[[int | None], str], number: int, code: int
) -> None:
    process = started(tiny_bundle, camera(None), tmp_path)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err.decode()
    assert b"Traceback" not in err and b"Interrupted after" in out
    assert len(lines(tmp_path / "out")) >= 3
    assert "Interrupted after" in (tmp_path / "out/report.html").read_text()


def test_a_reader_that_goes_away_ends_the_run_in_order(
    tiny_bundle: Path, tmp_path: Path, camera: Callable[[int | None], str]
) -> None:
    process = started(tiny_bundle, camera(None), tmp_path, "--json", "--quiet")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 141, err.decode()
    assert err == b"" and (tmp_path / "out/report.html").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("agvas-run $parts --json --quiet > /dev/full", 3, "stdout cannot be written (No space left on device)"),
        ("agvas-run $parts > /dev/full", 3, "stdout cannot be written (No space left on device)"),
        ("agvas-run $parts --json >&-", 2, "stdout is closed"),
        ("agvas-run $parts --quiet >&- 2>&-", 0, ""),
        ("mkdir gone; cd gone; rmdir ../gone; agvas-run $parts", 3, "the current folder was removed"),
    ],
)
def test_a_shell_that_leaves_no_place_to_write_to_is_no_bug(
    tiny_bundle: Path, parts: Path, tmp_path: Path, line: str, code: int, words: str
) -> None:
    command = f'agvas-run() {{ {shlex.join(COMMAND)} "$@" --model {tiny_bundle} --threads 1 --out {tmp_path}/out; }}; parts={parts}/good; {line}'
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr


def test_a_disk_without_room_is_3_and_says_how_many_results_are_safe(
    tiny_bundle: Path, tmp_path: Path, make_part: Callable[..., NDArray[np.uint8]]
) -> None:
    (tmp_path / "many").mkdir()
    for number in range(40):
        cv2.imwrite(str(tmp_path / f"many/{number}.png"), make_part(64, 64, spots=[(30, 30, 9)]))

    def no_file_beyond_8_kib() -> None:  # what a quota does to us, without filling a disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    arguments = ["many", "--model", str(tiny_bundle), "--out", "out", "--threads", "1"]
    done = subprocess.run([*COMMAND, *arguments], cwd=tmp_path, capture_output=True, text=True, preexec_fn=no_file_beyond_8_kib)
    assert done.returncode == 3, done.stderr
    records = lines(tmp_path / "out")
    assert 0 < len(records) < 40
    assert f"the disk is full (File too large): {len(records)} results are safe" in done.stderr
    assert "Traceback" not in done.stderr
    assert all((tmp_path / "out" / file).exists() for record in records for file in record["files"].values())

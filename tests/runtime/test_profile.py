"""``agvas profile``: figures that are what they say, an answer for a line, a page that opens anywhere."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import agvas_core
from agvas_core.contract.command_line import exit_code_of
from agvas_core.contract.errors import ImageError, UsageError
from agvas_core.contract.pages.chart import number
from agvas_runtime.images.frame import Frame
from agvas_runtime.pipeline.segmenter import Segmenter
from agvas_runtime.profile.cli import duration_s, profile, rate_per_s
from agvas_runtime.profile.compare import compare_profiles
from agvas_runtime.profile.load import Samples, answer_line, closed_loop, offer, overhead
from agvas_runtime.profile.page import render
from agvas_runtime.profile.record import Profile, Quantiles, read
from agvas_runtime.profile.session import generated_frame
from agvas_runtime.profile.work import count_work, node_flop


def agvas_profile(*arguments: str) -> int:
    return exit_code_of(lambda: profile, name="agvas profile", arguments=list(arguments))


CORES = "agvas_runtime.pipeline.batching.usable_cores"


@pytest.fixture(scope="module")
def measured(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small profile of the bundle of conftest; read it only."""
    out = tmp_path_factory.mktemp("profile") / "measured"
    few = ["--frames", "6", "--warmup", "1", "--offered", "3", "--size-px", "64", "--threads", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CORES, lambda: 4)  # so that by default something is made ahead
        assert agvas_profile("--model", str(tiny_bundle), *few, "-o", str(out)) == 0
    return out


def test_a_quantile_is_a_measured_value() -> None:
    values = [float(value) for value in range(1, 2001)]
    found = Quantiles.of(values[::-1])
    assert (found.min, found.p50, found.p90, found.p99, found.p999, found.max) == (1, 1000, 1800, 1980, 1998, 2000)
    assert Quantiles.of([3.0, 9.0]).p999 == 9.0  # few frames: the slowest one


def test_work_is_twice_the_multiply_adds_of_products_and_convolutions() -> None:
    assert node_flop("MatMul", [[2, 3, 4], [4, 5]], [[2, 3, 5]]) == 2 * 2 * 3 * 4 * 5
    assert node_flop("Gemm", [[4, 3], [4, 5], [5]], [[3, 5]]) == 2 * 3 * 4 * 5  # A transposed
    assert node_flop("Conv", [[1, 8, 10, 10], [16, 4, 3, 3], [16]], [[1, 16, 8, 8]]) == 2 * 16 * 64 * 4 * 9  # two groups
    assert node_flop("ConvTranspose", [[1, 8, 5, 5], [8, 3, 2, 2]], [[1, 3, 10, 10]]) == 2 * 8 * 25 * 3 * 4
    assert node_flop("Add", [[100], [100]], [[100]]) == 0


def test_the_work_of_a_frame_counts_all_its_tiles(tiny_bundle: Path) -> None:
    segmenter, whole = Segmenter.load(tiny_bundle), Segmenter.load(tiny_bundle, tiling="off")
    small, large = (np.full((side, side, 3), 90, np.uint8) for side in (64, 400))

    def count(image: np.ndarray, tiled: bool) -> dict[str, int]:
        found = count_work(segmenter if tiled else whole, image)
        return {stage: work.calls for stage, work in found.items()}

    assert count(small, True) == {"vision": 1, "lmm": 1, "decoder": 1}
    assert count(large, False) == {"vision": 1, "lmm": 1, "decoder": 1}
    assert count(large, True)["vision"] > 1


def test_the_work_of_nano_is_that_of_its_layers() -> None:
    segmenter = Segmenter.load("nano", threads=1)
    image = generated_frame(352).image
    assert image is not None
    work = count_work(segmenter, image)
    assert work["vision"].calls == len(segmenter.bundle.manifest.scales)
    assert work["vision"].flop > work["decoder"].flop > 0 and work["lmm"].flop > 1e7
    files = {name: (segmenter.bundle.folder / f"{name}.onnx").stat().st_size for name in work}
    for name, each in work.items():
        assert 0 < each.weight_bytes / each.calls <= files[name]


def test_waiting_counts_where_frames_come_faster_than_verdicts(tiny_bundle: Path) -> None:
    """A closed loop would hide it: each frame is due at its own time, whenever the one before is done."""
    segmenter, frame = Segmenter.load(tiny_bundle), generated_frame(64)
    latencies: list[float] = []
    found = offer(segmenter, [frame], rate_per_s=100_000.0, count=20, latencies=latencies)
    assert latencies == sorted(latencies)  # ever later
    assert found.achieved_per_s < found.offered_per_s


def test_the_answer_is_yes_only_where_the_tail_keeps_the_deadline() -> None:
    fine = [20.0] * 1999
    assert answer_line([*fine, 20.0], 10.0, 100.0).held
    assert answer_line([*fine[:-1], 500.0, 20.0], 10.0, 100.0).held  # one of 2,000: p99.9 allows two
    assert not answer_line([*fine[:-3], 500.0, 500.0, 500.0, 20.0], 10.0, 100.0).held
    few = answer_line([20.0] * 50 + [101.0, 20.0], 10.0, 100.0)
    assert not few.held and "too few for p99.9" in few.reason  # then the slowest one decides
    behind = answer_line([float(ms) for ms in range(2000)], 10.0, 5000.0)
    assert behind.held and behind.backlog == 0
    assert answer_line([20.0] * 1999 + [950.0], 10.0, 100.0).backlog > 0


def test_a_frame_without_a_verdict_is_no_measurement(tiny_bundle: Path) -> None:
    broken = Frame("broken.png", 0, error=ImageError("broken.png: cut short"))
    with pytest.raises(ImageError, match=r"cut short.*pictures that can be judged"):
        closed_loop(Segmenter.load(tiny_bundle), [broken], 2, Samples())


def test_the_graphs_alone_are_those_of_the_frame(tiny_bundle: Path) -> None:
    found = overhead(Segmenter.load(tiny_bundle), generated_frame(64), pairs=3)
    assert found is not None and found.graphs_ms > 0 and found.pairs == 3


def test_a_profile_has_every_figure_and_is_read_back(measured: Path) -> None:
    found = read(measured / "profile.json")
    assert found.latency.count == 6 == len(found.latencies_ms) and len(found.offered) == 5
    assert {"preprocess", "vision", "lmm", "decoder", "postprocess"} <= set(found.stages)
    assert found.machine.matmul_gflops is not None and found.work["vision"].floor_ms is not None
    assert found.machine.gpu  # which one, or why none was looked at
    assert found.overlapped_per_s and found.overhead is not None and found.peak_memory_mb > 10


def test_two_profiles_are_compared_and_what_differs_is_said(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = read(measured / "profile.json")
    twice = old.model_copy(update={"rate_per_s": old.rate_per_s * 2, "backend": "trt"})
    found = compare_profiles(old, twice)
    assert {row.name: round(row.ratio, 3) for row in found.rows}["rate, one by one"] == 2.0
    assert any("backend differs: onnx, then trt" in warning for warning in found.warnings)
    new = tmp_path / "new.json"
    new.write_text(twice.to_json(), encoding="utf-8")
    assert agvas_profile("--compare", str(measured / "profile.json"), str(new)) == 0
    assert "times better" in capsys.readouterr().out


def test_the_page_needs_nothing_and_shows_what_was_measured(measured: Path) -> None:
    page = (measured / "profile.html").read_text(encoding="utf-8")
    assert "<script" not in page and not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", page) and "@@" not in page
    found = read(measured / "profile.json")
    assert page.count("<svg") == 5 and number(found.latency.p50) in page
    evil = found.model_copy(update={"frames": "<script>alert(1)</script>", "notes": ["<img src=x>"]})
    assert "<script" not in render(evil, evil) and "<img" not in render(evil)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not here")
def test_the_page_opens_in_a_browser(measured: Path, tmp_path: Path) -> None:
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom"]
    done = subprocess.run(
        [*command, (measured / "profile.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "All figures" in done.stdout and "NaN" not in done.stdout


def test_a_line_that_cannot_be_held_exits_with_1_and_keeps_the_profile(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(tiny_bundle), "--frames", "2", "--warmup", "0", "--offered", "0", "--no-count", "--size-px", "64"]
    out = tmp_path / "line"
    assert agvas_profile(*options, "--rate", "1000000/s", "--soak", "0.0001s", "-o", str(out)) == 1
    assert "NO" in capsys.readouterr().out and "No: this machine does not hold" in (out / "profile.html").read_text(
        encoding="utf-8"
    )
    assert agvas_profile(*options, "--rate", "2/s", "--soak", "1s", "--deadline-ms", "60000", "-o", str(out), "--overwrite") == 0
    assert "YES" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "expected"), [("600/min", 10.0), ("10/s", 10.0), ("10", 10.0), ("36000 / h", 10.0)])
def test_rates(text: str, expected: float) -> None:
    assert rate_per_s(text) == pytest.approx(expected)


def test_times() -> None:
    assert [duration_s(text) for text in ("10m", "90s", "1h", "2.5")] == [600.0, 90.0, 3600.0, 2.5]


@pytest.mark.parametrize("read_it", [rate_per_s, duration_s])
@pytest.mark.parametrize("text", ["", "fast", "-3", "0", "10/fortnight"])
def test_what_is_no_rate_or_time_is_a_usage_error(read_it: Callable[[str], float], text: str) -> None:
    with pytest.raises(UsageError, match=r"it takes"):
        read_it(text)


def test_bad_input(measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = str(measured / "profile.json")
    foreign, newer = tmp_path / "foreign.json", tmp_path / "newer.json"
    foreign.write_text('{"tool": "other"}', encoding="utf-8")
    newer.write_text(json.dumps(json.loads(Path(there).read_text()) | {"schema_version": 99}), encoding="utf-8")
    cases = [
        (["--compare", there, str(tmp_path / "none.json")], "cannot be read as a profile"),
        (["--compare", there, str(foreign)], "is not a profile"),
        (["--compare", there, str(newer)], "pip install --upgrade"),
        (["--compare", there, there, "--rate", "1/s"], "measures nothing"),
        (["--deadline-ms", "5"], "needs --rate"),
        (["-o", str(measured)], "has a profile in it"),
        (["-o", there], "is a file"),
        (["--model", "nanno"], "did you mean nano"),
    ]
    for arguments, words in cases:
        assert agvas_profile(*arguments) == 2, arguments
        assert words in capsys.readouterr().err


def test_each_stage_has_its_backend_and_torch_its_checkpoint(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--frames", "2", "--warmup", "0", "--offered", "0", "--no-count", "--size-px", "64"]
    nano = Path(agvas_core.__file__).parent / "checkpoints" / "nano"
    out = tmp_path / "torch"
    assert agvas_profile("--lmm", "torch", "--checkpoint", str(nano), *few, "-o", str(out)) == 0
    assert read(out / "profile.json").backend == "onnx torch"
    assert (
        agvas_profile("--model", str(tiny_bundle), "--backend", "torch", "--checkpoint", str(nano), *few, "-o", str(tmp_path))
        == 3
    )
    assert "tiny@" in capsys.readouterr().err  # its weights are not those of nano


def test_an_old_profile_still_makes_a_page(measured: Path) -> None:
    """Without what may be left out: no counts, no offers, no GPU."""
    bare = read(measured / "profile.json").model_copy(
        update={"work": {}, "offered": [], "overhead": None, "overlapped_per_s": None}
    )
    assert render(Profile.model_validate_json(bare.to_json())).count("<svg") == 3


def test_a_run_measures_itself_and_its_profile_is_compared_like_any_other(
    tiny_bundle: Path,
    tmp_path: Path,
    make_part: Callable[..., np.ndarray],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import cv2

    from agvas.run import run as app

    monkeypatch.setattr(CORES, lambda: 4)

    for index in range(7):
        cv2.imwrite(str(tmp_path / f"{index}.png"), make_part(spots=[(20, 20, 8)]))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "run"
    arguments = [str(tmp_path / "*.png"), "--model", str(tiny_bundle), "--profile", "--quiet", "--threads", "1"]
    assert exit_code_of(lambda: app, name="agvas-run", arguments=[*arguments, "--out", str(out)]) == 0
    found = read(out / "profile.json")
    assert found.latency.count == 4 and found.warmup == 3 and {"read", "vision"} <= set(found.stages)
    assert found.overlapped_per_s and (out / "profile.html").read_text(encoding="utf-8").count("<svg") == 3
    assert agvas_profile("--compare", str(out / "profile.json"), str(out / "profile.json")) == 0
    assert exit_code_of(lambda: app, name="agvas-run", arguments=[*arguments, "--save", "none"]) == 2
    assert "leave one of the two out" in capsys.readouterr().err


def test_a_profile_of_the_first_schema_is_still_read(measured: Path, tmp_path: Path) -> None:
    raw = json.loads((measured / "profile.json").read_text(encoding="utf-8"))
    del raw["device"], raw["machine"]["limits_of"]
    old = tmp_path / "old.json"
    old.write_text(json.dumps(raw | {"schema_version": 1}), encoding="utf-8")
    assert read(old).device == {}


def test_what_an_older_profile_does_not_say_is_unknown_and_not_different(measured: Path, tmp_path: Path) -> None:
    raw = json.loads((measured / "profile.json").read_text(encoding="utf-8"))
    del raw["native"]
    old = tmp_path / "old.json"
    old.write_text(json.dumps(raw), encoding="utf-8")
    now = read(measured / "profile.json")
    warnings = [*compare_profiles(read(old), now).warnings, *compare_profiles(now, read(old)).warnings]
    assert not [warning for warning in warnings if "differs" in warning]
    assert "not said" in render(read(old))
    other = now.model_copy(update={"native": "not built"})
    assert any("the native core differs" in warning for warning in compare_profiles(other, now).warnings)

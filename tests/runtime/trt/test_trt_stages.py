"""The stages on TensorRT, with a CUDA and a TensorRT of our own underneath: what passes between them, what is captured, what is refused."""

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_bench import Bench
from fake_kernels import FakeKernels
from numpy.typing import NDArray

from agvas.run import run as app
from agvas_core.contract.command_line import exit_code_of
from agvas_core.contract.errors import ImageError, SetupError, UsageError
from agvas_core.contract.gpu import cuda_gpu
from agvas_runtime import Segmenter, Verdict, native
from agvas_runtime.bundle import load_bundle
from agvas_runtime.images.frame import Frame
from agvas_runtime.line.recipe.file import parse_recipe
from agvas_runtime.line.station.inspector import SegmenterInspector
from agvas_runtime.pipeline.options import SegmentOptions
from agvas_runtime.pipeline.predictors import open_backend
from agvas_runtime.stages.open import open_stages
from agvas_runtime.stages.trt.device_array import DeviceArray

MakePart = Callable[..., NDArray[np.uint8]]
TRT = {"vision": "trt", "lmm": "trt", "decoder": "trt"}
SPOTS = [(40, 40, 9), (90, 60, 5)]


def both(bundle: Path) -> tuple[Segmenter, Segmenter]:
    return Segmenter.load(bundle, threads=1), Segmenter.load(bundle, **TRT)


def segment(segmenter: Segmenter, image: NDArray[np.uint8], **asked: str):  # type: ignore[no-untyped-def]
    return segmenter.segment(Frame("part", 0, image=image), **asked)


def test_trt_gives_the_verdicts_of_onnx_runtime(bench: Bench, make_part: MakePart) -> None:
    onnx, trt = both(bench.bundle)
    for image in (make_part(), make_part(spots=SPOTS), make_part(400, 300, spots=SPOTS), make_part(64, 200, spots=SPOTS[:1])):
        one, other = segment(onnx, image), segment(trt, image)
        assert (one.verdict, one.tiles) == (other.verdict, other.tiles) and other.error is None
        assert np.array_equal(one.score_map, other.score_map) and one.accept == other.accept
    # The words reach the engine: bright spots are asked for, and light is what anomalous then means.
    assert segment(trt, make_part(), prompt="find the bright spots").verdict is Verdict.FAIL


def test_more_tiles_than_the_engine_takes_go_in_parts(empty_bench: Bench, make_part: MakePart) -> None:
    empty_bench.build(max_batch=1)
    onnx, trt = both(empty_bench.bundle)
    image = make_part(500, 450, spots=SPOTS)
    one, other = segment(onnx, image), segment(trt, image)
    assert one.tiles > 1 and np.array_equal(one.score_map, other.score_map)


def test_features_stay_on_the_gpu_and_numpy_can_read_them(bench: Bench) -> None:
    bundle = load_bundle(bench.bundle)
    onnx, trt = open_stages(bundle), open_stages(bundle, **TRT)
    rng = np.random.default_rng(0)
    views = rng.integers(0, 256, (2, 32, 32, 3), np.uint8), rng.integers(0, 256, (2, 64, 48, 3), np.uint8)
    seen, known = trt.vision(*views), onnx.vision(*views)
    assert isinstance(seen.f_s, DeviceArray) and seen.f_s.shape == known.f_s.shape
    np.testing.assert_array_equal(seen.f_align, known.f_align)
    np.testing.assert_array_equal(seen.decoder["f_detail"][1], known.decoder["f_detail"][1])
    # So any other stage takes them.
    ask = "find the dark spots"
    np.testing.assert_array_equal(onnx.lmm(seen, ask).anchor_states, trt.lmm(known, ask).anchor_states)
    anchors = trt.lmm(seen, ask).anchor_states
    np.testing.assert_array_equal(trt.decoder(anchors, seen), onnx.decoder(anchors, known))


def test_a_size_that_comes_again_is_one_graph_launch_per_stage(bench: Bench, make_part: MakePart) -> None:
    segmenter = Segmenter.load(bench.bundle, **TRT)
    image = make_part(spots=SPOTS)
    first = segment(segmenter, image)
    assert bench.cuda.launches == 0
    again = [segment(segmenter, image) for _ in range(3)]
    assert bench.cuda.launches == 3 * 3
    assert all(np.array_equal(first.score_map, each.score_map) for each in again)
    other = segment(segmenter, make_part(96, 160, spots=SPOTS))  # another size between: the graph of the first stays right
    assert not np.array_equal(other.mask.shape, first.mask.shape)
    assert np.array_equal(segment(segmenter, make_part()).mask, np.zeros((96, 128), bool))
    assert np.array_equal(segment(segmenter, image).score_map, first.score_map)


@pytest.fixture
def kernels(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> FakeKernels:
    """As if the native core had been built with CUDA, on the GPU of ``bench``."""
    core = native.core
    if core is None:
        pytest.skip("the native core was not built")
    fake = FakeKernels(core, bench.cuda.run)
    monkeypatch.setattr(native, "core", fake)
    return fake


def test_with_the_kernels_a_frame_is_one_graph_launch(bench: Bench, kernels: FakeKernels, make_part: MakePart) -> None:
    onnx, trt = both(bench.bundle)
    good, bad = make_part(), make_part(spots=SPOTS)
    wanted = [(segment(onnx, image), image) for image in (good, bad, bad, good, bad)]
    for turn, (theirs, image) in enumerate(wanted):
        before = bench.cuda.launches, bench.cuda.allocations
        mine = segment(trt, image)
        assert mine.verdict == theirs.verdict and mine.error is None
        assert np.array_equal(mine.score_map, theirs.score_map) and np.array_equal(mine.mask, theirs.mask)
        assert mine.accept == pytest.approx(theirs.accept, abs=1e-7) and mine.regions == theirs.regions
        assert kernels.judged == turn, "the first of a size goes from stage to stage"
        if turn > 2:  # the second of them captured, with the frame after it
            assert (bench.cuda.launches - before[0], bench.cuda.allocations - before[1]) == (1, 0)
    # Other words, and a rule of one's own, in the graph that is there.
    asked = "find the bright spots"
    for _ in range(2):
        assert segment(trt, good, prompt=asked).verdict == segment(onnx, good, prompt=asked).verdict is Verdict.FAIL
    assert segment(trt, bad).verdict is Verdict.FAIL
    assert (
        trt.segment(Frame("part", 0, image=bad), threshold=0.9999).verdict
        == onnx.segment(Frame("part", 0, image=bad), threshold=0.9999).verdict
    )
    # What goes from stage to stage, as a first one does, waits for what is under way.
    assert segment(trt, make_part(500, 450, spots=SPOTS)).verdict is Verdict.FAIL


def test_kinds_that_take_turns_at_a_frame_cost_no_memory_and_no_other_launch(
    bench: Bench, kernels: FakeKernels, make_part: MakePart
) -> None:
    """As a station with two kinds asks; both instructions have the same length, and so one graph."""
    onnx, trt = both(bench.bundle)
    image, asked = make_part(spots=SPOTS), ("find the bright spots", "find the purple spots")
    wanted = [segment(onnx, image, prompt=prompt).score_map for prompt in asked]
    assert not np.array_equal(*wanted)
    for _ in range(3):
        segment(trt, image, prompt=asked[0])
    for turn in range(6):
        before = bench.cuda.launches, bench.cuda.allocations, bench.cuda.page_locked
        assert np.array_equal(segment(trt, image, prompt=asked[turn % 2]).score_map, wanted[turn % 2])
        now = bench.cuda.launches, bench.cuda.allocations, bench.cuda.page_locked
        assert [after - then for after, then in zip(now, before, strict=True)] == [1, 0, 0]


def test_a_frame_in_tiles_is_one_graph_launch_too(bench: Bench, kernels: FakeKernels, make_part: MakePart) -> None:
    """More tiles than the engine takes at once."""
    onnx, trt = both(bench.bundle)
    good, bad = make_part(500, 450), make_part(500, 450, spots=SPOTS)
    for turn, image in enumerate((good, bad, bad, good, bad)):
        theirs, before = segment(onnx, image), (bench.cuda.launches, bench.cuda.allocations)
        mine = segment(trt, image)
        assert mine.error is None and mine.verdict == theirs.verdict and mine.tiles == theirs.tiles > 2
        assert np.array_equal(mine.score_map, theirs.score_map) and mine.regions == theirs.regions
        assert mine.accept == pytest.approx(theirs.accept, abs=1e-7) and kernels.judged == turn
        if turn > 2:
            assert (bench.cuda.launches - before[0], bench.cuda.allocations - before[1]) == (1, 0)


@pytest.mark.parametrize("built", ["with the kernels", "without"])
def test_a_station_has_its_graphs_before_the_first_part(
    bench: Bench, make_part: MakePart, built: str, request: pytest.FixtureRequest
) -> None:
    if built == "with the kernels":
        request.getfixturevalue("kernels")
    inspector, part = SegmenterInspector(SegmentOptions(**TRT)), make_part(spots=SPOTS)
    height, width = part.shape[:2]
    lines = ["product: part", f"model: {bench.bundle}", f"frame: {{width_px: {width}, height_px: {height}}}"]
    version = parse_recipe("\n".join(lines), "test")
    inspector.prepare(version)
    before = bench.cuda.launches, bench.cuda.allocations
    assert inspector.inspect(Frame("part", 0, image=part), version).judgement.verdict is Verdict.FAIL
    wanted = (1, 0) if built == "with the kernels" else (3, 0)
    assert (bench.cuda.launches - before[0], bench.cuda.allocations - before[1]) == wanted


def test_whole_frames_overlap_and_come_back_in_their_order(bench: Bench, kernels: FakeKernels, make_part: MakePart) -> None:
    onnx, trt = both(bench.bundle)
    images = [make_part(spots=SPOTS[: index % 3]) for index in range(9)]
    frames = [Frame(str(index), index, image=image) for index, image in enumerate(images)]
    for mine, theirs in zip(trt.stream(frames), onnx.stream(frames), strict=True):
        assert (mine.name, mine.verdict, mine.score) == (theirs.name, theirs.verdict, theirs.score)
    assert kernels.judged == 8


def test_without_capturing_a_frame_is_put_on_the_stream_piece_by_piece(
    bench: Bench, kernels: FakeKernels, make_part: MakePart
) -> None:
    onnx, trt = both(bench.bundle)
    for engine in bench.tensorrt.Runtime.engines:
        engine.capturable = False
    image = make_part(spots=SPOTS)
    wanted = segment(onnx, image)
    assert all(np.array_equal(segment(trt, image).score_map, wanted.score_map) for _ in range(4))
    assert kernels.judged == 3 and bench.cuda.launches == 0


def test_whole_frames_with_no_finite_logits_or_without_a_gpu_have_no_verdict(
    bench: Bench, kernels: FakeKernels, make_part: MakePart
) -> None:
    trt, image = Segmenter.load(bench.bundle, **TRT), make_part()
    for _ in range(3):
        result = segment(trt, image, prompt="find the broken spots")
        assert result.verdict is Verdict.NO_VERDICT and "NaN" in str(result.error)
    for _ in range(2):
        assert segment(trt, image).verdict is Verdict.PASS
    bench.cuda.lost = bench.cuda.cudaError_t.cudaErrorLaunchFailure
    assert "cudaErrorLaunchFailure" in str(segment(trt, image).error)
    bench.cuda.lost = None


def test_what_whole_frames_held_is_given_back(bench: Bench, kernels: FakeKernels, make_part: MakePart) -> None:
    segmenter = Segmenter.load(bench.bundle, **TRT)
    for _ in range(3):
        segment(segmenter, make_part())
    del segmenter
    gc.collect()
    assert not bench.cuda.memory


def test_nothing_is_allocated_once_the_sizes_are_known(bench: Bench, make_part: MakePart) -> None:
    segmenter = Segmenter.load(bench.bundle, **TRT)
    frames = [Frame(str(index), index, image=make_part(spots=SPOTS)) for index in range(12)]
    list(segmenter.stream(frames[:4]))
    before = bench.cuda.allocations
    assert {result.verdict for result in segmenter.stream(frames)} == {Verdict.FAIL}
    assert bench.cuda.allocations == before


def test_sizes_beyond_number_are_forgotten_not_kept(bench: Bench, make_part: MakePart) -> None:
    trt = open_stages(load_bundle(bench.bundle), **TRT)
    semantic = np.zeros((1, 32, 32, 3), np.uint8)
    for width in (32, 48, 64, 80, 96, 112, 128, 48, 32, 64, 64):
        for height in (32, 48):
            trt.vision(semantic, np.zeros((1, height, width, 3), np.uint8))
    assert len(trt.vision.engine._sized) == 8  # type: ignore[attr-defined]


def test_the_gpu_is_given_back_what_a_segmenter_had(bench: Bench, make_part: MakePart) -> None:
    segmenter = Segmenter.load(bench.bundle, **TRT)
    segment(segmenter, make_part())
    assert bench.cuda.memory
    del segmenter
    gc.collect()
    assert not bench.cuda.memory


def test_an_engine_that_cannot_be_captured_runs_without_a_graph(
    bench: Bench, make_part: MakePart, caplog: pytest.LogCaptureFixture
) -> None:
    segmenter = Segmenter.load(bench.bundle, **TRT)
    for engine in bench.tensorrt.Runtime.engines:
        engine.capturable = False
    image = make_part(spots=SPOTS)
    results = [segment(segmenter, image) for _ in range(4)]
    assert all(np.array_equal(results[0].score_map, each.score_map) for each in results) and bench.cuda.launches == 0
    assert len([record for record in caplog.records if "cannot be captured" in record.message]) == 3


def test_words_are_refused_and_named_engines_that_have_them(bench: Bench, make_part: MakePart) -> None:
    segmenter = Segmenter.load(bench.bundle, **TRT)
    with pytest.raises(UsageError, match=r"direct mode alone.*--lmm onnx"):
        segment(segmenter, make_part(), mode="describe")
    mixed = Segmenter.load(bench.bundle, vision="trt", decoder="trt")
    told = segment(mixed, make_part(spots=SPOTS), mode="describe")
    assert told.answer is not None and told.verdict is Verdict.FAIL


def test_a_view_that_the_engine_was_not_built_for_is_refused(bench: Bench) -> None:
    trt = open_stages(load_bundle(bench.bundle), **TRT)
    with pytest.raises(ImageError, match=r"pixel_image is 1 x 640 x 64 x 3; the vision engine takes 1 x 32.*agvas-export trt"):
        trt.vision(np.zeros((1, 32, 32, 3), np.uint8), np.zeros((1, 640, 64, 3), np.uint8))


def test_logits_that_are_not_numbers_give_no_verdict(bench: Bench, make_part: MakePart) -> None:
    result = segment(Segmenter.load(bench.bundle, **TRT), make_part(), prompt="find the broken spots")
    assert result.verdict is Verdict.NO_VERDICT and "NaN" in str(result.error)


def test_agvas_run_takes_the_backend_for_all_stages_or_for_one(
    bench: Bench, make_part: MakePart, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "part.png"), make_part(spots=SPOTS))
    part, bundle = str(tmp_path / "part.png"), str(bench.bundle)

    def run(*options: str) -> int:
        arguments = [part, "--model", bundle, "--save", "none", "--fail-on-reject", *options]
        return exit_code_of(lambda: app, name="agvas-run", arguments=arguments)

    assert run("--backend", "trt") == 1
    assert len(bench.tensorrt.Runtime.engines) == 3
    assert run("--backend", "trt", "--lmm", "onnx", "--vision", "onnx") == 1
    assert len(bench.tensorrt.Runtime.engines) == 4
    capsys.readouterr()
    assert run("--backend", "trt", "--engines", str(tmp_path / "none")) == 3
    assert "has no engines of" in capsys.readouterr().err
    assert run("--backend", "tensorrt") == 2
    assert "it can be onnx" in capsys.readouterr().err


def test_agvas_export_check_compares_it_joint_by_joint(bench: Bench, make_part: MakePart) -> None:
    backend = open_backend(bench.bundle, "trt")
    reference = open_backend(bench.bundle, "onnx")
    rng = np.random.default_rng(1)
    views = rng.integers(0, 256, (1, 32, 32, 3), np.uint8), rng.integers(0, 256, (1, 64, 64, 3), np.uint8)
    features = backend.see(*views)
    assert all(isinstance(value, np.ndarray) for value in features.values())
    said = backend.ask(features, "find the dark spots")
    np.testing.assert_array_equal(said["anchor_states"], reference.ask(features, "find the dark spots")["anchor_states"])
    judged = backend.judge(make_part(spots=SPOTS), "find the dark spots")
    assert judged.verdict == "FAIL" and backend.device == "trt"


@pytest.mark.slow  # the first to import the whole exporter
def test_the_way_from_the_command_to_a_verdict(empty_bench: Bench, make_part: MakePart, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that agvas-export trt puts somewhere else are found there."""
    from agvas_export.cli import app as export
    from agvas_runtime.stages.open import StageSettings

    monkeypatch.setattr("agvas_export.trt.command.this_gpu", cuda_gpu)  # nvidia-smi is not here
    elsewhere = empty_bench.store.parent / "elsewhere"
    arguments = ["trt", str(empty_bench.bundle), "--target", "h100", "-o", str(elsewhere)]
    assert exit_code_of(lambda: export, name="agvas-export", arguments=arguments) == 0
    with pytest.raises(SetupError, match="no engines"):
        Segmenter.load(empty_bench.bundle, **TRT)
    segmenter = Segmenter.load(empty_bench.bundle, **TRT, settings=StageSettings(engines=elsewhere))
    assert segment(segmenter, make_part(spots=SPOTS)).verdict is Verdict.FAIL


@pytest.mark.slow
def test_the_fastest_precision_whose_certificate_holds_is_kept(
    empty_bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """nano: float8 is tried first. ONNX Runtime, which stands for the engine here, drops a ReLU before a float8 quantiser, so it fails."""
    from agvas_core.contract.engine import read_engines
    from agvas_export.cli import app as export

    for module in ("command", "build"):
        monkeypatch.setattr(f"agvas_export.trt.{module}.DEFAULT_STORE", empty_bench.store, raising=False)
    monkeypatch.setattr("agvas_export.trt.command.this_gpu", cuda_gpu)
    images = str(Path(__file__).resolve().parents[3] / "examples/parts")
    arguments = ["trt", "nano", "--target", "h100", "--precision", "auto", "--images", images]
    assert exit_code_of(lambda: export, name="agvas-export", arguments=arguments) == 0
    said = capsys.readouterr().out
    assert "precision: tf32" in said and "refused:   fp8:" in said
    (record,) = empty_bench.store.rglob("engines.json")
    assert read_engines(record.parent).precision == "tf32"


@pytest.mark.gpu
@pytest.mark.parametrize("joint", ["vision", "lmm", "decoder"])
def test_a_real_engine_gives_what_onnx_runtime_gives(joint: str) -> None:
    """Needs a GPU, TensorRT, and `agvas-export trt nano` run before."""
    from agvas_core.contract.certificate import TOLERANCES
    from agvas_runtime.profile.session import generated_frame

    on_cpu, on_gpu = Segmenter.load("nano"), Segmenter.load("nano", **{joint: "trt"})
    frame = generated_frame(512)
    one, other = on_cpu.segment(frame), on_gpu.segment(frame)
    assert other.error is None and one.verdict == other.verdict
    assert one.score_map is not None and other.score_map is not None
    assert float(np.abs(one.score_map - other.score_map).max()) < TOLERANCES["fp16"].probability


@pytest.mark.gpu
def test_a_whole_frame_on_real_engines_is_what_onnx_runtime_gives(make_part: MakePart) -> None:
    """Needs the native core built with CUDA, too."""
    from agvas_core.contract.certificate import TOLERANCES
    from agvas_runtime.stages.whole_frame import kernels

    if kernels() is None:
        pytest.skip(f"no kernels for this GPU ({native.describe()})")
    on_cpu, on_gpu = Segmenter.load("nano", tiling="off"), Segmenter.load("nano", **TRT, tiling="off")
    for turn, image in enumerate((make_part(960, 1280), *[make_part(960, 1280, spots=[(400, 400, 90)])] * 3)):
        one, other = segment(on_cpu, image), segment(on_gpu, image)
        assert other.error is None and one.verdict == other.verdict and ("preprocess" in other.timing) == (turn == 0)
        assert float(np.abs(one.score_map - other.score_map).max()) < TOLERANCES["fp16"].probability

"""torch-cuda: each way of computing less is the model's own answer, on a CPU in float32; on a GPU so are graphs and streams."""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agvas_core.contract.certificate import TOLERANCES
from agvas_core.contract.errors import BundleError, ImageError, SetupError, StageError, UsageError
from agvas_core.contract.manifest import read_manifest, sha256_of, write_manifest
from agvas_core.contract.preprocess import make_view, scaled_views
from agvas_core.contract.prompts import Mode
from agvas_core.model.agvas import AgVas
from agvas_core.model.config import ModelConfig
from agvas_core.model.encoders.efficientnet_lite import TRUNK
from agvas_core.model.encoders.sam import SamImageEncoder
from agvas_core.model.weights.checkpoint import load_checkpoint
from agvas_export.references import _with_encoder
from agvas_runtime import Segmenter, native
from agvas_runtime.bundle import Bundle, load_bundle
from agvas_runtime.images.tiling import plan_scales
from agvas_runtime.stages.open import open_stages
from agvas_runtime.stages.prompt_tokenizer import PromptTokenizer, Words
from agvas_runtime.stages.protocol import FramePlan, FrameReferences
from agvas_runtime.stages.torch_cuda import device as device_module
from agvas_runtime.stages.torch_cuda.device import cuda_errors, open_device
from agvas_runtime.stages.torch_cuda.engine import Engine
from agvas_runtime.stages.torch_cuda.pieces import PLAIN, compiled
from agvas_runtime.stages.torch_cuda.reading import Float8, Reader, Wanted, fused
from agvas_runtime.stages.torch_cuda.seeing import Eyes, FusedSam, placed
from agvas_runtime.stages.torch_cuda.stages import CudaDecoder, CudaLmm, CudaVision
from agvas_runtime.stages.torch_reference import TorchReferences

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parent))
import paper_model
import reference_ratio
from fake_kernels import FakeKernels

torch.set_num_threads(1)
TOLERANCE = TOLERANCES["fp32"]
CPU = torch.device("cpu")
WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def furthest(one: Tensor, other: Tensor) -> float:
    """Scaled as ``Tolerance`` says."""
    assert one.shape == other.shape
    return float((one.double() - other.double()).abs().max() / max(1.0, other.abs().max()))


@pytest.fixture(scope="module", params=["ov-7b", "ov-0.5b", "llava-13b"])
def paper(request: pytest.FixtureRequest) -> tuple[ModelConfig, AgVas]:
    """A preset's architecture at tiny size, every parameter random."""
    config = paper_model.paper_config(request.param, tiny=True)
    model = paper_model.random_model(config, "cpu", torch.float32)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return config, model


def asked_of(
    model: AgVas, config: ModelConfig, f_s: Tensor, f_align: Tensor, before: bool = True
) -> tuple[Tensor, Tensor, Wanted]:
    """What the reference says at the rows that are asked for: anchor states, lean; and what to ask."""
    first, after, anchors, asked = paper_model.words(config)
    first = first if before else []
    batch, words = len(f_s), (7, 8)
    ids = torch.tensor([[*first, *[config.lmm.image_token_id] * (f_s.shape[1] + f_align.shape[1]), *after]] * batch)
    hidden = model.lmm(model.lmm.embed(ids, f_s, f_align), with_logits=False).hidden
    skipped = ids.shape[1] - len(after)
    logits = model.lmm.head(hidden[:, skipped + asked])
    wanted = Wanted(*(torch.tensor(each, dtype=torch.long) for each in (first, after, [asked, *anchors], words)))
    return hidden[:, [skipped + at for at in anchors]], logits[:, words[0]] - logits[:, words[1]], wanted


@pytest.mark.parametrize("grid", [8, 7, 3], ids=["windows fit", "windows are padded", "one window is larger than the grid"])
@pytest.mark.parametrize("dim", [32, 40])
def test_sam_without_a_bias_of_all_pairs_is_sam(grid: int, dim: int) -> None:
    torch.manual_seed(0)
    encoder = SamImageEncoder(image_px=4 * grid, patch_px=4, dim=dim, depth=3, heads=4, window=4, global_blocks=(1,), out_dim=16)
    for parameter in encoder.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape)
    image = torch.randn(2, 3, 4 * grid, 4 * grid)
    with torch.no_grad():
        assert furthest(FusedSam(encoder)(image), encoder(image)) < TOLERANCE.features


@torch.no_grad()
def test_what_is_seen_is_what_the_model_sees(paper: tuple[ModelConfig, AgVas]) -> None:
    config, model = paper
    semantic, pixel = paper_model.views(config, 2)
    eyes, seen = Eyes(placed(model, CPU, torch.float32)), model.see(semantic, pixel)
    f_s, features = eyes.semantic(semantic), eyes.pixel(pixel)
    for mine, theirs in ((f_s, seen.f_s), (features.f_p, seen.pixel.f_p), (eyes.align(f_s, features.f_p), seen.f_align)):
        assert furthest(mine, theirs) < TOLERANCE.features


@torch.no_grad()
@pytest.mark.parametrize("before", [True, False], ids=["a beginning that is known", "nothing before the image"])
def test_four_rows_of_a_prefill_are_those_of_the_whole(paper: tuple[ModelConfig, AgVas], before: bool) -> None:
    config, model = paper
    f_s, f_align = torch.randn(2, 2, 9, 64).unbind(0)
    anchors, lean, wanted = asked_of(model, config, f_s, f_align, before)
    reader = Reader(placed(model, CPU, torch.float32).lmm)
    mine, leans = reader(reader.prepare(wanted), f_s, f_align)
    assert furthest(mine, anchors) < TOLERANCE.anchor_states and furthest(leans, lean) < TOLERANCE.text


@torch.no_grad()
def test_one_language_model_of_two_makes_no_second_copy_and_answers_as_before(paper: tuple[ModelConfig, AgVas]) -> None:
    config, model = paper
    f_s, f_align = torch.randn(2, 1, 9, 64).unbind(0)
    copied = placed(model, CPU, torch.float32)
    Reader(copied.lmm)
    language_model: Any = copied.lmm.language_model
    attention = language_model.layers[0].self_attn
    assert attention.q_proj.weight.untyped_storage().data_ptr() == attention.k_proj.weight.untyped_storage().data_ptr()
    assert furthest(asked_of(copied, config, f_s, f_align)[0], asked_of(model, config, f_s, f_align)[0]) < 1e-6


@torch.no_grad()
def test_float8_products_are_near_and_give_up_their_weights() -> None:
    torch.manual_seed(0)
    first, second = (torch.nn.Linear(64, 32, dtype=torch.bfloat16) for _ in range(2))
    exact = fused([first, second])
    x = torch.randn(3, 5, 64, dtype=torch.bfloat16)
    expected = exact(x).float()
    short = Float8(exact.weight, exact.bias)  # type: ignore[attr-defined]
    assert ((short(x).float() - expected).norm() / expected.norm()) < 0.04  # three bits of mantissa
    assert torch.equal(short(x, slice(32, None)), short(x)[..., 32:])
    fused([first, second], float8=True)
    assert first.weight.numel() == 0


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_pieces_are_the_plain_ones() -> None:
    x, y, weight = torch.randn(1, 7, 32), torch.randn(1, 7, 32), torch.rand(32)
    cos, sin = torch.randn(2, 7, 8).unbind(0)
    q, k = torch.randn(1, 4, 7, 8), torch.randn(1, 2, 7, 8)
    for given, name in (((x, y, weight, 1e-6), "add_norm"), ((q, k, cos, sin), "rotate"), ((x,), "gated")):
        for mine, theirs in zip(getattr(compiled(), name)(*given), getattr(PLAIN, name)(*given), strict=True):
            assert furthest(mine, theirs) < 1e-6


@pytest.fixture(scope="module")
def nano() -> Bundle:
    return load_bundle("nano")


@pytest.fixture(scope="module")
def engine(nano: Bundle) -> Engine:
    """nano's, on the CPU in float32: all of it but streams and graphs."""
    tokenizer = PromptTokenizer(nano)
    first = tokenizer.first_of_answer, tokenizer.first_of_refusal
    return Engine(load_checkpoint("nano").model, first, device=CPU, precision="fp32")


def with_encoder(bundle: Bundle, folder: Path) -> Bundle:
    """The bundle with a references graph that has an encoder of its own."""
    shutil.copytree(bundle.folder, folder)
    data, spec, made_of = _with_encoder(TRUNK, sha256_of(TRUNK))
    (folder / spec.file).write_bytes(data)
    manifest = read_manifest(folder)
    files = manifest.files | {spec.file: sha256_of(folder / spec.file)}
    write_manifest(
        folder,
        manifest.model_copy(
            update={"references": spec, "files": files, "provenance": manifest.provenance | {"references": made_of}}
        ),
    )
    return load_bundle(folder)


def segmenter_of(bundle: Bundle, engine: Engine) -> Segmenter:
    return Segmenter(bundle, CudaVision(engine), CudaLmm(bundle, engine), CudaDecoder(engine))


def part(side: int = 96) -> np.ndarray:
    image = np.full((side, side, 3), 180, np.uint8)
    image[side // 3 : side // 2, side // 3 : side // 2] = 20
    return image


def test_all_at_once_is_the_answer_of_one_after_the_other_and_of_the_reference(nano: Bundle, engine: Engine) -> None:
    at_once = segmenter_of(nano, engine)
    stages = [CudaVision(engine), CudaLmm(nano, engine), CudaDecoder(engine)]
    one_by_one = Segmenter(nano, lambda *views: stages[0](*views), stages[1], stages[2])  # type: ignore[arg-type]
    reference = Segmenter.load("nano", vision="torch", lmm="torch", decoder="torch")
    results = [segmenter.predict([part()])[0] for segmenter in (at_once, one_by_one, reference)]
    assert "model" in results[0].timing and "vision" not in results[0].timing and "vision" in results[1].timing
    for other in results[1:]:
        assert results[0].verdict == other.verdict and results[0].accept == pytest.approx(other.accept, abs=TOLERANCE.probability)
        assert np.abs(results[0].score_map - other.score_map).max() < TOLERANCE.probability


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> FakeKernels:
    """As if the native core had been built with CUDA, and there was a GPU."""
    core = native.core
    if core is None:
        pytest.skip("the native core was not built")
    fake = FakeKernels(core)
    monkeypatch.setattr(native, "core", fake)
    return fake


def test_a_frame_whose_size_comes_again_is_one_launch_with_the_same_answer(
    nano: Bundle, engine: Engine, kernels: FakeKernels
) -> None:
    """Two scales, a good part and a bad one, and a rule of one's own."""
    at_once, reference = segmenter_of(nano, engine), Segmenter.load("nano", vision="torch", lmm="torch", decoder="torch")
    good, bad = np.full((480, 640, 3), 180, np.uint8), np.full((480, 640, 3), 180, np.uint8)
    bad[200:260, 300:380] = 20
    for turn, image in enumerate((good, good, bad, bad, good)):
        (mine,), (theirs,) = at_once.predict([image]), reference.predict([image])
        assert (kernels.judged, kernels.seen) == (turn, 2 * turn), "the first of a size goes the other way"
        assert ("preprocess" in mine.timing) == (turn == 0)
        assert mine.verdict == theirs.verdict and mine.accept == pytest.approx(theirs.accept, abs=TOLERANCE.probability)
        assert np.abs(mine.score_map - theirs.score_map).max() < TOLERANCE.probability
        assert [region.box for region in mine.regions] == [region.box for region in theirs.regions]
        assert np.array_equal(mine.mask, theirs.mask)
    (strict,) = at_once.predict([bad], threshold=0.999)
    assert strict.verdict == reference.predict([bad], threshold=0.999)[0].verdict and strict.verdict == "PASS"
    assert not strict.mask.any()


def test_a_whole_frame_brings_its_distances_to_good_images(
    nano: Bundle, engine: Engine, kernels: FakeKernels, tmp_path: Path
) -> None:
    """References with an encoder of their own, as a product of ``agvas fit --size`` has them."""
    nano = with_encoder(nano, tmp_path / "own")
    spec = nano.manifest.references
    assert spec is not None and spec.view is not None
    stage, vision, lmm = TorchReferences(nano), CudaVision(engine), CudaLmm(nano, engine)
    frames = vision.framed(lmm, CudaDecoder(engine))
    assert frames is not None
    image = np.full((480, 640, 3), 180, np.uint8)
    image[200:260, 300:380] = 20
    view = make_view(spec.view, image).pixels[None]
    bank = stage.embed(view).reshape(-1, spec.channels)[:50]
    references = FrameReferences(stage, bank, spec.view, 0.5)
    views = scaled_views(nano.manifest.pixel_view, nano.manifest.scales, 480, 640)
    looks = tuple(plan_scales(480, 640, views, nano.manifest.tiling, enabled=True))
    plan = FramePlan((480, 640), nano.manifest.semantic_view, looks, nano.manifest.decision.alpha, 2, references)
    asked = "find anomalies", nano.manifest.decision.point()
    assert frames(image, plan, *asked) is None
    expected = stage(view, bank, colour_weight=0.5)
    for _ in range(2):
        pending = frames(image, plan, *asked)
        assert pending is not None
        seen = pending.result()
        assert seen.deep is not None and seen.joint is not None
        np.testing.assert_allclose(seen.deep, expected.deep[0], atol=1e-5)
        np.testing.assert_allclose(seen.joint, expected.joint[0], atol=1e-5)


def test_a_camera_makes_no_views_for_an_engine_that_makes_its_own(nano: Bundle, engine: Engine, kernels: FakeKernels) -> None:
    from agvas_runtime.images.frame import Sent

    segmenter = segmenter_of(nano, engine)
    sent = Sent(np.full((500, 700), 180, np.uint8), "BayerRG8", (500, 700))
    assert segmenter.whole_views(500, 700) == [] and len(Segmenter.load("nano").whole_views(500, 700)) == 3
    results = [segmenter.segment(segmenter.camera_frame(sent, "camera#1")) for _ in range(2)]
    assert results[0].error is None and kernels.judged == 1
    assert np.abs(results[0].score_map - results[1].score_map).max() < TOLERANCE.probability


def test_the_gpu_script_measures_whole_frames(paper: tuple[ModelConfig, AgVas], kernels: FakeKernels) -> None:
    config, model = paper
    words = Words(*(np.array([each if isinstance(each, list) else [each]]) for each in paper_model.words(config)))
    engine = Engine(model, reference_ratio.FIRST_WORDS, device=CPU, precision="fp32")
    found = reference_ratio.whole_frame_figures(engine, config, words, 3, 60.0)
    assert found is not None and found["count"] == 3 and kernels.judged == 3 + 4 - 1  # measured, and warmed up but for the first


def test_a_frame_in_tiles_is_one_launch_too(nano: Bundle, engine: Engine, kernels: FakeKernels) -> None:
    """Five tiles of the finest look, four of them together; each has a language model's word, of which the best counts."""
    at_once, reference = segmenter_of(nano, engine), Segmenter.load("nano", vision="torch", lmm="torch", decoder="torch")
    image = np.full((300, 4000, 3), 180, np.uint8)
    image[100:180, 2900:3000] = 20
    for turn in range(3):
        (mine,), (theirs,) = at_once.predict([image]), reference.predict([image])
        assert kernels.judged == turn and mine.tiles == theirs.tiles == 5
        assert mine.verdict == theirs.verdict and mine.accept == pytest.approx(theirs.accept, abs=TOLERANCE.probability)
        assert np.abs(mine.score_map - theirs.score_map).max() < TOLERANCE.probability


def test_frames_smaller_than_their_views_and_those_of_very_many_tiles_go_the_other_way(
    nano: Bundle, engine: Engine, kernels: FakeKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = segmenter_of(nano, engine)
    monkeypatch.setattr("agvas_runtime.pipeline.scorer.MOST_TILES", 4)
    for image in (part(96), np.full((300, 3000, 3), 180, np.uint8)):
        for _ in range(2):
            assert segmenter.predict([image])[0].error is None
    assert kernels.seen == 0


def test_a_frame_whose_logits_are_not_finite_has_no_verdict(nano: Bundle, kernels: FakeKernels) -> None:
    tokenizer = PromptTokenizer(nano)
    first = tokenizer.first_of_answer, tokenizer.first_of_refusal
    model = load_checkpoint("nano").model
    broken = Engine(model, first, device=CPU, precision="fp32")
    for parameter in broken.model.agmd.parameters():
        parameter.data.fill_(float("nan"))
    image = np.full((480, 640, 3), 180, np.uint8)
    for _ in range(2):
        (result,) = segmenter_of(nano, broken).predict([image])
        assert result.verdict == "NO_VERDICT" and "NaN" in str(result.error)
    assert kernels.judged == 1


def test_frames_that_overlap_come_back_in_their_order(nano: Bundle, engine: Engine) -> None:
    segmenter, images = segmenter_of(nano, engine), [part(side) for side in (96, 64, 96, 128, 64)]
    alone = [segmenter.predict([image])[0].score for image in images]
    from agvas_runtime.images.frame import Frame

    frames = [Frame(str(index), index, image=image) for index, image in enumerate(images)]
    assert [result.score for result in segmenter.stream(frames)] == alone


def test_another_language_model_ends_the_shortcut(nano: Bundle, engine: Engine) -> None:
    mixed = segmenter_of(nano, engine).with_lmm(open_stages(nano).lmm)
    assert "model" not in mixed.predict([part()])[0].timing


def test_words_are_those_of_the_reference(nano: Bundle, engine: Engine) -> None:
    reference = open_stages(nano, vision="torch", lmm="torch", decoder="torch")
    views = np.random.default_rng(0).integers(0, 256, (1, 128, 128, 3), np.uint8), part(160)[None]
    features = reference.vision(*views)
    mine, theirs = (lmm(features, "Find it.", Mode.EXPLAIN) for lmm in (CudaLmm(nano, engine), reference.lmm))
    assert mine.answers == theirs.answers
    short = CudaLmm(nano, engine)
    short.engine = replace_precision(engine, "fp8")
    with pytest.raises(UsageError, match="direct mode only"):
        short(features, "Find it.", Mode.EXPLAIN)


def replace_precision(engine: Engine, precision: str) -> Any:
    import copy

    other = copy.copy(engine)
    other.precision = precision  # type: ignore[assignment]
    return other


def test_the_profile_has_times_of_the_device_and_its_limits(nano: Bundle, engine: Engine) -> None:
    from agvas_runtime.profile.session import Plan, generated_frame, profile

    done, _ = profile(
        segmenter_of(nano, engine),
        [generated_frame(96)],
        Plan(frames=2, warmup=0, offered_frames=0, pairs=2),
        facts={"backend": "torch-cuda", "threads": 1, "load_s": 0.0, "command": "a test"},
    )
    assert list(done.device) == ["copy in", "vision", "lmm", "decoder", "copy out", "one launch"]
    assert all(each.count == 2 for each in done.device.values()) and "model" in done.stages
    assert done.machine.limits_of == "CPU, float32" and done.work["vision"].share is not None


@WITHOUT_GPU
@pytest.mark.parametrize("backend", ["torch-cuda", "torch-cuda-fp8"])
def test_without_a_gpu_it_is_refused_and_never_the_cpu(nano: Bundle, backend: str) -> None:
    for stage in ("vision", "lmm", "decoder"):
        with pytest.raises(SetupError, match=r"torch-cuda needs|finds no GPU"):
            open_stages(nano, **{stage: backend})


def test_a_driver_that_is_too_old_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def old() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nMore words.")

    monkeypatch.setattr(device_module.torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(device_module.torch.cuda, "init", old)
    with pytest.raises(SetupError, match=r"too old \(found version 11040"):
        open_device()


@pytest.mark.parametrize(("precision", "words"), [("bf16", "Ampere"), ("fp8", "Hopper")])
def test_a_gpu_without_the_precision_is_refused(monkeypatch: pytest.MonkeyPatch, precision: Any, words: str) -> None:
    for owner, name, value in (
        (device_module.torch.backends.cuda, "is_built", True),
        (device_module.torch.cuda, "init", None),
        (device_module.torch.cuda, "device_count", 1),
        (device_module.torch.cuda, "get_device_capability", (7, 5)),
        (device_module.torch.cuda, "get_device_name", "Old GPU"),
    ):
        monkeypatch.setattr(owner, name, lambda *_, value=value: value)
    with pytest.raises(SetupError, match=rf"Old GPU.*7\.5.*{words}"):
        open_device(precision)
    with pytest.raises(SetupError, match="GPU 3 is asked for and there are 1"):
        open_device(precision, 3)


def test_what_cuda_raises_is_said_of_the_frame() -> None:
    with pytest.raises(ImageError, match=r"full in the decoder.*Tried to allocate 20\.00 GiB.*lower"), cuda_errors("the decoder"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 10 GiB")
    with pytest.raises(StageError, match="GPU failed in vision"), cuda_errors("vision"):
        raise RuntimeError("CUDA error: device unavailable\nmore")
    with pytest.raises(RuntimeError, match="of ours"), cuda_errors("vision"):
        raise RuntimeError("a mistake of ours")


def test_a_language_model_of_another_make_is_refused(paper: tuple[ModelConfig, AgVas]) -> None:
    lmm = paper[1].lmm
    with pytest.raises(BundleError, match="reads Qwen2 and LLaMA"):
        Reader(type(lmm)(language_model=torch.nn.Linear(1, 1), head=lmm.head, image_token_id=3, anchor_ids=(4, 5, 6)))  # type: ignore[arg-type]


@pytest.mark.gpu
@torch.no_grad()
def test_a_graph_gives_what_its_function_gives_again_and_again(paper: tuple[ModelConfig, AgVas]) -> None:
    """Streams and graphs against the same computing on a CPU, frame by frame, the graph from the second on."""
    config, model = paper
    words = paper_model.words(config)
    given = tuple(np.array([each if isinstance(each, list) else [each]]) for each in words)
    on_cpu, on_gpu = (Engine(model, (7, 8), device=device, precision="fp32") for device in (CPU, torch.device("cuda")))
    for seed in range(5):
        shown = tuple(view.numpy() for view in paper_model.views(config, 2, seed))
        flights = [engine.launch(shown, Words(*given)) for engine in (on_cpu, on_gpu)]  # type: ignore[arg-type]
        theirs, mine = (flight.result() for flight in flights)
        assert furthest(torch.from_numpy(mine.logits), torch.from_numpy(theirs.logits)) < 2e-3  # TF32 in convolutions
        assert np.abs(mine.accept - theirs.accept).max() < 2e-3
    assert len(on_gpu.graphs) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["torch-cuda", "torch-cuda-fp8"])
def test_nano_on_a_gpu_judges_as_on_a_cpu(nano: Bundle, backend: str) -> None:
    images = [part(side) for side in (96, 96, 128, 96)]
    on_cpu, on_gpu = (Segmenter.load("nano", vision=name, lmm=name, decoder=name) for name in ("onnx", backend))
    for theirs, mine in zip(on_cpu.predict(images), on_gpu.predict(images), strict=True):
        assert mine.error is None and mine.verdict == theirs.verdict
        assert np.abs(mine.score_map - theirs.score_map).max() < TOLERANCES["bf16"].probability


@pytest.mark.gpu
def test_a_whole_frame_on_a_gpu_is_one_launch_and_judged_as_on_a_cpu(nano: Bundle) -> None:
    """Kernels, graph and overlap of frames that a camera would send; needs the native core built with CUDA."""
    from agvas_runtime.images.frame import Frame
    from agvas_runtime.stages.whole_frame import kernels

    if kernels() is None:
        pytest.skip(f"no kernels for this GPU ({native.describe()})")
    good, bad = np.full((960, 1280, 3), 180, np.uint8), np.full((960, 1280, 3), 180, np.uint8)
    bad[400:520, 600:760] = 20
    frames = [Frame(str(index), index, image=image) for index, image in enumerate((good, bad, good, bad, bad, good))]
    on_cpu, on_gpu = (
        Segmenter.load("nano", vision=name, lmm=name, decoder=name, tiling="off") for name in ("onnx", "torch-cuda")
    )
    for index, (mine, theirs) in enumerate(zip(on_gpu.stream(frames), on_cpu.stream(frames), strict=True)):
        assert mine.error is None and mine.verdict == theirs.verdict
        assert ("preprocess" in mine.timing) == (index == 0)
        assert np.abs(mine.score_map - theirs.score_map).max() < TOLERANCES["bf16"].probability

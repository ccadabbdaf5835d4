"""A head that painted defects train: what it learns, when a product has it, and that all engines agree."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from agvas.fitting import head as fitting
from agvas.fitting.calibrate import calibrate_product
from agvas.fitting.fit import Fitted
from agvas_core.contract.errors import BundleError, SetupError, UsageError
from agvas_core.contract.manifest import read_manifest, sha256_of, write_manifest
from agvas_core.contract.product import HEAD, Kind, MapScale
from agvas_core.data.synthetic.photographs import PaintedImage
from agvas_core.model.references import ReferenceHead
from agvas_export.trt.plan import graphs_of, make_plan
from agvas_export.trt.recipe import find_recipe
from agvas_runtime import Segmenter
from agvas_runtime.bundle import load_bundle
from agvas_runtime.pipeline.references import Scales
from agvas_runtime.stages.open import open_head

Rgb = NDArray[np.uint8]
Photograph = Callable[..., Rgb]
Save = Callable[[Rgb, Path], None]
QuickFit = Callable[..., Fitted]


@pytest.fixture(scope="module")
def headed(good: Path, quick_fit: QuickFit, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """A product with a head, whatever it gains; read it only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "is_better", lambda gain, areas: True)
        return quick_fit(good, tmp_path_factory.mktemp("headed") / "plate", head=True)


def inputs(channels: int, batch: int, height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(height)
    embedding = rng.standard_normal((batch, height, width, channels)).astype(np.float32)
    return embedding, rng.standard_normal((batch, 3, height, width)).astype(np.float32)


@pytest.mark.parametrize("size", [(1, 16, 20), (2, 3, 5)])
def test_onnx_runtime_gives_the_answer_of_torch(headed: Fitted, size: tuple[int, int, int]) -> None:
    given = inputs(6, *size)
    found, truth = (open_head(headed.bundle, backend)(*given) for backend in ("onnx", "torch"))
    assert found.shape == size
    assert np.abs(found - truth).max() < 1e-4 * max(1.0, float(np.abs(truth).max()))
    assert truth.std() > 0


def test_the_graph_of_several_is_their_mean() -> None:
    torch.manual_seed(0)
    members = [ReferenceHead(6, width=4).eval() for _ in range(2)]
    given = inputs(6, 1, 7, 9)
    session = ort.InferenceSession(fitting.head_graph(ReferenceHead.joined(members)), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"embedding": given[0], "rarities": given[1]})
    with torch.no_grad():
        each = [member(*map(torch.from_numpy, given)).numpy() for member in members]
    assert np.abs(found - (each[0] + each[1]) / 2).max() < 1e-5


def example(rng: np.random.Generator, half: int, *, defect: bool) -> fitting._Example:
    """Cells of 5 channels; those of a defect have 3 more in the second."""
    embedding = rng.standard_normal((12, 14, 5)).astype(np.float32)
    truth = np.zeros((12, 14), np.float32)
    if defect:
        y, x = rng.integers(0, 9), rng.integers(0, 11)
        truth[y : y + 3, x : x + 3] = 1
        embedding[..., 1] += 3 * truth
    return fitting._Example(half, embedding.astype(np.float16), np.zeros((3, 12, 14), np.float32), torch.from_numpy(truth))


def test_it_learns_what_a_defect_looks_like() -> None:
    rng = np.random.default_rng(0)
    head = fitting._Half(fitting._trained([example(rng, 0, defect=bool(k % 2)) for k in range(12)], 0, lambda done: None))
    for _ in range(4):
        fresh = example(rng, 1, defect=True)
        logit = head(fresh.embedding.astype(np.float32)[None], fresh.rarities[None])[0]
        there = fresh.truth.numpy() > 0
        assert np.median(logit[there]) > np.quantile(logit[~there], 0.98)


def test_each_half_is_scored_by_the_head_of_the_other(
    quick_fit: QuickFit, good: Path, photograph: Photograph, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(2):
        save(photograph(90 + seed, red=(70, 60, 15)), tmp_path / "bad" / f"{seed}.png")
        mask = np.zeros((144, 160, 3), np.uint8)
        mask[45:76, 55:86] = 255
        save(mask, tmp_path / "bad" / f"{seed}_mask.png")
    taught: list[list[fitting._Example]] = []

    def untrained(examples: Sequence[fitting._Example], seed: int, step: Callable[[int], None]) -> ReferenceHead:
        taught.append(list(examples))
        return ReferenceHead(6).eval()

    monkeypatch.setattr(fitting, "_trained", untrained)
    fitted = quick_fit(good, tmp_path / "plate", bad=tmp_path / "bad", head=True)
    assert [{each.half for each in examples} for examples in taught] == [{1}, {0}]
    # Six good images of each half, some with a painted copy; and one bad image that somebody drew.
    assert all(sum(not each.truth.any() for each in examples) >= 6 for examples in taught)
    trial = fitted.product.head_trial
    assert trial is not None and trial.images > 2


@pytest.mark.parametrize(
    ("gain", "areas", "better"),
    [
        ([0.05] * 10, (0.9, 0.9), True),
        ([0.05] * 10, (0.9, 0.899), False),
        ([0.005] * 10, (0.9, 0.95), False),
        ([0.4, -0.3] * 5, (0.9, 0.95), False),
        ([0.05] * 7, (0.9, 0.95), False),
    ],
)
def test_a_head_must_clearly_gain(gain: list[float], areas: tuple[float, float], better: bool) -> None:
    assert fitting.is_better(np.array(gain), areas) is better


def test_a_head_that_does_not_gain_is_left_out(
    quick_fit: QuickFit, good: Path, fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "is_better", lambda gain, areas: False)
    without = quick_fit(good, tmp_path / "plate", head=True)
    trial = without.product.head_trial
    assert trial is not None and not trial.adopted and without.product.head is None
    assert not (without.bundle.folder / HEAD).exists()
    assert any(f"{trial.ap[1]:.3f}" in note for note in without.product.warnings)
    assert [each.score for each in without.product.good] == [each.score for each in fitted.product.good]


def test_the_product_runs_with_its_head(headed: Fitted, fitted: Fitted, photograph: Photograph) -> None:
    assert headed.product.head is not None
    assert HEAD in headed.bundle.manifest.files
    frames = [photograph(50), photograph(51, red=(70, 60, 15))]
    good, bad = Segmenter.load(headed.bundle.folder, threads=1).predict(frames)
    plain = Segmenter.load(fitted.bundle.folder, threads=1).predict(frames)
    assert (good.verdict, bad.verdict) == ("PASS", "FAIL")
    assert bad.score != plain[1].score
    zero_shot = Segmenter.load(headed.bundle.folder, threads=1)
    assert zero_shot.references is not None and zero_shot.references.head is not None


def test_a_product_of_before_heads_opens(fitted: Fitted, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(fitted.bundle.folder, tmp_path / "old"))
    raw = json.loads((folder / "product.json").read_text())
    (folder / "product.json").write_text(
        json.dumps({key: value for key, value in raw.items() if not key.startswith("head")} | {"format": 1})
    )
    manifest = read_manifest(folder)
    files = manifest.files | {"product.json": sha256_of(folder / "product.json")}
    write_manifest(folder, manifest.model_copy(update={"files": files}))
    opened = load_bundle(folder).product
    assert opened is not None and opened.half == fitted.product.half and opened.head is None


@pytest.mark.parametrize("change", ["missing", "changed", "unlisted"])
def test_a_head_that_is_not_whole_is_refused(headed: Fitted, tmp_path: Path, change: str) -> None:
    folder = Path(shutil.copytree(headed.bundle.folder, tmp_path / "copy"))
    data = (folder / HEAD).read_bytes()
    if change == "changed":
        (folder / HEAD).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        (folder / HEAD).unlink()
    if change == "unlisted":
        manifest = read_manifest(folder)
        files = {name: digest for name, digest in manifest.files.items() if name != HEAD}
        write_manifest(folder, manifest.model_copy(update={"files": files}))
    with pytest.raises(BundleError, match=HEAD):
        load_bundle(folder)


def test_a_product_that_grows_or_is_calibrated_keeps_its_head(
    headed: Fitted, quick_fit: QuickFit, photograph: Photograph, save: Save, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(headed.bundle.folder, tmp_path / "plate"))
    for seed in range(20, 23):
        save(photograph(seed), tmp_path / "more" / f"{seed}.png")
        save(photograph(seed + 10), tmp_path / "others" / f"{seed}.png")
    with pytest.raises(UsageError, match="head"):
        quick_fit(tmp_path / "more", folder, add=True, head=True)
    grown = quick_fit(tmp_path / "more", folder, add=True).product
    calibrated = calibrate_product(folder, tmp_path / "others", threads=1).product
    for product in (grown, calibrated):
        assert (product.head, product.head_trial) == (headed.product.head, headed.product.head_trial)
    assert (folder / HEAD).read_bytes() == (headed.bundle.folder / HEAD).read_bytes()
    result = Segmenter.load(folder, threads=1).predict([photograph(20)])[0]
    assert result.verdict == "PASS"


def test_images_that_nothing_can_be_painted_on_get_no_head(
    quick_fit: QuickFit, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "STEPS", 2)
    monkeypatch.setattr(
        "agvas.fitting.judging.paint_defects",
        lambda rng, image, *rest: PaintedImage(image, np.zeros(image.shape[:2], np.uint8), ()),
    )
    trial = quick_fit(good, tmp_path / "plate", head=True).product.head_trial
    assert trial is not None and trial.images == 0 and not trial.adopted


def test_small_defects_are_taught_as_such() -> None:
    scale = MapScale(values=(0.0, 1.0), rarity=(0.0, 1.0), slope=1.0)
    maps: dict[Kind, NDArray[np.float32]] = {kind: np.zeros((256, 256), np.float32) for kind in ("joint", "deep", "zero_shot")}
    truth = np.zeros((160, 160), bool)
    truth[40:42, 41:43] = True  # 4 of the 100 px of a cell
    made = fitting._example(3, np.zeros((16, 16, 5), np.float16), maps, truth, Scales(scale, scale, scale))
    assert made.half == 1
    assert [tuple(place) for place in np.argwhere(made.truth.numpy() > 0)] == [(4, 4)]


def test_without_torch_the_extra_is_named(
    quick_fit: QuickFit, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agvas.fitting.fit.find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"agvas\[fit\]"):
        quick_fit(good, tmp_path / "plate", head=True)
    assert not (tmp_path / "plate").exists()


def test_few_images_train_no_head(quick_fit: QuickFit, good: Path, tmp_path: Path) -> None:
    few = quick_fit(sorted(good.iterdir())[:4], tmp_path / "plate", head=True)
    assert few.product.head is None and few.product.head_trial is None
    assert any("head" in warning and "8" in warning for warning in few.warnings)


def test_ctrl_c_in_training_leaves_the_earlier_product(quick_fit: QuickFit, good: Path, fitted: Fitted, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(fitted.bundle.folder, tmp_path / "plate"))

    def stop(step: str, done: int, total: int) -> None:
        if step == "head" and done > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick_fit(good, folder, head=True, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["plate"]
    assert load_bundle(folder).identity == fitted.bundle.identity


def test_training_leaves_torch_as_it_was(
    quick_fit: QuickFit, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "STEPS", 3)
    state: list[Any] = [torch.get_num_threads(), torch.random.get_rng_state()]
    one, two = (quick_fit(good, tmp_path / name, head=True).product for name in ("one", "two"))
    assert one.head_trial == two.head_trial
    assert torch.get_num_threads() == state[0] and torch.equal(torch.random.get_rng_state(), state[1])


def test_engines_of_a_product_are_planned_with_its_head(headed: Fitted) -> None:
    bundle = headed.bundle
    assert list(graphs_of(bundle.manifest, bundle.product)) == ["vision", "lmm", "decoder", "references", "head"]
    plan = make_plan(bundle.folder, find_recipe("a100"), precision=None, stages=("references", "head"))
    references, head = (step.shapes for step in plan.steps)
    for shapes in zip(references["reference_image"], head["embedding"], head["rarities"], strict=True):
        image, embedding, rarities = shapes
        cells = (image[1] // 8, image[2] // 8)
        assert embedding == (image[0], *cells, 6) and rarities == (image[0], 3, *cells)

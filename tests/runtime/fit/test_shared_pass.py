"""References that take the vision stage's features: a whole frame is seen once for both, and the answer is that of a pass of their own."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from agvas.fitting.fit import Fitted, fit
from agvas.whole_graph import VERDICTS, build_graph
from agvas_runtime import Segmenter
from agvas_runtime.bundle import load_bundle
from agvas_runtime.pipeline.references import ReferenceCells
from agvas_runtime.profile.work import recorded
from agvas_runtime.stages.onnx import OnnxVision

Rgb = NDArray[np.uint8]


def runtime_conftest() -> ModuleType:
    spec = importlib.util.spec_from_file_location("runtime_conftest", Path(__file__).parents[1] / "conftest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shared(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Fitted]]:
    """``shared(name, size_px=None)``: a product whose references take f_p."""
    conftest = runtime_conftest()
    base = conftest.add_references(conftest.make_tiny_bundle(tmp_path_factory.mktemp("shared") / "tiny"))
    products, made = tmp_path_factory.mktemp("products"), dict[str, Fitted]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agvas.fitting.fit.PAINTED_IMAGES", 4)

        def product(name: str, size_px: int | None = None) -> Fitted:
            if name not in made:
                made[name] = fit(good, products / name, model=base, threads=1, size_px=size_px)
            return made[name]

        yield product


def passes(segmenter: Segmenter, image: Rgb) -> int:
    """Runs of the vision graph for one image."""
    vision = segmenter.stages[0]
    assert isinstance(vision, OnnxVision)
    with recorded(vision.graph) as recorder:
        (result,) = segmenter.predict([image])
    assert result.score is not None, result.error
    return len(recorder.calls)


def test_a_frame_is_seen_no_more_often_than_without_references(
    shared: Callable[..., Fitted], photograph: Callable[..., Rgb]
) -> None:
    folder = shared("plate").bundle.folder
    product, base = Segmenter.load(folder, threads=1), Segmenter.load(folder, threads=1)
    base.references = None
    image = photograph(50)
    assert passes(product, image) == passes(base, image)
    large = photograph(51, size=(300, 320))  # in tiles, and once as a whole
    assert passes(product, large) == passes(base, large) == 2


def test_the_score_is_that_of_a_pass_of_its_own(
    shared: Callable[..., Fitted], photograph: Callable[..., Rgb], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [photograph(60), photograph(61, red=(70, 60, 14))]
    folder = shared("plate").bundle.folder
    found = Segmenter.load(folder, threads=1).predict(images)
    assert [str(each.verdict) for each in found] == ["PASS", "FAIL"]
    monkeypatch.setattr(ReferenceCells, "shared_view", None)
    for one, other in zip(found, Segmenter.load(folder, threads=1).predict(images), strict=True):
        assert one.score == other.score and one.score_map is not None and other.score_map is not None
        np.testing.assert_array_equal(one.score_map, other.score_map)


def test_a_view_of_its_own_size_has_a_pass_of_its_own(shared: Callable[..., Fitted], photograph: Callable[..., Rgb]) -> None:
    larger = shared("larger", size_px=128).bundle.folder
    assert load_bundle(larger).product is not None
    product, base = Segmenter.load(larger, threads=1), Segmenter.load(larger, threads=1)
    base.references = None
    image = photograph(52)
    assert passes(product, image) == passes(base, image) + 1


def test_one_graph_sees_a_frame_once_too(shared: Callable[..., Fitted], photograph: Callable[..., Rgb]) -> None:
    folder = shared("plate").bundle.folder
    image = photograph(70, red=(70, 60, 14))
    model = build_graph(load_bundle(folder), (image.shape[0], image.shape[1]))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    score_map, verdict = session.run(["score_map", "verdict"], {"image": image})
    (own,) = Segmenter.load(folder, threads=1).predict([image])
    assert own.score_map is not None and VERDICTS[verdict] == own.verdict
    np.testing.assert_allclose(score_map, own.score_map, atol=2e-3)
    stages = {node.name.partition("/")[0] for node in model.graph.node}
    assert sum(stage.startswith("vision_") for stage in stages) == 1

"""One ONNX file from pixels to a verdict: it gives the package's own answer, and refuses what it cannot be."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from agvas.export import app, compare, export_graph
from agvas.whole_graph import VERDICTS, _axis, _linear_area, build_graph
from agvas_core.contract.command_line import exit_code_of
from agvas_core.contract.errors import BundleError, ParityError, UsageError
from agvas_core.contract.manifest import read_manifest, write_manifest
from agvas_core.contract.product import MapScale, Product
from agvas_runtime.bundle import load_bundle
from agvas_runtime.pipeline.segmenter import Segmenter

ROOT = Path(__file__).resolve().parents[2]
Part = Callable[..., NDArray[np.uint8]]


def judged(model: onnx.ModelProto, image: NDArray[np.uint8]) -> dict[str, Any]:
    """What ONNX Runtime gives for a frame, by name."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = ["score_map", "mask", "score", "verdict"]
    return dict(zip(names, session.run(names, {"image": image}), strict=True))


def same(folder: str | Path, image: NDArray[np.uint8], *, error: float = 2e-3, **options: Any) -> dict[str, Any]:
    """The graph's answer, compared with the package's."""
    height, width = image.shape[:2]
    found = judged(build_graph(load_bundle(folder), (height, width), **options), image)
    (own,) = Segmenter.load(folder, **options).predict(image)
    assert VERDICTS[found["verdict"]] == own.verdict
    if own.mask is None or own.score_map is None or own.score is None:
        assert not found["mask"].any(), "nothing may be read off a frame without a verdict"
        return found
    assert np.abs(found["score_map"] - own.score_map).max() < error and abs(found["score"] - own.score) < error
    assert np.array_equal(found["mask"], own.mask * np.uint8(255))
    return found


def with_point(folder: Path, target: Path, **changes: Any) -> Path:
    """A copy of a bundle with another operating point."""
    shutil.copytree(folder, target)
    manifest = read_manifest(target)
    point = manifest.decision.point().model_copy(update=changes)
    decision = manifest.decision.model_copy(update={"operating_points": {"balanced": point}})
    write_manifest(target, manifest.model_copy(update={"decision": decision}))
    return target


# --- the model's own answer


@pytest.mark.parametrize("size", [(96, 128), (64, 64), (40, 40), (30, 150), (150, 500), (700, 300)])
def test_any_size_gives_the_package_s_answer(tiny_bundle: Path, make_part: Part, size: tuple[int, int]) -> None:
    """Enlarged, shrunk, squeezed, and in tiles of several rows and columns."""
    height, width = size
    image = make_part(height, width, [(width // 3, height // 2, min(size) // 6 + 2), (width - 9, 9, 5)])
    found = same(tiny_bundle, image, error=2e-2)  # a pixel of a view that is rounded otherwise is worth 40 / 255 of a logit here
    assert found["verdict"] == 1 and found["score_map"].shape == size
    assert same(tiny_bundle, make_part(height, width))["verdict"] == 0


def test_the_instruction_is_fixed_in_the_graph(tiny_bundle: Path, make_part: Part) -> None:
    found = same(tiny_bundle, make_part(), prompt="find the bright spots")
    assert found["mask"].all()


def test_numbers_that_are_broken_are_no_verdict(tiny_bundle: Path, make_part: Part) -> None:
    assert same(tiny_bundle, make_part(), prompt="find the broken spots")["verdict"] == 2


def test_regions_without_a_seed_do_not_count(tiny_bundle: Path, tmp_path: Path) -> None:
    image = np.full((96, 128, 3), 210, np.uint8)
    image[20:30, 20:30] = 110  # above the threshold and below the seed threshold
    image[50:90, 60:72] = 110  # the same, with a seed at the far end of a hook
    image[50:62, 60:120] = 110
    image[50:62, 108:120] = 20
    folder = with_point(tiny_bundle, tmp_path / "seeds", threshold=0.5, seed_threshold=0.95)
    found = same(folder, image)
    assert not found["mask"][20:30, 20:30].any() and found["mask"][80, 66]


def test_a_refusal_keeps_the_gate_shut(tiny_bundle: Path, tmp_path: Path, make_part: Part) -> None:
    folder = with_point(tiny_bundle, tmp_path / "gate", gate=0.5)
    part = make_part(spots=[(40, 40, 12)])
    assert same(folder, part)["verdict"] == 1
    assert same(folder, part, prompt="find the hole")["verdict"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["brushed-dent", "valve-good", "leather-stain"])
def test_nano_s_file_gives_nano_s_answer(name: str) -> None:
    image = cv2.imread(str(ROOT / f"examples/parts/{name}.jpg"))[:, :, ::-1].copy()
    same("nano", image)


def test_weights_of_resizing_are_opencv_s() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 50), np.uint8)
    for size in ((20, 20), (30, 33), (8, 50)):
        rows, columns = _axis(30, size[0], cv2.INTER_AREA), _axis(50, size[1], cv2.INTER_AREA)
        assert np.abs(rows @ image @ columns.T - cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)).max() <= 0.51
    rows, columns = _linear_area(30, 45), _linear_area(50, 20)
    assert np.abs(rows @ image @ columns.T - cv2.resize(image, (20, 45), interpolation=cv2.INTER_AREA)).max() <= 1.01


# --- products


@pytest.fixture(scope="module")
def lid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A product of nano, learned from few pictures."""
    from agvas.fitting.fit import fit

    folder = tmp_path_factory.mktemp("lid") / "lid"
    fit(sorted((ROOT / "examples/lid/good").iterdir())[:6], folder)
    return folder


@pytest.mark.slow
def test_a_product_s_file_gives_the_product_s_answer(lid: Path) -> None:
    verdicts = set()
    for path in sorted((ROOT / "examples/lid/judge").glob("*.jpg"))[::3]:
        image = cv2.imread(str(path))[:, :, ::-1].copy()
        verdicts.add(int(same(lid, image)["verdict"]))
    black, flat = np.zeros((300, 400, 3), np.uint8), np.full((300, 400, 3), 128, np.uint8)
    upside = cv2.imread(str(ROOT / "examples/parts/leather-stain.jpg"))[:300, :400, ::-1].copy()
    verdicts |= {int(same(lid, image)["verdict"]) for image in (black, flat, upside)}
    assert verdicts == {0, 1, 2}


@pytest.mark.slow
def test_the_command_writes_a_file_that_python_and_c_read(lid: Path, tmp_path: Path) -> None:
    out = tmp_path / "lid.onnx"
    assert exit_code_of(lambda: app, name="agvas export", arguments=["onnx", str(lid), "-o", str(out)]) == 0
    facts = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    product = load_bundle(lid)
    point = product.manifest.decision.point()
    assert facts["model"] == product.identity and facts["image_size"] == "400x300"
    assert float(facts["threshold"]) == point.threshold and float(facts["seed_threshold"]) == point.seed_threshold
    assert json.loads(facts["classes"]) == ["anomaly"] and "Apache-2.0" in facts["licence"]
    picture = ROOT / "examples/lid/judge/bad-5-stain.jpg"
    (own,) = Segmenter.load(lid).predict(picture)
    assert own.mask is not None and own.score is not None
    script = ROOT / "examples/onnx/judge.py"
    said = subprocess.check_output([sys.executable, script, out, picture], text=True).split()
    assert said[0] == own.verdict and abs(float(said[1]) - own.score) < 5e-3
    assert abs(int(said[2]) - own.mask.sum()) <= 0.02 * own.mask.sum()


def onnxruntime_headers() -> Path | None:
    """The folder of onnxruntime_cxx_api.h: of ONNXRUNTIME_INCLUDE, or where packages of systems have it."""
    places = [os.environ.get("ONNXRUNTIME_INCLUDE"), "/usr/include/onnxruntime", "/usr/local/include/onnxruntime", "/usr/include"]
    return next((Path(place) for place in places if place and (Path(place) / "onnxruntime_cxx_api.h").is_file()), None)


def test_the_c_example_is_compiled_and_gives_the_same(tiny_bundle: Path, tmp_path: Path, make_part: Part) -> None:
    """Against ONNX Runtime's headers where they are: its wheel has the library, and no headers."""
    headers = onnxruntime_headers()
    if headers is None:
        pytest.skip("onnxruntime_cxx_api.h is not here: name its folder in ONNXRUNTIME_INCLUDE")
    libraries = sorted((Path(ort.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    assert libraries, "the wheel has no library"
    program = tmp_path / "judge"
    command = ["g++", "-std=c++17", "-Wall", "-Werror", f"-isystem{headers}", str(ROOT / "examples/onnx/judge.cpp")]
    command += [str(libraries[0]), f"-Wl,-rpath,{libraries[0].parent}", "-o", str(program)]
    subprocess.run(command, check=True)
    (tmp_path / "libonnxruntime.so.1").symlink_to(libraries[0])
    out = tmp_path / "tiny.onnx"
    export_graph(tiny_bundle, out, size=(96, 128))
    part = make_part(spots=[(40, 40, 12)])
    assert cv2.imwrite(str(tmp_path / "part.ppm"), part[:, :, ::-1])
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    said = subprocess.check_output([program, out, tmp_path / "part.ppm"], text=True, env=environment).split()
    (own,) = Segmenter.load(tiny_bundle).predict(part)
    assert own.mask is not None and said[0] == "FAIL" and int(said[2]) == own.mask.sum()
    wrong = subprocess.run([program, out, out], capture_output=True, text=True, env=environment)
    assert wrong.returncode == 2 and "128x96" in wrong.stderr


def test_openvino_gives_the_same(tiny_bundle: Path, tmp_path: Path, make_part: Part) -> None:
    ov = pytest.importorskip("openvino")
    out = tmp_path / "tiny.xml"
    size, compared = export_graph(tiny_bundle, out, size=(96, 128))
    assert size == (96, 128) and compared.images == 3
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.xml", "tiny.bin"}
    model = ov.Core().read_model(out)
    assert model.get_rt_info(["agvas", "image_size"]).astype(str) == "128x96"
    found = ov.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(make_part(spots=[(40, 40, 12)]))
    (own,) = Segmenter.load(tiny_bundle).predict(make_part(spots=[(40, 40, 12)]))
    assert own.mask is not None and np.array_equal(found["mask"] > 0, own.mask) and found["verdict"] == 1


@pytest.mark.slow
def test_the_c_example_of_openvino_is_compiled_and_gives_the_same(tiny_bundle: Path, tmp_path: Path, make_part: Part) -> None:
    """OpenVINO's wheel has headers and libraries; it reads the ONNX file as it is."""
    ov = pytest.importorskip("openvino")
    home = Path(ov.__file__).parent
    (library,) = (path for path in (home / "libs").glob("libopenvino.so*") if not path.is_symlink())
    command = ["g++", "-std=c++17", f"-isystem{home / 'include'}", str(ROOT / "examples/onnx/judge_openvino.cpp"), str(library)]
    subprocess.run([*command, f"-Wl,-rpath,{home / 'libs'}", "-o", str(tmp_path / "judge")], check=True)
    out = tmp_path / "tiny.onnx"
    export_graph(tiny_bundle, out, size=(96, 128))
    part = make_part(spots=[(40, 40, 12)])
    assert cv2.imwrite(str(tmp_path / "part.ppm"), part[:, :, ::-1])
    said = subprocess.check_output([tmp_path / "judge", out, tmp_path / "part.ppm"], text=True).split()
    (own,) = Segmenter.load(tiny_bundle).predict(part)
    assert own.mask is not None and said[0] == "FAIL" and int(said[2]) == own.mask.sum()
    wrong = subprocess.run([tmp_path / "judge", out, out], capture_output=True, text=True)
    assert wrong.returncode == 2 and "128x96" in wrong.stderr


# --- what is refused


def test_what_a_graph_cannot_do_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    with pytest.raises(UsageError, match="9000"):
        build_graph(bundle, (9000, 100))
    with pytest.raises(UsageError, match="strict"):
        build_graph(bundle, (96, 96), operating_point="strict")
    with pytest.raises(UsageError, match=r"0\.01"):
        build_graph(load_bundle(with_point(tiny_bundle, tmp_path / "area", min_area_fraction=0.01)), (96, 96))
    scale = MapScale(values=(0.0, 1.0), rarity=(0.0, 1.0), slope=1.0)
    with pytest.raises(UsageError, match="fitted head"):
        build_graph(replace(bundle, product=Product.model_construct(head=scale)), (96, 96))
    without = with_point(tiny_bundle, tmp_path / "without")
    manifest = read_manifest(without)
    (without / "lmm.onnx").unlink()
    files = {name: digest for name, digest in manifest.files.items() if name != "lmm.onnx"}
    write_manifest(without, manifest.model_copy(update={"lmm": None, "files": files}))
    with pytest.raises(BundleError, match="language model"):
        build_graph(load_bundle(without), (96, 96))


def test_nothing_half_written_is_left(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "tiny.onnx"
    with pytest.raises(UsageError, match=r"tiny\.txt"):
        export_graph(tiny_bundle, tmp_path / "tiny.txt")

    def differs(*_: object) -> None:
        raise ParityError("off by 1")

    with monkeypatch.context() as patch:
        patch.setattr("agvas.export.compare", differs)
        with pytest.raises(ParityError):
            export_graph(tiny_bundle, out)
    assert list(tmp_path.iterdir()) == []
    export_graph(tiny_bundle, out, size=(96, 96))
    with pytest.raises(UsageError, match="overwrite"):
        export_graph(tiny_bundle, out, size=(96, 96))
    arguments = ["onnx", str(tiny_bundle), "-o", str(out), "--size", "96"]
    assert exit_code_of(lambda: app, name="agvas export", arguments=arguments) == 2


def test_a_graph_that_answers_otherwise_is_noticed(tiny_bundle: Path) -> None:
    segmenter = Segmenter.load(tiny_bundle)
    honest = judged
    model = build_graph(load_bundle(tiny_bundle), (96, 96))

    def skewed(image: NDArray[np.uint8]) -> Any:
        from agvas.export import Answer

        found = honest(model, image)
        return Answer(found["score_map"] * np.float32(0.9), found["mask"], float(found["score"]) * 0.9, int(found["verdict"]))

    with pytest.raises(ParityError, match="off by"):
        compare(segmenter, skewed, (96, 96))

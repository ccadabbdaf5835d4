"""The tiny bundle with a references graph of its own: a cell of 8 x 8 px is its mean colour, twice (deep and colour channels)."""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnx.parser
import pytest
from numpy.typing import NDArray

from agvas.fitting.fit import Fitted, fit
from agvas_core.contract.manifest import (
    SCHEMA_VERSION,
    ReferencesSpec,
    TensorSpec,
    read_manifest,
    sha256_of,
    write_manifest,
)
from agvas_core.contract.preprocess import ViewSpec

Rgb = NDArray[np.uint8]

REFERENCES = """
<ir_version: 9, opset_import: ["": 17]>
references (uint8[batch,height,width,3] reference_image, float[rows,6] bank, float colour_weight)
    => (float[batch,h,w,6] embedding, float[batch,h,w] deep, float[batch,h,w] joint)
<float[1] white = {255.0}, int64[1] third = {3}, int64[1] last = {-1}, int64[1] zero = {0}, int64[1] three = {3},
 int64[1] six = {6}, int64[1] one = {1}> {
    pixels = Cast<to: int = 1>(reference_image)
    planes = Transpose<perm: ints = [0, 3, 1, 2]>(pixels)
    means = AveragePool<kernel_shape: ints = [8, 8], strides: ints = [8, 8]>(planes)
    shares = Div(means, white)
    cells = Transpose<perm: ints = [0, 2, 3, 1]>(shares)
    embedding = Concat<axis: int = 3>(cells, cells)
    column = Unsqueeze(cells, third)
    deep_rows = Slice(bank, zero, three, one)
    colour_rows = Slice(bank, three, six, one)
    deep_difference = Sub(column, deep_rows)
    deep_squares = Mul(deep_difference, deep_difference)
    deep_sums = ReduceSum<keepdims: int = 0>(deep_squares, last)
    deep_least = ReduceMin<axes: ints = [-1], keepdims: int = 0>(deep_sums)
    deep = Sqrt(deep_least)
    colour_difference = Sub(column, colour_rows)
    colour_squares = Mul(colour_difference, colour_difference)
    colour_sums = ReduceSum<keepdims: int = 0>(colour_squares, last)
    weighted = Mul(colour_sums, colour_weight)
    all_sums = Add(deep_sums, weighted)
    least = ReduceMin<axes: ints = [-1], keepdims: int = 0>(all_sums)
    joint = Sqrt(least)
}
"""


@pytest.fixture(scope="session")
def base(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that can be shown good images; read it only."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    shutil.copytree(tiny_bundle, folder)
    model = onnx.parser.parse_model(REFERENCES)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "references.onnx")

    def tensor(value: onnx.ValueInfoProto) -> TensorSpec:
        kind = value.type.tensor_type
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
        shape = tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim)
        return TensorSpec.model_validate({"name": value.name, "dtype": dtype, "shape": shape})

    view = ViewSpec(fit="area", size_px=128, multiple_px=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    spec = ReferencesSpec(
        file="references.onnx",
        inputs=tuple(tensor(value) for value in model.graph.input),
        outputs=tuple(tensor(value) for value in model.graph.output),
        view=view,
        colour_channels=3,
    )
    manifest = read_manifest(folder)
    files = manifest.files | {"references.onnx": sha256_of(folder / "references.onnx")}
    write_manifest(folder, manifest.model_copy(update={"schema_version": SCHEMA_VERSION, "references": spec, "files": files}))
    return folder


@pytest.fixture(scope="session")
def photograph() -> Callable[..., Rgb]:
    """``photograph(seed, red=None, size=(144, 160))``: a part with a stripe, a little different each time; ``red``: (x, y, radius) of a spot."""

    def make(seed: int, red: tuple[int, int, int] | None = None, size: tuple[int, int] = (144, 160)) -> Rgb:
        rng = np.random.default_rng(seed)
        height, width = size
        image = np.full((height, width, 3), (200, 190, 180), np.float32)
        image[:, width // 3 : width // 2] = (150, 165, 190)
        image *= rng.uniform(0.98, 1.02)
        image += rng.normal(0, 3, image.shape)
        if red is not None:
            cv2.circle(image, red[:2], red[2], (255, 90, 200), -1)
        return np.clip(image, 0, 255).astype(np.uint8)

    return make


@pytest.fixture(scope="session")
def save() -> Callable[[Rgb, Path], None]:
    """``save(image, path)`` writes an RGB image."""

    def write(image: Rgb, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), image[..., ::-1])

    return write


@pytest.fixture(scope="session")
def quick_fit(base: Path) -> Iterator[Callable[..., Fitted]]:
    """``fit`` from the tiny bundle, on one thread, with fewer painted images."""
    with pytest.MonkeyPatch.context() as patch:
        for place in ("fit", "calibrate"):
            patch.setattr(f"agvas.fitting.{place}.PAINTED_IMAGES", 4)
        yield partial(fit, model=base, threads=1)


@pytest.fixture(scope="session")
def good(photograph: Callable[..., Rgb], save: Callable[[Rgb, Path], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of twelve good images."""
    folder = tmp_path_factory.mktemp("images") / "good"
    for seed in range(12):
        save(photograph(seed), folder / f"{seed:02}.png")
    return folder


@pytest.fixture(scope="session")
def fitted(good: Path, quick_fit: Callable[..., Fitted], tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """A product of these images; read it only."""
    return quick_fit(good, tmp_path_factory.mktemp("products") / "plate")

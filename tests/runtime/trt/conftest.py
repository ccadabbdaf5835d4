"""A GPU, a TensorRT and engines of the tiny bundle, where there are none of the first two: see ``fake_cuda`` and ``fake_tensorrt``."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed: pip install 'agvas[trt]'")
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from fake_bench import Bench
from fake_cuda import FakeCuda
from fake_tensorrt import fake_tensorrt

# The exporter's names of the axes, in place of those that ONNX's text form can write.
AXES = {
    "pixel_height": "height", "pixel_width": "width", "coarse_height": "height/4", "coarse_width": "width/4", "fine_height": "height/2",
    "fine_width": "width/2", "length_before": "before", "length_after": "after",
}  # fmt: skip


@pytest.fixture
def empty_bench(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """GPU, TensorRT and bundle; no engines."""
    cuda = FakeCuda()
    for module in ("cuda", "device_array"):
        monkeypatch.setattr(f"agvas_runtime.stages.trt.{module}.cudart", cuda)
    monkeypatch.setattr("cuda.bindings.runtime", cuda)
    library = fake_tensorrt(cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    monkeypatch.setattr("agvas_runtime.stages.trt.engine_file.installed_flavours", lambda: ("tensorrt",))
    store, bundle = tmp_path / "engines", tmp_path / "bundle"
    monkeypatch.setattr("agvas_runtime.stages.trt.engine_file.DEFAULT_STORE", store)
    bundle.mkdir()
    for path in tiny_bundle.iterdir():
        (bundle / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    for graph in ("vision", "lmm", "decoder"):
        for tensor in (*manifest[graph]["inputs"], *manifest[graph]["outputs"]):
            tensor["shape"] = [AXES.get(axis, axis) for axis in tensor["shape"]]
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return Bench(cuda, library, bundle, store)


@pytest.fixture
def bench(empty_bench: Bench) -> Bench:
    """With engines of all stages, for up to two tiles at once."""
    empty_bench.build()
    return empty_bench

"""The runtime and the contract never draw torch in, not even where it is installed."""

import json
import subprocess
import sys

import pytest

TRAINING_ONLY = ["accelerate", "matplotlib", "onnx", "onnxscript", "peft", "safetensors", "torch", "transformers"]

# Of an extra, or backends on torch and vLLM: imported when one asks for them.
ON_REQUEST = [
    "agvas_runtime.stages.torch_reference",
    "agvas_runtime.stages.torch_cuda.",
    "agvas_runtime.batch.ray_crew",
    "agvas_runtime.stages.openvino",
    *(f"agvas_runtime.stages.vllm.{name}" for name in ("connector", "engine", "local", "model", "service")),
    *(f"agvas_runtime.sinks.{name}" for name in ("modbus", "mqtt", "opcua")),
]

IMPORT_AND_TELL = """
import importlib, json, pkgutil, sys
package = importlib.import_module(sys.argv[1])
names = [package.__name__]
if sys.argv[2] == "whole":
    names += [found.name for found in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
on_request = json.loads(sys.argv[4])
names = [name for name in names if not name.startswith(tuple(on_request))]
for name in names:
    importlib.import_module(name)
print(json.dumps({"imported": names, "drawn": sorted(set(json.loads(sys.argv[3])) & sys.modules.keys())}))
"""


@pytest.mark.parametrize(
    ("package", "extent", "expected"),
    [
        ("agvas_runtime", "top", "agvas_runtime"),
        ("agvas_runtime", "whole", "agvas_runtime.masks.result"),
        ("agvas_core", "top", "agvas_core"),
        ("agvas_core.contract", "whole", "agvas_core.contract.manifest"),
    ],
)
def test_importing_leaves_torch_out(package: str, extent: str, expected: str) -> None:
    command = [sys.executable, "-c", IMPORT_AND_TELL, package, extent, json.dumps(TRAINING_ONLY), json.dumps(ON_REQUEST)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert expected in told["imported"]
    assert told["drawn"] == []


def test_engines_are_planned_and_built_without_torch() -> None:
    """A Jetson has none: only the comparison with the model needs it. Building asks for onnx."""
    command = [sys.executable, "-c", IMPORT_AND_TELL, "agvas_export.trt.command", "top", json.dumps(TRAINING_ONLY), "[]"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["drawn"] == ["onnx"]

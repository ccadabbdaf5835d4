"""A package that says it is offline reports to nobody, whatever the libraries beneath it would like."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("module", ["agvas_runtime.stages.onnx", "agvas_runtime.profile.work", "agvas_export.parity"])
def test_onnx_runtime_keeps_no_device_id_and_no_reports(module: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")}
    command = [sys.executable, "-c", f"import {module}"]
    subprocess.run(command, env=environment | {"HOME": str(tmp_path)}, check=True)
    assert [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name] == []

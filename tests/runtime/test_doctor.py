"""What the doctor says is so: versions, faults, and an exit code that scripts can go by."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from agvas_core.contract.command_line import exit_code_of
from agvas_runtime import doctor as packages
from agvas_runtime import native
from agvas_runtime.doctor import Gpu, State, both_runtimes, doctor, find_gpus, look_at_packages, newer_or_same, vllm


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    code = exit_code_of(lambda: doctor, name="agvas doctor", arguments=["--json", *arguments])
    facts = json.loads(capsys.readouterr().out)
    assert facts["ok"] == (code == 0)
    return code, {finding["name"]: finding for finding in facts["findings"]}


def test_what_is_here_works_and_every_finding_has_its_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    code, findings = told(capsys)
    assert code == 0
    assert findings["onnx"]["state"] == findings["nano"]["state"] == findings["torch"]["state"] == "ok"
    assert findings["native"]["detail"] == native.describe()
    assert findings["numpy"]["detail"] == version("numpy")
    assert {"web", "hub", "train", "export", "trt", "vllm", "line"} <= findings.keys()
    assert all(finding["remedy"] for finding in findings.values() if finding["state"] != "ok")


def test_a_need_that_is_not_met_is_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "--need", "onnx", "--need", "web")[0] == 0
    assert told(capsys, "--need", "trt")[0] == 3
    assert exit_code_of(lambda: doctor, name="agvas doctor", arguments=["--need", "tensorflow"]) == 2


def test_two_runtimes_at_once_are_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "onnxruntime_gpu-1.20.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.20.0\n")
    assert list(both_runtimes()) == []
    monkeypatch.syspath_prepend(tmp_path)
    (finding,) = both_runtimes()
    assert finding.state is State.FAULT and "1.20.0" in finding.detail and "uninstall" in finding.remedy


@pytest.mark.parametrize(
    ("there", "wanted", "enough"),
    [
        ("1.26", "1.26", True),
        ("2.0.1", "1.26", True),
        ("1.9", "1.26", False),
        ("0.32.0+cpu", "0.32.0", True),
        ("1.26", "1.26.1", False),
    ],
)
def test_versions_are_compared_as_numbers(there: str, wanted: str, enough: bool) -> None:
    assert newer_or_same(there, wanted) == enough


def test_a_package_that_is_too_old_or_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "installed", lambda name: {"numpy": "1.0", "fastapi": None}.get(name, "99.0"))
    found = {finding.name: finding for finding in look_at_packages()}
    assert found["numpy"].state is State.FAULT and "numpy is 1.0, >=2.0.0 is needed" in found["numpy"].detail
    assert found["web"].state is State.ABSENT and found["web"].detail == "fastapi is not installed"
    assert "vllm is 99.0, ==0.32.0 is needed" in found["vllm"].detail


def test_an_engine_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "vllm-0.31.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.31.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    finding = vllm([Gpu("H100", "600.1", 81920)])
    assert finding.state is State.FAULT and "0.32.0 is needed" in finding.detail


def test_a_gpu_is_read_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 580.65.06, 81559'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (gpu,) = find_gpus()
    assert gpu == Gpu("NVIDIA H100 80GB HBM3", "580.65.06", 81559) and gpu.driver_major == 580
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed' >&2; exit 9\n")
    assert find_gpus() == []


def test_the_table_names_the_way_out() -> None:
    done = subprocess.run([sys.executable, "-c", "from agvas.cli import main; main()", "doctor"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "All that is here works" in done.stdout and "pip install 'agvas[trt]'" in done.stdout


def test_a_machine_without_a_gpu_is_told_of_torch_s_cpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    there: dict[str, str] = {}
    monkeypatch.setattr(packages, "installed", there.get)
    assert "CPU build" in packages.torch([]).remedy
    there["torch"] = "2.13.0"
    assert packages.torch([]).remedy == ""
    there["nvidia-cudnn-cu13"] = "9.1"
    found = packages.torch([])
    assert found.state is packages.State.OK and "nvidia-cudnn-cu13" in found.detail and "CPU build" in found.remedy

"""What can be shown of aarch64 (Jetson, Grace) on another machine: wheels exist, the native core compiles for it and gives its results."""

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

pytestmark = pytest.mark.slow

PYTHON: Final = "3.12"
"""What docs/jetson.md and docs/a100.md install."""
PLATFORMS: Final = (*tuple(f"manylinux_2_{minor}_aarch64" for minor in (17, 24, 27, 28, 31, 34, 35)), "manylinux2014_aarch64")
"""Up to the glibc of Ubuntu 22.04, which JetPack 6 is made of."""
AARCH64: Final = 183
"""EM_AARCH64 of the ELF header."""


def wheels(requirements: list[str], *, dependencies: bool) -> list[str]:
    """Names of the wheels that pip would install on aarch64; it fails where one has none."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed", "--report", "-"]
    command += ["--target", "unused", "--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    command += requirements if dependencies else ["--no-deps", *requirements]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    return [Path(each["download_info"]["url"]).name for each in report["install"]]


def test_each_dependency_of_a_line_has_a_wheel(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"]
    names = wheels([*project["project"]["dependencies"], *extras["line"]], dependencies=True)
    compiled = {name.split("-")[0] for name in names if name.endswith("aarch64.whl")}
    assert {"numpy", "onnxruntime", "opencv_python_headless", "av", "tokenizers"} <= compiled
    assert all(name.endswith(("aarch64.whl", "-any.whl")) for name in names), names


def test_what_builds_engines_has_wheels_for_both_majors_of_cuda() -> None:
    for major, asked in (("12.", "cuda-bindings>=12.8,<13"), ("13.", "cuda-bindings~=13.0")):
        bindings, *others = wheels([asked, "onnx", "ml-dtypes"], dependencies=False)
        assert bindings.startswith(f"cuda_bindings-{major}") and len(others) == 2
        assert all(name.endswith("aarch64.whl") for name in (bindings, *others))


def test_the_native_core_gives_its_results_there(root: Path, tmp_path: Path) -> None:
    """The C++ tests, cross-compiled; run by QEMU where it is installed."""
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None:
        pytest.skip("no cross compiler: apt-get install g++-aarch64-linux-gnu")
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert cmake is not None
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    options = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={compiler}"]
    options += ["-DAGVAS_TESTS=ON", "-DAGVAS_NATIVE=on", "-DAGVAS_CUDA=off"]
    for command in (["-S", str(root), "-B", str(tmp_path), *options], ["--build", str(tmp_path)]):
        done = subprocess.run([cmake, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (program,) = (path for path in tmp_path.rglob("agvas_tests") if path.is_file())
    with program.open("rb") as file:
        header = file.read(20)
    assert header[:4] == b"\x7fELF" and struct.unpack_from("<H", header, 18) == (AARCH64,)
    if emulator is None:
        pytest.skip("compiled, not run: apt-get install qemu-user")
    ran = subprocess.run([emulator, "-L", "/usr/aarch64-linux-gnu", str(program)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]

"""``agvas serve-lmm`` and ``agvas-run --lmm URL``: the commands, with a server that is killed in between."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from agvas_core.contract.command_line import exit_code_of
from agvas_core.contract.prompts import Mode
from agvas_core.model.weights.checkpoint import Checkpoint
from agvas_export.cli import app
from agvas_runtime import Segmenter, Verdict
from agvas_runtime.bundle import Bundle
from agvas_runtime.stages.open import Stages, StageSettings, open_stages
from agvas_runtime.stages.protocol import Features
from agvas_runtime.stages.torch_reference import TorchLmm

pytestmark = pytest.mark.vllm

PART = Path(__file__).parents[2] / "examples/parts/steel-pits.jpg"
TOLERANCE = 1e-4


class Server:
    """The command, in a process of its own."""

    def __init__(self, folder: Path, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url, self.log = f"http://127.0.0.1:{self.port}", log
        self.command = [str(Path(sys.executable).with_name("agvas")), "serve-lmm", str(folder), "--port", str(self.port)]
        with log.open("wb") as file:
            self.process = subprocess.Popen(self.command, stdout=file, stderr=file)

    def wait_ready(self, times: int) -> None:
        deadline = time.monotonic() + 400
        while self.log.read_text().count("ready: ") < times:
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()[-4000:]
            time.sleep(0.3)

    def descendants(self) -> dict[int, str]:
        """Its processes, by what they call themselves."""
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                head, _, rest = stat.read_text().rpartition(")")
            except OSError:
                continue
            parents[int(stat.parent.name)] = (int(rest.split()[1]), head.partition("(")[2])
        found, names = {self.process.pid}, {}
        for _ in range(6):
            for pid, (parent, name) in parents.items():
                if parent in found:
                    found.add(pid)
                    names[pid] = name
        return names


@pytest.fixture(scope="module")
def server(whole_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(whole_bundle, tmp_path_factory.mktemp("server") / "log")
    try:
        server.wait_ready(1)
        yield server
    finally:
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)


def test_the_certificate_has_vllm_in_it(whole_bundle: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "agvas.cli",
        "export",
        "check",
        str(whole_bundle),
        "--data",
        str(PART.parent),
        "--limit",
        "2",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    certificate = json.loads((whole_bundle / "parity.json").read_text())
    engines = {each["backend"]: each for each in certificate["backends"]}
    assert {"onnx", "vllm"} <= engines.keys() and certificate["passed"] and engines["vllm"]["flips"] == []
    errors = {joint["tensor"]: joint["error"] for joint in engines["vllm"]["joints"]}
    assert 0 < errors["anchor_states"] < TOLERANCE and engines["vllm"]["versions"]["vllm"].startswith("0.32.0")


@pytest.mark.parametrize("mode", list(Mode))
def test_over_http_every_mode_says_what_torch_says(
    server: Server, nano: Bundle, reference: Stages, features: Features, mode: Mode
) -> None:
    ask = "Please segment the anomalies in this image."
    mine = open_stages(nano, lmm=server.url).lmm(features, ask, mode)
    theirs = reference.lmm(features, ask, mode)
    assert mine.answers == theirs.answers and np.array_equal(mine.found, theirs.found)
    assert np.abs(mine.anchor_states - theirs.anchor_states).max() < TOLERANCE
    assert np.abs(mine.accept - theirs.accept).max() < TOLERANCE


def test_adapters_that_are_added_while_it_runs_answer_request_by_request(
    server: Server, whole_bundle: Path, nano: Bundle, reference: Stages, features: Features, few_shot: dict[str, Checkpoint]
) -> None:
    for checkpoint in few_shot.values():
        arguments = ["adapter", str(checkpoint.folder), "--into", str(whole_bundle)]
        assert exit_code_of(lambda: app, name="agvas-export", arguments=arguments) == 0
    ask = "Please segment the anomalies in this image."
    for name in ("left", None, "right", "left"):
        mine = open_stages(nano, lmm=server.url, settings=StageSettings(adapter=name)).lmm(features, ask)
        theirs = (reference.lmm if name is None else TorchLmm(nano, few_shot[name].model))(features, ask)
        assert np.abs(mine.anchor_states - theirs.anchor_states).max() < TOLERANCE, name
        assert np.abs(mine.accept - theirs.accept).max() < TOLERANCE, name


def test_the_command_gives_the_regions_that_onnx_gives(server: Server, whole_bundle: Path) -> None:
    lines = []
    for lmm in ("onnx", server.url):
        command = [sys.executable, "-m", "agvas.cli", "run", str(PART), "--json", "--save", "none", "--lmm", lmm]
        command += ["--model", str(whole_bundle)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        lines.append(json.loads(done.stdout))
    onnx, http = lines
    assert http["verdict"] == onnx["verdict"] and abs(http["score"] - onnx["score"]) < TOLERANCE
    assert [region["box"] for region in http["regions"]] == [region["box"] for region in onnx["regions"]]


def test_a_second_server_on_the_port_is_refused_at_once(server: Server) -> None:
    done = subprocess.run(server.command, capture_output=True, text=True)
    assert done.returncode == 2 and "cannot be listened on" in done.stderr


def test_no_path_of_ours_reads_files_or_takes_what_is_no_question(server: Server) -> None:
    from http.client import HTTPConnection

    connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
    for method, path, body, status in (
        ("POST", "/agvas/v1/ask", b"x", 400),
        ("GET", "/agvas/v1/../../etc/passwd", None, 400),
        ("POST", "/v1/load_lora_adapter", b"{}", 404),  # vLLM's own, which would read any folder
        ("GET", "/health", None, 200),
    ):
        connection.request(method, path, body)
        reply = connection.getresponse()
        reply.read()
        assert reply.status == status, path
    connection.close()


def test_a_killed_engine_is_no_verdict_until_the_supervisor_has_started_it_again(server: Server) -> None:
    segmenter = Segmenter.load("nano", lmm=server.url, settings=StageSettings(threads=1))
    (before,) = segmenter.predict(PART)
    assert before.verdict is not Verdict.NO_VERDICT
    engines = [pid for pid, name in server.descendants().items() if "EngineCor" in name]
    assert engines, server.descendants()
    os.kill(engines[0], signal.SIGKILL)
    (dead,) = segmenter.predict(PART)
    assert dead.verdict is Verdict.NO_VERDICT and dead.error and server.url.removeprefix("http://") in dead.error
    server.wait_ready(2)
    (after,) = segmenter.predict(PART)
    assert after.verdict is before.verdict and abs((after.score or 0) - (before.score or 0)) < TOLERANCE


def test_it_ends_with_its_processes_and_leaves_no_file_behind(server: Server) -> None:
    """Last: it ends the server of this module."""
    pids = list(server.descendants())
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 143
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "terminated" in server.log.read_text()

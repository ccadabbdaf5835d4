"""What asking for parts promises: each trigger one part, with a frame that came after it, whoever asks; and what queues do under load.

The other sides are real: MJPEG cameras in processes of their own, mosquitto, a Modbus server, HTTP.
"""

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agvas_core.contract.errors import LedgerError, UsageError
from agvas_runtime.images.frame import Frame
from agvas_runtime.line.ledger.check import check_ledger
from agvas_runtime.line.ledger.ledger import Ledger
from agvas_runtime.line.ledger.part_result import Cause
from agvas_runtime.line.recipe.file import RecipeVersion
from agvas_runtime.line.station.runner import station_jobs
from agvas_runtime.line.station.source_loop import QueuePolicy, SourceLoop
from agvas_runtime.line.station.station import Station
from agvas_runtime.triggers.http import HttpTrigger
from agvas_runtime.triggers.open_trigger import check_trigger, open_trigger
from agvas_runtime.triggers.protocol import Taken

from .conftest import PacedInspector
from .test_delivery import free_port, mosquitto, until

Recipe = Callable[..., RecipeVersion]
ROOT = Path(__file__).parents[3]
SOAK = str(ROOT / "tests" / "soak")


class HandCamera:
    """Gives a frame when the test says so."""

    live, total, notes = True, None, ()

    def __init__(self) -> None:
        self.dropped = 0
        self.shots: list[Frame] = []
        self.closed = threading.Event()

    def shoot(self, name: str) -> None:
        self.shots.append(Frame(name, 0, image=np.full((8, 8, 3), 200, np.uint8), taken_s=time.monotonic()))

    def __iter__(self) -> Iterator[Frame]:
        while not self.closed.is_set():
            if self.shots:
                yield self.shots.pop(0)
            else:
                time.sleep(0.005)

    def close(self) -> None:
        self.closed.set()

    def __enter__(self) -> "HandCamera":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def feeding(feed: SourceLoop) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=feed.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_part_gets_the_first_frame_after_its_trigger_and_no_frame_serves_two(ledger: Ledger, recipe: Recipe) -> None:
    version, camera = recipe("deadline_ms: 20000"), HandCamera()
    station = Station("s", ledger, PacedInspector(), lambda: version)
    feed = SourceLoop(station, ledger, lambda: camera, triggered=True)
    with feeding(feed):
        camera.shoot("too early")
        until(lambda: feed.frames == 1)
        first, second, again = feed.fire("1"), feed.fire("2"), feed.fire("1")
        assert again is first
        camera.shoot("a")
        assert first.wait(20) is not None and second.result is None
        camera.shoot("b")
        assert second.wait(20) is not None
        camera.shoot("nobody asked")
        until(lambda: feed.frames == 4)
        never = feed.fire("3")
    station.close()
    assert (first.frame.name, second.frame.name) == ("a", "b")
    assert never.result is not None and never.result.cause is Cause.SOURCE
    assert ledger.read("SELECT trigger_key, frame, verdict FROM parts") == [
        ("1", "a", "PASS"), ("2", "b", "PASS"), ("3", "3", "NO_VERDICT"),
    ]  # fmt: skip


def test_a_trigger_without_a_frame_is_no_verdict_of_the_source_at_its_deadline(ledger: Ledger, recipe: Recipe) -> None:
    version, camera = recipe("deadline_ms: 100"), HandCamera()
    station = Station("s", ledger, PacedInspector(), lambda: version)
    with feeding(feed := SourceLoop(station, ledger, lambda: camera, triggered=True)):
        pending = feed.fire("1")
        end = pending.wait(30)
        assert end is not None and end.cause is Cause.SOURCE and "no frame within 100 ms" in str(end.detail)
        camera.shoot("late")
        until(lambda: feed.frames == 1)
    station.close()
    assert check_ledger(ledger.folder).verdicts == {"NO_VERDICT": 1}


@pytest.mark.parametrize("policy", list(QueuePolicy))
def test_under_load_each_policy_does_as_its_name_says_and_counts_what_it_drops(
    ledger: Ledger, recipe: Recipe, policy: QueuePolicy
) -> None:
    version, camera, inspector = recipe("deadline_ms: 60000"), HandCamera(), PacedInspector()
    inspector.may_end.clear()
    station = Station("s", ledger, inspector, lambda: version, queue_parts=4)
    with feeding(feed := SourceLoop(station, ledger, lambda: camera, policy=policy)):
        camera.shoot("0")
        until(lambda: feed.parts == 1)
        camera.dropped = 3
        for number in range(1, 12):
            camera.shoot(str(number))
        if policy is QueuePolicy.EVERY:
            until(lambda: feed.parts == 12)  # nobody waits for the engine
        else:
            time.sleep(0.3)
            assert feed.parts == 1
        inspector.may_end.set()
        until(lambda: feed.parts == 12)
    station.close()
    assert ledger.read("SELECT SUM(dropped_before) FROM parts") == [(3,)] and feed.dropped == 3
    causes = [cause for (cause,) in ledger.read("SELECT cause FROM parts WHERE verdict = 'NO_VERDICT'")]
    assert causes == (["deadline"] * len(causes) if policy is QueuePolicy.EVERY else [])
    assert bool(causes) == (policy is QueuePolicy.EVERY)
    assert check_ledger(ledger.folder).faults == []


def test_two_cameras_triggered_over_http_and_the_one_that_is_lost_does_not_stop_the_other(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    (tmp_path / "r.yaml").write_text(f"product: part\nmodel: {tiny_bundle}\ndeadline_ms: 20000\n")
    ports = [free_port(), free_port()]
    cameras = [
        subprocess.Popen(
            [
                sys.executable,
                str(ROOT / "examples" / "demo_camera.py"),
                "mjpeg",
                "--port",
                str(port),
                "--size",
                "128x96",
                "--fps",
                "25",
            ],
            stdout=subprocess.DEVNULL,
        )
        for port in ports
    ]
    command = [sys.executable, "-m", "agvas.cli", "run", "--recipe", str(tmp_path / "r.yaml"), "--log", "json"]
    for name, port in zip("ab", ports, strict=True):
        command += ["--camera", f"http://127.0.0.1:{port}/", "--station", name]
    line = subprocess.Popen(
        [*command, "--trigger", "http:0", "--state", str(tmp_path / "line")], stderr=subprocess.PIPE, text=True
    )
    assert line.stderr is not None
    try:
        for text in line.stderr:
            said = json.loads(text).get("message", "")
            if "is triggered by http:" in said:
                address = "http://" + said.partition("http:")[2]
                break
        said: list[str] = []
        reader = threading.Thread(target=said.extend, args=(line.stderr,))  # so that the line never waits for us
        reader.start()

        def post(road: str, **headers: str) -> Any:
            request = urllib.request.Request(f"{address}/{road}", method="POST", headers=headers)
            return json.load(urllib.request.urlopen(request, timeout=60))["parts"]

        both = post("trigger?wait_s=30", **{"Idempotency-Key": "4711"})
        assert [(part["station"], part["key"]) for part in both] == [("a", "4711"), ("b", "4711")]
        assert all(part["verdict"]["verdict"] in ("PASS", "FAIL") for part in both)
        assert [part["seq"] for part in post("trigger", **{"Idempotency-Key": "4711"})] == [part["seq"] for part in both]
        cameras[0].kill()
        until(lambda: any("source-lost" in text for text in said))
        (tmp_path / "r.yaml").write_text(f"product: part\nmodel: {tiny_bundle}\ndeadline_ms: 1500\n")
        until(lambda: sum("goes from the next part on" in text for text in said) == 2)  # each station's
        lost, fine = post("trigger?wait_s=30")
        assert (lost["verdict"]["verdict"], lost["verdict"]["cause"]) == ("NO_VERDICT", "source")
        assert fine["station"] == "b" and fine["verdict"]["cause"] != "source"
        assert post("trigger/b?wait_s=30")[0]["verdict"]["cause"] != "source"
        for road, headers in (("trigger/c", {}), ("other", {}), ("trigger", {"Origin": "http://evil"}), ("trigger?wait_s=x", {})):
            with pytest.raises(urllib.error.HTTPError) as refused:
                post(road, **headers)
            assert refused.value.code in (400, 403, 404)
            refused.value.close()
    finally:
        line.send_signal(signal.SIGTERM)
        line.wait(60)
        with suppress(NameError):
            reader.join()
        line.stderr.close()
        for camera in cameras:
            camera.kill()
            camera.wait()
    check = check_ledger(tmp_path / "line")
    assert line.returncode == 143 and check.faults == [] and check.triggers == 5 and check.unsettled == 0


class Fired:
    """Takes what triggers ask for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str | None, str | None]] = []
        self.noted: list[str] = []
        self.refuse = False

    def __call__(self, station: str | None, key: str | None) -> list[Taken]:
        if self.refuse:
            self.refuse = False
            raise LedgerError("the disk is full")
        self.asked.append((station, key))
        return []

    def note(self, kind: str, detail: str) -> None:
        self.noted.append(kind)


def test_over_http_names_and_keys_are_text_and_an_address_that_is_none_is_refused() -> None:
    asked: list[tuple[str | None, str | None]] = []

    def fire(station: str | None, key: str | None) -> list[Taken]:
        asked.append((station, key))
        return []

    def post(road: bytes, key: bytes = b"1") -> bytes:
        with socket.create_connection(("127.0.0.1", trigger.port), 5) as client:
            client.sendall(b"POST " + road + b" HTTP/1.1\r\nConnection: close\r\nIdempotency-Key: " + key + b"\r\n\r\n")
            return client.makefile("rb").readline()

    trigger = HttpTrigger("127.0.0.1", 0)
    trigger.start(fire, lambda kind, detail: None)
    try:
        assert b"202" in post(b"/trigger/b%C3%BCchse", "Gehäuse".encode())
        assert b"202" in post(b"/trigger", "Gehäuse".encode("latin-1"))
        assert b"400" in post(b"http://[x/trigger")
    finally:
        trigger.close()
    assert asked == [("büchse", "Gehäuse"), (None, "Gehäuse")]


@pytest.mark.skipif(
    shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin") is None,
    reason="mosquitto is not installed",
)
def test_parts_are_asked_for_over_mqtt_also_after_the_broker_was_down(tmp_path: Path) -> None:
    import paho.mqtt.publish as publish

    port, fired = free_port(), Fired()
    trigger = open_trigger(f"mqtt://127.0.0.1:{port}/hall/{{station}}/trigger")
    trigger.start(fired, fired.note)

    def send(topic: str, payload: bytes, retain: bool = False) -> None:
        publish.single(topic, payload, qos=1, retain=retain, hostname="127.0.0.1", port=port)

    try:
        until(lambda: fired.noted == ["trigger-lost"])
        for round in range(2):
            with mosquitto(port, tmp_path):
                until(lambda: trigger.last_error is None)
                send("hall/a/trigger", b"4711")
                send("hall/b/trigger", b"")
                until(lambda round=round: len(fired.asked) == 2 * (round + 1))  # type: ignore[misc]
                send("hall/b/trigger", b"\xff\xfe")
                until(lambda round=round: fired.noted.count("trigger-refused") == round + 1)  # type: ignore[misc]
            until(lambda: trigger.last_error is not None)
    finally:
        trigger.close()
    assert trigger.failure is None
    assert fired.asked == [("a", "4711"), ("b", None)] * 2
    assert [kind for kind in fired.noted if kind != "trigger-refused"][:4] == ["trigger-lost", "trigger-back"] * 2


def test_a_coil_is_cleared_when_the_part_is_in_the_ledger_and_not_before() -> None:
    from pymodbus.client import ModbusTcpClient
    from pymodbus.server import ModbusTcpServer
    from pymodbus.simulator import DataType, SimData, SimDevice

    port, fired = free_port(), Fired()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> ModbusTcpServer:
        words = SimData(0, count=100, values=0, datatype=DataType.REGISTERS)
        bits = SimData(0, count=16, values=False, datatype=DataType.BITS)
        server = ModbusTcpServer(SimDevice(1, simdata=([bits], [bits], [words], [words])), address=("127.0.0.1", port))
        await server.serve_forever(background=True)
        return server

    trigger = open_trigger(f"modbus://127.0.0.1:{port}/3?number=7")
    trigger.start(fired, fired.note)
    until(lambda: fired.noted == ["trigger-lost"])
    server = asyncio.run_coroutine_threadsafe(start(), loop).result(60)
    try:
        with ModbusTcpClient("127.0.0.1", port=port) as plc:
            for number in (41, 42):
                fired.refuse = number == 42
                plc.write_register(7, number)
                plc.write_coil(3, True)
                until(lambda: not plc.read_coils(3, count=1).bits[0])
                assert fired.asked[-1] == (None, f"{trigger.name}#{number}")
        assert len(fired.asked) == 2 and not fired.refuse and trigger.failure is None
    finally:
        trigger.close()
        asyncio.run_coroutine_threadsafe(server.shutdown(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def serves_rtsp() -> bool:
    """Whether the system's Python has GStreamer's server."""
    look = "import gi; gi.require_version('GstRtspServer', '1.0')"
    python = shutil.which("python3", path="/usr/bin")
    return python is not None and subprocess.run([python, "-c", look], stderr=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize("kind", ["mjpeg", "rtsp"])
def test_a_killed_camera_leaves_a_gap_in_the_ledger_and_no_frame_that_was_never_sent(tmp_path: Path, kind: str) -> None:
    if kind == "rtsp" and not serves_rtsp():
        pytest.skip("GStreamer's RTSP server is not installed")
    sys.path.insert(0, SOAK)
    from unplug_camera import unplug

    sys.path.remove(SOAK)
    found = unplug(tmp_path, kind, times=2, seed=1, port=free_port())
    assert found["gaps_in_ledger"] == 2 and found["parts"] > 0
    assert (found["invented"], found["twice"], found["faults"]) == (0, 0, [])


@pytest.mark.parametrize(
    ("cameras", "options", "what"),
    [
        (["0", "0"], {}, "two cameras are called camera-0"),
        (["0", "1"], {"stations": ["a"]}, "once for each"),
        (["0", "1", "2"], {"triggers": ["free", "free"]}, "once, or once for each"),
        ([], {"triggers": ["http:0"]}, "no --camera"),
        (["0"], {"triggers": ["htp:0"]}, "did you mean http"),
        (["genicam://x?trigger=Software"], {}, "there is no trigger"),
        (["genicam://x?trigger=Line1"], {"triggers": ["http:0"]}, "leave one of the two out"),
        (["0"], {"triggers": ["software"], "policies": [QueuePolicy.LATEST]}, "would drop parts"),
        (["0"], {"bits": 12}, "cameras that send Mono16"),
        (["0"], {"bits": 12, "pixel_formats": ["YUYV"]}, "cameras that send Mono16"),
        (["watch:/nowhere"], {}, "no folder"),
        (["watch:/" + 300 * "x"], {}, "no folder"),  # an error of the system, as where a folder above it may not be read
        (["watch:."], {"triggers": ["http:0"]}, "a part for each file"),
    ],
)
def test_lanes_that_do_not_fit_are_refused(cameras: list[str], options: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        station_jobs(cameras, [], [Path("r.yaml")], **options)


def test_a_camera_that_is_triggered_itself_drops_nothing_and_secrets_stay_out_of_addresses() -> None:
    (lane,) = station_jobs(["genicam://x?trigger=Line1"], [], [Path("r.yaml")])
    assert lane.queue_policy is QueuePolicy.EVERY and not lane.triggered
    for address in (
        "mqtt://u:pw@h/t",
        "mqtt://h/a{station}/t",
        "mqtt://h/#",
        "modbus://h/x",
        "modbus://h/1?unti=2",
        "http://h",
    ):
        with pytest.raises(UsageError) as caught:
            check_trigger(address)
        assert ":pw@" not in str(caught.value)

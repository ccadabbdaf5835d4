"""What cameras promise: each frame once, the newest first, and an end that says why.

The cameras are real MJPEG servers on the loopback interface; test_sources_rtsp has the RTSP one.
"""

import base64
import http.server
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np
import pytest

from agvas_core.contract.errors import ImageError, SourceError, UsageError
from agvas_runtime.sources import CameraSource, open_source, prefetch
from agvas_runtime.sources.grabber import reach


def jpeg(number: int) -> bytes:
    """A picture that shows its number as its grey, over noise."""
    noise = np.random.default_rng(number).integers(-10, 11, (48, 64, 1))
    pixels = np.clip(np.full((48, 64, 3), 20 + 5 * number) + noise, 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def part(picture: bytes, *, length: bool = True) -> bytes:
    stated = f"Content-Length: {len(picture)}\r\n" if length else ""
    return f"--shot\r\nContent-Type: image/jpeg\r\n{stated}\r\n".encode() + picture + b"\r\n"


class MjpegServer(http.server.ThreadingHTTPServer):
    """Sends whatever ``script`` yields, then closes the connection. ``stop`` ends scripts that wait."""

    daemon_threads = False  # its threads are waited for, so that none outlives its test

    def __init__(self, script: Callable[["MjpegServer"], Iterator[bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), MjpegHandler)
        self.script = script
        self.stop = threading.Event()
        self.kind = "multipart/x-mixed-replace; boundary=shot"
        self.password: str | None = None
        self.clients: list[socket.socket] = []

    def finish_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        assert isinstance(request, socket.socket)
        self.clients.append(request)
        super().finish_request(request, client_address)

    def kill(self) -> None:
        """Drops every connection with a reset, as a camera whose power fails and comes back."""
        for client in self.clients:
            with suppress(OSError):  # gone already
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no error here."""


class MjpegHandler(http.server.BaseHTTPRequestHandler):
    server: MjpegServer

    def do_GET(self) -> None:
        wanted = self.server.password
        if wanted is not None and self.headers.get("Authorization") != "Basic " + base64.b64encode(wanted.encode()).decode():
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="camera"')
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", self.server.kind)
        self.end_headers()
        for chunk in self.server.script(self.server):
            self.wfile.write(chunk)
            self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextmanager
def serving(script: Callable[[MjpegServer], Iterator[bytes]]) -> Iterator[tuple[MjpegServer, str]]:
    server = MjpegServer(script)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}/video"
    finally:
        server.stop.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    earlier = set(threading.enumerate())  # of tests of other files in this process
    yield
    deadline = time.monotonic() + 60
    while any(one.name.startswith("agvas-") and one not in earlier for one in threading.enumerate()):
        assert time.monotonic() < deadline, f"threads left: {threading.enumerate()}"
        time.sleep(0.01)


def paced(server: MjpegServer, count: int) -> Iterator[bytes]:
    for number in range(count):
        yield part(jpeg(number))
        server.stop.wait(0.04)


def shown(image: np.ndarray | None) -> int:
    assert image is not None
    return round((float(image.mean()) - 20) / 5)


def collect(source: CameraSource) -> tuple[list[int], list[str], SourceError]:
    numbers, names = [], []
    with pytest.raises(SourceError) as caught:
        for frame in source:
            numbers.append(shown(frame.image))
            names.append(frame.name)
    return numbers, names, caught.value


def test_frames_come_once_each_and_the_end_of_the_stream_is_an_error() -> None:
    with serving(lambda server: paced(server, 10)) as (_, url), CameraSource(url, name="line-1") as camera:
        assert camera.total is None and camera.live
        numbers, names, error = collect(camera)
        assert numbers == sorted(set(numbers)) and numbers[-1] == 9
        assert len(numbers) + camera.dropped == 10
        assert names == [f"line-1#{number:06d}" for number in numbers]
    assert error.exit_code == 5
    assert f"camera {url}: stopped after 10 frames: the camera closed the connection" in str(error)


@pytest.mark.parametrize("length", [True, False])
def test_a_picture_cut_off_by_the_end_is_never_given(length: bool) -> None:
    def script(server: MjpegServer) -> Iterator[bytes]:
        for number in range(4):
            yield part(jpeg(number), length=length)
            server.stop.wait(0.05)
        yield part(jpeg(4), length=length)[:1200]

    with serving(script) as (_, url), CameraSource(url) as camera:
        numbers, _, error = collect(camera)
    assert numbers[-1] == 3
    assert "closed the connection" in str(error)


def test_a_camera_killed_while_it_sends_ends_the_source_with_an_error() -> None:
    with serving(lambda server: paced(server, 10_000)) as (server, url), CameraSource(url, stall_timeout_s=2) as camera:
        numbers = []
        with pytest.raises(SourceError, match=r"stopped after [0-9]+ frames: .*connection"):
            for frame in camera:
                numbers.append(frame.name)
                if len(numbers) == 3:
                    server.kill()
        assert len(numbers) >= 3 and len(set(numbers)) == len(numbers)


def test_a_silent_camera_is_given_up_after_the_stall_timeout() -> None:
    def script(server: MjpegServer) -> Iterator[bytes]:
        yield part(jpeg(0))
        yield part(jpeg(1))[:500]
        server.stop.wait(20)

    with serving(script) as (server, url), CameraSource(url, stall_timeout_s=0.7) as camera:
        numbers, _, error = collect(camera)
        server.stop.set()
    assert numbers == [0]
    assert "stopped after 1 frames: it sends nothing any more (waited at most 0.7 s): check cable" in str(error)


def test_a_slow_reader_gets_the_newest_frame_and_the_count_of_those_it_missed() -> None:
    taken, sent = threading.Event(), threading.Event()

    def script(server: MjpegServer) -> Iterator[bytes]:
        yield part(jpeg(0))
        taken.wait(60)
        for number in range(1, 8):
            yield part(jpeg(number))
        sent.set()
        server.stop.wait(20)

    with serving(script) as (server, url), CameraSource(url) as camera:
        frames = iter(camera)
        assert shown(next(frames).image) == 0
        taken.set()
        assert sent.wait(60)
        time.sleep(0.5)  # the last one is on its way
        newest = next(frames)
        assert shown(newest.image) == 7 and newest.name.endswith("#000007") and newest.index == 1
        assert camera.dropped == 6
        server.stop.set()


def test_every_takes_each_nth_frame_of_the_camera() -> None:
    with serving(lambda server: paced(server, 10)) as (_, url), CameraSource(url, every=3) as camera:
        numbers, _, _ = collect(camera)
        assert set(numbers) <= {0, 3, 6, 9} and len(numbers) + camera.dropped == 4


def test_a_broken_picture_is_a_frame_with_an_error_and_the_stream_goes_on() -> None:
    def script(server: MjpegServer) -> Iterator[bytes]:
        for picture in (jpeg(0), jpeg(1)[:-300], b"no picture", jpeg(3)):
            yield part(picture)
            server.stop.wait(0.15)

    with serving(script) as (_, url), CameraSource(url) as camera, pytest.raises(SourceError):
        for frame in camera:
            if frame.name[-1] in "03":
                assert frame.error is None
            else:
                assert isinstance(frame.error, ImageError) and frame.name in str(frame.error)


def test_closing_ends_the_thread_and_hangs_up() -> None:
    gone = threading.Event()

    def script(server: MjpegServer) -> Iterator[bytes]:
        try:
            yield from paced(server, 10_000)
        finally:
            gone.set()

    with serving(script) as (_, url):
        with CameraSource(url) as camera:
            frames = iter(camera)
            next(frames)
        assert list(frames) == []
        assert gone.wait(10)


def test_a_camera_can_be_opened_again() -> None:
    with serving(lambda server: paced(server, 3)) as (_, url), CameraSource(url) as camera:
        assert collect(camera)[0][-1] == collect(camera)[0][-1] == 2


def test_a_password_opens_the_camera_and_is_told_to_nobody() -> None:
    with serving(lambda server: paced(server, 3)) as (server, url):
        server.password = "eva:s3cret"
        with CameraSource(url.replace("http://", "http://eva:s3cret@")) as camera:
            numbers, names, error = collect(camera)
        assert numbers[-1] == 2
        assert "s3cret" not in str(error) + "".join(names) and names[0].startswith("camera-127.0.0.1-")
        with CameraSource(url) as camera, pytest.raises(SourceError, match="not there: the camera answers 401"):
            next(iter(camera))


def test_a_page_that_is_no_stream_is_refused() -> None:
    with serving(lambda server: iter([b"<html>"])) as (server, url):
        server.kind = "text/html"
        with CameraSource(url) as camera, pytest.raises(SourceError, match="answers with text/html, not with multipart"):
            next(iter(camera))


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_a_camera_that_is_not_there_is_an_error_with_a_remedy(scheme: str, capfd: pytest.CaptureFixture[str]) -> None:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        url = f"{scheme}://127.0.0.1:{free.getsockname()[1]}/live"  # bound, but nobody listens
        with CameraSource(url, open_timeout_s=2) as camera, pytest.raises(SourceError) as caught:
            next(iter(camera))
    assert str(caught.value).startswith(f"camera {url}: not there: ") and "check power, cable" in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_a_camera_that_never_answers_is_given_up_after_the_open_timeout(scheme: str) -> None:
    with closing(socket.socket()) as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        camera = CameraSource(f"{scheme}://127.0.0.1:{mute.getsockname()[1]}/", open_timeout_s=0.3)
        with camera, pytest.raises(SourceError, match=r"not there: .*waited at most 0\.3 s"):
            next(iter(camera))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a full backlog refuses")
def test_a_host_that_swallowed_packets_is_found_soon_after_it_answers_again() -> None:
    """A socket whose backlog is full does so. An attempt of TCP's own would come back after 1 s, 3 s, 7 s."""
    with closing(socket.socket()) as port, closing(socket.socket()) as first, closing(socket.socket()) as second:
        port.bind(("127.0.0.1", 0))
        port.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(port.getsockname())
        found_s = []

        def look() -> None:
            reach(f"rtsp://127.0.0.1:{port.getsockname()[1]}/", 30)
            found_s.append(time.monotonic())

        thread = threading.Thread(target=look)
        thread.start()
        time.sleep(3.2)  # TCP would try again at 7 s
        assert not found_s
        back_s = time.monotonic()
        for _ in range(2):
            port.accept()[0].close()
        thread.join()
    assert found_s[0] - back_s < 2


def test_a_device_that_is_not_there_is_named_with_those_that_are() -> None:
    if Path("/dev/video77").exists():
        pytest.skip("this machine has a /dev/video77")
    for uri in (77, "77", "/dev/video77"):
        with CameraSource(uri) as camera, pytest.raises(SourceError, match=r"not there: there is no /dev/video77 \(there"):
            next(iter(camera))
        assert camera.name == "camera-77"
    with CameraSource("/dev/" + "a" * 5000) as camera, pytest.raises(SourceError, match="not there: there is no /dev/aaa"):
        next(iter(camera))


@pytest.mark.parametrize("uri", ["ftp://camera/", "camera", "rtsp://", "http://[bad", "0.5", ""])
def test_an_address_that_cannot_be_a_camera_is_a_usage_error(uri: str) -> None:
    with pytest.raises(UsageError, match=r"is not understood|is no address"):
        CameraSource(uri)
    with pytest.raises(UsageError, match="stall_timeout_s is 0"):
        CameraSource(0, stall_timeout_s=0)


@pytest.mark.parametrize(
    "uri", ["rtps://u:s3cret@camera/", "rtsp://u:s3cret@camera:99999/", "rtsp://u:pw/s3cret@camera/", "http://u:s3cret@c:x/"]
)
def test_a_password_in_a_wrong_address_is_not_shown(uri: str) -> None:
    with pytest.raises(UsageError, match=r"://\*\*\*@c") as caught:
        open_source([uri])
    assert "s3cret" not in str(caught.value)


def test_open_source_knows_a_camera_and_leaves_it_alone() -> None:
    camera = open_source("rtsp://127.0.0.1/live")
    assert isinstance(camera, CameraSource) and isinstance(open_source(0), CameraSource)
    assert prefetch(camera) is camera and open_source(camera) is camera
    assert open_source(camera, limit=5).total == 5
    with pytest.raises(UsageError, match="a camera runs alone"):
        open_source(["rtsp://127.0.0.1/live", "a.png"])

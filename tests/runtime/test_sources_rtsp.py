"""What a camera over RTSP promises, against a real server: RTSP (RFC 2326), MPEG-TS over RTP (RFC 2250), interleaved in TCP."""

import re
import socket
import struct
import threading
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from agvas_core.contract.errors import SourceError
from agvas_runtime.sources import CameraSource

TS_BYTES = 188
TS_PER_PACKET = 7  # as many as fit into an Ethernet frame
MPEG_TS = 33  # RTP payload type


class RtspServer:
    """Serves ``stream`` once per PLAY; when it has been sent, the connection stays open and silent, like a frozen camera."""

    def __init__(self, stream: bytes, packets_per_s: float) -> None:
        assert len(stream) % TS_BYTES == 0
        step = TS_BYTES * TS_PER_PACKET
        self._packets = [stream[at : at + step] for at in range(0, len(stream), step)]
        self._interval_s = 1 / packets_per_s
        self._stop = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(0.05)
        self.url = f"rtsp://127.0.0.1:{self._socket.getsockname()[1]}/live"
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "RtspServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                client, _ = self._socket.accept()
            except TimeoutError:
                continue
            with client, suppress(OSError):  # the client hangs up when it likes
                client.settimeout(0.05)
                self._talk(client)

    def _talk(self, client: socket.socket) -> None:
        asked = b""
        while not self._stop.is_set():
            try:
                received = client.recv(4096)
            except TimeoutError:
                continue
            if not received:
                return
            asked += received
            while b"\r\n\r\n" in asked:
                request, _, asked = asked.partition(b"\r\n\r\n")
                if self._answer(client, request.decode("latin-1")) == "PLAY":
                    self._send(client)

    def _answer(self, client: socket.socket, request: str) -> str:
        method = request.split(" ", 1)[0].rpartition("\n")[2]
        number = re.search(r"CSeq: *(\d+)", request)
        lines = ["RTSP/1.0 200 OK", f"CSeq: {number.group(1) if number else 0}", "Session: 12345678"]
        body = ""
        if method == "OPTIONS":
            lines.append("Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN")
        elif method == "DESCRIBE":
            body = f"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=live\r\nt=0 0\r\nm=video 0 RTP/AVP {MPEG_TS}\r\na=control:track\r\n"
            lines += ["Content-Type: application/sdp", f"Content-Base: {self.url}/"]
        elif method == "SETUP":
            if "interleaved" not in request:
                lines[0] = "RTSP/1.0 461 Unsupported Transport"  # the client then asks for TCP
            lines.append("Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
        client.sendall("\r\n".join([*lines, f"Content-Length: {len(body)}", "", body]).encode())
        return method

    def _send(self, client: socket.socket) -> None:
        for number, payload in enumerate(self._packets):
            head = struct.pack(">BBHII", 0x80, MPEG_TS, number, number * 750, 1)
            client.sendall(b"$\0" + struct.pack(">H", len(head) + len(payload)) + head + payload)
            if self._stop.wait(self._interval_s):
                return


def transport_stream(folder: Path, frames: int, size: tuple[int, int] = (64, 48)) -> bytes:
    """Frame n is grey 20 + 5 n."""
    path = folder / "live.ts"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MPG1"), 25, size)
    assert writer.isOpened()
    for number in range(frames):
        noise = np.random.default_rng(number).integers(-10, 11, (size[1], size[0], 1))
        writer.write(np.clip(np.full((size[1], size[0], 3), 20 + 5 * number) + noise, 0, 255).astype(np.uint8))
    writer.release()
    return path.read_bytes()


def test_an_rtsp_stream_gives_its_frames_in_order_and_then_says_that_it_stopped(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stream = transport_stream(tmp_path, 40)
    capfd.readouterr()
    greys, names, came_s = [], [], []
    ended = pytest.raises(SourceError, match=r"stopped after [0-9]+ frames: it sends no frames any more \(waited at most 1 s\)")
    with RtspServer(stream, packets_per_s=100) as server, CameraSource(server.url, stall_timeout_s=1) as camera, ended:
        for frame in camera:
            assert frame.image is not None
            greys.append(float(frame.image.mean()))
            names.append(frame.name)
            came_s.append(time.monotonic())
    assert len(greys) >= 5
    assert all(later > earlier + 2 for earlier, later in pairwise(greys))
    assert all(later - earlier < 1 for earlier, later in pairwise(came_s)), (
        "a frame that was held back was given after the silence"
    )
    assert names == sorted(set(names)) and names[0].startswith("camera-127.0.0.1-")
    assert capfd.readouterr().err == ""


def test_frames_of_a_stream_that_changes_its_size_keep_each_its_own(tmp_path: Path) -> None:
    stream = transport_stream(tmp_path, 20) + transport_stream(tmp_path, 20, (128, 96))
    sizes = []
    ended = pytest.raises(SourceError, match="stopped after")
    with RtspServer(stream, packets_per_s=100) as server, CameraSource(server.url, stall_timeout_s=1, keep=60) as camera, ended:
        for frame in camera:
            if frame.image is not None:
                sizes.append(frame.image.shape[:2])
                side = frame.image.astype(int)
                assert np.abs(side - side.mean()).max() < 60  # one plane of grey, neither squeezed nor torn
    assert sizes[0] == (48, 64) and sizes[-1] == (96, 128) and sizes == sorted(sizes)

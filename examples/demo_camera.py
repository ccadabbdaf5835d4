"""A camera that is a process, to be looked at, and to be killed: parts over GigE Vision, MJPEG or RTSP, on loopback.

    python examples/demo_camera.py gige                  GigE Vision by Aravis' own camera (apt-get install libaravis-0.8-0)
    python examples/demo_camera.py mjpeg --port 8090     http://127.0.0.1:8090/
    python examples/demo_camera.py rtsp --port 8554      H.264 by GStreamer's server, in the system's Python (python3-gi, gir1.2-gst-rtsp-server-1.0)

It shows the pictures of a folder in turn. With --stamp each frame carries a number that was never shown before, in 24 squares of its first
rows, and --log FILE has every number before its frame is sent: who finds another one has made it up.
"""

import argparse
import contextlib
import ctypes
import http.server
import itertools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

BITS, CELL_PX = 24, 8
PARTS = Path(__file__).parent / "parts"
RTSP_SERVER = """
import os, sys, threading, gi
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
port, width, height, fps = sys.argv[1:]
server, factory = GstRtspServer.RTSPServer(address="127.0.0.1", service=port), GstRtspServer.RTSPMediaFactory(shared=True)
factory.set_launch(f"( appsrc name=frames is-live=true do-timestamp=true format=time "
    f"caps=video/x-raw,format=RGBA,width={width},height={height},framerate={fps}/1 "
    f"! videoconvert ! openh264enc bitrate=4000000 gop-size={fps} ! rtph264pay name=pay0 pt=96 config-interval=-1 )")
looked_at = []

def configure(_, media):
    looked_at[:] = [media.get_element().get_child_by_name("frames")]
    media.connect("unprepared", lambda _: looked_at.clear())

def show():
    count = int(width) * int(height) * 4
    while len(frame := sys.stdin.buffer.read(count)) == count:
        for source in list(looked_at):
            source.emit("push-buffer", Gst.Buffer.new_wrapped(frame))
    os._exit(0)

factory.connect("media-configure", configure)
server.get_mount_points().add_factory("/live", factory)
if not server.attach(None):
    sys.exit(f"port {port} cannot be listened on")
threading.Thread(target=show, daemon=True).start()
print(f"rtsp://127.0.0.1:{port}/live", flush=True)
GLib.MainLoop().run()
"""


def stamp(image: np.ndarray, number: int) -> np.ndarray:
    """The number in black and white squares, in the first rows of a copy."""
    bits = [(number >> bit) & 1 for bit in range(BITS)]
    marked = image.copy()
    marked[:CELL_PX, : BITS * CELL_PX] = np.repeat(np.array(bits, np.uint8) * 255, CELL_PX)[None, :, None]
    return marked


def read_stamp(image: np.ndarray) -> int:
    """The number of a frame, from the middle of its squares."""
    row = image[CELL_PX // 2, CELL_PX // 2 : BITS * CELL_PX : CELL_PX]
    return sum(1 << bit for bit, value in enumerate(row.mean(axis=1)) if value > 127)


def pictures(folder: Path, width: int, height: int) -> list[np.ndarray]:
    """RGB, all of one size."""
    read = [cv2.imread(str(path)) for path in sorted(folder.iterdir()) if path.suffix in (".jpg", ".png")]
    resized = [cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA) for image in read if image is not None]
    if not resized:
        raise SystemExit(f"{folder} has no JPEG or PNG: give --parts FOLDER")
    return [np.ascontiguousarray(image[:, :, ::-1]) for image in resized]


class Show:
    """One frame after the other, also to several who look."""

    def __init__(self, parts: list[np.ndarray], first: int | None, log: Path | None) -> None:
        self._parts, self._stamped = itertools.cycle(parts), first is not None
        self._numbers = itertools.count(first or 0)
        self._log = log.open("a") if log is not None else None
        self._mutex = threading.Lock()

    def next(self) -> np.ndarray:
        """RGB [H, W, 3]; its number is in the log when this returns."""
        with self._mutex:
            image, number = next(self._parts), next(self._numbers)
            if self._log is not None:
                self._log.write(f"{number}\n")
                self._log.flush()
        return stamp(image, number) if self._stamped else image


def serve_mjpeg(show: Show, port: int, fps: float) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=part")
            self.end_headers()
            for picture in self._jpegs():
                self.wfile.write(b"--part\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(picture))
                self.wfile.write(picture + b"\r\n")

        def _jpegs(self) -> Iterator[bytes]:
            while True:
                yield cv2.imencode(".jpg", show.next()[:, :, ::-1])[1].tobytes()
                time.sleep(1 / fps)

        def handle(self) -> None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # nobody looks any more
                super().handle()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    print(f"http://127.0.0.1:{server.server_address[1]}/", flush=True)
    server.serve_forever()


def serve_gige(show: Show, serial: str, interface: str) -> None:
    aravis = ctypes.CDLL("libaravis-0.8.so.0")
    pattern = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32)
    for name in ("arv_gv_fake_camera_new", "arv_gv_fake_camera_get_fake_camera", "arv_buffer_get_data"):
        getattr(aravis, name).restype = ctypes.c_void_p

    @pattern
    def fill(buffer: int, _data: int, _exposure: int, _gain: int, pixel_format: int) -> None:
        size = ctypes.c_size_t()  # of what was received, which is nothing yet
        start = aravis.arv_buffer_get_data(ctypes.c_void_p(buffer), ctypes.byref(size))
        width, height = (getattr(aravis, f"arv_buffer_get_image_{side}")(ctypes.c_void_p(buffer)) for side in ("width", "height"))
        grey = cv2.cvtColor(show.next(), cv2.COLOR_RGB2GRAY)
        if grey.shape != (height, width):
            grey = cv2.resize(grey, (width, height))
        ctypes.memmove(start, np.ascontiguousarray(grey).tobytes(), height * width)  # Mono8; other formats are larger

    camera = ctypes.c_void_p(aravis.arv_gv_fake_camera_new(interface.encode(), serial.encode()))
    if not aravis.arv_gv_fake_camera_is_running(camera):
        raise SystemExit(f"there can be no GigE Vision camera on {interface}: is another one running?")
    fake = ctypes.c_void_p(aravis.arv_gv_fake_camera_get_fake_camera(camera))
    aravis.arv_fake_camera_set_fill_pattern(fake, fill, None)
    print(f"genicam://Aravis-Fake-{serial}", flush=True)
    signal.pause()


def serve_rtsp(show: Show, port: int, fps: float, width: int, height: int) -> None:
    command = ["/usr/bin/python3", "-c", RTSP_SERVER, str(port), str(width), str(height), f"{max(1, round(fps))}"]
    server = subprocess.Popen(command, stdin=subprocess.PIPE)  # says its address itself, and ends when nobody writes any more
    assert server.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        while True:
            server.stdin.write(cv2.cvtColor(show.next(), cv2.COLOR_RGB2RGBA).tobytes())
            server.stdin.flush()
            time.sleep(1 / fps)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("gige", "mjpeg", "rtsp"))
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--serial", default="GV01")
    parser.add_argument("--interface", default="127.0.0.1")
    parser.add_argument("--fps", type=float, default=10)
    parser.add_argument("--size", default="512x512")
    parser.add_argument("--parts", type=Path, default=PARTS)
    parser.add_argument("--stamp", type=int, metavar="FIRST")
    parser.add_argument("--log", type=Path)
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    parts = pictures(arguments.parts, width, height)
    show = Show(parts, arguments.stamp, arguments.log)
    if arguments.kind == "mjpeg":
        serve_mjpeg(show, arguments.port, arguments.fps)
    elif arguments.kind == "gige":
        serve_gige(show, arguments.serial, arguments.interface)
    else:
        serve_rtsp(show, arguments.port, arguments.fps, width, height)
    return 0


if __name__ == "__main__":
    sys.exit(main())

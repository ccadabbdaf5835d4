"""What a GenICam camera promises, against a real GigE Vision device: ``arv-fake-gv-camera`` of aravis-tools, and ours on its library."""

import ctypes
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from agvas_core.contract.errors import SetupError, SourceError, UsageError
from agvas_runtime.images.raw import camera_image
from agvas_runtime.sources import CameraSource
from agvas_runtime.sources.camera_address import camera_address
from agvas_runtime.sources.genicam import library

CLONE_NEWNET, SIOCSIFFLAGS, IFF_UP = 0x40000000, 0x8914, 0x1
DEMO = Path(__file__).parents[2] / "examples" / "demo_camera.py"


def there_is_aravis() -> bool:
    try:
        library()
    except SetupError:
        return False
    return True


needs_aravis = pytest.mark.skipif(not there_is_aravis(), reason="libaravis-0.8-0 is not installed")
needs_tools = pytest.mark.skipif(shutil.which("arv-fake-gv-camera-0.8") is None, reason="aravis-tools is not installed")


@pytest.fixture
def own_loopback() -> Iterator[None]:
    """A loopback of the test's own: GigE Vision has one port for all cameras, 3956, and one address has one camera.

    The thread of the test, and what it starts, gets a network namespace of its own. Where that is not allowed, runs of these
    tests wait for each other; a camera that is none of theirs then makes them fail.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as home:
        if libc.unshare(CLONE_NEWNET) == 0:
            with socket.socket(type=socket.SOCK_DGRAM) as loopback:
                fcntl.ioctl(loopback, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
            yield
            assert libc.setns(home.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            return
    with open(Path(tempfile.gettempdir()) / f"agvas-tests-gige-{os.getuid()}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def opened(camera: CameraSource, frames: int) -> list[np.ndarray]:
    """The first whole frames; the camera's process may take a moment to be there."""
    end = time.monotonic() + 60
    while True:
        try:
            images = []
            for frame in camera:
                if frame.image is not None:
                    images.append(frame.image)
                if len(images) == frames:
                    return images
        except SourceError:
            assert time.monotonic() < end, "the camera never came"


@needs_aravis
@pytest.mark.usefixtures("own_loopback")
@needs_tools
def test_aravis_own_camera_gives_frames_and_one_that_is_killed_is_an_error_in_time() -> None:
    with running("arv-fake-gv-camera-0.8", "-i", "127.0.0.1", "-s", "AG1") as process:
        with CameraSource("genicam://Aravis-Fake-AG1?fps=20&exposure_us=2000", stall_timeout_s=1.6) as camera:
            images = opened(camera, 3)
            assert all(image.shape == (512, 512, 3) and image.std() > 5 for image in images)
            assert camera.format == "Mono8 512x512" and camera.name == "camera-Aravis-Fake-AG1"
        with (
            CameraSource("genicam://Aravis-Fake-AG1", stall_timeout_s=1.0) as camera,
            pytest.raises(SourceError, match=r"stopped after [0-9]+ frames: it is silent"),
        ):
            for seen, _ in enumerate(camera):
                process.kill()
                assert seen < 200, "frames go on: another fake camera answers at this address"


@needs_aravis
@pytest.mark.usefixtures("own_loopback")
@needs_tools
def test_a_camera_that_waits_for_its_trigger_is_silent_and_no_error_and_gives_one_frame_for_one_shot() -> None:
    with (
        running("arv-fake-gv-camera-0.8", "-i", "127.0.0.1", "-s", "AG2"),
        CameraSource("genicam://Aravis-Fake-AG2", stall_timeout_s=1.0) as free,
    ):
        opened(free, 1)
        free.close()
        with CameraSource("genicam://Aravis-Fake-AG2?trigger=Software", stall_timeout_s=1.0, keep=8) as camera:
            frames = iter(camera)

            def shoot() -> None:
                time.sleep(2.5)  # longer than a stall
                for _ in range(3):
                    camera.fire()
                    time.sleep(0.3)

            shots = threading.Thread(target=shoot)
            shots.start()
            names = [next(frames).name for _ in range(3)]
            shots.join()
            assert names == [f"camera-Aravis-Fake-AG2#{number:06d}" for number in range(3)]


@needs_aravis
@pytest.mark.usefixtures("own_loopback")
def test_the_demo_camera_shows_parts_with_their_numbers_over_gige() -> None:
    sys.path.insert(0, str(DEMO.parent))
    from demo_camera import read_stamp

    sys.path.remove(str(DEMO.parent))
    with (
        running(sys.executable, str(DEMO), "gige", "--serial", "AG3", "--stamp", "70000", "--size", "512x512"),
        CameraSource("genicam://Aravis-Fake-AG3", keep=50) as camera,
    ):
        numbers = [read_stamp(image) for image in opened(camera, 4)]
    assert numbers[0] >= 70_000 and numbers == list(range(numbers[0], numbers[0] + 4))


@needs_aravis
@pytest.mark.usefixtures("own_loopback")
def test_a_camera_that_is_not_there_is_an_error_with_a_remedy() -> None:
    with (
        CameraSource("genicam://Nobody-0815", open_timeout_s=10) as camera,
        pytest.raises(SourceError, match=r"not there: .*check"),
    ):
        next(iter(camera))


@pytest.mark.parametrize(
    ("uri", "what"),
    [
        ("genicam://x?exposure=5", "did you mean exposure_us"),
        ("genicam://x?gain=loud", "gain is 'loud'"),
        ("genicam://x?width=1.5", "width is '1.5'"),
        ("/dev/video0?widht=5", "did you mean width"),
        ("/dev/video0?fourcc=MJPEG", "four letters"),
        ("/dev/video0?fps=fast", "fps is 'fast'"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused(uri: str, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        camera_address(uri)


def test_bayer_patterns_are_read_as_genicam_names_them() -> None:
    red = np.zeros((8, 8), np.uint8)
    for name, (top, left) in {"BayerRG8": (0, 0), "BayerGR8": (0, 1), "BayerGB8": (1, 0), "BayerBG8": (1, 1)}.items():
        mosaic = red.copy()
        mosaic[top::2, left::2] = 200
        assert camera_image(mosaic, name, (8, 8))[4, 4].tolist() == [200, 0, 0]
    grey = np.full((4, 6), 1023, np.uint16)
    assert camera_image(grey, "Mono10", (4, 6)).min() == 255

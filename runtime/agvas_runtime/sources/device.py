"""A camera of this machine: V4L2 on Linux, whatever OpenCV finds elsewhere.

    /dev/video0?width=1920&height=1080&fps=30&fourcc=MJPG&exposure=157&gain=0

A setting is written to the camera, read back, and refused where the camera took another: an exposure of its own would change every score.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import cv2

from agvas_core.contract.errors import SourceError, UsageError
from agvas_core.contract.validation import nearest
from agvas_runtime.sources.grabber import CaptureGrabber, Grabber

__all__ = ["SETTINGS", "V4L2_FORMATS", "check_settings", "device_grabber"]

SETTINGS: Final = {
    "fourcc": cv2.CAP_PROP_FOURCC,  # first, for the others depend on it
    "width": cv2.CAP_PROP_FRAME_WIDTH,
    "height": cv2.CAP_PROP_FRAME_HEIGHT,
    "fps": cv2.CAP_PROP_FPS,
    "auto_exposure": cv2.CAP_PROP_AUTO_EXPOSURE,  # before the exposure, which it would forbid
    "exposure": cv2.CAP_PROP_EXPOSURE,
    "gain": cv2.CAP_PROP_GAIN,
    "auto_wb": cv2.CAP_PROP_AUTO_WB,
    "focus": cv2.CAP_PROP_FOCUS,
}
V4L2_FORMATS: Final = {
    "Mono8": "GREY",
    "Mono16": "Y16 ",
    "BayerRG8": "RGGB",
    "BayerGB8": "GBRG",
    "NV12": "NV12",
    "YUYV": "YUYV",
    "RGB8": "RGB3",
    "BGR8": "BGR3",
}
"""Pixel formats as V4L2 names them."""
ALLOWED: Final = 0.005  # of a value: 29.97 frames a second are 30

# A frame that does not come within so many seconds is none; read once, by OpenCV. The ten of its own are too long for a line.
os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", "2")


def check_settings(settings: Mapping[str, str]) -> None:
    """Raises UsageError where one is unknown or no number."""
    for name, value in settings.items():
        if name not in SETTINGS:
            meant = f"did you mean {near}? " if (near := nearest(name, SETTINGS)) else ""
            raise UsageError(f"a camera of this machine has no setting {name!r}: {meant}there are {', '.join(SETTINGS)}")
        if name == "fourcc" and len(value) != 4:
            raise UsageError(f"fourcc is {value!r}; it is four letters, as v4l2-ctl --list-formats shows them: MJPG, YUYV")
        if name != "fourcc":
            try:
                float(value)
            except ValueError:
                raise UsageError(f"the camera's {name} is {value!r}; it is a number") from None


def device_grabber(device: str, settings: Mapping[str, str], raw: tuple[str, int] | None = None) -> Grabber:
    """Opens ``device`` with ``settings``, which were checked; RGB, or ``raw`` = (pixel format, bits) as it sends."""
    linux = sys.platform.startswith("linux")

    def connect(capture: cv2.VideoCapture) -> None:
        if linux and not os.path.exists(device):  # False, not an error, for a name too long for a path
            there = sorted(str(path) for path in Path("/dev").glob("video*"))
            raise SourceError(f"there is no {device} (there {'are ' + ', '.join(there) if there else 'is no /dev/video*'})")
        index = device.removeprefix("/dev/video")
        if not (capture.open(device, cv2.CAP_V4L2) if linux else capture.open(int(index), cv2.CAP_ANY)):
            raise SourceError(f"{device} cannot be opened as a camera")
        if raw is not None:
            _send_raw(capture, device, V4L2_FORMATS[raw[0]])
        for name in (name for name in SETTINGS if name in settings):
            wanted = _code(settings[name]) if name == "fourcc" else float(settings[name])
            capture.set(SETTINGS[name], wanted)
        for name in settings:  # when all are set, for a size may change with the format
            wanted = _code(settings[name]) if name == "fourcc" else float(settings[name])
            found = capture.get(SETTINGS[name])
            if abs(found - wanted) > ALLOWED * max(1.0, abs(wanted)):
                shown = int(found).to_bytes(4, "little").decode("latin-1") if name == "fourcc" else f"{found:g}"
                raise SourceError(f"{device} does not take {name}={settings[name]}: it has {shown}")

    return CaptureGrabber(connect, raw)


def _code(fourcc: str) -> float:
    return float(cv2.VideoWriter.fourcc(*fourcc))


def _send_raw(capture: cv2.VideoCapture, device: str, code: str) -> None:
    """Has the camera send in a format of V4L2, and OpenCV leave it as it is."""
    capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*code))
    capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)
    sends = int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").decode("latin-1")
    if sends != code:
        raise SourceError(
            f"{device} sends {sends.strip()!r} and not {code.strip()!r}: v4l2-ctl --list-formats lists what it can send"
        )

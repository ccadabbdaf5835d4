"""A GenICam camera, GigE Vision or USB3 Vision, through Aravis.

    genicam://Basler-21810700?exposure_us=800&gain=0&format=BayerRG8&fps=20
    genicam://192.168.10.7?trigger=Line1             each pulse on the camera's line is a part
    genicam://192.168.10.7?trigger=Software&packet=9000

A frame whose packets did not all arrive is an ImageError, never a picture with holes.
"""

import ctypes
import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_size_t, c_uint, c_uint32, c_uint64, c_void_p
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError, SetupError, SourceError, UsageError
from agvas_core.contract.validation import nearest
from agvas_runtime.images.frame import Sent
from agvas_runtime.images.raw import RAW_FORMATS, SAMPLE_BITS

__all__ = ["PACKET_SOCKET_DISABLED", "SETTINGS", "STATUSES", "Aravis", "GenicamGrabber", "check_settings", "library"]


# libaravis 0.8 by ctypes: as much of it as a GenICam camera needs. The only module that loads it.
#
# Debian has it as ``libaravis-0.8-0``. By ctypes and not by PyGObject, which pip would have to compile against four development packages.
# Calls let go of the interpreter's lock while they wait.


SONAME: Final = "libaravis-0.8.so.0"
PACKET_SOCKET_DISABLED: Final = 1  # ARV_GV_STREAM_OPTION_PACKET_SOCKET_DISABLED
STATUSES: Final = {
    -1: "unknown", 0: "success", 1: "cleared", 2: "it came too slowly", 3: "packets are missing", 4: "packets came in a wrong order",
    5: "it has another size than the camera said", 6: "it is not whole", 7: "it was aborted",
}  # fmt: skip
_G_TYPE_UINT: Final = 7 << 2

_Handle = c_void_p


class _GError(ctypes.Structure):
    _fields_ = (("domain", c_uint32), ("code", c_int), ("message", c_char_p))


class _GValue(ctypes.Structure):
    _fields_ = (("type", c_size_t), ("data", c_uint64 * 2))


# name -> (result, arguments); those marked True take a GError** at the end.
_FUNCTIONS: Final[dict[str, tuple[Any, tuple[Any, ...], bool]]] = {
    "arv_camera_new": (_Handle, (c_char_p,), True),
    "arv_camera_get_device": (_Handle, (_Handle,), False),
    "arv_camera_get_device_id": (c_char_p, (_Handle,), True),
    "arv_camera_is_gv_device": (c_int, (_Handle,), False),
    "arv_camera_create_stream": (_Handle, (_Handle, c_void_p, c_void_p), True),
    "arv_camera_set_acquisition_mode": (None, (_Handle, c_int), True),
    "arv_camera_start_acquisition": (None, (_Handle,), True),
    "arv_camera_stop_acquisition": (None, (_Handle,), True),
    "arv_camera_get_payload": (c_uint, (_Handle,), True),
    "arv_camera_get_pixel_format_as_string": (c_char_p, (_Handle,), True),
    "arv_camera_set_pixel_format_from_string": (None, (_Handle, c_char_p), True),
    "arv_camera_get_region": (None, (_Handle, POINTER(c_int), POINTER(c_int), POINTER(c_int), POINTER(c_int)), True),
    "arv_camera_set_region": (None, (_Handle, c_int, c_int, c_int, c_int), True),
    "arv_camera_set_exposure_time": (None, (_Handle, c_double), True),
    "arv_camera_set_gain": (None, (_Handle, c_double), True),
    "arv_camera_set_frame_rate": (None, (_Handle, c_double), True),
    "arv_camera_set_trigger": (None, (_Handle, c_char_p), True),
    "arv_camera_clear_triggers": (None, (_Handle,), True),
    "arv_camera_software_trigger": (None, (_Handle,), True),
    "arv_camera_gv_set_packet_size": (None, (_Handle, c_int), True),
    "arv_camera_gv_auto_packet_size": (c_uint, (_Handle,), True),
    "arv_gv_device_set_stream_options": (None, (_Handle, c_int), False),
    "arv_device_read_register": (c_int, (_Handle, c_uint64, POINTER(c_uint32)), True),
    "arv_stream_push_buffer": (None, (_Handle, _Handle), False),
    "arv_stream_timeout_pop_buffer": (_Handle, (_Handle, c_uint64), False),
    "arv_stream_get_statistics": (None, (_Handle, POINTER(c_uint64), POINTER(c_uint64), POINTER(c_uint64)), False),
    "arv_buffer_new_allocate": (_Handle, (c_size_t,), False),
    "arv_buffer_get_status": (c_int, (_Handle,), False),
    "arv_buffer_get_image_data": (c_void_p, (_Handle, POINTER(c_size_t)), False),
    "arv_buffer_get_image_pixel_format": (c_uint32, (_Handle,), False),
    "arv_buffer_get_image_width": (c_int, (_Handle,), False),
    "arv_buffer_get_image_height": (c_int, (_Handle,), False),
    "arv_buffer_get_frame_id": (c_uint64, (_Handle,), False),
    "g_object_unref": (None, (_Handle,), False),
    "g_object_set_property": (None, (_Handle, c_char_p, POINTER(_GValue)), False),
    "g_value_init": (c_void_p, (POINTER(_GValue), c_size_t), False),
    "g_value_set_uint": (None, (POINTER(_GValue), c_uint), False),
    "g_error_free": (None, (POINTER(_GError),), False),
}


class Aravis:
    """The library's functions, without ``arv_``: ``aravis.call("camera_new", b"10.0.0.7")``."""

    def __init__(self, loaded: ctypes.CDLL) -> None:
        self._error_free: Callable[..., Any] = loaded.g_error_free
        self._functions: dict[str, tuple[Callable[..., Any], bool]] = {}
        for name, (result, arguments, fails) in _FUNCTIONS.items():
            function = getattr(loaded, name)  # GLib's are found through the library, which is linked with it
            function.restype = result
            function.argtypes = (*arguments, POINTER(POINTER(_GError))) if fails else arguments
            self._functions[name.removeprefix("arv_")] = (function, fails)

    def call(self, name: str, *arguments: Any) -> Any:
        """Calls ``arv_NAME``.

        Raises:
            SourceError: the camera does not answer, or does not have or take what was asked.
        """
        function, fails = self._functions[name]
        if not fails:
            return function(*arguments)
        error = POINTER(_GError)()
        result = function(*arguments, byref(error))
        if error:
            text = (error.contents.message or b"no reason given").decode("utf-8", "replace")
            self._error_free(error)
            raise SourceError(f"{text} ({name})")
        return result

    def set_uint(self, thing: Any, name: bytes, value: int) -> None:
        """A property of a GObject that is an unsigned integer, or an enumeration."""
        holder = _GValue()
        self.call("g_value_init", byref(holder), _G_TYPE_UINT)
        self.call("g_value_set_uint", byref(holder), value)
        self.call("g_object_set_property", thing, name, byref(holder))


_loaded: list[Aravis] = []


def library() -> Aravis:
    """The library, loaded once.

    Raises:
        SetupError: it is not installed.
    """
    if not _loaded:
        try:
            _loaded.append(Aravis(ctypes.CDLL(SONAME)))
        except OSError as error:
            raise SetupError(
                f"GenICam cameras need Aravis, and {SONAME} is not here: apt-get install libaravis-0.8-0 (Debian, Ubuntu)"
            ) from error
    return _loaded[0]


SETTINGS: Final = ("format", "x", "y", "width", "height", "exposure_us", "gain", "fps", "trigger", "packet")
WORDS: Final = ("format", "trigger")
BUFFERS: Final = 16
SOCKET_BYTES: Final = 8 << 20  # frames arrive in one burst; the kernel's default holds a tenth of one
POLL_US: Final = 100_000
POLL_FIRED_US: Final = 5_000  # a shot that is asked for waits no longer than this
ALIVE_S: Final = 0.5  # a camera that waits for its trigger is asked so often whether it is there
FIXED: Final = 0  # ARV_GV_STREAM_SOCKET_BUFFER_FIXED
CONTINUOUS: Final = 0  # ARV_ACQUISITION_MODE_CONTINUOUS
CONTROL_REGISTER: Final = 0x0A00  # GigE Vision: who controls the camera
CONTROLLED: Final = 3


def check_settings(settings: Mapping[str, str]) -> None:
    """Raises UsageError where one is unknown, or no number above 0."""
    for name, value in settings.items():
        if name not in SETTINGS:
            meant = f"did you mean {near}? " if (near := nearest(name, SETTINGS)) else ""
            raise UsageError(f"a GenICam camera has no setting {name!r} here: {meant}there are {', '.join(SETTINGS)}")
        if name not in WORDS:
            try:
                fine = 0 <= float(value) < math.inf and (name in ("exposure_us", "gain", "fps") or value.isdecimal())
            except ValueError:
                fine = False
            if not fine:
                raise UsageError(f"the camera's {name} is {value!r}; it is a number from 0")


class GenicamGrabber:
    """One camera, by its id, serial number or IP address; the first that is found where that is empty."""

    def __init__(self, name: str, settings: Mapping[str, str]) -> None:
        """Raises SetupError where Aravis is not installed."""
        self.missed = 0
        self.format = ""
        """Pixel format and size once it is open; another one after a reconnect is another camera, or another set-up."""
        self._aravis: Aravis = library()
        self._name, self._settings = name, settings
        self._camera: Any = None
        self._stream: Any = None
        self._buffer: Any = None
        self._pixels = ""
        self._is_gige = False
        self._lost = self._seen = False
        self._last_id = 0
        self._heard_s = 0.0
        self._fired, self._mutex = 0, threading.Lock()

    def open(self) -> None:
        call = self._aravis.call
        self._camera = call("camera_new", self._name.encode() or None)
        if not self._camera:
            raise SourceError("no GenICam camera answers")
        self._is_gige = bool(call("camera_is_gv_device", self._camera))
        self._set_up()
        payload, self._pixels = call("camera_get_payload", self._camera), self._pixel_format()
        if self._pixels not in RAW_FORMATS:
            raise SourceError(f"it sends {self._pixels}; {', '.join(RAW_FORMATS)} are read: add ?format= one of these")
        self.format = f"{self._pixels} {'x'.join(map(str, self._region()[2:]))}"
        self._stream = call("camera_create_stream", self._camera, None, None)
        if not self._stream:
            raise SourceError("no stream can be made")
        if self._is_gige:
            self._aravis.set_uint(self._stream, b"socket-buffer", FIXED)
            self._aravis.set_uint(self._stream, b"socket-buffer-size", SOCKET_BYTES)
        for _ in range(BUFFERS):
            call("stream_push_buffer", self._stream, call("buffer_new_allocate", payload))
        call("camera_start_acquisition", self._camera)
        self._heard_s = time.monotonic()

    def _set_up(self) -> None:
        call, settings, camera = self._aravis.call, self._settings, self._camera
        if self._is_gige:
            # A raw socket needs a right that a station should not have, and on loopback delivers nothing.
            call("gv_device_set_stream_options", call("camera_get_device", camera), PACKET_SOCKET_DISABLED)
        call("camera_set_acquisition_mode", camera, CONTINUOUS)
        if "format" in settings:
            call("camera_set_pixel_format_from_string", camera, settings["format"].encode())
        if settings.keys() & {"x", "y", "width", "height"}:
            there = dict(zip(("x", "y", "width", "height"), self._region(), strict=True))
            call("camera_set_region", camera, *(int(settings.get(side, value)) for side, value in there.items()))
        for setting, function in (("exposure_us", "exposure_time"), ("gain", "gain"), ("fps", "frame_rate")):
            if setting in settings:
                call(f"camera_set_{function}", camera, float(settings[setting]))
        if "trigger" in settings:
            call("camera_set_trigger", camera, settings["trigger"].encode())
        else:
            call("camera_clear_triggers", camera)
        if self._is_gige:
            if "packet" in settings:
                call("camera_gv_set_packet_size", camera, int(settings["packet"]))
            else:
                call("camera_gv_auto_packet_size", camera)

    def _pixel_format(self) -> str:
        return str(self._aravis.call("camera_get_pixel_format_as_string", self._camera).decode())

    def _region(self) -> tuple[int, int, int, int]:
        sides = [ctypes.c_int() for _ in range(4)]
        self._aravis.call("camera_get_region", self._camera, *map(ctypes.byref, sides))
        return (sides[0].value, sides[1].value, sides[2].value, sides[3].value)

    def fire(self) -> None:
        """Asks for a frame, where ``trigger=Software``; the thread that grabs passes it on."""
        if self._settings.get("trigger") == "Software":
            with self._mutex:
                self._fired += 1

    def grab(self) -> bool | None:
        self._pass_shots_on()
        wait_us = POLL_FIRED_US if self._settings.get("trigger") == "Software" else POLL_US
        buffer = self._aravis.call("stream_timeout_pop_buffer", self._stream, wait_us)
        if buffer:
            self._push_back()
            self._buffer, self._heard_s = buffer, time.monotonic()
            return True
        if "trigger" in self._settings and time.monotonic() - self._heard_s > ALIVE_S:
            self._ask_whether_it_is_there()
            self._heard_s = time.monotonic()
            return False
        return None

    def _pass_shots_on(self) -> None:
        with self._mutex:
            fired, self._fired = self._fired, 0
        for _ in range(fired):
            self._aravis.call("camera_software_trigger", self._camera)

    def _ask_whether_it_is_there(self) -> None:
        if self._is_gige:
            found = ctypes.c_uint32()
            device = self._aravis.call("camera_get_device", self._camera)
            try:
                self._aravis.call("device_read_register", device, CONTROL_REGISTER, ctypes.byref(found))
            except SourceError:
                self._lost = True
                raise
            if not found.value & CONTROLLED:
                self._lost = True
                raise SourceError("it no longer knows us: it was switched off and on, or another program took it")
        else:
            self._region()

    def retrieve(self) -> Sent | ImageError | None:
        call, buffer = self._aravis.call, self._buffer
        number = int(call("buffer_get_frame_id", buffer))
        if 0 < self._last_id < number - 1:
            self.missed += number - self._last_id - 1
        self._last_id = number
        status = call("buffer_get_status", buffer)
        if status != 0 and not self._seen and "trigger" not in self._settings:
            self.missed += 1  # Aravis enlarges the socket's buffer when the first frame comes, which is too late for that one
            return None
        self._seen = True
        if status != 0:
            return ImageError(f"the frame cannot be used: {STATUSES.get(status, status)}")
        size = ctypes.c_size_t()
        start = call("buffer_get_image_data", buffer, ctypes.byref(size))
        height, width = call("buffer_get_image_height", buffer), call("buffer_get_image_width", buffer)
        kind = np.uint16 if self._pixels in SAMPLE_BITS else np.uint8
        held = memoryview((ctypes.c_uint8 * size.value).from_address(start)).cast("B")  # the buffer's own memory
        raw: NDArray[np.generic] = np.frombuffer(held, np.dtype(kind))
        return Sent(raw.copy(), self._pixels, (height, width), SAMPLE_BITS.get(self._pixels, 16))

    def _push_back(self) -> None:
        if self._buffer is not None:
            self._aravis.call("stream_push_buffer", self._stream, self._buffer)
            self._buffer = None

    def close(self) -> None:
        self._push_back()
        gone = self._lost or time.monotonic() - self._heard_s > 2 * ALIVE_S  # it would be waited for, for seconds
        if self._stream is not None and not gone:
            with suppress(SourceError):  # it is gone, and sends nothing in any case
                self._aravis.call("camera_stop_acquisition", self._camera)
        for thing in (self._stream, self._camera):
            if thing is not None:
                self._aravis.call("g_object_unref", thing)
        self._stream = self._camera = None

"""libaravis 0.8 by ctypes: as much of it as a GenICam camera needs. The only module that loads it.

Debian has it as ``libaravis-0.8-0``. By ctypes and not by PyGObject, which pip would have to compile against four development packages.
Calls let go of the interpreter's lock while they wait.
"""

import ctypes
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_size_t, c_uint, c_uint32, c_uint64, c_void_p
from typing import Any, Final

from agvas_core.contract.errors import SetupError, SourceError

__all__ = ["PACKET_SOCKET_DISABLED", "STATUSES", "Aravis", "library"]

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

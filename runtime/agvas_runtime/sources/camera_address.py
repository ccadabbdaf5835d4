"""Addresses of cameras on the command line.

0, /dev/video0?width=1280                a device of this machine
rtsp://10.0.0.5/line1                    RTSP
http://10.0.0.5/video.mjpg               MJPEG over HTTP; a URL that answers with one picture is asked again and again
genicam://Basler-21810700?trigger=Line1  GenICam, by id, serial number or IP address; genicam:// is the first that is found
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from agvas_core.contract.errors import UsageError
from agvas_runtime.sources import device, genicam

__all__ = ["CameraAddress", "camera_address", "without_secrets"]


@dataclass(frozen=True)
class CameraAddress:
    """An address that was understood."""

    kind: Literal["device", "rtsp", "http", "genicam"]
    target: str
    """What is opened."""
    label: str
    """How messages call it, without secrets."""
    name: str
    """How its frames are called."""
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_asked(self) -> bool:
        """Whether it gives a frame only when it is asked for one."""
        return self.settings.get("trigger") == "Software"


def without_secrets(text: str) -> str:
    """``text`` with the user, password and query of an address in it as ``***``; many cameras take the password in the query.

    Everything up to the last ``@`` goes: a password may hold ``/``, ``@`` or a space that should have been escaped.
    """
    scheme, mark, rest = text.partition("://")
    if not mark:
        return text
    _, at, rest = rest.rpartition("@")
    place, question, _ = rest.partition("?")
    return f"{scheme}://{'***@' if at else ''}{place}{'?***' if question else ''}"


def camera_address(uri: str) -> CameraAddress:
    """Understands an address.

    Raises:
        UsageError: it is none, or has a setting that its kind of camera does not have.
    """
    if re.fullmatch("[0-9]{1,3}", uri):
        return CameraAddress("device", f"/dev/video{uri}", f"camera {uri}", f"camera-{uri}")
    if uri.startswith("/dev/"):
        path, settings = _settings(uri)
        device.check_settings(settings)
        return CameraAddress("device", path, f"camera {path}", f"camera-{Path(path).name.removeprefix('video')}", settings)
    if uri.startswith("genicam://"):
        target, settings = _settings(uri.removeprefix("genicam://"))
        genicam.check_settings(settings)
        target = unquote(target).strip("/")
        return CameraAddress("genicam", target, f"camera genicam://{target}", _name(target or "genicam"), settings)
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise UsageError(
            f"camera {without_secrets(uri)!r} is no address: check host and port, and write / and @ in a password as %2F and %40"
        ) from None  # its message may hold the password
    if parts.scheme not in ("rtsp", "rtsps", "http", "https") or not host:
        raise UsageError(
            f"camera {without_secrets(uri)!r} is not understood: give an index (0), a device (/dev/video0), rtsp://..., "
            "http://... (MJPEG) or genicam://..."
        )
    kind: Literal["rtsp", "http"] = "rtsp" if parts.scheme.startswith("rtsp") else "http"
    return CameraAddress(kind, uri, f"camera {without_secrets(uri)}", _name(host) + (f"-{port}" if port else ""))


def _settings(uri: str) -> tuple[str, dict[str, str]]:
    place, _, query = uri.partition("?")
    return place, dict(parse_qsl(query, keep_blank_values=True))


def _name(host: str) -> str:
    return "camera-" + re.sub("[^A-Za-z0-9.]+", "-", host)

"""Opens a source by its address."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO, cast

import numpy as np

from agvas_core.contract.errors import UsageError
from agvas_runtime.images.frame import Frame
from agvas_runtime.images.read import MAX_PIXELS
from agvas_runtime.sources.arrays import ArraySource, is_pillow, is_tensor
from agvas_runtime.sources.camera import CameraSource
from agvas_runtime.sources.files import FileSource
from agvas_runtime.sources.folder_watch import WATCH_SCHEME, FolderWatch
from agvas_runtime.sources.prefetch import limit as limit_frames
from agvas_runtime.sources.protocol import Source
from agvas_runtime.sources.web_pictures import WebSource, is_web_picture

__all__ = ["open_source"]

_ADDRESS = re.compile("[A-Za-z][A-Za-z0-9+.-]*://")


def open_source(
    spec: object,
    *,
    every: int = 1,
    limit: int | None = None,
    max_pixels: int = MAX_PIXELS,
    bits: int | None = None,
    pages: bool = False,
    stdin: TextIO | None = None,
) -> Source:
    """A Source of ``spec``.

    * path, folder, glob or ``-`` (list on stdin), or a sequence of these: FileSource
    * ``http://`` or ``https://`` address whose path ends as a picture's name does (``.jpg``, ``.png``, ...), or several of them: WebSource
    * int, ``/dev/video*``, ``rtsp://``, any other ``http://``: CameraSource (with other timeouts, make one and pass it)
    * ``watch:FOLDER``: FolderWatch, which goes on until it is closed
    * array, image of Pillow, tensor of torch, Frame, or an iterable of these: ArraySource
    * a Source: itself

    ``every``: each n-th frame. ``limit``: no more than this many frames. ``bits``: used bits of 16-bit samples.
    ``pages``: each page of a TIFF is a picture of its own.
    Raises UsageError where ``spec`` is none of these, or names what is not there.
    """
    source = _source(spec, every, max_pixels, bits, pages, stdin)
    return source if limit is None else limit_frames(source, limit)


def _source(spec: object, every: int, max_pixels: int, bits: int | None, pages: bool, stdin: TextIO | None) -> Source:
    if _is_source(spec):
        if every != 1:
            raise UsageError(f"every is {every}; a ready-made source takes only 1 here: give it to the source itself")
        return cast(Source, spec)
    if isinstance(spec, int) and not isinstance(spec, bool):
        return CameraSource(spec, every=every, max_pixels=max_pixels)
    if isinstance(spec, str) and is_web_picture(spec):
        return WebSource([spec], every=every, max_pixels=max_pixels, bits=bits)
    if isinstance(spec, str) and _is_camera(spec):
        return CameraSource(spec, every=every, max_pixels=max_pixels)
    if isinstance(spec, str) and spec.startswith(WATCH_SCHEME):
        return _watch(spec, every, max_pixels, bits)
    if isinstance(spec, str | Path):
        return FileSource([spec], every=every, max_pixels=max_pixels, bits=bits, pages=pages, stdin=stdin)
    if isinstance(spec, Frame):
        return ArraySource([spec], every=every, bits=bits)
    if isinstance(spec, np.ndarray) or is_pillow(spec) or is_tensor(spec):
        return ArraySource(spec, every=every, bits=bits)
    if isinstance(spec, Sequence) and spec and any(isinstance(item, str | Path) for item in spec):
        return _of_paths(spec, every, max_pixels, bits, pages, stdin)
    if isinstance(spec, Iterable) and not isinstance(spec, bytes | bytearray | dict):
        return ArraySource(spec, every=every, bits=bits)
    raise UsageError(
        f"a source is a path, an address, a camera, an array, an image of Pillow, a tensor of torch, or several of these, not "
        f"{type(spec).__name__}"
    )


def _of_paths(spec: Sequence[object], every: int, max_pixels: int, bits: int | None, pages: bool, stdin: TextIO | None) -> Source:
    paths = [item for item in spec if isinstance(item, str | Path)]
    if len(paths) < len(spec):
        raise UsageError("a source of several is either all paths or all arrays: split the run")
    addresses = [path for path in paths if isinstance(path, str) and is_web_picture(path)]
    if addresses and len(addresses) == len(paths):
        return WebSource(addresses, every=every, max_pixels=max_pixels, bits=bits)
    if addresses:
        raise UsageError(
            f"{len(paths)} sources are given and {len(addresses)} of them addresses of pictures; files and addresses do not mix: start "
            "one run each"
        )
    cameras = [path for path in paths if isinstance(path, str) and (_is_camera(path) or path.startswith(WATCH_SCHEME))]
    if not cameras:
        return FileSource(paths, every=every, max_pixels=max_pixels, bits=bits, pages=pages, stdin=stdin)
    if len(paths) > 1:
        raise UsageError(
            f"{len(paths)} sources are given and {len(cameras)} of them live; a camera runs alone: start one run each"
        )
    return _source(cameras[0], every, max_pixels, bits, pages, stdin)


def _watch(spec: str, every: int, max_pixels: int, bits: int | None) -> FolderWatch:
    folder = spec.removeprefix(WATCH_SCHEME)
    if every != 1:
        raise UsageError(f"every is {every}; each picture of a watched folder is a part: leave it out")
    if not os.path.isdir(folder):  # Path.is_dir raises where it may not look
        raise UsageError(f"{folder!r} is no folder that can be watched: make it, or check its name and who may read it")
    return FolderWatch(folder, max_pixels=max_pixels, bits=bits)


def _is_camera(spec: str) -> bool:
    # Any scheme: the camera refuses those it does not know, and knows how to keep a password out of the message.
    return _ADDRESS.match(spec) is not None or spec.startswith("/dev/video")


def _is_source(spec: object) -> bool:
    return all(hasattr(spec, part) for part in ("__iter__", "close", "total", "notes", "live"))

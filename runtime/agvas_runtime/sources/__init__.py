"""Sources of frames. ``open_source`` opens one; ``protocol.Source`` says what it gives.

``listing`` and ``files`` (files, folders, globs, stdin), ``video``, ``folder_watch``, ``camera`` with a grabber for each kind,
``arrays``, ``web_pictures``, and around any of them ``prefetch`` and ``limit``.
"""

from agvas_runtime.sources.arrays import ArraySource
from agvas_runtime.sources.camera import CameraSource
from agvas_runtime.sources.files import FileSource
from agvas_runtime.sources.folder_watch import FolderWatch
from agvas_runtime.sources.open import open_source
from agvas_runtime.sources.prefetch import limit, prefetch
from agvas_runtime.sources.protocol import Source
from agvas_runtime.sources.video import VideoSource
from agvas_runtime.sources.web_pictures import WebSource

__all__ = [
    "ArraySource",
    "CameraSource",
    "FileSource",
    "FolderWatch",
    "Source",
    "VideoSource",
    "WebSource",
    "limit",
    "open_source",
    "prefetch",
]

"""Where images are stored: files, or an object store behind an address (``s3://``, ``gs://``, ``abfs://``, whatever fsspec knows).

The only module that opens file systems of pyarrow and fsspec.
"""

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError, SetupError, SourceError, UsageError
from agvas_core.contract.images.header import IMAGE_SUFFIXES
from agvas_runtime.images.read import decode_image, read_image
from agvas_runtime.sources.camera import without_secrets

__all__ = ["PictureStore", "is_address", "walk_store"]

TRIES: Final = 4
BACK_OFF_S: Final = 0.5  # before the second try; twice as long each time
MAX_BYTES: Final = 2 << 30

Answer = TypeVar("Answer")


def is_address(name: str) -> bool:
    """Whether a name has a scheme, so that it is no path of this machine."""
    scheme, found, _ = name.partition("://")
    return bool(found) and scheme.isascii() and scheme.replace("+", "").replace("-", "").isalnum()


class PictureStore:
    """Reads images by name; relative ones from ``base``. File systems are opened once."""

    def __init__(self, base: str, *, max_pixels: int, bits: int | None = None) -> None:
        self._base, self._max_pixels, self._bits = base, max_pixels, bits
        self._systems: dict[str, Any] = {}

    def read(self, name: str, note: Callable[[str], None] | None = None) -> NDArray[np.uint8]:
        """RGB uint8 [H, W, 3]. ``note`` is called with a message for each ambiguity.

        Raises:
            ImageError: it is not there, or no image.
            SourceError: the store does not answer, also not after several tries.
        """
        if not is_address(name):
            return read_image(os.path.join(self._base, name), max_pixels=self._max_pixels, bits=self._bits, note=note)
        try:
            return decode_image(self._bytes(name), max_pixels=self._max_pixels, bits=self._bits, note=note)
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            raise ImageError(
                f"{without_secrets(name)}: cannot be opened ({error.strerror or error}): check the listing"
            ) from error
        except ImageError as error:
            raise ImageError(f"{without_secrets(name)}: {error}") from error

    def _bytes(self, name: str) -> bytes:
        root = "/".join(name.split("/", 3)[:3])
        if root not in self._systems:
            self._systems[root] = open_system(name)[0]
        system, path = self._systems[root], open_path(self._systems[root], name)

        def fetch() -> bytes:
            with system.open_input_file(path) as file:
                size = int(file.size())
                if size > MAX_BYTES:
                    raise ImageError(f"has {size} bytes; {MAX_BYTES} are the most: save it again")
                return bytes(file.read())

        return _again(fetch, name)


def walk_store(address: str) -> Iterator[str]:
    """Addresses of the images below ``address``, folder by folder, in the order in which the store has them.

    Raises:
        UsageError: no such store or folder.
        SourceError: the store does not answer.
    """
    system, top = open_system(address)
    if _again(lambda: system.get_file_info(top), address).type != pafs.FileType.Directory:
        raise UsageError(f"{without_secrets(address)} is no folder of its store: name one, or a listing with one address a line")
    prefix = address.rstrip("/")
    folders = [top]
    while folders:
        for one in _again(partial(system.get_file_info, pafs.FileSelector(folders.pop(), recursive=False)), address):
            try:
                path, name = str(one.path), str(one.base_name)
            except UnicodeDecodeError as error:
                raise SourceError(
                    f"{without_secrets(address)} has a name that is no UTF-8 ({error.object!r}): give a listing, which may name anything"
                ) from error
            if name.startswith("."):
                continue
            if one.type == pafs.FileType.Directory:
                folders.append(path)
            elif os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                yield prefix + path[len(top) :]


def open_system(address: str) -> tuple[Any, str]:
    """The file system behind an address, and the path in it.

    Raises:
        UsageError: an unknown scheme.
        SetupError: what it needs is not installed.
    """
    try:
        system, path = pafs.FileSystem.from_uri(address)
        return system, path
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        arrows = error
    import fsspec  # the schemes that pyarrow does not know

    try:
        system, path = fsspec.core.url_to_fs(address)
    except ValueError as error:
        raise UsageError(f"{without_secrets(address)}: neither pyarrow ({arrows}) nor fsspec ({error}) can read it") from error
    except ImportError as error:
        raise SetupError(f"{without_secrets(address)} needs a package that is not installed ({error}): install it") from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(system)), path


def open_path(system: Any, address: str) -> str:
    """The path of an address in a file system that is open."""
    if isinstance(system, pafs.PyFileSystem):
        return str(system.handler.fs._strip_protocol(address))
    try:
        return str(system.normalize_path(pafs.FileSystem.from_uri(address)[1]))
    except pa.ArrowInvalid as error:
        raise ImageError(f"cannot be an address ({error}): check the listing") from error


def _again(ask: Callable[[], Answer], address: str) -> Answer:
    """What ``ask`` gives; tried again where the store, and not the object, is at fault."""
    wait_s = BACK_OFF_S
    for tries in range(1, TRIES + 1):
        try:
            return ask()
        except (FileNotFoundError, IsADirectoryError, PermissionError):
            raise
        except OSError as error:
            if tries == TRIES:
                raise SourceError(
                    f"{without_secrets(address)}: the store does not answer, {TRIES} times ({error}): run the same command again later; "
                    "what is done is kept"
                ) from error
        time.sleep(wait_s)
        wait_s *= 2
    raise AssertionError("the loop returns or raises")

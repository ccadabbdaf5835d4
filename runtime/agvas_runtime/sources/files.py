"""Files, folders, globs and a list on stdin: images and videos, in a settled order, none left out silently."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from agvas_core.contract.errors import ImageError, UsageError
from agvas_runtime.images.frame import Frame
from agvas_runtime.images.read import MAX_PIXELS, NotedOnce, count_pages, read_image, writable_name
from agvas_runtime.sources.listing import list_files
from agvas_runtime.sources.video import VIDEO_SUFFIXES, VideoSource

__all__ = ["FileSource"]


class FileSource:
    """Images and the frames of videos, in the order given; see ``list_files`` for what may be named.

    Frames are named by path as the user gave it; ``clip.mp4#000120`` is a frame of a video, ``scan.tif#000002`` a page of a TIFF with several,
    both counted from 0. Reading goes on past any file that cannot be used.
    """

    live = False

    def __init__(
        self,
        paths: Sequence[str | Path],
        *,
        every: int = 1,
        max_pixels: int = MAX_PIXELS,
        bits: int | None = None,
        pages: bool = False,
        stdin: TextIO | None = None,
    ) -> None:
        """``every``: of all images and video frames, each n-th; what lies between is not decoded. ``bits``: see ``read_image``.
        ``pages``: each page of a TIFF is a picture of its own; the first stands for the file if not, and a note says how many there are.

        Raises UsageError for a path that is not there and for a folder without images.
        """
        if every < 1:
            raise UsageError(f"every is {every}; 1 is the least: 1 reads every frame")
        if bits is not None and not 8 <= bits <= 16:
            raise UsageError(f"bits is {bits}; 8 to 16 are possible: leave it out for the full range")
        self.notes: list[str] = []
        self.files = list_files(paths, self.notes, stdin)
        self._every, self._max_pixels, self._bits, self._pages = every, max_pixels, bits, pages
        self.noted = NotedOnce(self.notes)
        self._total: int | None = None
        self._counted = False

    @property
    def total(self) -> int | None:
        """Exact for images; for videos, what their containers say. Looked up once."""
        if not self._counted:
            self._counted = True
            counts = [VideoSource(path).total if _is_video(path) else len(self._pages_of(path)) for path in self.files]
            known = [count for count in counts if count is not None]
            self._total = -(-sum(known) // self._every) if len(known) == len(counts) else None
        return self._total

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        passed = 0  # images and video frames so far, with those left out
        for path in self.files:
            if not _is_video(path):
                for page in self._pages_of(path):
                    if passed % self._every == 0:
                        yield self._image(path, page, index)
                        index += 1
                    passed += 1
                continue
            skip = -passed % self._every
            video = VideoSource(path, every=self._every, skip=skip, max_pixels=self._max_pixels)
            for frame in video:
                yield dataclasses.replace(frame, name=writable_name(frame.name), index=index)
                index += 1
            passed += video.decoded

    def _pages_of(self, path: Path) -> Sequence[int | None]:
        """Page numbers of a file of several, where each is asked for; (None,) for any other."""
        count = count_pages(path) if self._pages else 1
        return range(count) if count > 1 else (None,)

    def _image(self, path: Path, page: int | None, index: int) -> Frame:
        start = time.perf_counter()
        name = writable_name(path) if page is None else f"{writable_name(path)}#{page:06d}"
        note = self.noted.of(name)
        try:
            image = read_image(path, max_pixels=self._max_pixels, bits=self._bits, page=page, note=note)
        except ImageError as error:
            return Frame(name, index, error=error, path=path, read_ms=(time.perf_counter() - start) * 1000)
        return Frame(name, index, image=image, path=path, read_ms=(time.perf_counter() - start) * 1000)

    def close(self) -> None:
        """Nothing to do: files are open only while they are read."""

    def __enter__(self) -> "FileSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES

"""Frames to rows: the model of a job, loaded once by each worker."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any

from agvas_core.contract.errors import BundleError, StageError
from agvas_runtime.batch.job import BatchJob
from agvas_runtime.batch.row import row_of_inspection, row_of_result, row_without
from agvas_runtime.frame import Frame
from agvas_runtime.line.image_store import hash_of_image
from agvas_runtime.line.inspector import SegmenterInspector, frame_fault
from agvas_runtime.line.recipe_file import parse_recipe
from agvas_runtime.read_ahead import ReadAhead
from agvas_runtime.segmenter import Segmenter
from agvas_runtime.stages.settings import StageSettings

__all__ = ["Look", "open_look"]

READ_AHEAD = 2

Look = Callable[[Iterable[Frame], bool], Iterator[dict[str, Any]]]
"""Rows of frames, in their order. With care, each frame is taken after the row of the one before was given."""


def open_look(job: BatchJob, *, threads: int | None) -> Look:
    """Loads the model, and the recipe where the job has one.

    Raises:
        BundleError: it is not the model that the batch was begun with.
    """
    return _by_recipe(job, threads) if job.recipe is not None else _by_point(job, threads)


def _by_point(job: BatchJob, threads: int | None) -> Look:
    segmenter = Segmenter.load(
        job.model,
        threads=threads,
        operating_point=job.operating_point,
        threshold=job.threshold,
        prompt=job.prompt,
        mode=job.mode,
        normal_look=job.normal_look,
        tiling=job.tiling,
        max_pixels=job.max_pixels,
    )
    _check(job, segmenter.bundle.identity)

    def look(frames: Iterable[Frame], careful: bool) -> Iterator[dict[str, Any]]:
        with closing(segmenter.stream(frames, overlap=not careful)) as results:
            for result in results:
                yield row_of_result(result, hash_of_image(result.image) if result.image is not None else None)

    return _ahead(look)


def _by_recipe(job: BatchJob, threads: int | None) -> Look:
    assert job.recipe is not None
    version = parse_recipe(job.recipe, "the recipe of the plan")
    inspector = SegmenterInspector(settings=StageSettings(threads=threads))
    inspector.prepare(version)
    _check(job, inspector.bundle_of(version).identity)

    def look(frames: Iterable[Frame], careful: bool) -> Iterator[dict[str, Any]]:
        for frame in frames:
            fault = frame_fault(frame, version)
            if fault is None and frame.image is not None:
                try:
                    found = inspector.inspect(frame, version)
                except StageError as error:
                    fault = str(error)
                else:
                    height, width = frame.image.shape[:2]
                    yield row_of_inspection(frame.index, frame.name, found, (width, height), hash_of_image(frame.image))
                    continue
            yield row_without(frame.index, frame.name, fault or "there is no image")

    return _ahead(look)


def _ahead(look: Look) -> Look:
    """Images are decoded in a thread of their own, except with care."""

    def ahead(frames: Iterable[Frame], careful: bool) -> Iterator[dict[str, Any]]:
        if careful:
            yield from look(frames, careful)
            return
        reader = ReadAhead(frames, READ_AHEAD, name="agvas-read")
        try:
            yield from look(reader, careful)
        finally:
            reader.stop()

    return ahead


def _check(job: BatchJob, identity: str) -> None:
    if identity != job.bundle:
        raise BundleError(
            f"model {job.model} is {identity} here, and the batch was begun with {job.bundle}: put that bundle back, or begin anew with "
            "another --out DIR"
        )

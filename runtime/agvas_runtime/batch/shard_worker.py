"""Judges the images of a shard; the same code on one machine and on a cluster."""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from agvas_core.contract.errors import BundleError, ImageError, SourceError, StageError, UnlikeError, UsageError
from agvas_runtime.batch.picture_store import PictureStore
from agvas_runtime.batch.plan import BatchJob, Shard, read_plan
from agvas_runtime.batch.shard_result import Done, read_done, row_of_inspection, row_of_result, row_without, write_result
from agvas_runtime.images.frame import Frame
from agvas_runtime.images.read import NotedOnce
from agvas_runtime.line.ledger.images import hash_of_image
from agvas_runtime.line.recipe.file import parse_recipe
from agvas_runtime.line.station.inspector import SegmenterInspector, frame_fault
from agvas_runtime.pipeline.segmenter import Segmenter
from agvas_runtime.sources.prefetch import ReadAhead

__all__ = ["OPEN_FOLDER", "Claim", "JudgeFrames", "ShardWorker", "open_judge"]


# A worker's hold on a shard, and what is remembered of those that died with it.
#
# ``OUT/open/shard-000000123`` is locked while a worker is at the shard. It is left unlocked if that worker was killed.
# The next worker then works with care: before each image its index is written down. An image with which two careful workers died is
# not tried a third time.


OPEN_FOLDER: Final = "open"
DEADLY: Final = 2  # careful workers that died at an image
RECORD_BYTES: Final = 8192  # always as long, so that no write is ever half a record


class Claim:
    """Held until ``release``, ``finish``, or the end of the process."""

    def __init__(self, out: Path, number: int) -> None:
        """Waits while another holds it: one that was left behind when its crew was killed ends at its next image."""
        self._path = out / OPEN_FOLDER / f"shard-{number:09d}"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._locked()
        found = os.pread(self._file, RECORD_BYTES, 0).strip()
        record = json.loads(found) if found else {}
        self.tries = int(record.get("tries", 0)) + 1
        """How many have taken the shard up, with this one."""
        self._deaths: dict[str, int] = record.get("deaths", {})
        if record.get("at") is not None:
            at = str(record["at"])
            self._deaths[at] = self._deaths.get(at, 0) + 1
        self._write(None)

    @property
    def careful(self) -> bool:
        """Whether a worker died with this shard."""
        return self.tries > 1

    def deadly(self, index: int) -> int:
        """With how many the image is to be left alone; 0 for those that may be looked at."""
        deaths = self._deaths.get(str(index), 0)
        return deaths if deaths >= DEADLY else 0

    def at(self, index: int) -> None:
        """Says that this image comes now."""
        self._write(index)

    def finish(self) -> None:
        """The shard is done."""
        self._path.unlink(missing_ok=True)
        os.close(self._file)

    release = finish  # no worker died: the next one need not be careful

    def _locked(self) -> int:
        while True:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                if os.path.samestat(os.fstat(file), os.stat(self._path)):
                    return file
            except FileNotFoundError:
                pass
            os.close(file)  # its owner is done, and removed it

    def _write(self, at: int | None) -> None:
        record = {"tries": self.tries, "at": at, "deaths": self._deaths, "pid": os.getpid(), "host": os.uname().nodename}
        os.pwrite(self._file, json.dumps(record).encode().ljust(RECORD_BYTES), 0)


# Frames to rows: the model of a job, loaded once by each worker.


READ_AHEAD = 2

JudgeFrames = Callable[[Iterable[Frame], bool], Iterator[dict[str, Any]]]
"""Rows of frames, in their order. With care, each frame is taken after the row of the one before was given."""


def open_judge(job: BatchJob, *, threads: int | None) -> JudgeFrames:
    """Loads the model, and the recipe where the job has one.

    Raises:
        BundleError: it is not the model that the batch was begun with.
    """
    return _by_recipe(job, threads) if job.recipe is not None else _by_point(job, threads)


def _by_point(job: BatchJob, threads: int | None) -> JudgeFrames:
    segmenter = Segmenter.open(replace(job.options, threads=threads))
    _check(job, segmenter.bundle.identity)

    def judge(frames: Iterable[Frame], careful: bool) -> Iterator[dict[str, Any]]:
        with closing(segmenter.stream(frames, overlap=not careful)) as results:
            for result in results:
                yield row_of_result(result, hash_of_image(result.image) if result.image is not None else None)

    return _ahead(judge)


def _by_recipe(job: BatchJob, threads: int | None) -> JudgeFrames:
    assert job.recipe is not None
    version = parse_recipe(job.recipe, "the recipe of the plan")
    # Frames are cut into tiles as on the line, whatever the options say.
    inspector = SegmenterInspector(replace(job.options, threads=threads, tiling="auto"))
    inspector.prepare(version)
    _check(job, inspector.bundle_of(version).identity)

    def judge(frames: Iterable[Frame], careful: bool) -> Iterator[dict[str, Any]]:
        for frame in frames:
            fault = frame_fault(frame, version)
            if fault is None and frame.image is not None:
                try:
                    found = inspector.inspect(frame, version)
                except (StageError, UnlikeError) as error:
                    fault = str(error)
                else:
                    height, width = frame.image.shape[:2]
                    yield row_of_inspection(frame.index, frame.name, found, (width, height), hash_of_image(frame.image))
                    continue
            yield row_without(frame.index, frame.name, fault or "there is no image")

    return _ahead(judge)


def _ahead(judge: JudgeFrames) -> JudgeFrames:
    """Images are decoded in a thread of their own, except with care."""

    def ahead(frames: Iterable[Frame], careful: bool) -> Iterator[dict[str, Any]]:
        if careful:
            yield from judge(frames, careful)
            return
        reader = ReadAhead(frames, READ_AHEAD, name="agvas-read")
        try:
            yield from judge(reader, careful)
        finally:
            reader.stop()

    return ahead


def _check(job: BatchJob, identity: str) -> None:
    if identity != job.bundle:
        raise BundleError(
            f"model {job.options.model} is {identity} here, and the batch was begun with {job.bundle}: put that bundle back, or begin again with "
            "another --out DIR"
        )


class ShardWorker:
    """One bundle, loaded once, and any number of shards, one after the other."""

    def __init__(self, out: Path, *, threads: int | None = None, stopped: Callable[[], bool] = lambda: False) -> None:
        """Args:
        stopped: asked after each image; True ends the shard without a trace.

        Raises:
            AgvasError: there is no plan in ``out``, or its model cannot be opened.
        """
        plan = read_plan(out)
        if plan is None:
            raise UsageError(f"{out} has no plan: agvas batch makes one")
        self.out, self.plan, self._stopped = out, plan, stopped
        self._pictures = PictureStore(plan.job.base, max_pixels=plan.job.options.max_pixels, bits=plan.job.options.bits)
        self._judge = open_judge(plan.job, threads=threads)
        self._notes: list[tuple[str, str]] = []
        self._noted = NotedOnce([])

    def work(self, number: int) -> Done | None:
        """Looks at every image of a shard, and writes its results; None where it was stopped before the end.

        A shard that is done is not done again.

        Raises:
            SourceError: the images' folder or store is away; nothing is written then.
            OutputError: the results cannot be written.
        """
        claim = Claim(self.out, number)
        try:
            if (done := read_done(self.out, self.plan, number)) is not None:
                return done
            rows = []
            with_care = claim.careful
            for row in self._judge(self._frames(self.plan.shard(self.out, number), claim), with_care):
                rows.append(row)
                if self._stopped():
                    return None
            self._check_source()
            assert [row["index"] for row in rows] == [number * self.plan.shard_images + i for i in range(self.plan.size(number))]
            notes, self._notes = self._notes, []
            return write_result(self.out, self.plan, number, rows, notes)
        finally:
            claim.finish()

    def _frames(self, shard: Shard, claim: Claim) -> Iterator[Frame]:
        self._check_source()
        for index, name in enumerate(shard.names, shard.first):
            path = Path(name)
            if deaths := claim.deadly(index):
                yield Frame(
                    name,
                    index,
                    error=ImageError(f"{deaths} workers died while they looked at it: look at it yourself"),
                    path=path,
                )
                continue
            if claim.careful:
                claim.at(index)
            start = time.perf_counter()
            try:
                image = self._pictures.read(name, note=partial(self._note, name))
            except ImageError as error:
                yield Frame(name, index, error=error, path=path)
            else:
                yield Frame(name, index, image=image, path=path, read_ms=(time.perf_counter() - start) * 1000)

    def _note(self, name: str, text: str) -> None:
        if self._noted.is_new(text):
            self._notes.append((name, text))

    def _check_source(self) -> None:
        """A disk that is gone must not look like a million files that are gone."""
        job = self.plan.job
        root = os.path.join(job.base, job.source)
        if self.plan.from_folder and not os.path.isdir(root):
            raise SourceError(f"{root} is away: bring it back, and run the same command again; what is done is kept")

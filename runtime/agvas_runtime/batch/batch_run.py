"""One run of ``agvas batch``: plan, workers, and a count of what is on disk."""

import fcntl
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from agvas_core.contract.command_line import printable
from agvas_core.contract.errors import ImageError, OutputError, SourceError, UsageError
from agvas_core.contract.images.header import IMAGE_SUFFIXES
from agvas_core.contract.images.rare import OTHER_PICTURES
from agvas_runtime.batch.crew import Crew
from agvas_runtime.batch.plan import PLAN_FOLDER, PLAN_NAME, BatchJob, Plan, make_plan, read_plan
from agvas_runtime.batch.shard_result import RESULTS_FOLDER, read_done, remove_leavings
from agvas_runtime.images.read import NotedOnce
from agvas_runtime.sources.camera import without_secrets
from agvas_runtime.sources.listing import walk_images

__all__ = ["names_of", "run_batch"]


# From SOURCE to names of images, one after the other: a folder tree, a listing, stdin, or an object store.


def names_of(source: str, left_out: Counter[str]) -> Iterator[str]:
    """Names of the images that ``source`` stands for; none is held longer than it takes to write it down.

    A folder: its images and those of its folders, each folder in natural order; hidden ones, ``ground_truth`` and results of earlier
    runs are left out. A text file, or ``-`` for stdin: a name or address a line, taken as it is. An address: as a folder.

    Raises:
        UsageError: there is nothing of the kind.
        SourceError: it cannot be read to its end.
    """
    from agvas_runtime.batch.picture_store import is_address, walk_store

    if source == "-":
        yield from _lines(sys.stdin.buffer)
    elif is_address(source):
        yield from walk_store(source)
    elif os.path.isdir(source):
        yield from (str(path) for path in walk_images(Path(source), left_out))
    elif Path(source).suffix.lower() in IMAGE_SUFFIXES:
        raise UsageError(f"{source} is one image; a batch takes a folder, a listing or an address: for one, use agvas-run")
    else:
        try:
            with open(source, "rb") as file:
                yield from _lines(file)
        except OSError as error:
            raise UsageError(
                f"{source} cannot be read ({error.strerror}): name a folder, a text file with one image a line, or the address of a store"
            ) from error


def _lines(file: Iterator[bytes]) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if b"\0" in line:
            raise SourceError(
                f"line {number} of the listing has a NUL byte, so it is no listing: give a text file with one image a line"
            )
        if name := os.fsdecode(line).rstrip("\r\n"):
            yield name


LOCK_NAME = "lock"
SAY_EVERY_S = 5.0
HINT_LOOKS = 3


def run_batch(
    job: BatchJob, out: Path, *, workers: int, threads: int | None, shard_images: int | None, on_ray: bool, quiet: bool
) -> Counter[str]:
    """Looks at every image that has no result yet; the number of each verdict at the end.

    Raises:
        AgvasError: something that keeps it from being done. What is done is kept, and the same command goes on with the rest.
    """
    say = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
    with _held(out):
        noted = NotedOnce([])
        noted.told = lambda text: say.print(printable(without_secrets(text)), style="yellow", markup=False)
        plan = _planned(job, out, shard_images, say, noted)
        remove_leavings(out)
        verdicts, todo = _count(out, plan)
        before = sum(verdicts.values())
        if before:
            say.print(f"{before:,} of {plan.images:,} images are done already", markup=False)
        began = said = time.monotonic()
        if todo:
            with _crew(out, min(workers, len(todo)), threads, on_ray=on_ray) as crew:
                for done in crew.run(todo):
                    verdicts.update(done.verdicts)
                    for name, note in done.notes:
                        noted.of(name)(note)
                    now = time.monotonic()
                    if now - said > SAY_EVERY_S:
                        said = now
                        _say(say, plan, verdicts, sum(verdicts.values()) - before, now - began)
            if crew.deaths:
                say.print(f"{crew.deaths} workers died; their shards were done by others", style="yellow", markup=False)
        # What is promised is on disk, so it is counted there.
        verdicts, todo = _count(out, plan)
        if todo or sum(verdicts.values()) != plan.images:
            raise OutputError(
                f"{out} has {sum(verdicts.values())} results of {plan.images}, though all workers said that they are done: "
                "run the same command again"
            )
        remove_leavings(out)
        _say(say, plan, verdicts, plan.images - before, time.monotonic() - began)
    return verdicts


def _crew(out: Path, workers: int, threads: int | None, *, on_ray: bool) -> Crew:
    if not on_ray:
        return Crew(out, workers=workers, threads=threads)
    from agvas_runtime.batch.ray_crew import RayCrew

    return RayCrew(out, workers=workers, threads=threads or 1)  # type: ignore[return-value]  # the same methods


def _planned(job: BatchJob, out: Path, shard_images: int | None, say: Console, noted: NotedOnce) -> Plan:
    plan = read_plan(out)
    if plan is not None:
        job.must_be(plan.job, str(out))
        if shard_images not in (None, plan.shard_images):
            raise UsageError(f"{out} was begun with --shard {plan.shard_images}, not {shard_images}: leave it out")
        return plan
    began, left_out = time.monotonic(), Counter[str]()
    plan = make_plan(out, job, names_of(job.source, left_out), shard_images=shard_images, left_out=left_out)
    for what, count in plan.left_out.items():
        say.print(f"left out: {count:,} {_LEFT_OUT.get(what, what)}", style="yellow", markup=False)
    say.print(
        f"{plan.images:,} images of {printable(without_secrets(job.source))} in {plan.shards:,} shards, listed in "
        f"{time.monotonic() - began:.1f} s",
        markup=False,
    )
    _hint(job, plan.shard(out, 0).names if plan.images else (), noted)
    return plan


def _hint(job: BatchJob, names: Sequence[str], noted: NotedOnce) -> None:
    """Says what may be meant otherwise of the first picture that can be read: it is likely true of the others as well."""
    from agvas_runtime.batch.picture_store import PictureStore

    store = PictureStore(job.base, max_pixels=job.options.max_pixels, bits=job.options.bits)
    for name in names[:HINT_LOOKS]:
        try:
            store.read(name, note=noted.of(name))
        except (ImageError, SourceError):  # its worker says so, in the result
            continue
        return


_LEFT_OUT = {"masks": "folders named ground_truth", "runs": "folders with results of earlier runs", "videos": "video files"}
_LEFT_OUT |= {f"*{suffix}": f"{suffix} pictures ({name}), a format that is not read" for suffix, name in OTHER_PICTURES.items()}


def _count(out: Path, plan: Plan) -> tuple[Counter[str], list[int]]:
    """Verdicts on disk, and the shards without any."""
    verdicts, todo = Counter[str](), []
    for number in range(plan.shards):
        done = read_done(out, plan, number)
        if done is None:
            todo.append(number)
        else:
            verdicts.update(done.verdicts)
    return verdicts, todo


def _say(say: Console, plan: Plan, verdicts: Counter[str], new: int, seconds: float) -> None:
    total, rate = sum(verdicts.values()), new / max(seconds, 1e-9)
    counts = ", ".join(f"{name} {verdicts[name]:,}" for name in ("PASS", "FAIL", "NO_VERDICT"))
    left = f", {(plan.images - total) / rate / 3600:.1f} h left" if rate and total < plan.images else ""
    speed = f"; {rate:,.1f} images/s{left}" if new else ""
    say.print(f"{total:,} of {plan.images:,} images: {counts}{speed}", markup=False)


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """One run at a time, in a folder that is ours."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        foreign = {path.name for path in out.iterdir()} - {PLAN_NAME, PLAN_FOLDER, RESULTS_FOLDER, LOCK_NAME, "open"}
        if foreign and not (out / PLAN_NAME).exists():
            raise UsageError(f"{out} has files in it that no agvas batch wrote ({sorted(foreign)[0]}): choose another --out DIR")
        file = os.open(out / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise OutputError(f"{out} cannot be written ({error.strerror}): choose another --out DIR") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        raise UsageError(f"another agvas batch is at work in {out}: wait for it, or choose another --out DIR") from error
    try:
        yield
    finally:
        os.close(file)

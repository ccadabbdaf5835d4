"""One run of ``agvas run``: source -> segmenter -> files, report and summary, whatever happens on the way."""

import logging
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain, islice
from pathlib import Path
from time import perf_counter

from rich.console import Console

from agvas_core import __version__
from agvas_core.contract.command_line import interrupt_code, printable
from agvas_core.contract.decision import OperatingPoint
from agvas_core.contract.errors import EXIT_OK, EXIT_REJECTS, OutputError, SetupError, SourceError, UsageError
from agvas_runtime.bundle import note_on_parity
from agvas_runtime.masks.result import Result, Verdict
from agvas_runtime.pipeline.options import SegmentOptions
from agvas_runtime.pipeline.segmenter import Segmenter
from agvas_runtime.profile.own_run import OwnRun
from agvas_runtime.report.progress import RunProgress, print_summary
from agvas_runtime.report.run_report import Report
from agvas_runtime.sinks.image_files import DatasetFiles, ImageFiles
from agvas_runtime.sinks.output_names import OutputNames, common_root
from agvas_runtime.sinks.run_folder import REPORT_NAME, RunFolder, encode_line
from agvas_runtime.sources import CameraSource, Source, open_source, prefetch
from agvas_runtime.sources.camera import without_secrets
from agvas_runtime.sources.folder_watch import WATCH_SCHEME

__all__ = ["Job", "inspect"]


@dataclass(frozen=True)
class Job:
    """What one run looks at, with which segmenter, and where the results go."""

    sources: tuple[str, ...] = ()
    camera: str | None = None
    """In place of ``sources``."""
    pixel_format: str | None = None
    """That the camera is to send."""
    options: SegmentOptions = field(default_factory=SegmentOptions)
    limit: int | None = None
    every: int = 1
    pages: bool = False
    """Each page of a TIFF is an image of its own."""
    out: Path | None = None
    save: tuple[str, ...] = ()
    overwrite: bool = False
    fail_on_reject: bool = False
    json_lines: bool = False
    quiet: bool = False
    verbose: bool = False
    profile: bool = False
    program: str = "agvas-run"
    """What the user typed before the arguments; messages begin with it."""


def inspect(job: Job) -> int:
    """Runs the job and returns the exit code.

    What was done before an interrupt or the loss of the source is kept, and the report says that it is not all.

    Raises:
        AgvasError: a source, model or folder that cannot be used; a source that was lost (after the report was written).
    """
    console = Console(stderr=True)
    if job.json_lines and sys.stdout is None:
        raise UsageError("--json is given and stdout is closed: leave one of the two out")
    try:
        os.getcwd()
    except OSError as error:
        raise SetupError(f"the current folder was removed ({error.strerror}): cd to one that exists") from error
    # Everything that may be refused is, before the first file is written.
    if job.profile and not job.save:
        raise UsageError("--profile writes into the results folder, and --save none makes none: leave one of the two out")
    folder = RunFolder(job.out, overwrite=job.overwrite, keep_lines="jsonl" in job.save) if job.save else None
    if folder is None:
        return _inspect(job, console, None)
    folder.check()
    with closing(folder):
        return _inspect(job, console, folder)


def _inspect(job: Job, console: Console, folder: RunFolder | None) -> int:
    camera = _camera(job)
    with _warnings_on(console, job.program), _open(job, camera) as source:
        began = perf_counter()
        segmenter = Segmenter.open(job.options)
        if camera is not None:
            camera.whole_views = segmenter.whole_views
        if not job.quiet:
            _say_parity(segmenter, console, job)
        own = OwnRun(segmenter, overlap=not source.live, load_s=perf_counter() - began) if job.profile else None
        frames = iter(source)
        first = list(islice(frames, 1))  # a camera that is not there says so here, before there is a folder
        facts = _facts(job, segmenter)
        if folder is not None:
            folder.open(facts)
        report = Report(facts, total=source.total)
        progress = RunProgress(console, total=source.total, quiet=job.quiet, verbose=job.verbose)
        notes: list[str] = []
        datasets = DatasetFiles(folder, job.save) if folder is not None else None
        stopped: BaseException | None = None
        try:
            with progress, own or nullcontext():
                results = segmenter.stream(chain(first, frames), overlap=not source.live)
                with closing(results):
                    _inspect_all(job, results, folder, datasets, report, progress, own)
        except (KeyboardInterrupt, BrokenPipeError, SourceError) as error:
            stopped = error
            notes.append(_why(error, progress.done))
        notes += source.notes
    if datasets is not None:
        datasets.write()
    if folder is not None and own is not None:
        backend = " ".join(dict.fromkeys(job.options.backends))
        profiled = own.files(facts, backend=backend, threads=job.options.threads)
        for name, text in profiled.items():
            folder.store(name, text.encode("utf-8"))
        notes += [] if profiled else ["Too few images were judged for a profile."]
    page = None
    if folder is not None and "report" in job.save:
        folder.store(REPORT_NAME, report.render(elapsed_s=progress.elapsed_s, notes=notes).encode("utf-8"))
        page = folder.path / REPORT_NAME
    if not job.quiet:
        with _stdout():
            print_summary(
                console if job.json_lines else Console(),
                progress,
                stage_medians=report.stage_medians(),
                report=page,
                folder=folder.path if folder else None,
                notes=notes,
            )
    if isinstance(stopped, KeyboardInterrupt):
        return interrupt_code(stopped)
    if stopped is not None:
        raise stopped
    rejects = progress.counts[Verdict.FAIL] + progress.counts[Verdict.NO_VERDICT]  # NO_VERDICT is never PASS
    if job.fail_on_reject and rejects:
        return EXIT_REJECTS
    # Nothing was judged, which is no success.
    return SourceError.exit_code if rejects and rejects == progress.counts[Verdict.NO_VERDICT] == progress.done else EXIT_OK


def _inspect_all(
    job: Job,
    results: Iterable[Result],
    folder: RunFolder | None,
    datasets: DatasetFiles | None,
    report: Report,
    progress: RunProgress,
    own: OwnRun | None,
) -> None:
    images = ImageFiles(folder, OutputNames(common_root(job.sources)), job.save) if folder is not None else None
    for result in results:
        files = images.write(result) if images is not None else {}
        record = result.to_dict() | {"files": files}
        if folder is not None:
            folder.add(record)
        if datasets is not None:
            datasets.add(result)
        report.add(result, files)
        if job.json_lines:
            with _stdout():
                sys.stdout.buffer.write(encode_line(record))
                sys.stdout.buffer.flush()
        progress.advance(result)
        if own is not None:
            own.add(result)


def _say_parity(segmenter: Segmenter, console: Console, job: Job) -> None:
    """One line on how the bundle was compared with its model: if something is wrong with it, or with --verbose."""
    text, level = note_on_parity(segmenter.bundle)
    wrong = level >= logging.WARNING
    if wrong or job.verbose:
        style = "yellow" if wrong else "dim"
        console.print(f"{job.program}: {printable(text)}", style=style, markup=False, highlight=False, soft_wrap=True)


def _camera(job: Job) -> CameraSource | None:
    """A number is a camera here, and would be a file's name to ``open_source``."""
    if job.camera is None or job.camera.startswith(WATCH_SCHEME):
        if job.pixel_format is not None:
            raise UsageError(f"--pixel-format {job.pixel_format} is for --camera: leave it out")
        return None
    if job.pages:
        raise UsageError("--pages is for files, and --camera is given: leave one of the two out")
    return CameraSource(
        job.camera,
        every=job.every,
        max_pixels=job.options.max_pixels,
        pixel_format=job.pixel_format,
        bits=job.options.bits or 16,
    )


def _open(job: Job, camera: CameraSource | None) -> Source:
    if camera is not None:
        return prefetch(open_source(camera, limit=job.limit))
    options = job.options
    files = open_source(
        job.sources if job.camera is None else (job.camera,),
        every=job.every,
        limit=job.limit,
        max_pixels=options.max_pixels,
        bits=options.bits,
        pages=job.pages,
    )
    return prefetch(files)


def _facts(job: Job, segmenter: Segmenter) -> dict[str, str]:
    """What was run, for the report and ``run.json``."""
    point = segmenter.point
    return {
        "model": segmenter.bundle.identity,
        "prompt": segmenter.prompt,
        "mode": str(segmenter.question.mode),
        "operating point": segmenter.operating_point,
        "threshold": _threshold(point),
        "date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "source": printable(" ".join(without_secrets(source) for source in ([job.camera] if job.camera else job.sources))),
        "command": printable(command_line(job.program)),
        "folder": os.getcwd(),
        "agvas": f"{__version__}, {platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
    }


def _threshold(point: OperatingPoint) -> str:
    """What decides, in words."""
    if point.image_share:
        return f"{point.seed_threshold:g} for the score of an image, {point.threshold:g} for its outlines"
    return f"{point.threshold:g}" if point.plain else f"{point.threshold:g}, with a peak above {point.seed_threshold:g}"


def command_line(program: str) -> str:
    """What the user typed, without passwords; ``program`` is the command with its verb."""
    words = program.split()
    return shlex.join([*words, *map(without_secrets, sys.argv[len(words) :])])


def _why(error: BaseException, done: int) -> str:
    match error:
        case SourceError():
            return f"The source was lost after {done:,} images: {error}"
        case BrokenPipeError():
            return f"Stopped after {done:,} images: the reader of the results closed the pipe."
        case _:
            return f"Interrupted after {done:,} images; what follows is not the whole."


@contextmanager
def _stdout() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(
            f"stdout cannot be written ({error.strerror}): what is in the results folder is whole; send stdout elsewhere"
        ) from error


@contextmanager
def _warnings_on(console: Console, program: str) -> Iterator[None]:
    """Warnings of the package go to stderr, above the bar, while a run lasts."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            console.print(
                f"{program}: {printable(record.getMessage())}", style="yellow", markup=False, highlight=False, soft_wrap=True
            )

    log, handler = logging.getLogger("agvas"), Lines(logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)

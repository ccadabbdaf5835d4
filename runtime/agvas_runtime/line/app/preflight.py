"""``agvas line --check``: what a line needs, looked at before it runs. Nothing is changed but the ledger's folder, which is made."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from agvas_core.contract.errors import EXIT_OK, AgvasError, OutputError, RecipeError
from agvas_core.contract.network import KEY_VARIABLE
from agvas_runtime.bundle import note_on_parity
from agvas_runtime.images.frame import Frame
from agvas_runtime.line.app.run import LineJob
from agvas_runtime.line.ledger.check import open_for_reading
from agvas_runtime.line.ledger.disk_reserve import DiskLevel, DiskReserve
from agvas_runtime.line.ledger.ledger import LEDGER_NAME
from agvas_runtime.line.recipe.file import RecipeVersion, read_recipe
from agvas_runtime.line.recipe.store import RecipeStore
from agvas_runtime.line.recipe.thresholds import not_calibrated, oddities
from agvas_runtime.line.station.inspector import SegmenterInspector, frame_fault
from agvas_runtime.line.station.runner import StationJob
from agvas_runtime.sinks.open_sink import Secrets, open_sink
from agvas_runtime.sources import CameraSource, FolderWatch, Source
from agvas_runtime.triggers.open_trigger import FREE, SOFTWARE, open_trigger

__all__ = ["Finding", "findings", "preflight", "secrets_of"]


LOOKS = 5  # frames that are judged for the rate
READ_S = 2.0  # frames are counted for so long
ASK_S = 0.2
SILENT_S = 12.0  # longer than a camera takes to open


class Finding(NamedTuple):
    """One thing that was looked at."""

    what: str
    fine: bool
    words: str
    warning: bool = False
    """It is no fault, but a person must know it."""


def preflight(job: LineJob) -> int:
    """Prints what it finds; the exit code of the first thing that is not fine."""
    code = EXIT_OK
    for finding, error in findings(job):
        mark = "WARN" if finding.warning else "ok  " if finding.fine else "FAIL"
        print(f"{mark}  {finding.what:8}  {finding.words}", file=sys.stdout, flush=True)
        code = code or (error.exit_code if error is not None else EXIT_OK)
    return code


def findings(job: LineJob) -> Iterator[tuple[Finding, AgvasError | None]]:
    """For each camera recipe, model, camera and rate; then disk, triggers and sinks. Later ones go on where an earlier one failed."""
    inspector = SegmenterInspector(job.options)
    for station in job.station_jobs():
        yield from _station(station, inspector)
    yield _look("disk", lambda: _disk(job))
    for address in dict.fromkeys(station.trigger for station in job.station_jobs() if station.trigger not in (FREE, SOFTWARE)):
        yield _look("trigger", lambda address=address: _trigger(job, address))  # type: ignore[misc]
    for address in job.sinks:
        yield _look("sink", lambda address=address: _sink(job, address))  # type: ignore[misc]


def _station(station: StationJob, inspector: SegmenterInspector) -> Iterator[tuple[Finding, AgvasError | None]]:
    version: RecipeVersion | None = None

    def recipe() -> str:
        nonlocal version
        store = RecipeStore(station.recipe)
        version = store.active() if store.is_store() else read_recipe(station.recipe)
        fault = not_calibrated(version.recipe)
        if fault is not None and not store.is_store():
            raise RecipeError(fault)
        odd = [*([fault] if fault is not None else []), *oddities(version.recipe)]
        return version.identity + "".join(f"; note: {line}" for line in odd)

    def model() -> str:
        if version is None:
            raise RecipeError("there is no recipe that names it")
        inspector.prepare(version)
        bundle = inspector.bundle_of(version)
        return f"{bundle.identity}, engine {inspector.identity}; {note_on_parity(bundle).text}"

    yield _look("recipe", recipe)
    found = _look("model", model)
    yield found
    if found[1] is None and version is not None and (concern := inspector.concern(version)) is not None:
        yield Finding("product", True, concern, warning=True), None
    frames: list[Frame] = []
    yield _look(station.what, lambda: _camera(station, frames, version))
    if version is not None and frames and frames[0].image is not None:
        yield _look("rate", lambda: _rate(inspector, frames, version))


def _look(what: str, look: Callable[[], str]) -> tuple[Finding, AgvasError | None]:
    try:
        return Finding(what, True, look()), None
    except AgvasError as error:
        return Finding(what, False, " ".join(str(error).split())), error


def _camera(station: StationJob, frames: list[Frame], version: RecipeVersion | None) -> str:
    with station.open_source() as source, _attending(source, asks=station.triggered):
        began = time.monotonic()
        count = 0
        for frame in source:
            count += 1
            frames.append(frame)
            del frames[LOOKS:]
            if (not source.live and count == LOOKS) or time.monotonic() - began > READ_S:
                break
        seconds = time.monotonic() - began
        live = source.live
    if not frames and isinstance(source, FolderWatch):
        return f"no image came to {source.folder} meanwhile, so neither size nor rate was looked at"
    if not frames:
        raise RecipeError("the source gave no frame: check its path or address")
    if version is not None and (fault := frame_fault(frames[0], version)) is not None:
        raise RecipeError(fault)
    image = frames[0].image
    size = f"{image.shape[1]}x{image.shape[0]} px" if image is not None else "a frame that cannot be read"
    return f"{size}" + (f", {count / seconds:.1f} frames a second" if live else "")


def _rate(inspector: SegmenterInspector, frames: list[Frame], version: RecipeVersion) -> str:
    took = []
    for number in range(LOOKS):
        began = time.perf_counter()
        inspector.inspect(frames[number % len(frames)], version)
        took.append((time.perf_counter() - began) * 1000)
    slowest, deadline = max(took), version.recipe.deadline_ms
    words = f"{min(took):.0f} to {slowest:.0f} ms a part, deadline {deadline:g} ms, at most {1000 / slowest:.1f} parts a second"
    if slowest > deadline:
        raise RecipeError(f"{words}: too slow; raise deadline_ms, or take a faster machine")
    return words


def _disk(job: LineJob) -> str:
    try:
        job.state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{job.state} cannot be made ({error.strerror}): choose another --state DIR") from error
    if not os.access(job.state, os.W_OK):
        raise OutputError(f"{job.state} cannot be written: choose another --state DIR, or change who may write there")
    if (job.state / LEDGER_NAME).exists():
        open_for_reading(job.state).close()
    reserve = DiskReserve(job.state)
    free = reserve.free_mb
    if free < reserve.needed_mb:
        raise OutputError(f"{free:.0f} MB are free in {job.state}; {reserve.needed_mb:.0f} MB are needed: free some space")
    level = DiskLevel.FINE if free > reserve.images_reserve_mb else DiskLevel.NO_IMAGES
    return f"{free:.0f} MB are free in {job.state}" + ("" if level is DiskLevel.FINE else ", too few for images")


@contextmanager
def _attending(source: Source, *, asks: bool) -> Iterator[None]:
    """Asks a camera for frames that gives none unasked; and what gives none is closed, for it may wait for a part for ever."""
    stop = threading.Event()
    patience_s = READ_S if isinstance(source, FolderWatch) else SILENT_S

    def attend() -> None:
        began = time.monotonic()
        while not stop.wait(ASK_S):
            if asks and isinstance(source, CameraSource):
                source.fire()
            if time.monotonic() - began > patience_s:
                source.close()

    thread = threading.Thread(target=attend, name="agvas-attend", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _trigger(job: LineJob, address: str) -> str:
    listener = open_trigger(address, mqtt_password=job.secrets.mqtt_password, api_key=job.secrets.api_key)
    listener.close()
    return listener.name


def _sink(job: LineJob, address: str) -> str:
    sink = open_sink(address, job.secrets)
    try:
        sink.open()
    finally:
        sink.close()
    return sink.name


def secrets_of(environment: Mapping[str, str]) -> Secrets:
    """Passwords and keys of sinks and triggers, which are read from the environment and nowhere else: AGVAS_MQTT_PASSWORD,
    AGVAS_OPCUA_PASSWORD, AGVAS_WEBHOOK_SECRET, AGVAS_API_KEY."""
    webhook = environment.get("AGVAS_WEBHOOK_SECRET")
    return Secrets(
        environment.get("AGVAS_MQTT_PASSWORD"),
        webhook.encode() if webhook else None,
        environment.get(KEY_VARIABLE) or None,
        environment.get("AGVAS_OPCUA_PASSWORD"),
    )

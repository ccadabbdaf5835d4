"""Runs one station of a line: its camera, recipe, queue, drift monitor, and the thread that feeds it."""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agvas_core.contract.errors import UsageError
from agvas_runtime.line.app.metrics import Gauge
from agvas_runtime.line.app.status import StationFacts
from agvas_runtime.line.ledger.images import ImageStore
from agvas_runtime.line.ledger.ledger import Ledger
from agvas_runtime.line.recipe.file import RecipeVersion
from agvas_runtime.line.recipe.thresholds import not_calibrated
from agvas_runtime.line.station.drift import DriftMonitor
from agvas_runtime.line.station.inspector import Inspector
from agvas_runtime.line.station.reloader import RecipeFollower
from agvas_runtime.line.station.source_loop import QueuePolicy, SourceLoop
from agvas_runtime.line.station.station import QUEUE_PARTS, Outcome, Station
from agvas_runtime.sources import CameraSource, FileSource, FolderWatch, Source, open_source
from agvas_runtime.sources.camera_address import camera_address
from agvas_runtime.sources.folder_watch import WATCH_SCHEME
from agvas_runtime.triggers.open_trigger import FREE, check_trigger

__all__ = ["StationJob", "StationRunner", "station_jobs"]


# One camera of a line, as it was asked for: where frames come from, which recipe, what triggers, what happens to the queue.


STALL_S: Final = 1.4  # with the source's own grace, a camera that stops is noticed within two seconds
OPEN_S: Final = 10.0


@dataclass(frozen=True)
class StationJob:
    """What a station is started with; checked by ``station_jobs``."""

    name: str
    """Of the station, in the ledger and for every sink."""
    recipe: Path
    camera: str | None = None
    sources: tuple[str, ...] = ()
    trigger: str = FREE
    policy: QueuePolicy | None = None
    pixel_format: str | None = None
    """Of a camera of this machine: what it is to send."""
    bits: int | None = None
    """That 16-bit files, and frames of Mono16, use."""

    @property
    def triggered(self) -> bool:
        """Whether frames count only where one was asked for."""
        return self.trigger != FREE

    @property
    def what(self) -> str:
        """How the source is called for a person."""
        return "camera" if self.camera is not None else "source"

    @property
    def queue_policy(self) -> QueuePolicy | None:
        """The one that was asked for; a camera that is triggered itself sends parts, and none of them is to be dropped."""
        if self.policy is None and self.camera is not None and not self.camera.startswith(WATCH_SCHEME):
            return QueuePolicy.EVERY if "trigger" in camera_address(self.camera).settings else None
        return self.policy

    def open_source(self, known: Callable[[str], bool] = lambda key: False, *, bits: int | None = None) -> Source:
        """The camera, the folder that is watched, or the files.

        Args:
            known: says of a watched file's key whether it was taken before.
            bits: of the recipe, where the command line says nothing.
        """
        bits = self.bits or bits
        if self.camera is None:
            return open_source(self.sources, bits=bits)
        if self.camera.startswith(WATCH_SCHEME):
            return FolderWatch(self.camera.removeprefix(WATCH_SCHEME), known=known, bits=bits)
        policy = self.queue_policy
        return CameraSource(
            self.camera,
            name=self.name,
            open_timeout_s=OPEN_S,
            stall_timeout_s=STALL_S,
            pixel_format=self.pixel_format,
            bits=bits or 16,
            keep=QUEUE_PARTS if policy is QueuePolicy.EVERY or self.triggered else 1,
            block=policy is QueuePolicy.BLOCK and not self.triggered,
            asked=self.triggered,
        )


def station_jobs(
    cameras: Sequence[str],
    sources: Sequence[str],
    recipes: Sequence[Path],
    stations: Sequence[str] = (),
    triggers: Sequence[str] = (),
    policies: Sequence[QueuePolicy] = (),
    pixel_formats: Sequence[str] = (),
    bits: int | None = None,
) -> tuple[StationJob, ...]:
    """A job for each camera, or one for files. Recipes, triggers, policies and pixel formats are given once, or once for each camera in its order.

    Raises:
        UsageError: they do not fit, or one is invalid.
    """
    count = len(cameras) or 1
    for option, given, once in (
        ("recipe", recipes, True),
        ("station", stations, False),
        ("trigger", triggers, True),
        ("queue", policies, True),
        ("pixel-format", pixel_formats, True),
    ):
        if len(given) not in (0, count) and not (once and len(given) == 1):
            raise UsageError(
                f"--{option} is given {len(given)} times for {count} cameras: give it {'once, or ' if once else ''}once for each"
            )
    if triggers and not cameras:
        raise UsageError("--trigger is given and no --camera: files are parts as they come, leave it out")
    if pixel_formats and not cameras:
        raise UsageError(f"--pixel-format {pixel_formats[0]} is for --camera: leave it out")
    jobs = []
    for index in range(count):
        camera = cameras[index] if cameras else None
        name = stations[index] if stations else "files" if camera is None else _name(camera)
        trigger = triggers[index % len(triggers)] if triggers else FREE
        policy = policies[index % len(policies)] if policies else None
        pixels = pixel_formats[index % len(pixel_formats)] if pixel_formats else None
        check_trigger(trigger)
        job = StationJob(name, recipes[index % len(recipes)], camera, tuple(sources), trigger, policy, pixels, bits)
        _check(job)
        jobs.append(job)
    names = [job.name for job in jobs]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two cameras are called {name}: give --station NAME for each, in their order")
        if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise UsageError(
                f"the station's name is {name!r}; letters, digits, dots, dashes and underscores are possible (--station)"
            )
    return tuple(jobs)


def _check(job: StationJob) -> None:
    if job.camera is None:
        return
    if job.camera.startswith(WATCH_SCHEME):
        if job.triggered or job.policy is QueuePolicy.LATEST:
            raise UsageError(f"{job.camera} gives a part for each file: leave --trigger out, and --queue latest")
        if job.pixel_format is not None:
            raise UsageError(f"{job.camera} gives files, and --pixel-format {job.pixel_format} is for a camera: leave it out")
        if not os.path.isdir(folder := job.camera.removeprefix(WATCH_SCHEME)):  # Path.is_dir raises where it may not look
            raise UsageError(f"{folder!r} is no folder that can be watched: make it, or check its name and who may read it")
        return
    if job.bits is not None and job.pixel_format != "Mono16":
        raise UsageError(
            f"--bits {job.bits} is for files and for cameras that send Mono16 (--pixel-format Mono16), not for {job.name}: leave it out"
        )
    asked = camera_address(job.camera).is_asked
    if asked and not job.triggered:
        raise UsageError(
            f"{job.name} gives a frame only when it is asked, and there is no trigger: give --trigger, or another trigger="
        )
    if job.triggered and "trigger" in camera_address(job.camera).settings and not asked:
        raise UsageError(f"{job.name} is triggered at the camera and by --trigger: leave one of the two out")
    if job.triggered and job.policy is QueuePolicy.LATEST:
        raise UsageError("--queue latest would drop parts that were asked for: with --trigger take every, or block")


def _name(camera: str) -> str:
    if camera.startswith(WATCH_SCHEME):
        return Path(camera.removeprefix(WATCH_SCHEME)).resolve().name or "files"
    return camera_address(camera).name


log = logging.getLogger("agvas.line")


class StationRunner:
    """Runs one station: made, started, ended. A lost source stops only its own station."""

    def __init__(
        self,
        job: StationJob,
        ledger: Ledger,
        inspector: Inspector,
        images: ImageStore,
        listeners: tuple[Callable[[Outcome], None], ...],
    ) -> None:
        """Raises AgvasError where the recipe cannot be followed."""
        self.job, self.name = job, job.name
        self._ledger, self._inspector = ledger, inspector
        self._failure: BaseException | None = None
        self._notes: set[str] = set()
        self._concern: str | None = None
        self._follower = RecipeFollower(job.recipe, prepare=inspector.prepare, on_change=self._change, on_refusal=self._refuse)
        self._watch = DriftMonitor(ledger)
        self.station = Station(
            job.name, ledger, inspector, self._follower.current, images=images, listeners=(*listeners, self._watch)
        )
        self.feed = SourceLoop(self.station, ledger, self._open_source, policy=job.queue_policy, triggered=job.triggered)
        self._thread: threading.Thread | None = None

    def start(self, stop: threading.Event, *, limit: int | None) -> None:
        """Begins to feed the station."""
        self._ledger.event(self.name, "start", self._follower.current().identity)
        log.info("station %s runs recipe %s on %s", self.name, self._follower.current().identity, self._inspector.identity)
        self._thread = threading.Thread(target=self._run, args=(stop, limit), name=f"agvas-feed-{self.name}", daemon=True)
        self._thread.start()

    def _run(self, stop: threading.Event, limit: int | None) -> None:
        try:
            self.feed.run(stop, limit=limit)
        except BaseException as error:  # raised again in the line's main thread
            self._failure = error

    @property
    def running(self) -> bool:
        """Whether there is more to come."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def failure(self) -> BaseException | None:
        """A bug, or a ledger that cannot be written; never a source that is away."""
        return self.station.failure or self._failure or self._follower.failure

    def end(self, why: str) -> None:
        """Gives what was taken its verdict. ``stop`` is set, or the source has ended."""
        if self._thread is not None:
            self._thread.join()
        self.station.close()
        self._ledger.event(self.name, "stop", why)

    def close(self) -> None:
        """Frees what is left. May be called twice, and without ``end``."""
        self.station.close()
        self._follower.close()

    def _open_source(self) -> Source:
        source = self.job.open_source(self._is_known, bits=self._follower.current().recipe.bits)
        if isinstance(source, FileSource | FolderWatch):
            source.noted.told = self._note
        if isinstance(source, CameraSource):
            source.whole_views = lambda height, width: self._inspector.whole_views(self._follower.current(), height, width)
        return source

    def _note(self, text: str) -> None:
        if text not in self._notes:  # a source that is opened again notes the same
            self._notes.add(text)
            log.warning("station %s: %s", self.name, text)

    def _is_known(self, key: str) -> bool:
        return bool(self._ledger.read("SELECT 1 FROM parts WHERE station = ? AND trigger_key = ?", (self.name, key)))

    def _change(self, version: RecipeVersion) -> None:
        self._ledger.know_recipe(version.sha256, version.recipe.product, version.text)
        self._ledger.event(self.name, "recipe", version.identity)
        log.info("recipe %s goes from the next part on", version.identity)
        self._concern = None
        for kind, concern in (
            ("not-calibrated", not_calibrated(version.recipe)),
            ("thresholds", self._inspector.concern(version)),
        ):
            if concern is not None:
                self._concern = self._concern or concern
                self._ledger.event(self.name, kind, concern)
                log.warning("%s: %s", self.name, concern)

    def _refuse(self, why: str) -> None:
        self._ledger.event(self.name, "recipe-refused", why)
        log.error("recipe refused: %s", why)

    def facts(self) -> StationFacts:
        """For the page."""
        version, station, feed, watch = self._follower.current(), self.station, self.feed, self._watch
        return StationFacts(
            version.identity,
            self._inspector.identity,
            version.recipe.deadline_ms,
            not feed.lost,
            feed.dropped,
            station.waiting,
            station.queue_parts,
            watch.alarm,
            watch.dirty,
            str(station.failure) if station.failure is not None else None,
            self._concern,
        )

    def gauges(self) -> Iterator[Gauge]:
        """For Prometheus."""
        here, watch = {"station": self.name}, self._watch
        yield "agvas_source_up", "Whether the source gives frames.", here, float(not self.feed.lost)
        yield (
            "agvas_frames_dropped",
            "Frames of the camera that were not taken, since the start.",
            here,
            float(self.feed.dropped),
        )
        yield "agvas_queue_parts", "Parts that wait for the engine.", here, float(self.station.waiting)
        alarm = watch.alarm is not None
        yield "agvas_drift_alarm", "Whether live parts no longer look as those of the calibration.", here, float(alarm)
        yield "agvas_dirt_alarm", "Whether one place is anomalous on part after part.", here, float(watch.dirty)

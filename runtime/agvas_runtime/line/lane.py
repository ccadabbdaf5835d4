"""One camera of a line with all that is its own: recipe, station, queue, watch for drift, and a thread that feeds it."""

import logging
import threading
from collections.abc import Callable, Iterator

from agvas_runtime.line.board import StationFacts
from agvas_runtime.line.feed import Feed
from agvas_runtime.line.follower import RecipeFollower
from agvas_runtime.line.image_store import ImageStore
from agvas_runtime.line.inspector import Inspector
from agvas_runtime.line.lane_job import LaneJob
from agvas_runtime.line.ledger import Ledger
from agvas_runtime.line.metrics import Gauge
from agvas_runtime.line.recipe_file import RecipeVersion
from agvas_runtime.line.station import Outcome, Station
from agvas_runtime.line.watch import Watch
from agvas_runtime.sources import CameraSource, Source

__all__ = ["Lane"]

log = logging.getLogger("agvas.line")


class Lane:
    """Made, then started, then ended. What becomes of one lane's source is nothing to the others."""

    def __init__(
        self,
        job: LaneJob,
        ledger: Ledger,
        inspector: Inspector,
        images: ImageStore,
        listeners: tuple[Callable[[Outcome], None], ...],
    ) -> None:
        """Raises AgvasError where the recipe cannot be followed."""
        self.job, self.name = job, job.name
        self._ledger, self._inspector = ledger, inspector
        self._failure: BaseException | None = None
        self._follower = RecipeFollower(job.recipe, prepare=inspector.prepare, on_change=self._change, on_refusal=self._refuse)
        self._watch = Watch(ledger)
        self.station = Station(
            job.name, ledger, inspector, self._follower.current, images=images, listeners=(*listeners, self._watch)
        )
        self.feed = Feed(self.station, ledger, self._open_source, policy=job.queue_policy, triggered=job.triggered)
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
        except BaseException as error:  # raised by whoever runs the line
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
        source = self.job.open_source(self._is_known)
        if isinstance(source, CameraSource):
            source.whole_views = lambda height, width: self._inspector.whole_views(self._follower.current(), height, width)
        return source

    def _is_known(self, key: str) -> bool:
        return bool(self._ledger.read("SELECT 1 FROM parts WHERE station = ? AND trigger_key = ?", (self.name, key)))

    def _change(self, version: RecipeVersion) -> None:
        self._ledger.know_recipe(version.sha256, version.recipe.product, version.text)
        self._ledger.event(self.name, "recipe", version.identity)
        log.info("recipe %s goes from the next part on", version.identity)

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
        )

    def gauges(self) -> Iterator[Gauge]:
        """For Prometheus."""
        here, watch = {"station": self.name}, self._watch
        yield "agvas_source_up", "Whether the source gives frames.", here, float(not self.feed.lost)
        yield (
            "agvas_frames_dropped",
            "Frames that the camera gave and nobody took, since the start.",
            here,
            float(self.feed.dropped),
        )
        yield "agvas_queue_parts", "Parts that wait for the engine.", here, float(self.station.waiting)
        alarm = watch.alarm is not None
        yield "agvas_drift_alarm", "Whether live parts no longer look as those of the calibration.", here, float(alarm)
        yield "agvas_dirt_alarm", "Whether one place is anomalous on part after part.", here, float(watch.dirty)

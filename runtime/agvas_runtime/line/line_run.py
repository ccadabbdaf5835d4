"""``agvas-run --camera URI --recipe R``: source, station, ledger, sinks and metrics, until somebody says stop."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol

from agvas_core.contract.command_line import EXIT_TERMINATED
from agvas_core.contract.errors import EXIT_OK, UsageError
from agvas_runtime.line.board import Board, LineFacts, SinkFacts, StationFacts
from agvas_runtime.line.courier import Courier
from agvas_runtime.line.feed import Feed
from agvas_runtime.line.follower import RecipeFollower
from agvas_runtime.line.image_store import ImageStore
from agvas_runtime.line.inspector import SegmenterInspector
from agvas_runtime.line.ledger import Ledger
from agvas_runtime.line.line_log import LineLog, LogFormat, logging_to
from agvas_runtime.line.metrics import Gauge, Metrics, MetricsServer
from agvas_runtime.line.recipe_file import RecipeVersion
from agvas_runtime.line.station import Outcome, Station
from agvas_runtime.line.watch import Watch
from agvas_runtime.sinks.open_sink import Secrets, open_sink
from agvas_runtime.sources import CameraSource, Source, open_source
from agvas_runtime.stages.settings import StageSettings

__all__ = ["LineJob", "Page", "run_line"]

log = logging.getLogger("agvas.line")

STALL_S = 1.7  # with the source's own grace, a camera that stops is noticed within two seconds
OPEN_S = 10.0


class Page(Protocol):
    """Shows a line to people; ``agvas_runtime.line_pages`` has it, and takes its port before the model is loaded."""

    address: str

    def start(self, board: Board) -> None:
        """Shows a line from now on."""
        ...

    def close(self) -> None:
        """Ends it."""
        ...


@dataclass(frozen=True)
class LineJob:
    """What the options ask for."""

    recipe: Path
    camera: str | None = None
    sources: tuple[str, ...] = ()
    state: Path = Path("line")
    station: str | None = None
    sinks: tuple[str, ...] = ()
    secrets: Secrets = field(default_factory=Secrets)
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
    log: LogFormat = "text"
    limit: int | None = None
    threads: int | None = None
    vision: str = "onnx"
    lmm: str = "onnx"
    decoder: str = "onnx"
    engines: Path | None = None

    @property
    def settings(self) -> StageSettings:
        """For the backends."""
        return StageSettings(threads=self.threads, engines=self.engines)

    @property
    def name(self) -> str:
        """Of the station, in the ledger and for every sink."""
        if self.station is not None:
            return self.station
        return CameraSource(self.camera).name if self.camera is not None else "files"

    def open_source(self) -> Source:
        """The camera, or the files."""
        if self.camera is None:
            return open_source(self.sources)
        return CameraSource(self.camera, name=self.name, open_timeout_s=OPEN_S, stall_timeout_s=STALL_S)


def run_line(job: LineJob, *, listeners: tuple[Callable[[Outcome], None], ...] = (), page: Page | None = None) -> int:
    """Runs until SIGTERM or Ctrl-C, ``limit`` frames, or the end of the files; returns the exit code.

    Parts that were taken get their verdict before it returns; messages that cannot be sent at once stay in the outbox.

    Raises:
        AgvasError: something that is wrong from the start, or a ledger that can no longer be written.
    """
    if not job.name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise UsageError(
            f"the station's name is {job.name!r}; letters, digits, dots, dashes and underscores are possible (--station)"
        )
    sinks = [open_sink(address, job.secrets) for address in job.sinks]
    if len({sink.name for sink in sinks}) < len(sinks):
        raise UsageError("a sink is given twice: leave one of the two out")
    with logging_to(job.log), _stopping() as stop, ExitStack() as stack:
        if page is not None:
            stack.callback(page.close)  # its port is taken already
        job.open_source().close()  # an address that cannot be meant is refused before there is a ledger
        ledger = stack.enter_context(Ledger(job.state, sinks=[sink.name for sink in sinks]))
        if ledger.recovered:
            log.warning(
                "%d triggers were left without a verdict when the last run ended; they are NO_VERDICT now", ledger.recovered
            )
        inspector = SegmenterInspector(vision=job.vision, lmm=job.lmm, decoder=job.decoder, settings=job.settings)
        follower = _follow(job, ledger, inspector)
        stack.callback(follower.close)
        images = ImageStore(ledger)
        couriers = [Courier(ledger, sink) for sink in sinks]
        watch = Watch(ledger)
        metrics = Metrics(lambda: _gauges(job, ledger, station, feed, couriers, watch))
        board = Board(ledger.folder, lambda: _line_facts(ledger, couriers)) if page is not None else None
        shown = (board,) if board is not None else ()

        def wake(_: Outcome) -> None:
            for courier in couriers:
                courier.wake()

        station = Station(
            job.name,
            ledger,
            inspector,
            follower.current,
            images=images,
            listeners=(wake, metrics, LineLog(), watch, *shown, *listeners),
        )
        feed = Feed(station, ledger, job.open_source)
        if job.metrics_port is not None:
            server = MetricsServer(metrics, lambda: station.failure is None, host=job.metrics_host, port=job.metrics_port)
            stack.callback(server.close)
            log.info("metrics at http://%s:%d/metrics", job.metrics_host, server.port)
        if page is not None and board is not None:
            stack.callback(board.close)
            stack.callback(page.close)
            board.add_station(job.name, lambda: _station_facts(follower, inspector, station, feed, watch))
            page.start(board)
            log.info("page at %s", page.address)
        for courier in couriers:
            stack.callback(courier.close)
            courier.start()
        stack.callback(images.close)
        stack.callback(station.close)
        ledger.event(job.name, "start", follower.current().identity)
        log.info("station %s runs recipe %s on %s", job.name, follower.current().identity, inspector.identity)
        feed.run(stop.event, limit=job.limit)
        station.close()
        images.close()
        ledger.event(job.name, "stop", stop.why or "the source came to its end")
    drawing = board.failure if board is not None else None
    for failure in (station.failure, images.failure, follower.failure, drawing, *(courier.failure for courier in couriers)):
        if failure is not None:
            raise failure
    return stop.code


def _follow(job: LineJob, ledger: Ledger, inspector: SegmenterInspector) -> RecipeFollower:
    def change(version: RecipeVersion) -> None:
        ledger.know_recipe(version.sha256, version.recipe.product, version.text)
        ledger.event(job.name, "recipe", version.identity)
        log.info("recipe %s goes from the next part on", version.identity)

    def refuse(why: str) -> None:
        ledger.event(job.name, "recipe-refused", why)
        log.error("recipe refused: %s", why)

    return RecipeFollower(job.recipe, prepare=inspector.prepare, on_change=change, on_refusal=refuse)


def _station_facts(
    follower: RecipeFollower, inspector: SegmenterInspector, station: Station, feed: Feed, watch: Watch
) -> StationFacts:
    version = follower.current()
    return StationFacts(
        version.identity,
        inspector.identity,
        version.recipe.deadline_ms,
        not feed.lost,
        feed.dropped,
        station.waiting,
        station.queue_parts,
        watch.alarm,
        watch.dirty,
        str(station.failure) if station.failure is not None else None,
    )


def _line_facts(ledger: Ledger, couriers: list[Courier]) -> LineFacts:
    sinks = tuple(SinkFacts(courier.sink.name, courier.pending, courier.last_error) for courier in couriers)
    return LineFacts(ledger.ballast.free_mb, int(ledger.ballast.level()), sinks)


def _gauges(job: LineJob, ledger: Ledger, station: Station, feed: Feed, couriers: list[Courier], watch: Watch) -> Iterator[Gauge]:
    here = {"station": job.name}
    yield "agvas_source_up", "Whether the source gives frames.", here, float(not feed.lost)
    yield "agvas_frames_dropped", "Frames that the camera gave and nobody took, since the start.", here, float(feed.dropped)
    yield "agvas_queue_parts", "Parts that wait for the engine.", here, float(station.waiting)
    yield (
        "agvas_drift_alarm",
        "Whether live parts no longer look as those of the calibration.",
        here,
        float(watch.alarm is not None),
    )
    yield "agvas_dirt_alarm", "Whether one place is anomalous on part after part.", here, float(watch.dirty)
    for courier in couriers:
        yield "agvas_outbox_messages", "Messages that wait for a sink.", {"sink": courier.sink.name}, float(courier.pending)
    for courier in couriers:
        yield "agvas_sink_up", "Whether the sink takes messages.", {"sink": courier.sink.name}, float(courier.last_error is None)
    yield "agvas_disk_free_mb", "Free space where the ledger lies.", {}, ledger.ballast.free_mb
    yield "agvas_disk_level", "0 fine, 1 no images, 2 no verdicts.", {}, float(ledger.ballast.level())


class _Stop:
    """Asked to end, by whom, and with which exit code."""

    def __init__(self) -> None:
        self.event, self.code, self.why = threading.Event(), EXIT_OK, ""

    def __call__(self, number: int, _: FrameType | None) -> None:
        self.why = signal.Signals(number).name
        # A station is meant to be ended by Ctrl-C; systemd counts 143 as a good end.
        self.code = EXIT_TERMINATED if number == signal.SIGTERM else EXIT_OK
        self.event.set()


@contextmanager
def _stopping() -> Iterator[_Stop]:
    """SIGINT and SIGTERM ask for an end in good order; a second one ends at once, as it would anywhere."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: FrameType | None) -> None:
        stop(number, frame)
        for again, handler in before.items():
            signal.signal(again, handler)

    for number in before:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

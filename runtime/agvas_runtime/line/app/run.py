"""``agvas-run --camera URI --recipe R``: cameras, stations, ledger, triggers, sinks and metrics, until SIGTERM, Ctrl-C or --limit."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Final, Protocol

from agvas_core.contract.command_line import EXIT_TERMINATED
from agvas_core.contract.errors import EXIT_OK, SourceError, UsageError
from agvas_runtime.line.app.log import LineLog, LogFormat, logging_to
from agvas_runtime.line.app.metrics import Gauge, Metrics, MetricsServer
from agvas_runtime.line.app.status import LineFacts, LineStatus, SinkFacts
from agvas_runtime.line.ledger.images import ImageStore
from agvas_runtime.line.ledger.ledger import Ledger
from agvas_runtime.line.station.dispatcher import TriggerDispatcher
from agvas_runtime.line.station.inspector import SegmenterInspector, SharedInspector
from agvas_runtime.line.station.outbox import OutboxWorker
from agvas_runtime.line.station.runner import StationJob, StationRunner, station_jobs
from agvas_runtime.line.station.source_loop import QueuePolicy
from agvas_runtime.line.station.station import Outcome
from agvas_runtime.pipeline.options import SegmentOptions
from agvas_runtime.sinks.open_sink import Secrets, open_sink
from agvas_runtime.sources.folder_watch import WATCH_SCHEME
from agvas_runtime.triggers.open_trigger import FREE, SOFTWARE, open_trigger
from agvas_runtime.triggers.protocol import TriggerListener

__all__ = ["LineJob", "Page", "run_line"]

log = logging.getLogger("agvas.line")

JUMP_S: Final = 1.0
"""Larger jumps between two checks are reported; slewing stays below it."""


class Page(Protocol):
    """Shows a line to people; ``agvas_runtime.web.line`` has it, and takes its port before the model is loaded."""

    address: str

    def start(self, status: LineStatus) -> None:
        """Shows a line from now on."""
        ...

    def close(self) -> None:
        """Ends it."""
        ...


@dataclass(frozen=True)
class LineJob:
    """What the options ask for."""

    recipes: tuple[Path, ...]
    """One for all cameras, or one for each; so too ``triggers``, ``policies`` and ``pixel_formats``."""
    cameras: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    """Files, where there is no camera."""
    state: Path = Path("line")
    stations: tuple[str, ...] = ()
    """Names, in the order of the cameras."""
    triggers: tuple[str, ...] = ()
    policies: tuple[QueuePolicy, ...] = ()
    pixel_formats: tuple[str, ...] = ()
    options: SegmentOptions = field(default_factory=SegmentOptions)
    """Backends, threads, bits; the recipes say the rest."""
    sinks: tuple[str, ...] = ()
    secrets: Secrets = field(default_factory=Secrets)
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
    log: LogFormat = "text"
    limit: int | None = None

    def station_jobs(self) -> tuple[StationJob, ...]:
        """One for each camera.

        Raises:
            UsageError: the options do not fit together.
        """
        watched = tuple(source for source in self.sources if source.startswith(WATCH_SCHEME))
        if watched and len(watched) < len(self.sources):
            raise UsageError(
                f"{watched[0]} is given beside files: a line watches folders, or takes files; leave one of the two out"
            )
        return station_jobs(
            self.cameras or watched,  # a folder that is watched may stand in either place
            () if watched else self.sources,
            self.recipes,
            self.stations,
            self.triggers,
            self.policies,
            self.pixel_formats,
            self.options.bits,
        )


def run_line(
    job: LineJob,
    *,
    listeners: tuple[Callable[[Outcome], None], ...] = (),
    page: Page | None = None,
    dispatcher: TriggerDispatcher | None = None,
) -> int:
    """Runs until SIGTERM or Ctrl-C, ``limit`` parts of each camera, or the end of the files; returns the exit code.

    Parts that were taken get their verdict before it returns; messages that cannot be sent at once stay in the outbox.

    Args:
        dispatcher: where Python code may ask for parts; its ``ready`` is set once it may.

    Raises:
        AgvasError: something that is wrong from the start, or a ledger that can no longer be written.
    """
    plans = job.station_jobs()
    dispatcher = dispatcher or TriggerDispatcher()
    sinks = [open_sink(address, job.secrets) for address in job.sinks]
    if len({sink.name for sink in sinks}) < len(sinks):
        raise UsageError("a sink is given twice: leave one of the two out")
    with logging_to(job.log), _stopping() as stop, ExitStack() as stack:
        if page is not None:
            stack.callback(page.close)  # its port is taken already
        for plan in plans:
            plan.open_source().close()  # an address that cannot be meant is refused before there is a ledger
        triggers = {
            address: open_trigger(address, mqtt_password=job.secrets.mqtt_password, api_key=job.secrets.api_key)
            for address in _heard(plans)
        }
        for trigger in triggers.values():
            stack.callback(trigger.close)
        ledger = stack.enter_context(Ledger(job.state, sinks=[sink.name for sink in sinks]))
        if ledger.recovered:
            log.warning(
                "%d triggers were left without a verdict when the last run ended; they are NO_VERDICT now", ledger.recovered
            )
        inspector = SharedInspector(SegmenterInspector(job.options))
        images = ImageStore(ledger)
        workers = [OutboxWorker(ledger, sink) for sink in sinks]
        runners: list[StationRunner] = []
        metrics = Metrics(lambda: _gauges(ledger, runners, workers, list(triggers.values())))
        status = LineStatus(ledger.folder, lambda: _line_facts(ledger, workers)) if page is not None else None
        shown = (status,) if status is not None else ()

        def wake(_: Outcome) -> None:
            for worker in workers:
                worker.wake()

        for worker in workers:
            stack.callback(worker.close)
        stack.callback(images.close)
        for plan in plans:
            runners.append(StationRunner(plan, ledger, inspector, images, (wake, metrics, LineLog(), *shown, *listeners)))
            stack.callback(runners[-1].close)
        if job.metrics_port is not None:
            server = MetricsServer(metrics, lambda: not _failures(runners), host=job.metrics_host, port=job.metrics_port)
            stack.callback(server.close)
            log.info("metrics at http://%s:%d/metrics", job.metrics_host, server.port)
        if page is not None and status is not None:
            stack.callback(status.close)
            stack.callback(page.close)
            for runner in runners:
                status.add_station(runner.name, runner.facts)
            page.start(status)
            log.info("page at %s", page.address)
        for worker in workers:
            worker.start()
        for runner in runners:
            runner.start(stop.event, limit=job.limit)
            if runner.job.triggered:
                dispatcher.add(runner.name, runner.feed)
        for address, trigger in triggers.items():
            meant = tuple(plan.name for plan in plans if plan.trigger == address)
            trigger.start(partial(dispatcher.fire, among=meant), partial(ledger.event, "+".join(meant)))
            log.info("%s is triggered by %s", ", ".join(meant), trigger.name)
        dispatcher.ready.set()
        clock = _WallClock()
        while any(runner.running for runner in runners) and not stop.event.wait(0.1):
            if (jump := clock.jump()) is not None:
                log.warning("%s", jump)
                for runner in runners:
                    ledger.event(runner.name, "clock", jump)
            if _failures(runners) or any(trigger.failure for trigger in triggers.values()):
                break
        ended = not any(runner.running for runner in runners)
        stop.event.set()
        for trigger in triggers.values():
            trigger.close()
        for runner in runners:
            runner.end(stop.why or ("the source came to its end" if ended else "another station failed"))
        images.close()
    drawing = status.failure if status is not None else None
    told = (*(worker.failure for worker in workers), *(trigger.failure for trigger in triggers.values()))
    for failure in (*_failures(runners), images.failure, drawing, *told):
        if failure is not None:
            raise failure
    if stop.code == EXIT_OK and not stop.why and metrics.only_without_verdict:
        raise SourceError(f"none of the parts has a verdict: agvas ledger show {job.state} has the reason of each")
    return stop.code


class _WallClock:
    """Notices when the wall clock is set, by the monotonic one."""

    def __init__(self) -> None:
        self._ahead_s = time.time() - time.monotonic()

    def jump(self) -> str | None:
        """How far the clock jumped since the last look, in words; None where it did not."""
        ahead_s = time.time() - time.monotonic()
        by_s, self._ahead_s = ahead_s - self._ahead_s, ahead_s
        if abs(by_s) < JUMP_S:
            return None
        return f"the wall clock jumped by {by_s:+.1f} s: times in UTC before and after it cannot be compared"


def _heard(runners: Sequence[StationJob]) -> list[str]:
    """Addresses to listen at, each once."""
    return list(dict.fromkeys(runner.trigger for runner in runners if runner.trigger not in (FREE, SOFTWARE)))


def _failures(runners: Sequence[StationRunner]) -> list[BaseException]:
    return [runner.failure for runner in runners if runner.failure is not None]


def _line_facts(ledger: Ledger, workers: list[OutboxWorker]) -> LineFacts:
    sinks = tuple(SinkFacts(worker.sink.name, worker.pending, worker.last_error) for worker in workers)
    return LineFacts(ledger.reserve.free_mb, int(ledger.reserve.level()), sinks)


def _gauges(
    ledger: Ledger, runners: Sequence[StationRunner], workers: Sequence[OutboxWorker], triggers: Sequence[TriggerListener]
) -> Iterator[Gauge]:
    for family in zip(
        *(runner.gauges() for runner in runners), strict=True
    ):  # each with all its stations, as Prometheus wants it
        yield from family
    for trigger in triggers:
        yield "agvas_trigger_up", "Whether the trigger is heard.", {"trigger": trigger.name}, float(trigger.last_error is None)
    for worker in workers:
        yield "agvas_outbox_messages", "Messages that wait for a sink.", {"sink": worker.sink.name}, float(worker.pending)
    for worker in workers:
        yield "agvas_sink_up", "Whether the sink takes messages.", {"sink": worker.sink.name}, float(worker.last_error is None)
    yield "agvas_disk_free_mb", "Free space where the ledger lies.", {}, ledger.reserve.free_mb
    yield "agvas_disk_level", "0 fine, 1 no images, 2 no verdicts.", {}, float(ledger.reserve.level())


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

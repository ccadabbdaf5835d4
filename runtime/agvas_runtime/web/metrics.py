"""Metrics of a server, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from agvas_core import __version__
from agvas_runtime.masks.result import Result, Verdict

__all__ = ["Metrics"]

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self, bundle: str) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter("agvas_requests", "Requests by path and status.", ["path", "status"], registry=self.registry)
        self._images = Counter("agvas_images", "Images by verdict.", ["verdict"], registry=self.registry)
        self._stages = Histogram("agvas_stage_seconds", "Time of each stage.", ["stage"], buckets=SECONDS, registry=self.registry)
        self._wait = Histogram("agvas_wait_seconds", "Time in the queue.", buckets=SECONDS, registry=self.registry)
        self._work = Histogram("agvas_work_seconds", "Time in work.", buckets=SECONDS, registry=self.registry)
        self.waiting = Gauge("agvas_queue_images", "Images that wait.", registry=self.registry)
        self.running = Gauge("agvas_running_jobs", "Jobs in work.", registry=self.registry)
        self.uploads = Gauge("agvas_upload_bytes", "Bytes of request bodies that are held.", registry=self.registry)
        self.left = Counter("agvas_clients_left", "Requests whose client went away before the answer.", registry=self.registry)
        Info("agvas", "What is served.", registry=self.registry).info({"version": __version__, "bundle": bundle})
        for verdict in Verdict:
            self._images.labels(str(verdict))

    def request(self, path: str, status: int) -> None:
        """A request was answered."""
        self._requests.labels(path, str(status)).inc()

    def result(self, result: Result) -> None:
        """An image was judged."""
        self._images.labels(str(result.verdict)).inc()
        for stage, ms in result.timing.items():
            self._stages.labels(stage).observe(ms / 1000)

    def job(self, waited_s: float, took_s: float) -> None:
        """A job is done."""
        self._wait.observe(waited_s)
        self._work.observe(took_s)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)

"""Metrics of a line for Prometheus, and a health check, over HTTP on loopback.

GET /metrics    the figures
GET /healthz    200 while every station takes triggers, 503 otherwise
"""

import http.server
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from agvas_core.contract.errors import SetupError
from agvas_core.contract.network import calls_loopback, is_loopback
from agvas_runtime.line.station.station import Outcome
from agvas_runtime.masks.result import Verdict

__all__ = ["Gauge", "Metrics", "MetricsServer"]

BUCKETS_MS: Final = (10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10000.0)

TEXT: Final = "text/plain; charset=utf-8"

Gauge = tuple[str, str, dict[str, str], float]
"""Name, help, labels, value."""


class Metrics:
    """Counts outcomes; a listener of every station. Threads may share it."""

    def __init__(self, gauges: Callable[[], Iterable[Gauge]] = tuple) -> None:
        """``gauges`` is asked each time for what others know: queues, drops, outboxes, disk."""
        self._gauges = gauges
        self._mutex = threading.Lock()
        self._parts: Counter[tuple[str, str, str]] = Counter()
        self._buckets: dict[str, list[int]] = {}
        self._sum_ms: Counter[str] = Counter()
        self._last_s: dict[str, float] = {}

    def __call__(self, outcome: Outcome) -> None:
        """Counts one part."""
        end = outcome.result
        with self._mutex:
            self._parts[outcome.station, str(end.verdict), str(end.cause or "")] += 1
            counts = self._buckets.setdefault(outcome.station, [0] * (len(BUCKETS_MS) + 1))
            counts[next((i for i, bound in enumerate(BUCKETS_MS) if end.decided_ms <= bound), len(BUCKETS_MS))] += 1
            self._sum_ms[outcome.station] += end.decided_ms  # type: ignore[assignment]  # a Counter adds floats as well
            self._last_s[outcome.station] = time.time()

    @property
    def only_without_verdict(self) -> bool:
        """Whether there were parts, and every one of them is NO_VERDICT."""
        with self._mutex:
            return bool(self._parts) and all(verdict == Verdict.NO_VERDICT for _, verdict, _ in self._parts)

    def text(self) -> str:
        """All figures, each family with its help and type."""
        with self._mutex:
            lines = ["# HELP agvas_parts_total Parts by verdict and cause.", "# TYPE agvas_parts_total counter"]
            for (station, verdict, cause), count in sorted(self._parts.items()):
                lines.append(f"agvas_parts_total{_labels({'station': station, 'verdict': verdict, 'cause': cause})} {count}")
            lines += ["# HELP agvas_decided_ms From the trigger to the verdict.", "# TYPE agvas_decided_ms histogram"]
            for station, counts in sorted(self._buckets.items()):
                total = 0
                for bound, count in zip([*map("{:g}".format, BUCKETS_MS), "+Inf"], counts, strict=True):
                    total += count
                    lines.append(f"agvas_decided_ms_bucket{_labels({'station': station, 'le': bound})} {total}")
                lines.append(f"agvas_decided_ms_sum{_labels({'station': station})} {self._sum_ms[station]:.3f}")
                lines.append(f"agvas_decided_ms_count{_labels({'station': station})} {total}")
            lines += [
                "# HELP agvas_last_part_seconds When the last part had its verdict, Unix time.",
                "# TYPE agvas_last_part_seconds gauge",
            ]
            lines += [
                f"agvas_last_part_seconds{_labels({'station': name})} {at:.3f}" for name, at in sorted(self._last_s.items())
            ]
        seen: set[str] = set()
        for name, text, labels, value in self._gauges():
            if name not in seen:
                seen.add(name)
                lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge"]
            lines.append(f"{name}{_labels(labels)} {value:g}")
        return "\n".join(lines) + "\n"


class MetricsServer:
    """Answers on one port, in a thread of its own."""

    def __init__(self, metrics: Metrics, well: Callable[[], bool], *, host: str = "127.0.0.1", port: int = 0) -> None:
        """``port`` 0 takes any that is free.

        Raises:
            SetupError: the port cannot be had.
        """

        class Handler(http.server.BaseHTTPRequestHandler):
            timeout = 5

            def do_GET(self) -> None:
                called = self.headers.get("Host", "")
                if is_loopback(host) and called and not calls_loopback(called):
                    self._answer(403, f"for this machine only, and called {called!r}: use 127.0.0.1\n", TEXT)
                elif self.path == "/metrics":
                    self._answer(200, metrics.text(), "text/plain; version=0.0.4; charset=utf-8")
                elif self.path == "/healthz":
                    fine = well()
                    self._answer(200 if fine else 503, "ok\n" if fine else "a station takes no triggers\n", TEXT)
                else:
                    self._answer(404, "there are /metrics and /healthz\n", TEXT)

            def _answer(self, status: int, text: str, kind: str) -> None:
                body = text.encode()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Requests are not worth a line."""

        try:
            self._server = http.server.ThreadingHTTPServer((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise SetupError(f"{host}:{port} cannot be listened on ({error}): choose another port with --metrics") from error
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="agvas-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops answering."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _labels(labels: dict[str, str]) -> str:
    escaped = {name: value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for name, value in labels.items()}
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped.items()) + "}" if labels else ""

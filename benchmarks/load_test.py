"""How much load `agvas serve` takes on this machine: requests per second and latency at 1, 4 and 16 clients beside a plain loop, then 4 times
what it can do, where it must shed load, keep the latency of what it takes bounded, and not grow.

    python benchmarks/load_test.py --seconds 15 --threads 1 --workers 2

Everything goes to 127.0.0.1, is bounded in time, and ends with the server that this script started.
"""

import argparse
import http.client
import platform
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CLIENTS = (1, 4, 16)
OVERLOAD = 4
QUEUE = 16


@dataclass
class Tally:
    """What came of the requests of one measurement."""

    seconds: float = 0.0
    taken_ms: list[float] = field(default_factory=list)
    shed: int = 0
    without_retry_after: int = 0
    other: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, status: int, ms: float, retry_after: str | None) -> None:
        """One answer."""
        with self.lock:
            if status == 200:
                self.taken_ms.append(ms)
            elif status == 429:
                self.shed += 1
                self.without_retry_after += retry_after is None
            else:
                self.other += 1

    def row(self, name: str) -> str:
        """A line of the table."""
        p50, p95, p99 = np.percentile(self.taken_ms, [50, 95, 99]) if self.taken_ms else (np.nan,) * 3
        rate = len(self.taken_ms) / self.seconds
        return f"| {name} | {len(self.taken_ms)} | {rate:.1f} | {p50:.0f} | {p95:.0f} | {p99:.0f} | {self.shed} | {self.other} |"


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--image", type=Path, default=ROOT / "examples/parts/plate-crack.jpg")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    image = options.image.read_bytes()

    print(
        f"{platform.processor() or platform.machine()}, {options.model}, {options.image.name}, {options.seconds:g} s each, ",
        end="",
    )
    print(f"workers {options.workers}, threads {options.threads or 'all'}, queue {QUEUE}\n")
    print("| what | answered | per second | p50, ms | p95, ms | p99, ms | 429 | other |\n|---|---|---|---|---|---|---|---|")
    print(plain_loop(options, image).row("plain loop, one thread of Python"), flush=True)

    command = [sys.executable, "-c", "from agvas.cli import main; main()", "serve", options.model, "--port", "0"]
    command += ["--workers", str(options.workers), "--queue", str(QUEUE)]
    command += ["--threads", str(options.threads)] if options.threads else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(re.search(r":(\d+) serves", server.stdout.readline())[1])  # type: ignore[index]
            closed_loop(port, image, 1, 3.0)  # warm
            capacity = 0.0
            for clients in CLIENTS:
                tally = closed_loop(port, image, clients, options.seconds)
                capacity = max(capacity, len(tally.taken_ms) / tally.seconds)
                print(tally.row(f"{clients} clients" if clients > 1 else "1 client"), flush=True)
            overload(server.pid, port, image, OVERLOAD * capacity, options.seconds)
        finally:
            server.terminate()


def plain_loop(options: argparse.Namespace, image: bytes) -> Tally:
    """The same work without a server: decode and segment, one after the other."""
    from agvas_runtime import Frame, Segmenter
    from agvas_runtime.images.read import decode_image

    segmenter, tally = Segmenter.load(options.model, threads=options.threads), Tally()
    segmenter.segment(Frame("warm", 0, decode_image(image)))
    began = time.perf_counter()
    while (now := time.perf_counter()) - began < options.seconds:
        segmenter.segment(Frame("part", 0, decode_image(image)))
        tally.add(200, (time.perf_counter() - now) * 1000, None)
    tally.seconds = time.perf_counter() - began
    return tally


def closed_loop(port: int, image: bytes, clients: int, seconds: float) -> Tally:
    """Each client sends the next image when it has the answer to the last."""
    tally, end = Tally(), time.perf_counter() + seconds

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while time.perf_counter() < end:
            send(connection, image, tally)
        connection.close()

    began = time.perf_counter()
    run([client] * clients)
    tally.seconds = time.perf_counter() - began
    return tally


def overload(pid: int, port: int, image: bytes, rate: float, seconds: float) -> None:
    """Images come at a fixed rate, whatever becomes of those before."""
    tally, due = Tally(), iter(np.arange(0.0, seconds, 1 / rate))
    lock, began = threading.Lock(), time.perf_counter()
    memory_mb: list[float] = []

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while True:
            with lock:
                at = next(due, None)
            if at is None:
                break
            time.sleep(max(0.0, began + at - time.perf_counter()))
            send(connection, image, tally)
        connection.close()

    def watch() -> None:
        while time.perf_counter() - began < seconds:
            memory_mb.append(resident_mb(pid))
            time.sleep(seconds / 20)

    run([watch] + [client] * (QUEUE * 3))
    tally.seconds = time.perf_counter() - began
    print(tally.row(f"{OVERLOAD} times capacity, {rate:.0f}/s"))
    half = len(memory_mb) // 2
    print(f"\nmemory under {OVERLOAD} times capacity: {np.median(memory_mb[:half]):.0f} MB in the first half, ", end="")
    print(
        f"{np.median(memory_mb[half:]):.0f} MB in the second; {tally.without_retry_after} of {tally.shed} refusals lack Retry-After"
    )


def send(connection: http.client.HTTPConnection, image: bytes, tally: Tally) -> None:
    """One upload and its answer."""
    mark = uuid.uuid4().hex
    body = (
        f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="part"\r\n\r\n'.encode()
        + image
        + f"\r\n--{mark}--\r\n".encode()
    )
    began = time.perf_counter()
    try:
        connection.request("POST", "/v1/segment", body, {"Content-Type": f"multipart/form-data; boundary={mark}"})
        reply = connection.getresponse()
        reply.read()
        tally.add(reply.status, (time.perf_counter() - began) * 1000, reply.getheader("Retry-After"))
    except (OSError, http.client.HTTPException):  # a refusal closes the connection, which the next request opens again
        tally.add(0, 0.0, None)
        connection.close()


def run(work: list[Callable[[], None]]) -> None:
    """All at the same time, to their end."""
    threads = [threading.Thread(target=one) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def resident_mb(pid: int) -> float:
    """Of a process, from /proc."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
    return int(found[1]) / 1024 if found else float("nan")


if __name__ == "__main__":
    main()

"""Ends a real mosquitto under load, leaves it away for ten minutes, starts it again, and counts what its subscriber got.

    python tests/soak/broker_outage.py --down-s 600 --rate 20

A station inspects parts at a steady rate all the while. A subscriber of quality of service 1 keeps its session at the broker, which
keeps it on disk. In the end each verdict must have reached the subscriber, the ledger must hold each delivery as acknowledged once,
and the station must not have been held up: every part has its verdict at its deadline.
"""

import argparse
import contextlib
import json
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import paho.mqtt.client as mqtt
from stub_stages import stub_inspector

from agvas_runtime.images.frame import Frame
from agvas_runtime.line.ledger.check import check_ledger
from agvas_runtime.line.ledger.ledger import Ledger
from agvas_runtime.line.recipe.file import parse_recipe
from agvas_runtime.line.station.outbox import OutboxWorker
from agvas_runtime.line.station.station import Station
from agvas_runtime.sinks.open_sink import open_sink


class Broker:
    """A mosquitto of our own."""

    def __init__(self, folder: Path) -> None:
        self.port = 0
        while not self.port:  # below the ports that the system gives to clients, so that it stays free while the broker is away
            port = 20_000 + secrets.randbelow(12_000)
            with contextlib.suppress(OSError), socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
                self.port = port
        self._config = folder / "mosquitto.conf"
        self._config.write_text(
            f"user root\nlistener {self.port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\n"
            f"persistence true\npersistence_location {folder}/\n"
        )
        found = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
        if found is None:
            raise SystemExit("mosquitto is not installed: apt-get install mosquitto")
        self._program = found

    def start(self) -> None:
        """Returns when it listens."""
        self._process = subprocess.Popen(
            [self._program, "-c", str(self._config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)

    def end(self) -> None:
        """As an administrator ends it."""
        self._process.terminate()
        self._process.wait()


class Subscriber:
    """Hears the keys of all verdicts; connects again by itself."""

    def __init__(self, port: int) -> None:
        self.heard: Counter[str] = Counter()
        self.ready = threading.Event()
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="keeper", clean_session=False)
        self.client.on_connect = lambda client, *_: client.subscribe("agvas/#", qos=1)
        self.client.on_subscribe = lambda *_: self.ready.set()
        self.client.on_message = lambda _client, _data, message: self.heard.update([json.loads(message.payload)["key"]])
        self.client.reconnect_delay_set(0.2, 2)
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        self.ready.wait(60)

    def close(self) -> None:
        """Leaves."""
        self.client.disconnect()
        self.client.loop_stop()


def main() -> int:
    """Prints what it came to; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--down-s", type=float, default=600)
    parser.add_argument("--before-s", type=float, default=20, help="load before the broker ends, and again after it is back")
    parser.add_argument("--rate", type=float, default=20, help="parts a second")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        broker = Broker(folder)
        broker.start()
        subscriber = Subscriber(broker.port)
        sink = open_sink(f"mqtt://127.0.0.1:{broker.port}/agvas/{{station}}/verdict")
        version = parse_recipe("product: part\ndeadline_ms: 1000\n", "the recipe")
        with Ledger(folder / "line", sinks=[sink.name]) as ledger:
            ledger.know_recipe(version.sha256, version.recipe.product, version.text)
            inspector, worker = stub_inspector(), OutboxWorker(ledger, sink)
            inspector.prepare(version)
            worker.start()
            station = Station("camera-0", ledger, inspector, lambda: version, listeners=(lambda _: worker.wake(),))
            image = np.full((96, 128, 3), 210, np.uint8)
            began, number, most_waiting = time.monotonic(), 0, 0
            ends = {"down": arguments.before_s, "up": arguments.before_s + arguments.down_s}
            end = ends["up"] + arguments.before_s
            back_s = 0.0
            while (now := time.monotonic() - began) < end:
                if "down" in ends and now >= ends["down"]:
                    del ends["down"]
                    broker.end()
                if "down" not in ends and "up" in ends and now >= ends["up"]:
                    del ends["up"]
                    most_waiting, back_s = worker.pending, time.monotonic()
                    broker.start()
                station.offer(Frame("shot", number, image=image), key=str(number))
                number += 1
                time.sleep(max(0.0, number / arguments.rate - (time.monotonic() - began)))
            station.close()
            while worker.pending and worker.failure is None:
                time.sleep(0.1)
            drained_s = time.monotonic() - back_s
            worker.close(grace_s=10)
            patience = time.monotonic() + 60
            while len(subscriber.heard) < number and time.monotonic() < patience:
                time.sleep(0.1)
            keys = {f"{ledger.identity}/{seq}" for (seq,) in ledger.read("SELECT seq FROM parts")}
        subscriber.close()
        broker.end()
        check = check_ledger(folder / "line")
    twice = sum(times - 1 for times in subscriber.heard.values())
    kept = (
        set(subscriber.heard) == keys
        and not check.faults
        and check.triggers == number
        and check.deliveries[sink.name] == {"delivered": number}
        and worker.failure is None
    )
    print(
        json.dumps(
            {
                "parts": number, "down_s": arguments.down_s, "waiting_when_it_came_back": most_waiting,
                "seconds_until_all_were_sent": round(drained_s, 1), "heard": len(subscriber.heard), "heard_twice": twice,
                "missing": len(keys - set(subscriber.heard)), "verdicts": check.verdicts | check.causes, "faults": check.faults, "kept": kept,
            }
        )
    )  # fmt: skip
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())

"""A small anomaly set, and a real HTTP server on loopback that behaves, or misbehaves, as an OpenAI-compatible endpoint."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

ANCHORS = "[NOR][ANO][SEG]"


def an_answer(**changes: Any) -> dict[str, Any]:
    """Five texts that nothing is wrong with, but for ``changes``; None takes a field out."""
    fields = {
        "Expectation": "A faultless part is evenly grey, with a fine grain and no marks on its surface.",
        "Observation": "Left of the centre lies a dark, roundish spot about a quarter of the part wide.",
        "Diagnosis": "The grain is interrupted there, so material is missing or burnt.",
        "Summary": f"Segment the dark, roundish spot left of the centre {ANCHORS}.",
        "Explanation": "The part should be evenly grey. A dark spot with a clear edge interrupts it, which is an anomaly.",
    }
    return {key: value for key, value in (fields | changes).items() if value is not None}


def a_completion(text: str | None, *, finish: str = "stop") -> dict[str, Any]:
    """What an endpoint sends for an answer."""
    return {
        "id": "c-1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
    }


@dataclass
class Step:
    """What the server does with one request."""

    status: int = 200
    body: bytes = field(default_factory=lambda: json.dumps(a_completion(json.dumps(an_answer()))).encode())
    headers: dict[str, str] = field(default_factory=dict)
    wait_s: float = 0.0
    cut_short: bool = False
    """Half of the body, and then the connection ends."""


def says(text: str | None, **options: Any) -> Step:
    """An answer of these words."""
    return Step(body=json.dumps(a_completion(text, **options)).encode())


def answers(**changes: Any) -> Step:
    """A JSON answer, changed."""
    return says(json.dumps(an_answer(**changes)))


@dataclass
class Asked:
    """One request as it came."""

    at_s: float
    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def said(self) -> str:
        """All text of the last message that was put."""
        content = self.body["messages"][-1]["content"]
        return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)

    @property
    def pictures(self) -> list[str]:
        """The data URLs of the request."""
        parts = [part for message in self.body["messages"] if isinstance(message["content"], list) for part in message["content"]]
        return [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]


class ChatServer(ThreadingHTTPServer):
    """Does ``plan(number, request)`` for each request; ``asked`` has what came, ``most_at_once`` how many together."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.plan: Callable[[int, Asked], Step] = lambda number, request: Step()
        self.asked: list[Asked] = []
        self.lock = threading.Lock()
        self.now = self.most_at_once = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def follow(self, *steps: Step) -> None:
        """Does the steps one after the other, and then answers well."""
        self.plan = lambda number, request: steps[number] if number < len(steps) else Step()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that lose patience are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            request = Asked(time.monotonic(), self.path, dict(self.headers.items()), body)
            number = len(server.asked)
            server.asked.append(request)
            server.now += 1
            server.most_at_once = max(server.most_at_once, server.now)
            step = server.plan(number, request)
        time.sleep(step.wait_s)
        with server.lock:
            server.now -= 1
        self.send_response(step.status)
        self.send_header("Content-Length", str(len(step.body)))
        for name, value in step.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(step.body[: len(step.body) // 2] if step.cut_short else step.body)
        self.close_connection = step.cut_short

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    server = ChatServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def make_set(tmp_path: Path) -> Callable[..., Path]:
    """Writes a set in MVTec's layout: ``make_set(bad=3)`` has 3 images with a spot, 2 good ones for testing and 2 for training."""

    def make(bad: int = 3, *, name: str = "parts", category: str = "plate", kind: str = "dark_spot", good: int = 2) -> Path:
        chance = np.random.default_rng(bad)
        root = tmp_path / name
        for folder, count in ((f"test/{kind}", bad), ("test/good", good), ("train/good", good)):
            for number in range(count):
                image = chance.integers(120, 180, (96, 128, 3), dtype=np.uint8)
                mask = np.zeros((96, 128), np.uint8)
                if kind in folder:
                    cv2.circle(mask, (30 + number % 40, 40), 12, 255, -1)
                    image[mask > 0] //= 4
                    write(root / category / "ground_truth" / kind / f"{number:03d}_mask.png", mask)
                write(root / category / folder / f"{number:03d}.png", image)
        return root

    def write(path: Path, pixels: np.ndarray[Any, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), pixels)

    return make


@pytest.fixture
def make_file(make_set: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Writes a set of ``count`` anomalous images and the file that describes them, as ``agvas data instruct`` does."""

    def make(count: int) -> Path:
        make_set(bad=count)
        path = tmp_path / "instruct.jsonl"
        lines = [
            {
                "dataset": "parts",
                "root": "parts",
                "image": f"plate/test/dark_spot/{number:03d}.png",
                "mask": f"plate/ground_truth/dark_spot/{number:03d}_mask.png",
                "category": "plate",
                "kind": "dark spot",
                "model": "a-model",
                "endpoint": "127.0.0.1:8000",
                "prompt": "0123456789abcdef",
                **{name.lower(): text for name, text in an_answer().items()},
            }
            for number in range(count)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return path

    return make

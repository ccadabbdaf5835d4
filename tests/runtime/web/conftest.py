"""A real server on a free loopback port, over the tiny bundle, and a client that speaks plain HTTP."""

import base64
import http.client
import json
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from agvas_core.contract.prompts import Mode
from agvas_runtime.pipeline.segmenter import Segmenter
from agvas_runtime.stages.protocol import Features, LmmStage, Reply, Turn
from agvas_runtime.web.app import build_app
from agvas_runtime.web.recipes import Recipes
from agvas_runtime.web.serving import listen, make_server
from agvas_runtime.web.settings import Settings

Made = Callable[..., NDArray[np.uint8]]


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        message: str = self.json["error"]["message"]
        return message

    @property
    def events(self) -> list[Any]:
        lines = [line.removeprefix("data: ") for line in self.body.decode().split("\n\n") if line]
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]


@dataclass
class Client:
    """Requests to one server."""

    port: int
    headers: dict[str, str] = field(default_factory=dict)

    def call(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request(method, path, body, {**self.headers, **(headers or {})})
            reply = connection.getresponse()
            return Answer(reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read())

    def get(self, path: str) -> Answer:
        return self.call("GET", path)

    def post(self, path: str, content: Any, **headers: str) -> Answer:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self.call("POST", path, body, {"Content-Type": "application/json"} | headers)

    def upload(self, *images: bytes, path: str = "/v1/segment", name: str = "image", **fields: str) -> Answer:
        mark = uuid.uuid4().hex
        parts = [
            f'--{mark}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
            for key, value in fields.items()
        ] + [
            f'--{mark}\r\nContent-Disposition: form-data; name="{name}"; filename="C:\\parts\\{index}.png"\r\n\r\n'.encode()
            + image
            + b"\r\n"
            for index, image in enumerate(images)
        ]
        body = b"".join(parts) + f"--{mark}--\r\n".encode()
        return self.call("POST", path, body, {"Content-Type": f"multipart/form-data; boundary={mark}"})

    def chat(self, *messages: Any, **more: Any) -> Answer:
        return self.post("/v1/chat/completions", {"messages": list(messages), **more})

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)


class HeldLmm:
    """A language model that waits for a word from the test, and counts who came."""

    def __init__(self, lmm: LmmStage) -> None:
        self.lmm, self.go, self.came = lmm, threading.Event(), threading.Semaphore(0)
        self.calls = 0

    def __call__(self, features: Features, instruction: str, mode: Mode = Mode.DIRECT, history: Sequence[Turn] = ()) -> Reply:
        self.calls += 1
        self.came.release()
        assert self.go.wait(30)
        return self.lmm(features, instruction, mode, history)


@contextmanager
def _serving(segmenter: Segmenter, recipes: Recipes | None = None, **options: Any) -> Iterator[Client]:
    settings = Settings(port=0, **options)
    with listen(settings) as opened:
        server = make_server(build_app(segmenter, settings, recipes), settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
        thread.start()
        try:
            yield Client(opened.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture(scope="session")
def serving() -> Callable[..., AbstractContextManager[Client]]:
    """``with serving(segmenter, **settings) as client``."""
    return _serving


@pytest.fixture(scope="session")
def segmenter(tiny_bundle: Path) -> Segmenter:
    return Segmenter.load(tiny_bundle, threads=1)


@pytest.fixture
def held(segmenter: Segmenter) -> Iterator[tuple[Segmenter, HeldLmm]]:
    """A segmenter whose language model waits for the test."""
    lmm = HeldLmm(segmenter.lmm)
    yield segmenter.with_lmm(lmm), lmm
    lmm.go.set()


@pytest.fixture(scope="package")
def client(segmenter: Segmenter) -> Iterator[Client]:
    """Of a server that no test changes."""
    with _serving(segmenter, max_body_bytes=1 << 20, max_pixels=1_000_000, upload_bytes=64 << 20) as client:
        yield client


@pytest.fixture(scope="session")
def png() -> Callable[[NDArray[np.uint8]], bytes]:
    def encode(image: NDArray[np.uint8]) -> bytes:
        done, data = cv2.imencode(".png", image[:, :, ::-1])
        assert done
        return data.tobytes()

    return encode


@pytest.fixture(scope="session")
def image(make_part: Made) -> NDArray[np.uint8]:
    """A part with one dark spot, RGB [96, 128, 3]."""
    return make_part(spots=[(60, 40, 12)])


@pytest.fixture(scope="session")
def part(image: NDArray[np.uint8], png: Callable[[NDArray[np.uint8]], bytes]) -> bytes:
    """The same as PNG."""
    return png(image)


@pytest.fixture(scope="session")
def saying() -> Callable[..., dict[str, Any]]:
    """``saying("Find the spots", png)``: a user's message."""

    def message(text: str | None, image: bytes | str | None = None) -> dict[str, Any]:
        parts: list[dict[str, Any]] = [] if text is None else [{"type": "text", "text": text}]
        if image is not None:
            url = image if isinstance(image, str) else f"data:image/png;base64,{base64.b64encode(image).decode()}"
            parts.append({"type": "image_url", "image_url": {"url": url}})
        return {"role": "user", "content": parts}

    return message

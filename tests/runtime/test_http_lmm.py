"""The language model over HTTP: what is asked arrives, and whatever goes wrong on the way is no verdict."""

import json
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from agvas_core.contract.errors import BundleError, SetupError, StageError, UsageError
from agvas_core.contract.prompts import Mode
from agvas_runtime import Segmenter, Verdict
from agvas_runtime.bundle import Bundle, load_bundle
from agvas_runtime.stages.open import StageSettings, open_stages
from agvas_runtime.stages.protocol import Features
from agvas_runtime.stages.vllm.http import HttpEngine
from agvas_runtime.stages.vllm.protocol import (
    ASK_PATH,
    IDENTITY_PATH,
    Identity,
    LmmRequest,
    LmmResponse,
    pack_request,
    pack_responses,
    unpack_request,
    unpack_responses,
)

DIM, TOKENS = 128, 128
ASK = "Please segment the anomalies in this image."


@dataclass
class Server:
    """Answers as a server of ours would, with states that can be told beforehand: row r of image b is filled with b + r / 1000."""

    identity: Identity
    url: str = ""
    asked: list[LmmRequest] = field(default_factory=list)
    generated: tuple[int, ...] = ()
    reply: Any = None
    """In place of an answer: status and body."""

    def answer(self, path: str, body: bytes) -> tuple[int, bytes]:
        if path == IDENTITY_PATH:
            return 200, json.dumps(asdict(self.identity)).encode()
        assert path == ASK_PATH
        if self.reply is not None:
            status, data = self.reply
            return int(status), bytes(data)
        asked = unpack_request(body)
        self.asked.append(asked)
        end = len(asked.after)
        positions = (*asked.rows, *(end + at for at, id in enumerate(self.generated) if id in (4, 5, 6)))
        said = [
            LmmResponse(
                self.generated,
                positions,
                2.0,
                np.array([[image + at / 1000] * DIM for at in positions], np.float32).reshape(-1, DIM),
            )
            for image in range(len(asked.visual))
        ]
        return 200, pack_responses(self.identity, said)


@pytest.fixture(scope="module")
def nano() -> Bundle:
    return load_bundle("nano")


@pytest.fixture
def server(nano: Bundle) -> Iterator[Server]:
    checkpoint = nano.manifest.provenance["checkpoint"]["sha256"]
    state = Server(Identity("nano", checkpoint, "0" * 64, "0.32.0", True, None))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _respond(self) -> None:
            status, data = state.answer(self.path, self.rfile.read(int(self.headers.get("content-length", 0))))
            if status == 0:  # hangs up
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _respond

        def log_message(self, *arguments: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.05,))
    thread.start()
    state.url = f"http://127.0.0.1:{http.server_address[1]}"
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


def features(images: int) -> Features:
    rng = np.random.default_rng(0)
    f_s, f_align = (rng.normal(size=(images, TOKENS // 2, DIM)).astype(np.float32) for _ in range(2))
    return Features(f_s, f_align, {})


def test_a_question_and_an_answer_survive_the_way_bit_by_bit() -> None:
    rng = np.random.default_rng(0)
    asked = LmmRequest((1, 2), (3, 4, 5), (0, 2), 0, "a", rng.normal(size=(2, 4, 3)).astype(np.float32))
    back = unpack_request(pack_request(asked))
    assert np.array_equal(back.visual, asked.visual) and replace(back, visual=asked.visual) == asked
    identity = Identity("x", "1", "2", "3", False, "a")
    said = [
        LmmResponse((7,), (0, 2), 0.25, rng.normal(size=(2, 3)).astype(np.float32)),
        LmmResponse((), (), 0.0, np.zeros((0, 3), np.float32)),
    ]
    who, what = unpack_responses(pack_responses(identity, said))
    assert who == identity and [each.ids for each in what] == [(7,), ()] and np.array_equal(what[0].states, said[0].states)


GOOD = LmmRequest((1,), (2, 3), (1,), 0, None, np.zeros((1, 2, 2), np.float32))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"{}\n",
        b"[1]\n",
        b"[" * 100_000,
        pack_request(GOOD)[:-4],
        pack_request(GOOD)[:-1],
        pack_request(replace(GOOD, rows=(2,))),
        pack_request(replace(GOOD, rows=(1, 0))),
        pack_request(replace(GOOD, new_tokens=-1)),
        pack_request(replace(GOOD, after=(2, -3))),
        pack_request(replace(GOOD, visual=np.full((1, 2, 2), np.nan, np.float32))),
        pack_request(replace(GOOD, visual=np.zeros((65, 2, 2), np.float32))),
        pack_request(GOOD).replace(b"[1, 2, 2]", b"[-1, -2, 2]"),
    ],
)
def test_bytes_that_are_no_question_are_refused(data: bytes) -> None:
    with pytest.raises(UsageError):
        unpack_request(data)


def test_direct_mode_asks_once_for_all_images_and_reads_the_anchors_where_they_are(server: Server, nano: Bundle) -> None:
    lmm = open_stages(nano, lmm=server.url).lmm
    given = features(2)
    reply = lmm(given, ASK)
    (asked,) = server.asked
    assert np.array_equal(asked.visual, np.concatenate([given.f_s, given.f_align], 1))
    anchors = [asked.after.index(id) for id in nano.manifest.anchor_ids]
    expected = [[image + at / 1000 for at in anchors] for image in range(2)]
    assert np.allclose(reply.anchor_states[..., 0], expected) and reply.anchor_states.shape == (2, 3, DIM)
    assert np.allclose(reply.accept, 1 / (1 + np.exp(-2.0))) and reply.found.all() and reply.answers is None


def test_of_a_generated_answer_the_last_of_each_anchor_counts_and_a_missing_one_is_no_mask(server: Server, nano: Bundle) -> None:
    lmm = open_stages(nano, lmm=server.url).lmm
    server.generated = (4, 5, 6, 20, 5, 2)
    reply = lmm(features(1), ASK, Mode.DESCRIBE)
    end = len(server.asked[-1].after)
    assert np.allclose(reply.anchor_states[0, :, 0], [(end + at) / 1000 for at in (0, 4, 2)])
    assert reply.found.all() and reply.answers and "[mask]" in reply.answers[0]
    server.generated = (4, 6, 2)
    refused = lmm(features(1), ASK, Mode.EXPLAIN)
    assert not refused.found.any() and not refused.anchor_states.any() and refused.accept[0] == 0


def test_nobody_there_is_said_before_the_first_frame(nano: Bundle) -> None:
    with pytest.raises(SetupError, match="agvas serve-lmm"):
        open_stages(nano, lmm="http://127.0.0.1:9")


@pytest.mark.parametrize(
    "url", ["https://127.0.0.1:1", "http://", "http://127.0.0.1:99999", "http://127.0.0.1/v1", "http://me@127.0.0.1"]
)
def test_an_address_that_cannot_be_one_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="no address"):
        HttpEngine(url)


def test_a_server_of_another_bundle_is_refused(server: Server, nano: Bundle) -> None:
    server.identity = replace(server.identity, name="other", checkpoint_sha256="f" * 64)
    with pytest.raises(BundleError, match=r"the engine serves other, exported from weights with sha256 ffffffffffff"):
        open_stages(nano, lmm=server.url)


def test_a_server_that_is_no_longer_there_or_no_longer_the_same_gives_no_verdict_and_one_that_is_back_goes_on(
    server: Server,
) -> None:
    segmenter = Segmenter.load("nano", lmm=server.url, settings=StageSettings(threads=1))
    white, before = np.full((64, 64, 3), 255, np.uint8), server.identity

    def verdict() -> tuple[Verdict, str]:
        (result,) = segmenter.predict(white)
        return result.verdict, str(result.error)

    assert verdict()[0] is not Verdict.NO_VERDICT
    for reply, reason in (
        ((0, b""), "does not answer"),
        ((503, json.dumps({"error": "StageError", "message": "vLLM's engine has died"}).encode()), "has died"),
        ((500, b"<html>"), "is it agvas serve-lmm"),
        ((200, b"{}\n"), "no reply of ours"),
        ((200, b""), "no reply of ours"),
    ):
        server.reply = reply
        told = verdict()
        assert told[0] is Verdict.NO_VERDICT and reason in told[1], told
    server.reply, server.identity = None, replace(before, checkpoint_sha256="f" * 64)
    told = verdict()
    assert told[0] is Verdict.NO_VERDICT and "start the run again" in told[1]
    server.identity = before
    assert verdict()[0] is not Verdict.NO_VERDICT


def test_an_adapter_that_the_server_has_not_ends_the_run_with_its_words(server: Server, nano: Bundle) -> None:
    lmm = open_stages(nano, lmm=server.url, settings=StageSettings(adapter="x")).lmm
    server.reply = (400, json.dumps({"error": "UsageError", "message": "there is no adapter 'x'"}).encode())
    with pytest.raises(UsageError, match="there is no adapter 'x'"):
        lmm(features(1), ASK)


def test_states_that_are_not_finite_are_no_verdict(server: Server) -> None:
    segmenter = Segmenter.load("nano", lmm=server.url, settings=StageSettings(threads=1))
    server.reply = (
        200,
        pack_responses(server.identity, [LmmResponse((), (13, 19, 20, 21), 0.0, np.full((4, DIM), np.nan, np.float32))]),
    )
    (result,) = segmenter.predict(np.full((64, 64, 3), 255, np.uint8))
    assert result.verdict is Verdict.NO_VERDICT and "NaN" in str(result.error)


def test_a_server_that_is_silent_is_given_up(server: Server) -> None:
    engine = HttpEngine(server.url, timeout_s=0.2)
    engine.identity()
    hold = threading.Event()
    server.answer = lambda path, body: (hold.wait(5), (0, b""))[1]  # type: ignore[method-assign]
    with pytest.raises(StageError, match="does not answer"):
        engine.ask(GOOD)
    hold.set()

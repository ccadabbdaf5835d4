"""Parts asked for over HTTP.

    curl -X POST http://127.0.0.1:9200/trigger                                   every station of this trigger
    curl -X POST 'http://127.0.0.1:9200/trigger/camera-0?wait_s=2' -H 'Idempotency-Key: 4711'
    curl -X POST http://10.0.0.7:9200/trigger -H 'Authorization: Bearer KEY'     beyond loopback

202 with sequence number and key once the part is in the ledger; with ``wait_s``, 200 with the verdict as well. A key that is sent again
gets the part, and the verdict, that it had. 503: not taken, send it again.
"""

import http.server
import io
import json
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from agvas_core.contract.errors import AgvasError, SetupError, UsageError
from agvas_core.contract.network import carries_key
from agvas_runtime.triggers.protocol import Fire

__all__ = ["HttpTrigger"]

log = logging.getLogger("agvas.line")

BODY_BYTES_MOST: Final = 4096
LENGTH_DIGITS_MOST: Final = 9  # int() reads no number of any length
KEY_LETTERS_MOST: Final = 200
WAIT_S_MOST: Final = 60.0
CLIENTS_MOST: Final = 64  # at once; each has a thread, and may wait WAIT_S_MOST for a verdict
SILENT_S: Final = 5.0  # a client that says nothing for so long is hung up on


class HttpTrigger:
    """A port."""

    def __init__(self, host: str, port: int, api_key: str | None = None) -> None:
        """``port`` 0 takes any that is free; it is listened on once ``start`` is called. Requests without ``api_key`` are refused.

        Raises:
            SetupError: the port cannot be had.
        """
        self.last_error: str | None = None
        self.failure: BaseException | None = None
        try:
            self._server = _Server((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise SetupError(f"{host}:{port} cannot be listened on ({error}): choose another port for the trigger") from error
        self._server.api_key = api_key
        self.port = int(self._server.server_address[1])
        self.name = f"http:{host}:{self.port}"
        self._thread: threading.Thread | None = None

    def start(self, fire: Fire, note: Callable[[str, str], None]) -> None:
        """Begins to answer."""
        self._server.fire = fire
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="agvas-trigger-http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops answering."""
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    fire: Fire
    api_key: str | None

    def __init__(self, *given: Any) -> None:
        self._room = threading.BoundedSemaphore(CLIENTS_MOST)
        super().__init__(*given)

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread; a client that finds no room is hung up on."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that is gone before its answer is no error; all else is one of ours, and the next request is answered as ever."""
        if not isinstance(sys.exception(), ConnectionError):
            log.exception("the HTTP trigger failed on a request")


class _Heard(io.BufferedReader):
    """What a client says."""

    broke_off = False
    """Whether it hung up in the middle of it: half a key is another part's."""

    def readline(self, size: int | None = -1) -> bytes:
        line = super().readline(size)
        self.broke_off = self.broke_off or not line
        return line

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.broke_off = self.broke_off or len(data) < (size or 0)
        return data


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    rfile: _Heard
    timeout = SILENT_S
    rbufsize = 0  # _Heard has the buffer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two packets, and the second would wait 40 ms on a connection kept open

    def setup(self) -> None:
        super().setup()
        self.rfile = _Heard(self.rfile)

    def do_POST(self) -> None:
        try:
            place = urlsplit(self.path)
        except ValueError as error:
            return self._answer(400, {"error": f"the address is none ({error}): POST /trigger or /trigger/STATION"})
        key = self.server.api_key
        if key is not None and not carries_key(self.headers.get("Authorization", ""), key):
            self.close_connection = True  # what it says further is not read
            return self._answer(401, {"error": "a key is needed: send Authorization: Bearer KEY"}, {"WWW-Authenticate": "Bearer"})
        road = [unquote(step) for step in place.path.strip("/").split("/")]
        if self.headers.get("Origin") is not None:  # a foreign page in a browser of this machine
            return self._answer(403, {"error": "a web page may not trigger parts"})
        if road[0] != "trigger" or len(road) > 2:
            return self._answer(404, {"error": "POST /trigger or /trigger/STATION"})
        try:
            self._drop_body()
            name, wait_s = self._key(), self._wait_s(place.query)
            taken = self.server.fire(road[1] if len(road) == 2 else None, name)
        except UsageError as error:
            return self._answer(400, {"error": str(error)})
        except AgvasError as error:
            return self._answer(503, {"error": str(error)})
        parts: list[dict[str, Any]] = [{"station": part.station, "seq": part.seq, "key": part.key} for part in taken]
        if wait_s > 0:
            for row, part in zip(parts, taken, strict=True):
                row["verdict"] = part.verdict(wait_s)
        self._answer(200 if wait_s > 0 else 202, {"parts": parts})

    def do_GET(self) -> None:
        self._answer(405, {"error": "POST /trigger or /trigger/STATION"})

    def _drop_body(self) -> None:
        stated = self.headers.get("Content-Length", "0")
        fits = stated.isdecimal() and len(stated) <= LENGTH_DIGITS_MOST and int(stated) <= BODY_BYTES_MOST
        if not fits or self.headers.get("Transfer-Encoding") is not None:
            self.close_connection = True
            raise UsageError(f"a trigger needs no body; {BODY_BYTES_MOST} bytes of stated length are the most")
        self.rfile.read(int(stated))
        if self.rfile.broke_off:
            raise UsageError("the request broke off: send it again")

    def _key(self) -> str | None:
        key = self.headers.get("Idempotency-Key")
        with suppress(UnicodeError):  # a header is read as Latin-1; most clients send UTF-8
            key = key and key.encode("latin-1").decode("utf-8")
        if key is not None and not (0 < len(key) <= KEY_LETTERS_MOST and key.isprintable()):
            raise UsageError(f"the key has {len(key)} letters; 1 to {KEY_LETTERS_MOST} that can be printed are possible")
        return key

    def _wait_s(self, query: str) -> float:
        text = parse_qs(query).get("wait_s", ["0"])[0]
        try:
            seconds = float(text)
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds <= WAIT_S_MOST:
            raise UsageError(f"wait_s is {text!r}; it is a number of seconds from 0 to {WAIT_S_MOST:g}")
        return seconds

    def _answer(self, status: int, body: dict[str, Any], headers: Mapping[str, str] = MappingProxyType({})) -> None:
        data = json.dumps(body).encode() + b"\n"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """The ledger has it."""

"""The review page over HTTP on this machine's loopback: a few fixed addresses and nothing else.

A page of another site cannot drive it: the Host must be a loopback name (which a rebound DNS name is not), and a decision must come from
our own Origin. Files are named by their number in the reviewed file, never by a path.
"""

import json
import re
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from agvas_core.contract.errors import AgvasError, ImageError, OutputError
from agvas_core.data.instruct.answer import AnswerError
from agvas_core.data.instruct.review import VERBS, Review, StaleError

__all__ = ["ReviewServer"]

LOOPBACK: Final = "127.0.0.1"
OWN_NAMES: Final = frozenset({"127.0.0.1", "localhost", "::1"})
MAX_BODY_BYTES: Final = 64 << 10  # five texts of 2,000 characters, in any script
HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
PAGE: Final = {
    "/": ("review_page.html", "text/html; charset=utf-8"),
    "/review_style.css": ("review_style.css", "text/css; charset=utf-8"),
    "/review_script.js": ("review_script.js", "text/javascript; charset=utf-8"),
}
NUMBERED: Final = re.compile(r"/(entries|images|overlays)/(\d{1,9})")


class ReviewServer(ThreadingHTTPServer):
    """Serves one review. ``serve_forever`` runs it, ``url`` says where it is."""

    daemon_threads = True

    def __init__(self, review: Review, *, port: int = 0) -> None:
        """Binds ``port``, any free one where 0.

        Raises:
            OSError: the port is taken.
        """
        self.review = review
        super().__init__((LOOPBACK, port), _Handler)

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{LOOPBACK}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closes the connection during a picture is not an error."""


class _Refusal(Exception):
    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else an answer waits 40 ms for the client to acknowledge its head
    server_version = "agvas"
    sys_version = ""
    timeout: ClassVar[float] = 30.0  # of a client that sends half a request

    def do_GET(self) -> None:
        self._answered(self._get)

    def do_POST(self) -> None:
        self._answered(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the page itself says what happened."""

    def _answered(self, answer: Any) -> None:
        try:
            self._check_host()
            answer()
        except _Refusal as refusal:
            self._refuse(refusal.status, str(refusal))
        except IndexError:
            self._refuse(HTTPStatus.NOT_FOUND, f"there is no such entry; the file has {len(self.server.review)}")
        except (AnswerError, StaleError) as error:
            self._refuse(HTTPStatus.CONFLICT if isinstance(error, StaleError) else HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        except ImageError as error:
            self._refuse(HTTPStatus.NOT_FOUND, str(error))
        except AgvasError as error:
            full = isinstance(error, OutputError)
            self._refuse(HTTPStatus.INSUFFICIENT_STORAGE if full else HTTPStatus.BAD_REQUEST, str(error))

    def _get(self) -> None:
        path = self.path.partition("?")[0]
        review = self.server.review
        if path in PAGE:
            name, kind = PAGE[path]
            self._send(HTTPStatus.OK, kind, resources.files("agvas_core.data.instruct").joinpath(name).read_bytes())
        elif path == "/state":
            review.refresh()
            self._send_json(HTTPStatus.OK, {"file": review.path.name, "states": review.states()})
        elif (found := NUMBERED.fullmatch(path)) is None:
            raise _Refusal(HTTPStatus.NOT_FOUND, "there is nothing here")
        elif found[1] == "entries":
            self._send_json(HTTPStatus.OK, review.view(int(found[2])))
        else:
            self._send(HTTPStatus.OK, "image/jpeg", review.picture(int(found[2]), overlay=found[1] == "overlays"))

    def _post(self) -> None:
        body = self._body()  # read whatever follows, or the connection would take it for the next request
        if self.headers.get("Origin") != f"http://{self.headers.get('Host')}":
            raise _Refusal(HTTPStatus.FORBIDDEN, "decisions are taken from the page itself only")
        found = NUMBERED.fullmatch(self.path.partition("?")[0])
        if found is None or found[1] != "entries":
            raise _Refusal(HTTPStatus.NOT_FOUND, "there is nothing here")
        texts = body.get("texts")
        if body.get("verb") not in VERBS or not (texts is None or isinstance(texts, dict)):
            raise _Refusal(HTTPStatus.BAD_REQUEST, f"a decision is {{verb, key, on, texts}} with a verb of {', '.join(VERBS)}")
        key, on = str(body.get("key")), str(body.get("on"))
        self._send_json(HTTPStatus.OK, self.server.review.decide(int(found[2]), body["verb"], key=key, on=on, texts=texts))

    def _check_host(self) -> None:
        try:
            name = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        except ValueError:
            name = None
        if name not in OWN_NAMES:
            self.close_connection = True
            raise _Refusal(HTTPStatus.FORBIDDEN, "this page is for this machine only: open it as 127.0.0.1 or localhost")

    def _body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        self.close_connection = True  # until the whole body is read
        if "Transfer-Encoding" in self.headers or not re.fullmatch(r"\d{1,12}", length):
            raise _Refusal(HTTPStatus.LENGTH_REQUIRED, "a Content-Length is needed")
        if int(length) > MAX_BODY_BYTES:
            raise _Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has {length} bytes; at most {MAX_BODY_BYTES} are read")
        raw = self.rfile.read(int(length))
        if self.headers.get_content_type() != "application/json":
            raise _Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must be application/json")
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise _Refusal(HTTPStatus.BAD_REQUEST, f"the body is no JSON: {error}") from error
        if not isinstance(body, dict):
            raise _Refusal(HTTPStatus.BAD_REQUEST, "the body must be a JSON object")
        self.close_connection = False
        return body

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self._send_json(status, {"error": reason})

    def _send_json(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(content).encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

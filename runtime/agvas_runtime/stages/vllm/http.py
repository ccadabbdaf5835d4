"""Stage 2 on vLLM behind HTTP: a server that ``agvas serve-lmm`` started.

The hash of the server's model is compared before the first question, and again in every reply: a server may be restarted with another.
"""

import http.client
import json
import threading
import weakref
from typing import Final, NoReturn
from urllib.parse import urlsplit

from agvas_core.contract.errors import BundleError, SetupError, StageError, UsageError
from agvas_runtime.bundle import Bundle
from agvas_runtime.stages.open import StageSettings
from agvas_runtime.stages.vllm.lmm import AskingLmm
from agvas_runtime.stages.vllm.protocol import (
    ADAPTERS_PATH,
    ASK_PATH,
    IDENTITY_PATH,
    Identity,
    LmmRequest,
    LmmResponse,
    pack_request,
    unpack_responses,
)

__all__ = ["HttpEngine", "open_http"]

DEFAULT_PORT: Final = 8000
_CONNECT_S: Final = 5.0
_BROKEN = (OSError, http.client.HTTPException)  # refused, reset, timed out, cut short
_ERRORS: Final = {"UsageError": UsageError, "BundleError": BundleError}


class HttpEngine:
    """One server. Each thread keeps a connection of its own.

    Args:
        url: ``http://host:port``.
        timeout_s: for an answer; a generated one may take long.

    Raises:
        UsageError: an address that cannot be one.
    """

    def __init__(self, url: str, *, timeout_s: float = 120.0) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port or DEFAULT_PORT
        except ValueError as error:
            raise UsageError(f"{url!r} is no address ({error}); write http://127.0.0.1:{DEFAULT_PORT}") from error
        if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/") or parts.query or parts.username:
            raise UsageError(f"{url!r} is no address of a server; write http://127.0.0.1:{DEFAULT_PORT}, without a path")
        self.address, self._host, self._port = f"{parts.hostname}:{port}", parts.hostname, port
        self._timeout_s, self._own = timeout_s, threading.local()
        self._open = set[http.client.HTTPConnection]()
        weakref.finalize(self, _close, self._open)
        self._expected: Identity | None = None

    def identity(self) -> Identity:
        """Asks the server; replies are compared with this one from now on."""
        told = self._request("GET", IDENTITY_PATH)
        try:
            self._expected = Identity(**json.loads(told))
        except (ValueError, TypeError) as error:
            raise StageError(f"the engine at {self.address} does not say who it is ({error}): is it agvas serve-lmm?") from error
        return self._expected

    def adapters(self) -> list[str]:
        """Those that the server has now."""
        return [str(name) for name in json.loads(self._request("GET", ADAPTERS_PATH))["adapters"]]

    def alive(self) -> bool:
        """Does its engine work? The server may answer while that is dead."""
        return self._request("GET", "/health") is not None

    def ask(self, asked: LmmRequest) -> list[LmmResponse]:
        body = self._request("POST", ASK_PATH, pack_request(asked))
        try:
            identity, said = unpack_responses(body)
        except (ValueError, KeyError, TypeError, UsageError) as error:
            raise StageError(f"the engine at {self.address} sent no reply of ours ({error}): is it agvas serve-lmm?") from error
        if identity != self._expected:
            raise StageError(
                f"the engine at {self.address} is now {identity.name} ({identity.checkpoint_sha256[:12]}...), it was another when this run "
                "began: start the run again"
            )
        if len(said) != len(asked.visual):
            raise StageError(
                f"the engine at {self.address} answered about {len(said)} of {len(asked.visual)} images: report this"
            )
        return said

    def _request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """The body of a reply; a connection that the server closed meanwhile is made again, once."""
        for fresh in (False, True):
            kept: http.client.HTTPConnection | None = None if fresh else getattr(self._own, "connection", None)
            if kept is None and not fresh:
                continue
            try:
                connection = kept or self._connect()
                connection.request(method, path, body)
                reply = connection.getresponse()
                data = reply.read()
            except _BROKEN as error:
                self._drop()
                if not fresh and not isinstance(error, TimeoutError):
                    continue
                raise StageError(
                    f"the engine at {self.address} does not answer ({error or type(error).__name__}): see agvas serve-lmm, or start it"
                ) from error
            if reply.status != 200:
                self._refuse(reply.status, data)
            return data
        raise AssertionError("the second round returns or raises")

    def _connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_CONNECT_S)
        connection.connect()
        connection.sock.settimeout(self._timeout_s)
        self._own.connection = connection
        self._open.add(connection)
        return connection

    def _drop(self) -> None:
        if (connection := getattr(self._own, "connection", None)) is not None:
            connection.close()
            self._open.discard(connection)
        self._own.connection = None

    def _refuse(self, status: int, data: bytes) -> NoReturn:
        try:
            told = json.loads(data)
            kind, message = _ERRORS.get(told["error"], StageError), str(told["message"])
        except (ValueError, KeyError, TypeError):
            kind, message = StageError, f"{data[:200]!r}: is it agvas serve-lmm?"
        raise kind(f"the engine at {self.address} says {status}: {message}")


def _close(connections: set[http.client.HTTPConnection]) -> None:
    for connection in connections:
        connection.close()


def open_http(bundle: Bundle, settings: StageSettings) -> AskingLmm:
    """Asks the server of ``settings`` who it is.

    Raises:
        UsageError: no address, or none that can be one.
        SetupError: no answer from there.
        BundleError: it serves another model.
    """
    if settings.lmm_url is None:
        raise UsageError(
            "the backend http needs the address of agvas serve-lmm: give it in place of the name, http://127.0.0.1:8000"
        )
    engine = HttpEngine(settings.lmm_url)
    try:
        return AskingLmm(bundle, engine, settings.adapter)
    except StageError as error:
        raise SetupError(f"{error}: agvas serve-lmm FOLDER") from error

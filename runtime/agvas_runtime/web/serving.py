"""Runs the application on a socket until SIGTERM or Ctrl-C, then finishes the requests in work."""

import asyncio
import errno
import logging
import os
import socket

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from agvas_core.contract.errors import SetupError
from agvas_runtime.web.gate import App
from agvas_runtime.web.settings import Settings

__all__ = ["address_of", "header_deadline", "listen", "make_server", "serve"]


# Connections that send their header slowly, or not at all, are closed: uvicorn waits for a first header without end.


def header_deadline(seconds: float) -> type[asyncio.Protocol]:
    """A protocol for uvicorn whose clients have ``seconds`` for each header."""

    class PatientProtocol(H11Protocol):  # uvicorn takes a class, and has no other place for this
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._rest()

        def _watch(self) -> None:
            in_work = self.cycle is not None and not self.cycle.response_complete
            if in_work:
                self._rest()
            elif self._timer is None:
                self._timer = self.loop.call_later(seconds, self._close)

        def _rest(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _close(self) -> None:
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return PatientProtocol


MAX_HEADER_BYTES = 32 << 10
BACKLOG = 256


def listen(settings: Settings, *, options: tuple[str, str] = ("--port", "--host")) -> socket.socket:
    """A socket on the server's address; it listens before the model is loaded, so that a port that is taken is said at once.

    Args:
        options: of the command, that choose another port and address.

    Raises:
        SetupError: the port is taken, the address is not this machine's, or it may not be used.
    """
    host, port = settings.host.strip("[]"), settings.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends small answers without delay (TCP_NODELAY) only where the socket names its protocol: else 40 ms on a connection kept open.
    opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port is free at once after a server ended
        opened.bind((host, port))
        opened.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        opened.close()
        number = error.errno if isinstance(error, OSError) else None
        if number == errno.EADDRINUSE:
            raise SetupError(
                f"port {port} is taken by another program: end that one, or choose another with {options[0]}"
            ) from error
        reason = os.strerror(number) if isinstance(number, int) and number > 0 else str(error)
        raise SetupError(f"{host} port {port} cannot be used ({reason}): choose others with {' and '.join(options)}") from error
    return opened


def address_of(opened: socket.socket) -> str:
    """``http://host:port`` of a listening socket."""
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(app: App, settings: Settings) -> uvicorn.Server:
    """uvicorn with our limits; ``should_exit`` ends it as a signal does."""
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=header_deadline(settings.header_timeout_s),
            ws="none",
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=settings.max_connections,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            timeout_graceful_shutdown=max(1, round(settings.stop_timeout_s)),
        )
    )


def serve(app: App, opened: socket.socket, settings: Settings) -> None:
    """Serves until SIGINT or SIGTERM; what is in work is finished, within ``stop_timeout_s``."""
    try:
        make_server(app, settings).run(sockets=[opened])
    except KeyboardInterrupt:  # uvicorn raises the signal again after it has ended in order; this is that end
        return

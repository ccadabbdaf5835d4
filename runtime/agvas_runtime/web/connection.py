"""Connections that send their header slowly, or not at all, are closed: uvicorn waits for a first header without end."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["header_deadline"]


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

"""The message to a sink, and the protocol of a sink."""

import json
from typing import Any, NamedTuple, Protocol

__all__ = ["Message", "VerdictSink"]


class Message(NamedTuple):
    """One part's verdict on its way out."""

    key: str
    """The same each time this message is sent, and no other message has it: a receiver can drop duplicates."""
    number: int
    """Counts the parts of one ledger from 1, without a gap."""
    body: dict[str, Any]
    """Ready for JSON; holds ``key``, ``seq``, ``station``, ``verdict``, ``cause`` and the rest of the ledger's row."""

    def encode(self) -> bytes:
        """The body as one line of JSON in UTF-8, without its end of line; always the same bytes."""
        return json.dumps(self.body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(
            "utf-8", "backslashreplace"
        )


class VerdictSink(Protocol):
    """A transport. One thread calls it; it knows nothing of the line."""

    @property
    def name(self) -> str:
        """Under which the outbox keeps its messages; the same after a restart, without secrets."""
        ...

    def open(self) -> None:
        """Connects; called again after each ``close``.

        Raises:
            DeliveryError: it is not there.
        """
        ...

    def send(self, message: Message) -> None:
        """Returns when the other side has acknowledged the message.

        Raises:
            DeliveryError: it did not.
        """
        ...

    def close(self) -> None:
        """Disconnects. May be called twice, and without ``open``."""
        ...

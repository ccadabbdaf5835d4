"""Verdicts as HTTP POSTs: JSON, signed, with a key by which the receiver knows what it had before.

Headers, beside the usual ones:

    Idempotency-Key     the message's key
    X-Agvas-Timestamp   seconds since 1970, when this attempt was made
    X-Agvas-Signature   sha256=HEX, the HMAC-SHA256 of "TIMESTAMP.BODY" with the secret

An answer of 2xx acknowledges. 400, 413 and 422 refuse this message permanently; after anything else it is sent again.
"""

import hashlib
import hmac
import http.client
import ssl
import time
from urllib.parse import urlsplit

from agvas_core.contract.errors import DeliveryError
from agvas_runtime.sinks.message import Message

__all__ = ["WebhookSink", "signature"]

TIMEOUT_S = 10.0
MAX_ANSWER = 65_536
REFUSALS = frozenset({400, 413, 422})


def signature(secret: bytes, timestamp: str, body: bytes) -> str:
    """What stands in ``X-Agvas-Signature``; compare it with ``hmac.compare_digest``."""
    return "sha256=" + hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


class WebhookSink:
    """One address. The connection is kept open; redirects are not followed."""

    def __init__(self, url: str, *, secret: bytes | None = None, timeout_s: float = TIMEOUT_S) -> None:
        parts = urlsplit(url)
        self._host, self._tls = parts.hostname or "", parts.scheme == "https"
        self._port = parts.port or (443 if self._tls else 80)
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self.name = f"webhook:{self._host}:{self._port}{parts.path}"
        self._secret, self._timeout_s = secret, timeout_s
        self._connection: http.client.HTTPConnection | None = None

    def open(self) -> None:
        """Connects, so that a missing one is reported at once."""
        self.close()
        if self._tls:
            context = ssl.create_default_context()
            self._connection = http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=context)
        else:
            self._connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        try:
            self._connection.connect()
        except OSError as error:
            self.close()
            raise DeliveryError(f"{self.name} is not there ({error or type(error).__name__})") from error

    def send(self, message: Message) -> None:
        """Posts, and waits for the answer."""
        assert self._connection is not None, "open() comes first"
        body, timestamp = message.encode(), str(int(time.time()))
        headers = {"Content-Type": "application/json", "Idempotency-Key": message.key, "X-Agvas-Timestamp": timestamp}
        if self._secret is not None:
            headers["X-Agvas-Signature"] = signature(self._secret, timestamp, body)
        try:
            self._connection.request("POST", self._path, body, headers)
            answer = self._connection.getresponse()
            if len(answer.read(MAX_ANSWER)) == MAX_ANSWER:
                self._connection.close()  # whatever it has to say, it is too long for us
        except (OSError, http.client.HTTPException) as error:
            raise DeliveryError(f"{self.name} does not answer ({error or type(error).__name__})") from error
        if 200 <= answer.status < 300:
            return
        raise DeliveryError(f"{self.name} answers {answer.status} {answer.reason}", permanent=answer.status in REFUSALS)

    def close(self) -> None:
        """Closes the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

"""Whether the host of a network camera takes connections."""

import socket
import time
from typing import Final
from urllib.parse import urlsplit

from agvas_core.contract.errors import SourceError

__all__ = ["reach"]

ATTEMPT_S: Final = 0.5
PORTS: Final = {"http": 80, "https": 443, "rtsp": 554, "rtsps": 322}


def reach(url: str, timeout_s: float) -> None:
    """Returns once a connection is taken, or refused with words, which whoever opens the stream will hear.

    A cable that is out swallows packets. TCP waits 1, 2, 4 s until it sends the first one again, so that an attempt that began then would
    find a camera late that has long been back; short attempts find it at once.

    Raises:
        SourceError: nothing for ``timeout_s``.
    """
    parts = urlsplit(url)
    end_s = time.monotonic() + timeout_s
    while (left_s := end_s - time.monotonic()) > 0:
        try:
            socket.create_connection((parts.hostname, parts.port or PORTS[parts.scheme]), min(ATTEMPT_S, left_s)).close()
            return
        except TimeoutError:
            continue
        except OSError:
            return
    raise SourceError("its host does not answer")

"""Network addresses: where to listen, and what can be sent to."""

import hmac
import ipaddress
from urllib.parse import urlsplit

from agvas_core.contract.errors import UsageError

__all__ = ["KEY_VARIABLE", "calls_loopback", "carries_key", "check_key", "is_loopback"]

KEY_VARIABLE = "AGVAS_API_KEY"
"""The environment variable with the key of whatever listens beyond loopback."""
KEY_LETTERS_LEAST = 16


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own, seen from itself only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_key(key: str | None, host: str) -> None:
    """Raises UsageError for a key that is none, and where there is none and ``host`` is reached from other machines."""
    if key is None:
        if not is_loopback(host):
            raise UsageError(
                f"host {host} is reached from other machines and there is no API key: set {KEY_VARIABLE}, or bind to 127.0.0.1"
            )
        return
    if len(key) < KEY_LETTERS_LEAST:
        raise UsageError(f"the API key has {len(key)} characters; at least {KEY_LETTERS_LEAST} are needed: choose a longer one")
    if not (key.isascii() and key.isprintable() and key == key.strip()):
        raise UsageError(
            "the API key has characters that no header carries: letters, digits and signs of ASCII are possible, with spaces inside alone"
        )


def carries_key(authorization: str, key: str) -> bool:
    """Whether a header ``Authorization: Bearer KEY`` has the key; takes as long for a wrong one as for a right one."""
    scheme, _, given = authorization.partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), key.encode())


def calls_loopback(host: str) -> bool:
    """Whether a request's ``Host`` header names this machine; a page's name that was pointed at loopback (DNS rebinding) does not."""
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False

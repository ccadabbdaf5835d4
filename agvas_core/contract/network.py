"""What an address means to whoever listens on it, or sends to it."""

import ipaddress
from urllib.parse import urlsplit

__all__ = ["calls_loopback", "is_loopback"]


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own, seen from itself only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def calls_loopback(host: str) -> bool:
    """Whether a request's ``Host`` header names this machine; a page's name that was pointed at loopback (DNS rebinding) does not."""
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False

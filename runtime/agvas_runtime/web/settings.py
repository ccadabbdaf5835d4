"""Limits of a server: sizes, timeouts, queue length."""

from dataclasses import dataclass

from agvas_core.contract.errors import UsageError
from agvas_core.contract.network import check_key

__all__ = ["Settings"]

MIB = 1 << 20


@dataclass(frozen=True)
class Settings:
    """Limits of one server; each is checked before the work that it bounds begins."""

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    """Asked of every caller of ``/v1`` and ``/metrics``; needed beyond loopback."""
    workers: int = 1
    """Images that are judged at the same time."""
    queue: int = 16
    """Images that wait beside those; more are refused with 429."""
    max_body_bytes: int = 32 * MIB
    max_pixels: int = 25_000_000
    """Width times height, read from the header before a pixel is decoded."""
    bits: int | None = None
    """That 16-bit images use; all 16 where None, and where a recipe does not say."""
    max_images: int = 8
    """Of one request."""
    upload_bytes: int = 256 * MIB
    """Bodies that are held at the same time, all of them together."""
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    """For the whole body."""
    send_timeout_s: float = 30.0
    """For each piece of a reply that the client takes."""
    stop_timeout_s: float = 20.0
    """For requests in work when the server ends."""
    max_connections: int = 512

    def __post_init__(self) -> None:
        check_key(self.api_key, self.host)
        for name in ("workers", "queue", "max_body_bytes", "max_pixels", "max_images", "upload_bytes"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; at least 1 is needed")
        if self.upload_bytes < self.max_body_bytes:
            raise UsageError(
                f"max_body_bytes is {self.max_body_bytes} and all bodies together may have {self.upload_bytes}: lower the first"
            )

    @property
    def open_to_names(self) -> bool:
        """Whether any Host header will do: with a key a foreign page has nothing to gain from a rebound name."""
        return self.api_key is not None

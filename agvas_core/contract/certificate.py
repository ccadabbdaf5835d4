"""The parity certificate of a bundle, ``parity.json``: what each engine made of somebody's images, against the model in torch.

It is made after the bundle (``agvas-export check``), may be made again elsewhere, and so is no part of the bundle's identity: the manifest
does not list it. It names the manifest that it is about, so one from another bundle is not taken for this one's.
"""

import hashlib
import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agvas_core.contract.durable import write_whole
from agvas_core.contract.errors import BundleError, OutputError
from agvas_core.contract.hardware import Hardware

__all__ = [
    "PARITY_NAME",
    "BackendParity",
    "Certificate",
    "Flip",
    "JointError",
    "data_digest",
    "read_certificate",
    "write_certificate",
]

PARITY_NAME = "parity.json"
SCHEMA_VERSION: Final = 1
MAX_BYTES: Final = 16 << 20  # it is read before anything vouches for it
_HEX = r"[0-9a-f]{64}"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class JointError(_Part):
    """The worst error of one tensor over all images, scaled as ``Tolerance`` says. Each joint was given the reference's own inputs, so
    that an error shows where it arises."""

    tensor: str
    joint: str
    """vision, lmm or decoder; whole for what comes of all three."""
    error: float = Field(ge=0)
    tolerance: float = Field(ge=0)

    @property
    def holds(self) -> bool:
        """Whether it is within the tolerance."""
        return self.error <= self.tolerance


class Flip(_Part):
    """An image with two verdicts. Its name stays with whoever has the images: a certificate travels."""

    sha256: str = Field(pattern=_HEX)
    reference: str
    reference_score: float
    verdict: str
    score: float


class BackendParity(_Part):
    """One engine against the reference."""

    backend: str
    device: str
    versions: dict[str, str]
    joints: tuple[JointError, ...]
    """In the order of the data path."""
    first_wrong: str | None
    """The first joint with an error beyond its tolerance, and the tensor: ``vision: f_s``."""
    min_mask_iou: float = Field(ge=0, le=1)
    mean_mask_iou: float = Field(ge=0, le=1)
    """Of the two masks of each image; 1 where both are empty."""
    flips: tuple[Flip, ...]
    seconds: float = Field(ge=0)
    """For all images, the whole way."""
    passed: bool


class Certificate(_Part):
    """Contents of ``parity.json``."""

    schema_version: int = SCHEMA_VERSION
    created: datetime
    bundle: str
    """Its name."""
    manifest_sha256: str = Field(pattern=_HEX)
    precision: str
    reference: str
    """What gave the truth: package, device and the digest of the weights."""
    hardware: Hardware
    versions: dict[str, str]
    instruction: str
    images: int = Field(ge=1)
    unused: int = Field(default=0, ge=0)
    """Files that are no usable images."""
    data_sha256: str = Field(pattern=_HEX)
    """``data_digest`` of ``data``."""
    data: tuple[str, ...]
    """sha256 of each image file, sorted."""
    max_verdict_flips: int = Field(ge=0)
    min_mask_iou: float = Field(ge=0, le=1)
    backends: tuple[BackendParity, ...] = Field(min_length=1)
    passed: bool


def data_digest(hashes: Iterable[str]) -> str:
    """One digest for a set of files, whatever their names and order."""
    return hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()


def write_certificate(path: Path, certificate: Certificate) -> None:
    """Raises OutputError where it cannot be written."""
    try:
        write_whole(path, json.dumps(certificate.model_dump(mode="json"), indent=2) + "\n")
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): give another place with --out FILE") from error


def read_certificate(path: Path) -> Certificate | None:
    """The certificate in a file; None where there is none, or only the comparison that older exports kept under this name.

    Raises:
        BundleError: damaged, or from a newer agvas.
    """
    try:
        if not path.is_file():
            return None
        if (size := path.stat().st_size) > MAX_BYTES:
            raise BundleError(
                f"{path} has {size:,} bytes; a certificate has {MAX_BYTES:,} at most: make it again with agvas-export check"
            )
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read ({error}): make it again with agvas-export check") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version is None and isinstance(raw, dict) and "comparisons" in raw:
        return None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BundleError(f"{path} has schema {version}; this agvas reads {SCHEMA_VERSION}: pip install --upgrade agvas")
    try:
        return Certificate.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path}: {where}: {first['msg']}: make it again with agvas-export check") from error

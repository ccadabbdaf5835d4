"""The parity certificate of a bundle, ``parity.json``: what each engine gives on a user's images, compared with the model in torch.

It is made after the bundle (``agvas-export check``), may be made again elsewhere, and so is no part of the bundle's identity: the manifest
does not list it. It names the manifest that it is about, so one from another bundle is not taken for this one's.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from pydantic import Field, ValidationError

from agvas_core.contract.durable import write_whole
from agvas_core.contract.errors import BundleError, OutputError
from agvas_core.contract.gpu import Hardware
from agvas_core.contract.validation import StrictModel

__all__ = [
    "PARITY_NAME",
    "TOLERANCES",
    "BackendParity",
    "Certificate",
    "Flip",
    "TensorParity",
    "Tolerance",
    "data_digest",
    "read_certificate",
    "write_certificate",
]


PARITY_NAME = "parity.json"
SCHEMA_VERSION: Final = 1
MAX_BYTES: Final = 16 << 20  # it is read before its hash is known
_HEX = r"[0-9a-f]{64}"


class TensorParity(StrictModel):
    """The worst error of one tensor over all images, scaled as ``Tolerance`` says. Each stage was given the reference's own inputs, so
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


class Flip(StrictModel):
    """An image with two verdicts. It has no name, only a hash: a certificate is passed on, the images are not."""

    sha256: str = Field(pattern=_HEX)
    reference: str
    reference_score: float
    verdict: str
    score: float


class BackendParity(StrictModel):
    """One engine against the reference."""

    backend: str
    device: str
    versions: dict[str, str]
    joints: tuple[TensorParity, ...]
    """In the order of the data path."""
    first_wrong: str | None
    """The first stage with an error beyond its tolerance, and the tensor: ``vision: f_s``."""
    min_mask_iou: float = Field(ge=0, le=1)
    mean_mask_iou: float = Field(ge=0, le=1)
    """Of the two masks of each image; 1 where both are empty."""
    flips: tuple[Flip, ...]
    seconds: float = Field(ge=0)
    """For all images, the whole way."""
    passed: bool


class Certificate(StrictModel):
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


# How far two engines may differ: torch, ONNX Runtime, TensorRT and native kernels give one answer, within this table.
#
# Export refuses a bundle beyond it and the tests compare with it; no other number stands anywhere else.


@dataclass(frozen=True)
class Tolerance:
    """The largest error allowed at each stage.

    The error of a tensor is its largest difference, divided by the reference's largest magnitude where that is above 1.
    """

    features: float
    """f_s, f_align, f_p, f_detail."""
    anchor_states: float
    text: float
    """Logits of the next word, keys and values."""
    logits: float
    """Of the masks."""
    probability: float
    """P of eq. 8 and the acceptance, the graphs one after the other. Not scaled. Only pixels this close to the threshold may change
    sides."""


# ONNX Runtime on a CPU against torch, a trained nano: features 4e-6, anchor states 4e-7, logits 5e-7, P 6e-6, no pixel of twelve
# masks changed. torch in single against double precision is itself off by 1e-5 in the features, by the prior's logarithms.
TOLERANCES: Final[Mapping[str, Tolerance]] = MappingProxyType(
    {
        "fp32": Tolerance(features=5e-5, anchor_states=5e-5, text=1e-4, logits=1e-4, probability=5e-5),
        # The runtime's native core against NumPy and OpenCV, from the same logits: 2.1e-6 on examples/parts. OpenCV multiplies and adds in
        # one rounding where the CPU can, and has another exponential.
        "native": Tolerance(features=0.0, anchor_states=0.0, text=0.0, logits=0.0, probability=1e-5),
        # Half precision, nano's graphs on ONNX Runtime's CPU provider against torch in float32, as agvas-export bundle prints them: features
        # 1.2e-3, anchor states 4.1e-4, text 5.5e-4, logits of the masks 1.6e-4, P and acceptance 1.2e-3. Allowed is about four times that:
        # other pictures, and engines that add up in another order.
        "fp16": Tolerance(features=5e-3, anchor_states=2e-3, text=3e-3, logits=2e-3, probability=5e-3),
        # bfloat16 rounds eight times as coarsely: eight times what fp16 may. With weights rounded to it, and nothing else, nano is off by 8.3e-3,
        # 9.0e-4, 2.0e-3, 1.3e-3, 8.1e-3.
        "bf16": Tolerance(features=4e-2, anchor_states=1.6e-2, text=2.4e-2, logits=1.6e-2, probability=4e-2),
    }
)
"""Precision of the graphs -> what is allowed; ``native``: what comes before and after them."""

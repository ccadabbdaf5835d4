"""What a run says of its bundle's parity certificate: one line, and whether it is a warning."""

import logging
from datetime import UTC, datetime
from typing import NamedTuple

from agvas_core.contract.certificate import PARITY_NAME, Certificate, read_certificate
from agvas_core.contract.errors import BundleError
from agvas_core.contract.hardware import Hardware, this_machine
from agvas_core.contract.manifest import MANIFEST_NAME, sha256_of
from agvas_runtime.bundle import Bundle

__all__ = ["Note", "note_on_parity"]


class Note(NamedTuple):
    """One line for the user."""

    text: str
    level: int
    """Of ``logging``: INFO where all is well."""


def note_on_parity(bundle: Bundle, *, now: datetime | None = None, here: Hardware | None = None) -> Note:
    """The certificate's age, hardware and outcome; what to do where it is missing, foreign, from elsewhere or says no."""
    again = f"agvas-export check {bundle.manifest.name if bundle.is_bundled else bundle.folder} --data YOUR_IMAGES"
    try:
        certificate = read_certificate(bundle.folder / PARITY_NAME)
    except BundleError as error:
        return Note(f"no parity certificate: {error}", logging.WARNING)
    if certificate is None:
        return Note(f"{bundle.identity} has no parity certificate; {again} makes one", logging.WARNING)
    if certificate.manifest_sha256 != sha256_of(bundle.folder / MANIFEST_NAME):
        return Note(f"the parity certificate in {bundle.folder} is another bundle's: {again}", logging.WARNING)
    facts = f"parity of {bundle.identity}: {_outcome(certificate)}, {_age(certificate.created, now or datetime.now(UTC))}"
    here = here or this_machine()
    if not certificate.passed:
        wrong = next(each for each in certificate.backends if not each.passed)
        return Note(
            f"{facts}: FAILED on {wrong.backend} (first: {wrong.first_wrong or 'the masks'}): do not rely on it", logging.WARNING
        )
    if certificate.hardware != here:
        return Note(f"{facts}, elsewhere, on {certificate.hardware}; this is {here}: {again}", logging.WARNING)
    return Note(f"{facts}, on this machine ({here})", logging.INFO)


def _outcome(certificate: Certificate) -> str:
    flips = sum(len(each.flips) for each in certificate.backends)
    engines = ", ".join(each.backend for each in certificate.backends)
    return f"{engines} against torch, {flips} of {certificate.images} verdicts flipped"


def _age(created: datetime, now: datetime) -> str:
    days = (now - created).days
    if days < 0:
        return "made in the future by this machine's clock"
    return {0: "made today", 1: "made yesterday"}.get(days, f"made {days} days ago")

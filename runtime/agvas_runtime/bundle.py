"""Finding a bundle by name, folder or zip, and refusing one that is not whole.

    bundle = load_bundle("nano")         # shipped inside this package
    bundle = load_bundle("exports/run3") # a folder, or a .zip, made by agvas-export
    bundle = load_bundle("hf:org/name")  # from a model hub, kept in its cache

Nothing in a bundle is opened before every hash of its manifest was compared.
"""

import atexit
import logging
import lzma
import shutil
import stat
import tempfile
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from agvas_core.contract.certificate import PARITY_NAME, Certificate, read_certificate
from agvas_core.contract.command_line import needs_packages
from agvas_core.contract.errors import BundleError, UsageError
from agvas_core.contract.gpu import Hardware, this_machine
from agvas_core.contract.manifest import (
    MANIFEST_NAME,
    Manifest,
    ReferencesSpec,
    TensorSpec,
    read_manifest,
    sha256_of,
    verify_files,
)
from agvas_core.contract.product import HEAD, Product, read_product
from agvas_core.contract.validation import nearest

__all__ = ["BUNDLED", "Bundle", "Note", "bundled_names", "find_bundle", "load_bundle", "note_on_parity"]


BUNDLED = Path(__file__).parent / "bundles"

# A zip is unpacked before its manifest can be trusted, so its size is bounded; larger bundles travel as folders.
MAX_ZIP_BYTES = 4 * 1024**3
MAX_ZIP_FILES = 1000

HUB_PREFIX = "hf:"
HUB_FILES = frozenset({"README.md", ".gitattributes"})  # what a repository has of its own; no graph of ours refers to them

# Damaged (each compression has its own error), unknown compression, encrypted, a name or a disk that cannot take it.
_NOT_UNPACKED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, OSError, ValueError)

_WORDS = (
    "ids_before",
    "ids_after",
    "anchor_positions",
    "logit_positions",
    "past_key_values",
)  # what the LMM graph takes from no graph


@dataclass(frozen=True)
class Bundle:
    """A verified bundle."""

    folder: Path
    manifest: Manifest
    identity: str
    """Name and first 12 hex digits of the manifest's sha256: ``nano@0123456789ab``."""
    product: Product | None = None
    """What it learned of a product's good images; None where it was shown none."""

    @property
    def is_bundled(self) -> bool:
        """Whether it ships inside this package."""
        return self.folder.parent == BUNDLED


def bundled_names() -> list[str]:
    """Names of the bundles that ship inside this package."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{MANIFEST_NAME}"))


def find_bundle(model: str | Path) -> Path:
    """The folder or zip that ``model`` means: a bundled name first, else a path (``./nano`` is always a path).

    Raises:
        UsageError: neither a bundled name nor a path that exists.
    """
    names = bundled_names()
    if str(model) in names:
        return BUNDLED / str(model)
    path = Path(model).expanduser()
    with suppress(OSError, ValueError):  # a name that no path can have
        if path.is_dir() or (path.is_file() and path.suffix.lower() == ".zip"):
            return path
        if path.is_file():
            raise UsageError(
                f"{model} is a file, and a bundle is a folder or a .zip: make one with agvas-export bundle CHECKPOINT -o DIR"
            )
    bundled = ", ".join(names) or "none"
    meant = f"did you mean {near}? " if (near := nearest(str(model), names)) else ""
    raise UsageError(f"there is no model {str(model)!r}: {meant}bundled are {bundled}; or give the folder of a bundle")


def load_bundle(model: str | Path, *, offline: bool = False) -> Bundle:
    """Finds a bundle and verifies every file of it.

    Args:
        offline: a bundle of the hub is taken from the cache, and no connection is opened. All others never open one.

    Raises:
        UsageError: there is no such bundle.
        SetupError: the hub cannot be reached, or is not to be and the cache lacks the bundle.
        BundleError: it is incomplete, changed, newer than this package, or its graphs do not fit each other.
    """
    from_hub = str(model).startswith(HUB_PREFIX)
    folder = _from_hub(str(model), offline) if from_hub else find_bundle(model)
    if folder.is_file():
        folder = _unpack(folder)
    manifest = read_manifest(folder)
    verify_files(folder, manifest, beside=HUB_FILES if from_hub else frozenset())
    _check_stages(folder, manifest)
    product = None
    if manifest.product is not None:
        product = read_product(folder, manifest.product)
        if manifest.references is None:
            raise BundleError(f"{folder / MANIFEST_NAME} has a product and no references graph: run agvas fit again")
        if product.head is not None and HEAD not in manifest.files:
            raise BundleError(f"{folder / MANIFEST_NAME} lists no hash for {HEAD}: run agvas fit again")
    return Bundle(folder, manifest, f"{manifest.name}@{sha256_of(folder / MANIFEST_NAME)[:12]}", product)


def _from_hub(model: str, offline: bool) -> Path:
    with needs_packages():
        from agvas_runtime.hub import fetch_bundle
    return fetch_bundle(model, offline=offline)


def _unpack(archive: Path) -> Path:
    """Unpacks a zipped bundle into a temporary folder that goes away with the process."""
    try:
        with zipfile.ZipFile(archive) as file:
            entries = [entry for entry in file.infolist() if not entry.is_dir()]
            _check_entries(archive, entries)
            folder = Path(tempfile.mkdtemp(prefix="agvas-bundle-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            for entry in entries:
                file.extract(entry, folder)
    except _NOT_UNPACKED as error:
        raise BundleError(f"{archive} cannot be unpacked ({error}): copy or export the bundle again") from error
    inner = [path for path in folder.iterdir() if path.is_dir()]
    # A folder zipped as a whole has everything one level down.
    return inner[0] if not (folder / MANIFEST_NAME).is_file() and len(inner) == 1 else folder


def _check_entries(archive: Path, entries: list[zipfile.ZipInfo]) -> None:
    total = sum(entry.file_size for entry in entries)
    if len(entries) > MAX_ZIP_FILES or total > MAX_ZIP_BYTES:
        raise BundleError(
            f"{archive} unpacks to {len(entries)} files and {total / 1e9:.1f} GB; a zipped bundle may have "
            f"{MAX_ZIP_FILES} and {MAX_ZIP_BYTES / 1e9:.1f} GB: unpack it yourself and give the folder"
        )
    for entry in entries:
        parts = PurePosixPath(entry.filename.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in entry.filename or stat.S_ISLNK(entry.external_attr >> 16):
            raise BundleError(f"{archive} holds {entry.filename!r}, a link or a path outside the bundle: do not use this bundle")


def _check_stages(folder: Path, manifest: Manifest) -> None:
    """What one graph gives, the next one must take, under the same name and dtype."""
    given = {spec.name: spec.dtype for graph in manifest.graphs.values() for spec in graph.outputs}
    if manifest.lmm is None:
        given["anchor_states"] = "float32"  # of whatever takes its place
    for name, graph in [item for item in manifest.graphs.items() if item[0] != "vision"]:
        for spec in graph.inputs:
            if spec.name in _WORDS:
                continue
            if given.get(spec.name) != spec.dtype:
                raise BundleError(
                    f"{folder / MANIFEST_NAME}: the {name} graph takes {spec.name} as {spec.dtype}, the graphs before it give "
                    f"{given.get(spec.name, 'nothing of that name')}: export the bundle again"
                )
    for name, part, inputs, outputs in (
        ("vision", manifest.vision, {"semantic_image", "pixel_image"}, {"f_s", "f_align"}),
        ("lmm", manifest.lmm, {"f_s", "f_align", *_WORDS}, {"anchor_states", "text_logits", "present_key_values"}),
        ("decoder", manifest.decoder, {"anchor_states"}, {"logits"}),
    ):
        if part is None:
            continue
        if missing := sorted((inputs - _names(part.inputs)) | (outputs - _names(part.outputs))):
            raise BundleError(f"{folder / MANIFEST_NAME}: the {name} graph lacks {missing[0]}: export the bundle again")
    if manifest.references is not None:
        _check_references(folder, manifest, manifest.references)


def _check_references(folder: Path, manifest: Manifest, references: ReferencesSpec) -> None:
    """The graph takes an image of its own view, or what the vision graph takes and gives; tensors are those of ``ReferencesSpec``."""
    place = f"{folder / MANIFEST_NAME}: the references graph"
    images = {"reference_image"} if references.view is not None else {"pixel_image", *(references.features or ("f_p",))}
    if (given := _names(references.inputs)) != images | {"bank", "colour_weight"}:
        raise BundleError(
            f"{place} takes {', '.join(sorted(given))}, not {', '.join(sorted(images))}, bank, colour_weight: export the bundle again"
        )
    if (made := _names(references.outputs)) != {"embedding", "deep", "joint"}:
        raise BundleError(f"{place} gives {', '.join(sorted(made))}, not deep, embedding, joint: export the bundle again")
    known = {spec.name: spec for spec in (*manifest.vision.inputs, *manifest.vision.outputs)}
    shapes = {spec.name: spec.shape for spec in (*references.inputs, *references.outputs)}
    for spec in references.inputs:
        if spec.name in ("pixel_image", *references.features) and (
            spec.name not in known or known[spec.name].dtype != spec.dtype
        ):
            raise BundleError(
                f"{place} takes {spec.name} as {spec.dtype}, which the vision graph does not have: export the bundle again"
            )
    widths = shapes["bank"][-1:], shapes["embedding"][-1:]
    if widths[0] != widths[1] or not isinstance(widths[0][0], int):
        raise BundleError(
            f"{place} has a bank of {widths[0][0]} columns and an embedding of {widths[1][0]}: export the bundle again"
        )


def _names(specs: tuple[TensorSpec, ...]) -> set[str]:
    return {spec.name for spec in specs}


# What a run says of its bundle's parity certificate: one line, and whether it is a warning.


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
    if bundle.product is not None and certificate is not None and certificate.manifest_sha256[:12] == bundle.product.base[-12:]:
        return Note(f"{bundle.identity}: the graphs are those of {bundle.product.base}: {_outcome(certificate)}", logging.INFO)
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
        return Note(f"{facts}, elsewhere, on {certificate.hardware}; this is {here}: {again}", logging.INFO)
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

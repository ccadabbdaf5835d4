"""``agvas-export check``: the bundle on every engine against its model in torch, on the user's own images.

What comes out is the certificate (``parity.json``) and, for images whose verdict or mask differ, what to look at.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import entry_points, version
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from agvas_core import __version__
from agvas_core.contract.backend import STAGES_GROUP, Backend, Judged
from agvas_core.contract.certificate import BackendParity, Certificate, Flip, data_digest
from agvas_core.contract.errors import ImageError, ParityError, SetupError, UsageError
from agvas_core.contract.hardware import this_machine
from agvas_core.contract.manifest import MANIFEST_NAME, Manifest, read_manifest, sha256_of, verify_files
from agvas_core.contract.prompts import Mode
from agvas_core.contract.tolerances import TOLERANCES
from agvas_core.files.pairing import IMAGE_SUFFIXES
from agvas_export.replay import Beside, Errors, mask_iou
from agvas_export.source import read_reference
from agvas_export.torch_stages import TorchStages

__all__ = [
    "DEFAULT_LIMITS",
    "MAX_SHOWN",
    "Checked",
    "Limits",
    "Unlike",
    "check_bundle",
    "images_in",
    "open_backends",
    "refuse_failed",
]

NO_VERDICT = "NO_VERDICT"
MAX_SHOWN = 24
SHOWN_PX = 640
_MASKS = {"ground_truth", "masks"}  # folders beside a set's images that hold none


@dataclass(frozen=True)
class Limits:
    """What a certificate must hold to pass, besides the tolerances of the joints."""

    max_verdict_flips: int = 0
    min_mask_iou: float = 0.99


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Unlike:
    """An image that an engine judges otherwise than the reference."""

    name: str
    backend: str
    image: NDArray[np.uint8]
    """RGB; like the maps, at most ``SHOWN_PX`` on its longer side."""
    reference: Judged
    engine: Judged | None
    """None where it gives no verdict."""
    iou: float
    largest: float
    """Largest difference of the two score maps, at full size."""

    @property
    def flipped(self) -> bool:
        """Whether the verdict differs, not the mask alone."""
        return self.engine is None or self.engine.verdict != self.reference.verdict


@dataclass(frozen=True)
class Checked:
    """A certificate, and the images to look at, worst first."""

    certificate: Certificate
    unlike: tuple[Unlike, ...]
    """``MAX_SHOWN`` at most."""
    differing: int
    """How many there are."""
    skipped: Mapping[str, str]
    """Engines that cannot be had here, and why."""


class _Tally:
    """What one engine made of the images so far."""

    def __init__(self, errors: Errors) -> None:
        self.errors, self.flips, self.ious, self.seconds = errors, list[Flip](), list[float](), 0.0


def check_bundle(
    folder: Path,
    data: Path,
    *,
    checkpoint: str | Path | None = None,
    backends: Sequence[str] | None = None,
    instruction: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
    limit: int | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Checked:
    """Compares a bundle on its engines with its model.

    Args:
        folder: of the bundle.
        data: a picture, or a folder of them, searched through.
        checkpoint: where the model is; its torch form, or the checkpoint that ships under its name, where None.
        backends: engines by name; all that can be had here where None.
        instruction: what to look for; the bundle's own where None.
        limit: so many images at most, evenly over all.

    Raises:
        UsageError: no bundle, images or engine of that name; a checkpoint that the bundle did not come from.
        BundleError: a bundle that is broken.
    """
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    paths = images_in(data, limit)
    progress("reading the model")
    source, weights = read_reference(folder, manifest, checkpoint)
    engines, skipped = open_backends(folder, backends)
    reference = TorchStages(source, manifest)
    asked = instruction or manifest.prompt.instructions[Mode.DIRECT]
    tallies = {name: _Tally(Errors(TOLERANCES[manifest.precision])) for name in engines}
    beside = Beside(reference, engines, {name: tally.errors for name, tally in tallies.items()})
    judge = next(iter(engines.values()))  # the way of a frame is the same whichever engine goes it
    used, unlike, differing = dict[str, None](), list[Unlike](), 0
    for index, path in enumerate(paths):
        progress(f"image {index + 1} of {len(paths)}: {path.name}")
        try:
            image = judge.read(path)
            truth = judge.judge(image, asked, beside)
        except ImageError:  # no image, or none that the model itself can judge
            continue
        used[digest := sha256_of(path)] = None
        for name, engine in engines.items():
            own, iou = _against(engine, image, asked, truth, tallies[name], digest)
            if own is None or own.verdict != truth.verdict or iou < 1.0:
                differing += 1
                unlike.append(_shown(path.name, name, image, truth, own, iou))
        unlike = sorted(unlike, key=lambda each: (not each.flipped, each.iou))[:MAX_SHOWN]
    if not used:
        raise UsageError(f"{data} has {len(paths)} picture files and none can be judged: give pictures of parts")
    parts = tuple(_summary(name, engine, tallies[name], limits) for name, engine in engines.items())
    certificate = Certificate(
        created=datetime.now(UTC),
        bundle=manifest.name,
        manifest_sha256=sha256_of(folder / MANIFEST_NAME),
        precision=manifest.precision,
        reference=f"torch {torch.__version__}, cpu, float32, weights {weights[:12]}",
        hardware=this_machine(),
        versions={"agvas": __version__} | {name: version(name) for name in ("torch", "transformers")},
        instruction=asked,
        images=len(used),
        unused=len(paths) - len(used),
        data_sha256=data_digest(used),
        data=tuple(sorted(used)),
        max_verdict_flips=limits.max_verdict_flips,
        min_mask_iou=limits.min_mask_iou,
        backends=parts,
        passed=all(each.passed for each in parts),
    )
    return Checked(certificate, tuple(unlike), differing, skipped)


def refuse_failed(certificate: Certificate, manifest: Manifest) -> None:
    """Raises ParityError where a certificate says no: which engine, by how much, and where it began."""
    for each in certificate.backends:
        if each.passed:
            continue
        wrong = [f"{len(each.flips)} verdicts flipped, {certificate.max_verdict_flips} allowed"] if each.flips else []
        if each.min_mask_iou < certificate.min_mask_iou:
            wrong.append(f"a mask IoU of {each.min_mask_iou:.4f}, {certificate.min_mask_iou:g} needed")
        first = "all joints are within their tolerances"
        if each.first_wrong is not None:
            joint = next(joint for joint in each.joints if not joint.holds)
            first = (
                f"the first wrong joint is {each.first_wrong}, off by {joint.error:.1e} where {joint.tolerance:.0e} is allowed"
            )
        safer = "" if manifest.precision == "fp32" else " with --precision fp32"
        raise ParityError(
            f"{certificate.bundle} on {each.backend} is not its model: {'; '.join([*wrong, first])}: export it again{safer}"
        )


def open_backends(folder: Path, wanted: Sequence[str] | None = None) -> tuple[dict[str, Backend], dict[str, str]]:
    """The engines that can be had, by name, and why the others cannot.

    Raises:
        UsageError: there is none of a name that was asked for.
        SetupError: one that was asked for cannot be had, or there is none at all.
    """
    found = {entry.name: entry for entry in entry_points(group=STAGES_GROUP)}
    if not {"open", "names"} <= found.keys():
        raise SetupError(f"no installed package runs bundles (group {STAGES_GROUP}): pip install --force-reinstall agvas")
    open_backend, names = found["open"].load(), found["names"].load()
    if wanted:
        return {name: open_backend(folder, name) for name in wanted}, {}
    engines, skipped = dict[str, Backend](), dict[str, str]()
    for name in names():
        try:
            engines[name] = open_backend(folder, name)
        except SetupError as error:
            skipped[name] = str(error)
    if not engines:
        why = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise SetupError(f"no engine can run {folder} here ({why}): agvas doctor says what is missing")
    return engines, skipped


def images_in(data: Path, limit: int | None = None) -> list[Path]:
    """Picture files in a folder and below it, by name; ``limit`` of them, evenly over all.

    Raises:
        UsageError: there are none.
    """
    if not data.exists():
        raise UsageError(f"{data} is not there: give a picture, or a folder of them, with --data")
    files = [data] if data.is_file() else sorted(path for path in data.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    paths = [path for path in files if path.is_file() and not _MASKS & set(path.relative_to(data.parent).parts[:-1])]
    if not paths:
        raise UsageError(f"{data} has no pictures ({', '.join(IMAGE_SUFFIXES)}): give a folder of pictures with --data")
    if limit is None or limit >= len(paths):
        return paths
    return [paths[int(index)] for index in np.linspace(0, len(paths) - 1, limit)]


def _against(
    engine: Backend, image: NDArray[np.uint8], asked: str, truth: Judged, tally: _Tally, digest: str
) -> tuple[Judged | None, float]:
    """One image by one engine's own three stages: what it makes of it, and the IoU with the reference's mask."""
    began = perf_counter()
    try:
        own: Judged | None = engine.judge(image, asked)
    except ImageError:
        own = None
    tally.seconds += perf_counter() - began
    iou = mask_iou(truth.mask, own.mask) if own else 0.0
    tally.ious.append(iou)
    tally.errors.add({"probability": truth.score_map}, {"probability": own.score_map} if own else {})
    if own is None or own.verdict != truth.verdict:
        verdict, score = (own.verdict, own.score) if own else (NO_VERDICT, 0.0)
        tally.flips.append(
            Flip(sha256=digest, reference=truth.verdict, reference_score=truth.score, verdict=verdict, score=score)
        )
    return own, iou


def _summary(name: str, engine: Backend, tally: _Tally, limits: Limits) -> BackendParity:
    joints, worst = tally.errors.joints(), min(tally.ious)
    return BackendParity(
        backend=name,
        device=engine.device,
        versions=dict(engine.versions),
        joints=joints,
        first_wrong=tally.errors.first_wrong(),
        min_mask_iou=worst,
        mean_mask_iou=fmean(tally.ious),
        flips=tuple(tally.flips),
        seconds=tally.seconds,
        passed=len(tally.flips) <= limits.max_verdict_flips
        and worst >= limits.min_mask_iou
        and all(joint.holds for joint in joints),
    )


def _shown(name: str, backend: str, image: NDArray[np.uint8], truth: Judged, own: Judged | None, iou: float) -> Unlike:
    """What is kept to be looked at: small, for there may be hundreds and each may have megapixels."""
    largest = float(np.abs(own.score_map - truth.score_map).max()) if own else 1.0
    return Unlike(name, backend, _small(image), _small_judged(truth), own and _small_judged(own), iou, largest)


def _small(picture: NDArray[Any]) -> NDArray[Any]:
    height, width = picture.shape[:2]
    scale = min(1.0, SHOWN_PX / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))


def _small_judged(judged: Judged) -> Judged:
    mask = _small(judged.mask.astype(np.float32)) > 0  # a pixel that differs stays one
    return judged._replace(score_map=_small(judged.score_map), mask=mask)

"""``agvas-export check``: the bundle on every engine against its model in torch, on the user's own images.

What comes out is the certificate (``parity.json``) and, for images whose verdict or mask differ, what to look at.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import entry_points, version
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any, Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agvas_core import __version__
from agvas_core.contract.backend import STAGES_GROUP, Arrays, Backend, Comparison, Judged, Stages
from agvas_core.contract.certificate import TOLERANCES, BackendParity, Certificate, Flip, TensorParity, Tolerance, data_digest
from agvas_core.contract.errors import ImageError, ParityError, SetupError, StageError, UsageError
from agvas_core.contract.gpu import this_machine
from agvas_core.contract.manifest import MANIFEST_NAME, Manifest, read_manifest, sha256_of, verify_files
from agvas_core.contract.prompts import Mode
from agvas_core.files import IMAGE_SUFFIXES
from agvas_core.model.encoders.encoders import PixelFeatures
from agvas_core.model.lmm import find_anchors
from agvas_core.model.weights.checkpoint import Checkpoint
from agvas_export.reference import Words, encode, words
from agvas_export.source import read_reference

__all__ = [
    "DEFAULT_LIMITS",
    "MAX_SHOWN",
    "NOT_FINITE",
    "Beside",
    "Checked",
    "Errors",
    "Limits",
    "TorchStages",
    "Unlike",
    "check_bundle",
    "images_in",
    "mask_iou",
    "open_backends",
    "open_comparisons",
    "refuse_failed",
]


# Engines beside the reference: each stage gets the reference's own inputs, and the reference's answer goes on to the next.
#
# So an error shows at the stage where it arises, and the path of a frame is the reference's throughout.


NOT_FINITE: Final = 1e30
"""The error of a tensor with NaN or infinity in it, of another shape, or that was not made at all; JSON has no infinity."""

_STAGES: Final[Mapping[str, tuple[str, str]]] = {  # tensor -> stage, and the tolerance that holds; in the order of the data path
    "f_s": ("vision", "features"),
    "f_align": ("vision", "features"),
    "f_p": ("vision", "features"),
    "f_detail": ("vision", "features"),
    "trunk_8": ("vision", "features"),
    "trunk_16": ("vision", "features"),
    "anchor_states": ("lmm", "anchor_states"),
    "accept": ("lmm", "probability"),
    "logits": ("decoder", "logits"),
    "probability": ("whole", "probability"),
    "embedding": ("references", "features"),
    "deep": ("references", "features"),
    "joint": ("references", "features"),
    "logit": ("head", "logits"),
}
_UNSCALED: Final = frozenset({"accept", "probability"})


class Errors:
    """The worst error of each tensor of one engine."""

    def __init__(self, tolerance: Tolerance) -> None:
        self._tolerance = tolerance
        self._worst: dict[str, float] = {}

    def add(self, truth: Arrays, value: Arrays) -> None:
        """Takes note of tensors by name; what the engine did not give counts as wrong."""
        for name, wanted in truth.items():
            if name in _STAGES:
                error = _error(wanted, value[name], scaled=name not in _UNSCALED) if name in value else NOT_FINITE
                self._worst[name] = max(self._worst.get(name, 0.0), error)

    def joints(self) -> tuple[TensorParity, ...]:
        """All of them along the data path."""
        return tuple(
            TensorParity(tensor=tensor, joint=joint, error=self._worst[tensor], tolerance=getattr(self._tolerance, kind))
            for tensor, (joint, kind) in _STAGES.items()
            if tensor in self._worst
        )

    def first_wrong(self) -> str | None:
        """The first stage beyond its tolerance, and its tensor."""
        return next((f"{each.joint}: {each.tensor}" for each in self.joints() if not each.holds), None)


class Beside:
    """The reference as stages; whatever it is asked, the engines are asked as well, and their errors noted."""

    def __init__(self, reference: Stages, engines: Mapping[str, Stages], errors: Mapping[str, Errors]) -> None:
        self.reference, self.engines, self.errors = reference, engines, errors

    def see(self, semantic_image: NDArray[np.uint8], pixel_image: NDArray[np.uint8]) -> Arrays:
        """Stage 1."""
        truth = self.reference.see(semantic_image, pixel_image)
        self._compare(truth, lambda engine: engine.see(semantic_image, pixel_image))
        return truth

    def ask(self, features: Arrays, instruction: str) -> Arrays:
        """Stage 2."""
        truth = self.reference.ask(features, instruction)
        self._compare(truth, lambda engine: engine.ask(features, instruction))
        return truth

    def decode(self, anchor_states: NDArray[np.float32], features: Arrays) -> NDArray[np.float32]:
        """Stage 3."""
        truth = self.reference.decode(anchor_states, features)
        self._compare({"logits": truth}, lambda engine: {"logits": engine.decode(anchor_states, features)})
        return truth

    def _compare(self, truth: Arrays, run: Any) -> None:
        for name, engine in self.engines.items():
            try:
                value = run(engine)
            except (
                ImageError,
                StageError,
            ):  # it cannot do what the reference can: that is an error of the stage, the largest there is
                value = {}
            self.errors[name].add(truth, value)


def mask_iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Intersection over union; 1 where both are empty."""
    union = int(np.logical_or(one, other).sum())
    return int(np.logical_and(one, other).sum()) / union if union else 1.0


def _error(truth: NDArray[Any], value: NDArray[Any], *, scaled: bool) -> float:
    if value.shape != truth.shape or not np.isfinite(value).all():
        return NOT_FINITE
    if not truth.size:
        return 0.0
    largest = float(np.abs(value.astype(np.float32) - truth).max())
    return largest / max(1.0, float(np.abs(truth).max())) if scaled else largest


# The model itself in torch as three stages: the reference that engines are compared with.
#
# It is the model's own ``see``, ``lmm`` and ``decode``, not what was traced, so a mistake in cutting it shows as one in exporting it does.


class TorchStages:
    """A checkpoint's model, asked as its bundle is."""

    def __init__(self, source: Checkpoint, manifest: Manifest) -> None:
        self.model = source.model
        self._seen = {spec.name for spec in manifest.vision.outputs}
        self._first = [encode(source.tokenizer, text)[0] for text in (manifest.prompt.refusal, manifest.prompt.answer)]
        self._words = lru_cache(maxsize=64)(
            lambda instruction: words(source.tokenizer, manifest.prompt, manifest.anchor_ids, instruction)
        )

    @torch.no_grad()
    def see(self, semantic_image: NDArray[np.uint8], pixel_image: NDArray[np.uint8]) -> Arrays:
        """Stage 1."""
        vision = self.model.see(torch.from_numpy(semantic_image), torch.from_numpy(pixel_image))
        seen = {"f_s": vision.f_s, "f_align": vision.f_align, **vision.pixel._asdict()}
        return {name: tensor.float().numpy() for name, tensor in seen.items() if tensor is not None and name in self._seen}

    @torch.no_grad()
    def ask(self, features: Arrays, instruction: str) -> Arrays:
        """Stage 2: one pass over prompt, image and fixed answer."""
        said: Words = self._words(instruction)
        f_s, f_align = (torch.from_numpy(features[name]) for name in ("f_s", "f_align"))
        lmm, batch = self.model.lmm, len(f_s)
        image = said.after.new_full((1, f_s.shape[1] + f_align.shape[1]), lmm.image_token_id)
        input_ids = torch.cat([said.before, image, said.after], 1).expand(batch, -1)  # [B, L]
        hidden = lmm(lmm.embed(input_ids, f_s, f_align), with_logits=False).hidden  # [B, L, D]
        positions, _ = find_anchors(input_ids, lmm.anchor_ids)
        logits = lmm.head(hidden[:, int(said.asked) - said.after.shape[1]])  # [B, V]
        accept = logits[:, self._first].float().diff(dim=1)[:, 0].sigmoid()
        return {"anchor_states": lmm.anchor_states(hidden, positions).float().numpy(), "accept": accept.numpy()}

    @torch.no_grad()
    def decode(self, anchor_states: NDArray[np.float32], features: Arrays) -> NDArray[np.float32]:
        """Stage 3."""
        given: Mapping[str, Tensor] = {name: torch.from_numpy(value) for name, value in features.items()}
        pixel = PixelFeatures(given["f_p"], given.get("f_detail"))
        logits: NDArray[np.float32] = self.model.decode(torch.from_numpy(anchor_states), pixel).float().numpy()
        return logits


NO_VERDICT = "NO_VERDICT"
MAX_SHOWN = 24
SHOWN_PX = 640
_MASKS = {"ground_truth", "masks"}  # folders beside a set's images that hold none


@dataclass(frozen=True)
class Limits:
    """What a certificate must hold to pass, besides the tolerances of the stages."""

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
    compared = open_comparisons(folder, manifest, list(engines))
    asked = instruction or manifest.prompt.instructions[Mode.DIRECT]
    # An engine that rounds more than the graphs do says so by its name.
    precisions = {name: "bf16" if name.endswith("-bf16") else manifest.precision for name in engines}
    tallies = {name: _Tally(Errors(TOLERANCES[precisions[name]])) for name in engines}
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
        if compared:
            wanted = compared[REFERENCE](image)
            for name in engines.keys() & compared.keys():
                tallies[name].errors.add(wanted, _distances(compared[name], image, wanted))
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
        first = "all stages are within their tolerances"
        if each.first_wrong is not None:
            joint = next(joint for joint in each.joints if not joint.holds)
            first = (
                f"the first wrong stage is {each.first_wrong}, off by {joint.error:.1e} where {joint.tolerance:.0e} is allowed"
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


REFERENCE: Final = "torch"


def open_comparisons(folder: Path, manifest: Manifest, names: Sequence[str]) -> dict[str, Comparison]:
    """The references graph, and a product's head, on torch and on each of these engines that runs one; nothing where the bundle has none.

    Raises:
        BundleError: it was made from another encoder than the one that is here.
    """
    found = {entry.name: entry for entry in entry_points(group=STAGES_GROUP)}
    if manifest.references is None or "references" not in found:
        return {}
    open_comparison = found["references"].load()
    opened = {name: open_comparison(folder, name) for name in (REFERENCE, *names)}
    return {name: compare for name, compare in opened.items() if compare is not None}


def _distances(compare: Comparison, image: NDArray[np.uint8], truth: Arrays) -> Arrays:
    try:
        return compare(image, truth)
    except ImageError:
        return {}


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

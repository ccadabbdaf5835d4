"""Good, painted and bad images as a product sees them, and what is said of them: what ``fit`` and ``calibrate`` share."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agvas.fitting.bank import BANK_ROWS, CANDIDATES, choose_rows
from agvas.fitting.operating_point import IMAGE_SHARE, ranked_threshold, reliable_length, threshold_of
from agvas.fitting.painting import Trial, best_pixel_threshold, trial_of
from agvas.fitting.pictures import Picture, fingerprint, thumbnail
from agvas.fitting.report import Example, ReportFacts
from agvas_core.contract.decision import OperatingPoint, image_score, outline_threshold
from agvas_core.contract.errors import BundleError, ImageError, UsageError
from agvas_core.contract.preprocess import ViewSpec
from agvas_core.contract.product import GoodImage, Kind, PaintedDefect, Product
from agvas_core.data.synthetic.defects import KINDS
from agvas_core.data.synthetic.photographs import PaintedImage, paint_defects
from agvas_runtime.bundle import Bundle, load_bundle
from agvas_runtime.images.frame import Frame
from agvas_runtime.pipeline.options import SegmentOptions
from agvas_runtime.pipeline.references import (
    GRID_PX,
    Compared,
    Prepared,
    ReferenceCells,
    References,
    Scales,
    at_frame_size,
    frame_facts,
    grids,
    head_map,
    squash,
    zero_shot_grid,
)
from agvas_runtime.pipeline.segmenter import Segmenter
from agvas_runtime.stages.open import DEFAULT_BACKEND, StageSettings, open_head, open_references, open_stages
from agvas_runtime.stages.protocol import HeadStage, ReferenceStage, VisionStage

__all__ = [
    "PAINTED_IMAGES",
    "Engine",
    "Fitted",
    "Progress",
    "Seen",
    "Spoiled",
    "Steps",
    "frame_score",
    "give_maps",
    "judge_bad",
    "look",
    "open_engine",
    "paint",
    "painted_defect",
    "points_of",
    "report_facts",
    "see",
    "statement_of",
    "trials_of",
]

Float = NDArray[np.float32]
Rgb = NDArray[np.uint8]

Progress = Callable[[str, int, int], None]
"""Is told of each step: its name, how many images of it are done, and of how many."""

PAINTED_IMAGES: Final = 24
DEFECTS_AN_IMAGE: Final = 4
PAINTED_PX: Final = 800
"""Longer side of a painted image: the generator's work grows with the area."""
HARDEST, EXAMPLES = 6, 6
KEPT_BYTES: Final = 1 << 20
"""Features of a good image are kept up to this size; larger ones are computed again when the image is compared."""


@dataclass
class Fitted:
    """What a fit comes to."""

    bundle: Bundle
    product: Product
    statement: str
    """The promise and what is expected, in a sentence or two."""
    warnings: list[str]
    """Most important first."""
    kept: bool
    """Whether all that was asked for is promised, enough of the images were used, and they show one product."""


@dataclass
class Seen:
    """One good image, as far as it is kept: about 1.5 MB, and up to ``KEPT_BYTES`` of features."""

    picture: Picture
    size: tuple[int, int]
    facts: dict[str, float]
    prepared: Prepared
    zero_shot: NDArray[np.float16]
    """Logits on the grid."""
    cells: Float
    """Some of its cells, [N, D]."""
    thumbnail: Rgb
    maps: dict[Kind, NDArray[np.float16]] = field(default_factory=dict)
    """On the grid, against a bank without this image."""
    deep: NDArray[np.float16] = field(default_factory=lambda: np.zeros((0, 0), np.float16))
    """Deep distances of its cells [h, w] to that bank."""
    sha256: str = ""
    """Of its pixels."""


@dataclass
class Engine:
    """The base bundle's stages."""

    bundle: Bundle
    segmenter: Segmenter
    vision: VisionStage
    stage: ReferenceStage
    cells: ReferenceCells
    colour: int
    """Columns of an embedding that are colour."""
    colour_weight: float = 1.0
    head: HeadStage | None = None
    """Of the product, where it has one."""

    def bank(self, cells: Sequence[Float], rng: np.random.Generator, first: Float | None = None) -> Float:
        """Rows chosen among cells of images, [M, D]."""
        return choose_rows(cells, BANK_ROWS, rng, first, colour=self.colour, colour_weight=self.colour_weight)

    def compare(self, frame: Prepared, bank: Float) -> Compared:
        """Distances of a frame's cells to a bank."""
        return self.cells.compare(frame, bank, self.colour_weight)

    def look(self, name: str, image: Rgb) -> tuple[Float, Prepared]:
        """The model's own score map [H, W], and the frame ready to be compared, of one pass where the references share it.

        Raises:
            ImageError: the model cannot judge the image.
        """
        zero_shot, seen = self.segmenter.score_map(Frame(name, 0, image=image), self.cells.shared_view)
        return zero_shot, self.cells.prepare(image, seen)


def open_engine(model: str | Path, size_px: int | None, threads: int | None) -> Engine:
    """The stages of a bundle or product.

    Raises:
        BundleError: it has no references graph.
        UsageError: a size that it does not take.
    """
    bundle = load_bundle(model)
    spec = bundle.manifest.references
    if spec is None:
        raise BundleError(
            f"{bundle.identity} has no references graph, so it cannot learn from good images: export it again with agvas-export bundle "
            "CHECKPOINT -o DIR"
        )
    view: ViewSpec = spec.view or bundle.manifest.pixel_view
    if bundle.product is not None:
        view = bundle.product.view
    if size_px is not None:
        if view.fit != "area":
            raise UsageError(f"{bundle.identity} compares images of {view.size_px} px; leave --size out")
        view = view.model_copy(update={"size_px": size_px})
    settings = StageSettings(threads=threads)
    plain = replace(bundle, product=None)
    stages = open_stages(plain, settings=settings)
    segmenter = Segmenter(plain, *stages, SegmentOptions(threads=threads))
    stage = open_references(plain, DEFAULT_BACKEND, settings)
    head = None if bundle.product is None or bundle.product.head is None else open_head(bundle, DEFAULT_BACKEND, settings)
    cells = ReferenceCells(plain, view, stage, stages.vision)
    return Engine(bundle, segmenter, stages.vision, stage, cells, spec.colour_channels, head=head)


class Steps:
    """Times the steps and tells of their progress."""

    def __init__(self, progress: Progress) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextmanager
    def __call__(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        began = time.perf_counter()
        self._progress(name, 0, total)
        yield lambda done: self._progress(name, done, total)
        self.seconds[name] = round(time.perf_counter() - began, 3)


def look(
    engine: Engine,
    pictures: Sequence[Picture],
    rng: np.random.Generator,
    step: Callable[[int], None],
    learned: Iterable[str] = (),
) -> tuple[list[Seen], list[str], int]:
    """What is kept of each image, those left out with the reason, and how many are copies of others or of those that were ``learned``."""
    seen: list[Seen] = []
    left_out: list[str] = []
    known = set(learned)
    copies = 0
    kept = max(64, 2 * CANDIDATES // max(1, len(pictures)))
    for number, picture in enumerate(pictures, 1):
        try:
            image = picture.read()
            if (mark := fingerprint(image)) in known:
                copies += 1
                continue
            known.add(mark)
            seen.append(see(engine, picture, image, kept, rng))
            seen[-1].sha256 = mark
        except ImageError as error:
            left_out.append(str(error) if picture.name in str(error) else f"{picture.name}: {error}")
        finally:
            step(number)
    return seen, left_out, copies


def see(engine: Engine, picture: Picture, image: Rgb, kept: int, rng: np.random.Generator) -> Seen:
    zero_shot, prepared = engine.look(picture.name, image)
    embedding = engine.cells.embed(prepared)
    if prepared.feature_bytes > KEPT_BYTES:
        prepared = engine.cells.prepare(image)
    cells = embedding.reshape(-1, embedding.shape[-1])
    return Seen(
        picture,
        (image.shape[0], image.shape[1]),
        frame_facts(image),
        prepared,
        zero_shot_grid(zero_shot).astype(np.float16),
        cells[rng.permutation(len(cells))[:kept]],
        thumbnail(image, 360),
    )


def give_maps(engine: Engine, each: Seen, bank: Float, scales: Scales | None = None) -> None:
    """The maps of a good image against a bank that has nothing of it; with ``scales`` of a product, its head's, too."""
    found = engine.compare(each.prepared, bank)
    maps = grids(found, np.full((2, 2), 0.5, np.float32))
    each.maps = {kind: values.astype(np.float16) for kind, values in maps.items()}
    each.maps["zero_shot"] = each.zero_shot
    each.deep = found.deep.astype(np.float16)
    if scales is not None and engine.head is not None:
        each.maps["head"] = head_map(engine.head, scales.rarities(each.maps), found.embedding).astype(np.float16)


def frame_score(total: Float, half: float, size: tuple[int, int], share: float) -> float:
    """As at run time: of the score map at frame size."""
    point = OperatingPoint(image_share=share)
    return image_score(at_frame_size(squash(total, half), size), point)


class Spoiled(NamedTuple):
    """A good image with painted defects."""

    painted: PaintedImage
    scale: float
    """Size of a pixel of the good image, in pixels of the painted one."""
    beside: int
    """Index of the judged image that it is compared with."""
    maps: dict[Kind, Float]
    """On the grid, against a bank without the good image."""
    embedding: NDArray[np.float16]
    """[h, w, D]."""


def paint(
    engine: Engine,
    seen: Sequence[Seen],
    judged: Sequence[Seen],
    banks: Sequence[Float],
    rng: np.random.Generator,
    step: Callable[[int], None],
    *,
    scales: Scales | None = None,
    alone: bool = False,
    images: int = PAINTED_IMAGES,
) -> list[Spoiled]:
    """Good images with defects painted on them; those on which none could be painted are left out.

    Args:
        scales: of a product, whose head then gives its map, too.
        alone: the judged images are slight changes of the only good one.
        images: to paint.
    """
    found: list[Spoiled] = []
    kinds = list(KINDS)
    for number in range(images):
        index = number % len(seen)
        picture = seen[index].picture
        whole = picture.read()
        image = thumbnail(whole, PAINTED_PX)
        rng.shuffle(kinds)
        painted = paint_defects(rng, image, DEFECTS_AN_IMAGE, tuple(kinds))
        if painted.defects:
            zero_shot, prepared = engine.look(picture.name, painted.image)
            distances = engine.compare(prepared, banks[index])
            maps = grids(distances, zero_shot)
            if scales is not None and engine.head is not None:
                maps["head"] = head_map(engine.head, scales.rarities(maps), distances.embedding)
            beside = number % len(judged) if alone else index
            cells = distances.embedding.astype(np.float16)
            found.append(Spoiled(painted, image.shape[1] / whole.shape[1], beside, maps, cells))
        step(number + 1)
    return found


def trials_of(
    spoiled: Sequence[Spoiled], judged: Sequence[Seen], scales: Scales
) -> tuple[list[Trial], list[tuple[PaintedImage, float]]]:
    """Painted defects, and the images they are on with the size of an image's pixel in pixels of the painted one."""
    trials: list[Trial] = []
    for number, each in enumerate(spoiled):
        bad, good = scales.statistics(each.maps), scales.statistics(judged[each.beside].maps)
        for place, defect in enumerate(each.painted.defects, 1):
            trials.append(trial_of(defect, number, each.painted.labels == place, bad, good, IMAGE_SHARE))
    return trials, [(each.painted, each.scale) for each in spoiled]


def points_of(
    scores: Sequence[float], trials: Sequence[Trial], half: float, share: float, max_false_reject: float | None
) -> tuple[OperatingPoint, OperatingPoint, int]:
    """Balanced and strict operating points, and how many good images are missing for the promise that was asked for."""
    threshold, missing = threshold_of(scores), 0
    if max_false_reject is not None:
        ranked, missing = ranked_threshold(scores, max_false_reject)
        threshold = threshold if ranked is None else ranked
    strict = max(threshold, threshold_of(scores, strict=True))
    pixel = best_pixel_threshold(trials, half, threshold, share)
    return (
        OperatingPoint(threshold=pixel, seed_threshold=threshold, image_share=share),
        OperatingPoint(threshold=pixel, seed_threshold=strict, image_share=share),
        missing,
    )


def painted_defect(trial: Trial, half: float, point: OperatingPoint, scale: float) -> PaintedDefect:
    score = trial.score(half, point.image_share)
    found = score > point.seed_threshold and trial.touched(half, outline_threshold(point, score))
    return PaintedDefect(
        kind=trial.defect.kind,
        length_px=round(trial.defect.length_px / scale, 1),
        area_px=round(trial.defect.area_px / scale**2),
        score=score,
        found=found,
    )


def judge_bad(
    engine: Engine,
    references: Sequence[References],
    pictures: Sequence[Picture],
    point: OperatingPoint,
    step: Callable[[int], None],
) -> tuple[tuple[GoodImage, ...], list[str]]:
    """Scores of defective parts; one that is unlike every good image counts as caught, with score 1.

    Args:
        references: of the finished product; of several, each in turn judges an image.
    """
    found: list[GoodImage] = []
    notes: list[str] = []
    for number, picture in enumerate(pictures, 1):
        try:
            image = picture.read()
            mask = picture.read_mask((image.shape[0], image.shape[1]))
            zero_shot, prepared = engine.look(picture.name, image)
        except ImageError as error:
            notes.append(f"left out: {error}")
            step(number)
            continue
        facts: dict[str, float] = {}
        try:
            judged = references[(number - 1) % len(references)].judge(image, zero_shot, point, prepared)
            score = judged.score
            if mask is not None and mask.any():
                union = np.count_nonzero(judged.mask | mask)
                facts["iou"] = np.count_nonzero(judged.mask & mask) / union
        except ImageError:
            score = 1.0
            facts["unlike"] = 1.0
        found.append(GoodImage(name=picture.name, score=score, facts=facts))
        step(number)
    return tuple(found), notes


def statement_of(product: Product, point: OperatingPoint, bad: Sequence[GoodImage]) -> str:
    promised = product.promise
    said = (
        f"With these {promised.good_images} good parts, false rejects are at most {promised.bound:.1%} ({promised.confidence:.0%} sure)"
        if promised.good_images > 1
        else "With one good part nothing can be promised on false rejects"
    )
    length = reliable_length(product.painted)
    found = sum(defect.found for defect in product.painted)
    if length is not None:
        said += f"; expected: 90 % of painted defects over {_length(length, product.mm_per_px)} found."
    elif product.painted:
        longest = max(defect.length_px for defect in product.painted)
        said += (
            f"; expected: {found / len(product.painted):.0%} of painted defects of up to {_length(longest, product.mm_per_px)} found, of no size "
            "90 %."
        )
    else:
        said += "; no defect could be painted on them, so what is caught is not known."
    if bad:
        caught = sum(each.score > point.seed_threshold for each in bad)
        said += f" Of the {len(bad)} bad images given, {caught} are caught."
    return said


def _length(length_px: float, mm_per_px: float | None) -> str:
    return f"{length_px:.0f} px" if mm_per_px is None else f"{length_px * mm_per_px:.2g} mm"


def report_facts(
    product: Product,
    point: OperatingPoint,
    strict: OperatingPoint,
    statement: str,
    judged: Sequence[Seen],
    scales: Scales,
    scores: Sequence[float],
    trials: Sequence[Trial],
    painted: Sequence[tuple[PaintedImage, float]],
) -> ReportFacts:
    order = np.argsort(scores)[::-1][:HARDEST]
    hardest = [
        Example(
            judged[index].picture.name, judged[index].thumbnail, _good_map(scales, judged, index, product.half), scores[index]
        )
        for index in order
    ]
    examples: dict[bool, list[Example]] = {True: [], False: []}
    for trial in trials:
        image = painted[trial.picture][0]
        score = trial.score(product.half, point.image_share)
        found = score > point.seed_threshold and trial.touched(product.half, outline_threshold(point, score))
        if len(examples[found]) < EXAMPLES:
            caption = f"{trial.defect.kind}, {trial.defect.length_px / painted[trial.picture][1]:.0f} px"
            examples[found].append(
                Example(caption, thumbnail(image.image, 360), squash(trial.total, product.half), score, trial.label)
            )
    mean = np.zeros((GRID_PX, GRID_PX), np.float32)
    for index in range(len(judged)):
        mean += _good_map(scales, judged, index, product.half) / len(judged)
    return ReportFacts(product, point, strict, statement, hardest, examples[True], examples[False], mean, judged[0].thumbnail)


def _good_map(scales: Scales, judged: Sequence[Seen], index: int, half: float) -> Float:
    """Score map of a good image on the grid."""
    return squash(scales.statistics(judged[index].maps).fused(IMAGE_SHARE), half)

"""Good images to a product.

    from agvas import Segmenter, fit

    fitted = fit("good/", "bracket")
    print(fitted.statement)
    for result in Segmenter.load("bracket").predict("parts/"):
        print(result.name, result.verdict, result.score)

In order: the good images are read and embedded; each is compared with a memory bank that has nothing of it; their maps give the scale
on which maps are added up; defects are painted on them; thresholds, limits and the promise follow; all of it is written at once.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas.fitting.bank import BANK_ROWS, CANDIDATES, choose_rows, colour_weight_of
from agvas.fitting.operating_point import (
    IMAGE_SHARE,
    are_mixed,
    catch_rates,
    image_limits,
    map_scale,
    outliers,
    promise,
    ranked_threshold,
    reliable_length,
    threshold_of,
)
from agvas.fitting.painting import Trial, best_pixel_threshold, trial_of
from agvas.fitting.pictures import (
    Picture,
    Pictures,
    bad_pictures,
    chosen,
    fingerprint,
    good_pictures,
    review_pictures,
    thumbnail,
)
from agvas.fitting.report import Example, ReportFacts, render_report
from agvas.fitting.rules import Evidence, zero_shot_weight
from agvas.fitting.write import check_target, write_product
from agvas_core import __version__
from agvas_core.contract.decision import OperatingPoint, image_score, mean_of_highest, outline_threshold
from agvas_core.contract.errors import BundleError, ImageError, UsageError
from agvas_core.contract.manifest import BANK
from agvas_core.contract.preprocess import ViewSpec
from agvas_core.contract.product import (
    GoodImage,
    Kind,
    MapScale,
    PaintedDefect,
    Product,
    load_array,
)
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
    Statistics,
    at_frame_size,
    frame_facts,
    grids,
    map_facts,
    squash,
    statistics,
    zero_shot_grid,
)
from agvas_runtime.pipeline.segmenter import Segmenter
from agvas_runtime.stages.open import DEFAULT_BACKEND, StageSettings, open_references, open_stages
from agvas_runtime.stages.protocol import ReferenceStage, VisionStage

__all__ = ["Fitted", "Progress", "fit"]

Float = NDArray[np.float32]
Rgb = NDArray[np.uint8]

Progress = Callable[[str, int, int], None]
"""Is told of each step: its name, how many images of it are done, and of how many."""

MOST_IMAGES: Final = 500
"""Good images that are looked at by default; of more, so many evenly spaced."""
MOST_FOLDS: Final = 8
PAINTED_IMAGES: Final = 24
DEFECTS_AN_IMAGE: Final = 4
PAINTED_PX: Final = 800
"""Longer side of a painted image: the generator's work grows with the area."""
VARIANTS: Final = 8
"""Slight changes of the only good image, where there is one."""
LEFT_OUT_SHARE: Final = 0.1
HARDEST, EXAMPLES = 6, 6


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
class _Seen:
    """One good image, as far as it is kept: about 1.5 MB."""

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
class _Engine:
    """The base bundle's stages."""

    bundle: Bundle
    segmenter: Segmenter
    vision: VisionStage
    stage: ReferenceStage
    cells: ReferenceCells
    colour: int
    """Columns of an embedding that are colour."""
    colour_weight: float = 1.0

    def bank(self, cells: Sequence[Float], rng: np.random.Generator, first: Float | None = None) -> Float:
        """Rows chosen among cells of images, [M, D]."""
        return choose_rows(cells, BANK_ROWS, rng, first, colour=self.colour, colour_weight=self.colour_weight)

    def compare(self, frame: Prepared, bank: Float) -> Compared:
        """Distances of a frame's cells to a bank."""
        return self.cells.compare(frame, bank, self.colour_weight)

    def zero_shot(self, name: str, image: Rgb) -> Float:
        """The model's own score map [H, W]. Raises ImageError where there is none."""
        result = self.segmenter.segment(Frame(name, 0, image=image))
        if result.score_map is None:
            raise ImageError(result.error or f"{name}: the model gave no score map")
        return result.score_map


def fit(
    good: object,
    out: str | Path,
    *,
    bad: str | Path | None = None,
    review: str | Path | None = None,
    add: bool = False,
    model: str | Path = "nano",
    name: str | None = None,
    max_false_reject: float | None = None,
    mm_per_px: float | None = None,
    size_px: int | None = None,
    threads: int | None = None,
    bits: int | None = None,
    max_images: int = MOST_IMAGES,
    seed: int = 0,
    progress: Progress = lambda step, done, total: None,
) -> Fitted:
    """Makes a product of good images and writes it to ``out``; ``Segmenter.load(out)`` opens it.

    Args:
        good: a path, folder or glob, several of them, or arrays (RGB uint8 [H, W, 3]).
        out: folder of the product; an earlier product there is replaced once the new one is whole.
        bad: folder of images of defective parts, with or without masks; they are judged and reported.
        review: folder that ``agvas review --out`` wrote; its good images join, its bad ones are judged. ``good`` may then be [].
        add: ``out`` is a product already, and these good images join it.
        model: bundle to start from.
        name: of the product; by default the name of the folder.
        max_false_reject: share of good parts that may be rejected; by default no good image is.
        mm_per_px: size of a pixel, for lengths in millimetres.
        size_px: about the side of the image that is compared with the references; the model's own by default.
        threads: CPU threads; all cores by default.
        bits: of 16-bit images, how many are used.
        max_images: of more good images, so many evenly spaced are used.
        seed: of everything drawn at random.
        progress: is told how far it is.

    Raises:
        UsageError: no image that can be used, or an option out of range.
        BundleError: a model that is broken, or has no references graph.
        OutputError: ``out`` cannot be written; an earlier product there is untouched.
    """
    target = Path(out)
    _check(max_false_reject, mm_per_px, size_px, max_images)
    check_target(target, add=add)
    steps = _Steps(progress)
    reviewed_alone = review is not None and isinstance(good, list) and not good
    pictures = Pictures([]) if reviewed_alone else good_pictures(good, bits)
    notes, warnings = list(pictures.notes), list[str]()
    reviewed_bad: list[Picture] = []
    if review is not None:
        joined, reviewed = review_pictures(Path(review))
        pictures.pictures += joined.pictures
        reviewed_bad = reviewed.pictures
    bad_found = bad_pictures(Path(bad)) if bad is not None else None
    if bad_found is not None:
        notes += bad_found.notes
    engine = _open(target if add else model, size_px if not add else None, threads)
    before = engine.bundle.product if add else None
    rng = np.random.default_rng(seed)

    used = chosen(pictures.pictures, max_images)
    if len(used) < len(pictures.pictures):
        notes.append(f"{len(used)} of {len(pictures.pictures)} good images are used, evenly spaced; --max-images takes more")
    with steps("good images", len(used)) as step:
        seen, left_out, copies = _look(engine, used, rng, step)
    if not seen:
        raise UsageError(f"none of {len(used)} images can be used ({left_out[0]}): give images of good parts")
    if copies:
        warnings.append(
            f"{copies} of {len(used)} images are equal to others, pixel by pixel, and count once: give images of different parts"
        )

    old_bank = None if before is None else load_array(engine.bundle.folder / BANK, (before.rows, before.channels))
    alone = len(seen) == 1 and before is None
    if alone:
        warnings.append(
            "there is one good image: how good parts differ is not known, so slight changes of it stand in for other parts; give 10 or more"
        )
        with steps("variants", VARIANTS) as step:
            judged = _variants(engine, seen[0], rng, step)
    else:
        judged = seen
    with steps("comparing", len(judged)) as step:
        engine.colour_weight = (
            before.colour_weight
            if before is not None
            else colour_weight_of([each.cells for each in seen], rng, colour=engine.colour)
        )
        banks = _compare(engine, seen, judged, old_bank, rng, step, alone=alone)
    mixed = not alone and are_mixed(
        [each.deep.astype(np.float32) for each in judged], [each.cells[:, : -engine.colour] for each in judged], rng
    )
    if mixed:
        warnings.append(
            "the good images look like different products: their cells are as far from each other's as those of unlike things; fit one product "
            "at a time"
        )
    odd = set() if alone else set(_set_aside(judged))
    usual = [index for index in range(len(judged)) if index not in odd]
    with steps("painting", PAINTED_IMAGES) as step:
        spoiled = _paint(engine, seen, judged, banks, rng, step, alone=alone)
    if before is None:
        scales = _scales([judged[index] for index in usual])
        if not alone:
            scales = scales._replace(zero_shot_weight=_weight_of(spoiled, judged, odd, scales))
    else:
        scales = _Scales(before.joint, before.deep, before.zero_shot, before.zero_shot_weight)
    share = IMAGE_SHARE
    raised = [mean_of_highest(scales.of(judged[index].maps).fused(share), share) for index in usual]
    half = before.half if before is not None else max(raised)

    scores = [_frame_score(scales.of(each.maps).fused(share), half, each.size, share) for each in judged]
    trials, painted_images = _trials(spoiled, judged, scales)

    usual_scores = [scores[index] for index in usual]
    earlier = [each.score for each in before.good] if before is not None else []
    all_scores = scores + earlier
    point, strict, missing = _points(usual_scores + earlier, trials, half, share, max_false_reject)
    promised = promise(all_scores if not alone else [max(scores)], point.seed_threshold, asked=max_false_reject, missing=missing)
    if before is None:
        far_cell, mean_distance = _usual_distances([judged[index] for index in usual])
    else:
        far_cell, mean_distance = before.far_cell, before.mean_distance
    for each in judged:
        each.facts |= map_facts(each.deep.astype(np.float32), far_cell, mean_distance)
    facts = [each.facts for index, each in enumerate(judged) if index not in odd] + (
        [dict(each.facts) for each in before.good] if before is not None else []
    )
    limits = image_limits([each for each in facts if each])
    goods = tuple(
        GoodImage(name=each.picture.name, score=score, facts=each.facts, sha256=each.sha256)
        for each, score in zip(judged, scores, strict=True)
    )
    if alone:
        goods = (GoodImage(name=seen[0].picture.name, score=max(scores), facts=seen[0].facts, sha256=seen[0].sha256),)
    defects = tuple(_defect(trial, half, point, painted_images[trial.picture][1]) for trial in trials)
    if before is not None:
        goods, defects = (*before.good, *goods), (*before.painted, *defects)

    with steps("bank", 1) as step:
        bank = engine.bank([each.cells for index, each in enumerate(seen) if alone or index not in odd], rng, old_bank)
        step(1)
    if odd:
        names = ", ".join(judged[index].picture.name for index in sorted(odd))
        warnings.insert(
            0,
            f"{len(odd)} of {len(judged)} good images look unlike the others and are not learned from: {names}: look at them; if such parts "
            "are good, give more images of them",
        )
    if missing and max_false_reject is not None:
        warnings.insert(
            0,
            f"false rejects of at most {max_false_reject:.2%} cannot be promised with {promised.good_images} good images: "
            f"{missing} more are needed; what is promised is at most {promised.bound:.1%}",
        )
    too_many_left = len(left_out) > LEFT_OUT_SHARE * len(used)
    if left_out:
        warnings.insert(
            0, f"{len(left_out)} of {len(used)} good images are left out: {left_out[0]}" + (" ..." if len(left_out) > 1 else "")
        )
    product = Product(
        name=name or (before.name if before is not None else target.name or "product"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        agvas=__version__,
        base=before.base if before is not None else engine.bundle.identity,
        view=engine.cells.view,
        rows=len(bank),
        channels=bank.shape[1],
        colour_weight=engine.colour_weight,
        joint=scales.joint,
        deep=scales.deep,
        zero_shot=scales.zero_shot,
        zero_shot_weight=scales.zero_shot_weight,
        half=half,
        far_cell=far_cell,
        mean_distance=mean_distance,
        limits=limits,
        promise=promised,
        frame_px=_frame_px(seen, before),
        good=goods,
        painted=defects,
        catch=catch_rates(defects, max(max(each.size) for each in seen)),
        left_out=(*(before.left_out if before is not None else ()), *left_out),
        warnings=(*warnings, *notes),
        mm_per_px=mm_per_px or (before.mm_per_px if before is not None else None),
        seed=seed,
    )
    references = References(engine.bundle, product, bank, engine.stage, engine.vision)
    worse = [*(bad_found.pictures if bad_found is not None else []), *reviewed_bad]
    caught: tuple[GoodImage, ...] = ()
    if worse:
        with steps("bad images", len(worse)) as step:
            caught, not_read = _judge_bad(engine, references, worse, point, step)
        notes += not_read
    statement = _statement(product, point, caught)
    product = product.model_copy(update={"bad": caught, "seconds": dict(steps.seconds), "warnings": (*warnings, *notes)})
    with steps("writing", 1) as step:
        report = render_report(_report_facts(product, point, strict, statement, judged, scales, scores, trials, painted_images))
        bundle = write_product(target, engine.bundle, product, bank, report, (point, strict))
        step(1)
    assert bundle.product is not None
    return Fitted(bundle, bundle.product, statement, [*warnings, *notes], kept=not (missing or too_many_left or mixed))


def _frame_px(seen: Sequence[_Seen], before: Product | None) -> tuple[int, int] | None:
    """Width and height that all learned images share."""
    sizes = {(each.size[1], each.size[0]) for each in seen}
    if before is not None:
        sizes.add(before.frame_px or (0, 0))
    return next(iter(sizes)) if len(sizes) == 1 else None


def _check(max_false_reject: float | None, mm_per_px: float | None, size_px: int | None, max_images: int) -> None:
    if max_false_reject is not None and not 0.0 < max_false_reject < 1.0:
        raise UsageError(
            f"max_false_reject is {max_false_reject:g}; it is a share between 0 and 1, both excluded: 0.005 is one part in 200"
        )
    if mm_per_px is not None and not 0.0 < mm_per_px < math.inf:
        raise UsageError(f"mm_per_px is {mm_per_px:g}; it must be above 0")
    if size_px is not None and not 128 <= size_px <= 1024:
        raise UsageError(f"size is {size_px} px; 128 to 1024 are possible: leave it out for the model's own")
    if max_images < 1:
        raise UsageError(f"max_images is {max_images}; it must be 1 or more")


class _Steps:
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


def _open(model: str | Path, size_px: int | None, threads: int | None) -> _Engine:
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
    return _Engine(
        bundle, segmenter, stages.vision, stage, ReferenceCells(plain, view, stage, stages.vision), spec.colour_channels
    )


def _look(
    engine: _Engine, pictures: Sequence[Picture], rng: np.random.Generator, step: Callable[[int], None]
) -> tuple[list[_Seen], list[str], int]:
    """What is kept of each image, those left out with the reason, and how many are copies of others."""
    seen: list[_Seen] = []
    left_out: list[str] = []
    known: set[str] = set()
    copies = 0
    kept = max(64, 2 * CANDIDATES // max(1, len(pictures)))
    for number, picture in enumerate(pictures, 1):
        try:
            image = picture.read()
            if (mark := fingerprint(image)) in known:
                copies += 1
                continue
            known.add(mark)
            seen.append(_seen(engine, picture, image, kept, rng))
            seen[-1].sha256 = mark
        except ImageError as error:
            left_out.append(str(error) if picture.name in str(error) else f"{picture.name}: {error}")
        finally:
            step(number)
    return seen, left_out, copies


def _seen(engine: _Engine, picture: Picture, image: Rgb, kept: int, rng: np.random.Generator) -> _Seen:
    zero_shot = zero_shot_grid(engine.zero_shot(picture.name, image))
    prepared = engine.cells.prepare(image)
    embedding = engine.cells.embed(prepared)
    cells = embedding.reshape(-1, embedding.shape[-1])
    return _Seen(
        picture,
        (image.shape[0], image.shape[1]),
        frame_facts(image),
        prepared,
        zero_shot.astype(np.float16),
        cells[rng.permutation(len(cells))[:kept]],
        thumbnail(image, 360),
    )


def _variants(engine: _Engine, only: _Seen, rng: np.random.Generator, step: Callable[[int], None]) -> list[_Seen]:
    """The only good image, slightly moved, lighter or darker, and with noise."""
    image = only.picture.read()
    height, width = image.shape[:2]
    found = []
    for number in range(VARIANTS):
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-1.5, 1.5), rng.uniform(0.99, 1.01))
        turn[:, 2] += np.array([rng.uniform(-0.01, 0.01) * width, rng.uniform(-0.01, 0.01) * height])
        moved = cv2.warpAffine(image, turn, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        lit = np.asarray(moved, np.float64) * rng.uniform(0.95, 1.05) + rng.normal(0, 2.0, moved.shape)
        changed = np.clip(lit, 0, 255).astype(np.uint8)
        found.append(_seen(engine, only.picture, changed, 64, rng))
        step(number + 1)
    return found


def _compare(
    engine: _Engine,
    seen: Sequence[_Seen],
    judged: Sequence[_Seen],
    old_bank: Float | None,
    rng: np.random.Generator,
    step: Callable[[int], None],
    *,
    alone: bool,
) -> list[Float]:
    """Gives each judged image its maps, and returns for each good image a bank that has nothing of it."""
    if alone:
        bank = engine.bank([seen[0].cells], rng)
        for number, each in enumerate(judged, 1):
            _give_maps(engine, each, bank)
            step(number)
        return [bank]
    folds = min(len(seen), MOST_FOLDS)
    banks: list[Float] = [np.zeros((0, 0), np.float32)] * len(seen)
    done = 0
    for fold in range(folds):
        inside = range(fold, len(seen), folds)
        others = [each.cells for index, each in enumerate(seen) if index % folds != fold]
        fold_bank = engine.bank(others, rng, old_bank) if others else old_bank
        assert fold_bank is not None, "one image alone has variants, or an earlier bank"
        for index in inside:
            _give_maps(engine, seen[index], fold_bank)
            banks[index] = fold_bank
            done += 1
            step(done)
    return banks


def _give_maps(engine: _Engine, each: _Seen, bank: Float) -> None:
    found = engine.compare(each.prepared, bank)
    maps = grids(found, np.full((2, 2), 0.5, np.float32))
    each.maps = {kind: values.astype(np.float16) for kind, values in maps.items()}
    each.maps["zero_shot"] = each.zero_shot
    each.deep = found.deep.astype(np.float16)


class _Scales(NamedTuple):
    """What brings the maps of good and other images to one scale."""

    joint: MapScale
    deep: MapScale
    zero_shot: MapScale
    zero_shot_weight: float = 1.0

    def of(self, maps: Mapping[Kind, NDArray[np.floating]]) -> Statistics:
        """Statistics of maps on the grid."""
        return statistics({kind: values.astype(np.float32) for kind, values in maps.items()}, *self)


def _scales(usual: Sequence[_Seen]) -> _Scales:
    """Of the good images but those that look unlike the others."""

    def scale(kind: Kind) -> MapScale:
        return map_scale([each.maps[kind].astype(np.float32) for each in usual])

    return _Scales(scale("joint"), scale("deep"), scale("zero_shot"))


def _usual_distances(judged: Sequence[_Seen]) -> tuple[float, float]:
    """Deep distance that 1 % of the good cells reach, and the mean."""
    pool = np.concatenate([each.deep.ravel() for each in judged]).astype(np.float32)
    return float(np.quantile(pool, 0.99)), float(pool.mean())


def _frame_score(total: Float, half: float, size: tuple[int, int], share: float) -> float:
    """As at run time: of the score map at frame size."""
    point = OperatingPoint(image_share=share)
    return image_score(at_frame_size(squash(total, half), size), point)


class _Spoiled(NamedTuple):
    """A good image with painted defects."""

    painted: PaintedImage
    scale: float
    """Size of a pixel of the good image, in pixels of the painted one."""
    beside: int
    """Index of the judged image that it is compared with."""
    maps: dict[Kind, Float]
    """On the grid, against a bank without the good image."""


def _paint(
    engine: _Engine,
    seen: Sequence[_Seen],
    judged: Sequence[_Seen],
    banks: Sequence[Float],
    rng: np.random.Generator,
    step: Callable[[int], None],
    *,
    alone: bool,
) -> list[_Spoiled]:
    """Good images with defects painted on them; those on which none could be painted are left out."""
    found: list[_Spoiled] = []
    kinds = list(KINDS)
    for number in range(PAINTED_IMAGES):
        index = number % len(seen)
        picture = seen[index].picture
        whole = picture.read()
        image = thumbnail(whole, PAINTED_PX)
        rng.shuffle(kinds)
        painted = paint_defects(rng, image, DEFECTS_AN_IMAGE, tuple(kinds))
        if painted.defects:
            distances = engine.compare(engine.cells.prepare(painted.image), banks[index])
            maps = grids(distances, engine.zero_shot(picture.name, painted.image))
            beside = number % len(judged) if alone else index
            found.append(_Spoiled(painted, image.shape[1] / whole.shape[1], beside, maps))
        step(number + 1)
    return found


def _trials(
    spoiled: Sequence[_Spoiled], judged: Sequence[_Seen], scales: _Scales
) -> tuple[list[Trial], list[tuple[PaintedImage, float]]]:
    """Painted defects, and the images they are on with the size of an image's pixel in pixels of the painted one."""
    trials: list[Trial] = []
    for number, each in enumerate(spoiled):
        bad, good = scales.of(each.maps), scales.of(judged[each.beside].maps)
        for place, defect in enumerate(each.painted.defects, 1):
            trials.append(trial_of(defect, number, each.painted.labels == place, bad, good, IMAGE_SHARE))
    return trials, [(each.painted, each.scale) for each in spoiled]


EVERY: Final = 2
"""Every second row and column of the grid: enough to compare weights."""


def _weight_of(spoiled: Sequence[_Spoiled], judged: Sequence[_Seen], odd: set[int], scales: _Scales) -> float:
    """The weight of the model's own score map that painted defects prefer."""

    def rarities(maps: Mapping[Kind, NDArray[np.floating]]) -> tuple[Float, Float]:
        thin = {kind: maps[kind][::EVERY, ::EVERY].astype(np.float32) for kind in ("joint", "zero_shot")}
        return scales.joint(thin["joint"]).ravel(), scales.zero_shot(thin["zero_shot"]).ravel()

    evidence = []
    for index in sorted({each.beside for each in spoiled} - odd):
        copies = [each for each in spoiled if each.beside == index]
        found = [rarities(judged[index].maps), *(rarities(each.maps) for each in copies)]
        distances, own = zip(*found, strict=True)
        nothing = np.zeros(distances[0].size, bool)
        truth = [nothing, *(_grid_mask(each.painted.labels > 0)[::EVERY, ::EVERY].ravel() for each in copies)]
        evidence.append(Evidence(np.concatenate(distances), np.concatenate(own), np.concatenate(truth)))
    return zero_shot_weight(evidence)


def _grid_mask(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Cells of the grid of which a fifth or more is covered."""
    return np.asarray(cv2.resize(mask.astype(np.float32), (GRID_PX, GRID_PX), interpolation=cv2.INTER_AREA) > 0.2)


def _points(
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


def _defect(trial: Trial, half: float, point: OperatingPoint, scale: float) -> PaintedDefect:
    score = trial.score(half, point.image_share)
    found = score > point.seed_threshold and trial.touched(half, outline_threshold(point, score))
    return PaintedDefect(
        kind=trial.defect.kind,
        length_px=round(trial.defect.length_px / scale, 1),
        area_px=round(trial.defect.area_px / scale**2),
        score=score,
        found=found,
    )


def _set_aside(judged: Sequence[_Seen]) -> list[int]:
    """Indices of good images that look unlike the others."""
    return outliers([mean_of_highest(each.maps["joint"].astype(np.float32), IMAGE_SHARE) for each in judged])


def _judge_bad(
    engine: _Engine, references: References, pictures: Sequence[Picture], point: OperatingPoint, step: Callable[[int], None]
) -> tuple[tuple[GoodImage, ...], list[str]]:
    """Scores of defective parts by the finished product; one that is unlike every good image counts as caught, with score 1."""
    found: list[GoodImage] = []
    notes: list[str] = []
    for number, picture in enumerate(pictures, 1):
        try:
            image = picture.read()
            mask = picture.read_mask((image.shape[0], image.shape[1]))
            zero_shot = engine.zero_shot(picture.name, image)
        except ImageError as error:
            notes.append(f"left out: {error}")
            step(number)
            continue
        facts: dict[str, float] = {}
        try:
            judged = references.judge(image, zero_shot, point)
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


def _statement(product: Product, point: OperatingPoint, bad: Sequence[GoodImage]) -> str:
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


def _report_facts(
    product: Product,
    point: OperatingPoint,
    strict: OperatingPoint,
    statement: str,
    judged: Sequence[_Seen],
    scales: _Scales,
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


def _good_map(scales: _Scales, judged: Sequence[_Seen], index: int, half: float) -> Float:
    """Score map of a good image on the grid."""
    return squash(scales.of(judged[index].maps).fused(IMAGE_SHARE), half)

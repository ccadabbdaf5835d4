"""Good images to a product.

    from agvas import Segmenter, fit

    fitted = fit("good/", "bracket")
    print(fitted.statement)
    for result in Segmenter.load("bracket").predict("parts/"):
        print(result.name, result.verdict, result.score)

In order: where the part moves, a way to find it is learned; the good images are read and embedded; each is compared with a memory bank that has nothing of it; their maps give the scale
on which maps are added up; defects are painted on them, and a head may learn from those; thresholds, limits and the promise follow; all of
it is written at once.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas.fitting.bank import colour_weight_of
from agvas.fitting.judging import (
    PAINTED_IMAGES,
    Engine,
    Fitted,
    Progress,
    Seen,
    Spoiled,
    Steps,
    frame_score,
    give_maps,
    judge_bad,
    look,
    open_engine,
    paint,
    painted_defect,
    points_of,
    report_facts,
    see,
    statement_of,
    trials_of,
)
from agvas.fitting.locating import learn_locator
from agvas.fitting.operating_point import (
    IMAGE_SHARE,
    are_mixed,
    catch_rates,
    image_limits,
    map_scale,
    outliers,
    promise,
)
from agvas.fitting.pictures import Picture, Pictures, bad_pictures, chosen, good_pictures, review_pictures
from agvas.fitting.report import render_report
from agvas.fitting.rules import LEAST_IMAGES, Evidence, zero_shot_weight
from agvas.fitting.write import check_target, write_product
from agvas_core import __version__
from agvas_core.contract.decision import mean_of_highest
from agvas_core.contract.errors import SetupError, UsageError
from agvas_core.contract.manifest import BANK
from agvas_core.contract.product import GoodImage, HeadTrial, Kind, Locate, MapScale, Product, load_array
from agvas_runtime.images.locate import open_locator
from agvas_runtime.pipeline.references import GRID_PX, References, Scales, map_facts

if TYPE_CHECKING:
    from agvas.fitting.head import LearnedHead

__all__ = ["Fitted", "fit"]

Float = NDArray[np.float32]
Rgb = NDArray[np.uint8]

MOST_IMAGES: Final = 500
"""Good images that are looked at by default; of more, so many evenly spaced."""
MOST_FOLDS: Final = 8
VARIANTS: Final = 8
"""Slight changes of the only good image, where there is one."""
LEFT_OUT_SHARE: Final = 0.1


def fit(
    good: object,
    out: str | Path,
    *,
    bad: str | Path | None = None,
    review: str | Path | None = None,
    add: bool = False,
    head: bool = False,
    model: str | Path = "nano",
    name: str | None = None,
    max_false_reject: float | None = None,
    mm_per_px: float | None = None,
    size_px: int | None = None,
    locate: Locate | str = Locate.AUTO,
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
        add: ``out`` is a product already, and these good images join it. Its head, if it has one, stays as it is.
        head: a head is trained on painted defects, and on bad images with masks; the product has it where it gains on defects that it was
            not trained on. Needs torch.
        model: bundle to start from.
        name: of the product; by default the name of the folder.
        max_false_reject: share of good parts that may be rejected; by default no good image is.
        mm_per_px: size of a pixel, for lengths in millimetres.
        size_px: about the side of the image that is compared with the references; the model's own by default.
        locate: ``outline`` or ``template``: the part is found in each frame, and only it is looked at; ``off``: the whole frame is;
            ``auto``: where the good images show that the part moves. ``add`` keeps the product's.
        threads: CPU threads; all cores by default.
        bits: of 16-bit images, how many are used.
        max_images: of more good images, so many evenly spaced are used.
        seed: of everything drawn at random.
        progress: is told how far it is.

    Raises:
        UsageError: no image that can be used, or an option out of range.
        BundleError: a model that is broken, or has no references graph.
        OutputError: ``out`` cannot be written; an earlier product there is untouched.
        SetupError: a head is asked for and torch is not installed.
    """
    target = Path(out)
    _check(max_false_reject, mm_per_px, size_px, max_images)
    way = _way(locate, add=add)
    if head and add:
        raise UsageError("--add keeps the product's head as it is: leave --head out, or fit again with all good images")
    if head:
        _check_torch()
    check_target(target, add=add)
    steps = Steps(progress)
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
    engine = open_engine(target if add else model, size_px if not add else None, threads)
    before = engine.bundle.product if add else None
    rng = np.random.default_rng(seed)

    used = chosen(pictures.pictures, max_images)
    if len(used) < len(pictures.pictures):
        notes.append(f"{len(used)} of {len(pictures.pictures)} good images are used, evenly spaced; --max-images takes more")
    if before is not None:
        locator = open_locator(before, engine.bundle.folder)
    else:
        with steps("locating", 1) as step:
            locator, said = learn_locator(used, way)
            step(1)
        notes += [said] if said else []
    if locator is not None:
        used = [replace(each, locator=locator) for each in used]
    with steps("good images", len(used)) as step:
        known_images = [] if before is None else [each.sha256 for each in before.good if each.sha256]
        seen, left_out, copies = look(engine, used, rng, step, known_images)
    if not seen:
        why = left_out[0] if left_out else "the product has learned them" if copies else "there is no good part among them"
        raise UsageError(f"none of {len(used)} good images can be used ({why}): give images of good parts")
    if copies:
        warnings.append(
            f"{copies} of {len(used)} images are equal to others or to learned ones, pixel by pixel, and count once: give images of different parts"
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
    known = None if before is None else Scales.of(before)
    with steps("comparing", len(judged)) as step:
        engine.colour_weight = (
            before.colour_weight
            if before is not None
            else colour_weight_of([each.cells for each in seen], rng, colour=engine.colour)
        )
        banks = _compare(engine, seen, judged, old_bank, known, rng, step, alone=alone)
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
        spoiled = paint(engine, seen, judged, banks, rng, step, scales=known, alone=alone, images=PAINTED_IMAGES)
    scales = known or _scales([judged[index] for index in usual])
    if known is None and not alone:
        scales = scales._replace(zero_shot_weight=_weight_of(spoiled, judged, odd, scales))
    worse = [replace(each, locator=locator) for each in [*(bad_found.pictures if bad_found is not None else []), *reviewed_bad]]
    learned: LearnedHead | None = None
    tried: HeadTrial | None = None
    if head and (alone or len(usual) < LEAST_IMAGES):
        warnings.append(f"a head needs {LEAST_IMAGES} good images or more, and there are {len(usual)}: the product has none")
    elif head:
        from agvas.fitting.head import TRAINING_STEPS, learn_head, masked_images

        with steps("head", TRAINING_STEPS) as step:
            masked = masked_images(engine, worse, banks)
            learned, tried = learn_head(engine, judged, usual, spoiled, masked, scales, seed=seed, threads=threads, step=step)
        scales = scales if learned is None else learned.scales
        notes.append(_said_of(tried))
    share = IMAGE_SHARE
    raised = [mean_of_highest(scales.statistics(judged[index].maps).fused(share), share) for index in usual]
    half = before.half if before is not None else max(raised)

    scores = [frame_score(scales.statistics(each.maps).fused(share), half, each.size, share) for each in judged]
    trials, painted_images = trials_of(spoiled, judged, scales)

    usual_scores = [scores[index] for index in usual]
    earlier = [each.score for each in before.good] if before is not None else []
    all_scores = scores + earlier
    point, strict, missing = points_of(usual_scores + earlier, trials, half, share, max_false_reject)
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
    defects = tuple(painted_defect(trial, half, point, painted_images[trial.picture][1]) for trial in trials)
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
        head=scales.head,
        head_trial=tried if before is None else before.head_trial,
        half=half,
        far_cell=far_cell,
        mean_distance=mean_distance,
        limits=limits,
        promise=promised,
        frame_px=_frame_px(seen, before) if locator is None else locator.spec.frame_px,
        locate=None if locator is None else locator.spec,
        good=goods,
        painted=defects,
        catch=catch_rates(defects, max(max(each.size) for each in seen)),
        left_out=(*(before.left_out if before is not None else ()), *left_out),
        warnings=(*warnings, *notes),
        mm_per_px=mm_per_px or (before.mm_per_px if before is not None else None),
        seed=seed,
    )
    # A bad image with a mask is judged by the half of the head that has not learned it.
    heads = learned.halves if learned is not None else [engine.head if known is not None else None]
    references = [References(engine.bundle, product, bank, engine.stage, engine.vision, head) for head in heads]
    caught: tuple[GoodImage, ...] = ()
    if worse:
        with steps("bad images", len(worse)) as step:
            caught, not_read = judge_bad(engine, references, worse, point, step)
        notes += not_read
    statement = statement_of(product, point, caught)
    product = product.model_copy(update={"bad": caught, "seconds": dict(steps.seconds), "warnings": (*warnings, *notes)})
    with steps("writing", 1) as step:
        report = render_report(report_facts(product, point, strict, statement, judged, scales, scores, trials, painted_images))
        graph = None if learned is None else learned.graph
        bundle = write_product(target, engine.bundle, product, bank, report, (point, strict), graph, locator)
        step(1)
    assert bundle.product is not None
    return Fitted(bundle, bundle.product, statement, [*warnings, *notes], kept=not (missing or too_many_left or mixed))


def _way(locate: Locate | str, *, add: bool) -> Locate:
    if locate not in list(Locate):
        raise UsageError(f"locate is {locate!r}; {', '.join(Locate)} are possible")
    if add and locate != Locate.AUTO:
        raise UsageError(f"--add keeps the product's way to find the part: leave --locate {locate} out, or fit again")
    return Locate(locate)


def _frame_px(seen: Sequence[Seen], before: Product | None) -> tuple[int, int] | None:
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


def _check_torch() -> None:
    if find_spec("torch") is None or find_spec("onnx") is None:
        raise SetupError("a head is trained with torch, which is not installed: pip install 'agvas[fit]', or leave --head out")


def _said_of(trial: HeadTrial) -> str:
    """Whether the product has the head, and why."""
    found = (
        f"average precision {trial.ap[0]:.3f} without it, {trial.ap[1]:.3f} with it (standard error of the gain {trial.error:.3f}), image "
        f"AUROC {trial.auroc[0]:.3f} and {trial.auroc[1]:.3f}, on defects that it was not trained on"
    )
    return (
        f"the product has the fitted head: {found}"
        if trial.adopted
        else f"the fitted head is left out, for it does not clearly gain: {found}"
    )


def _variants(engine: Engine, only: Seen, rng: np.random.Generator, step: Callable[[int], None]) -> list[Seen]:
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
        found.append(see(engine, only.picture, changed, 64, rng))
        step(number + 1)
    return found


def _compare(
    engine: Engine,
    seen: Sequence[Seen],
    judged: Sequence[Seen],
    old_bank: Float | None,
    known: Scales | None,
    rng: np.random.Generator,
    step: Callable[[int], None],
    *,
    alone: bool,
) -> list[Float]:
    """Gives each judged image its maps, and returns for each good image a bank that has nothing of it."""
    if alone:
        bank = engine.bank([seen[0].cells], rng)
        for number, each in enumerate(judged, 1):
            give_maps(engine, each, bank)
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
            give_maps(engine, seen[index], fold_bank, known)
            banks[index] = fold_bank
            done += 1
            step(done)
    return banks


def _scales(usual: Sequence[Seen]) -> Scales:
    """Of the good images but those that look unlike the others."""

    def scale(kind: Kind) -> MapScale:
        return map_scale([each.maps[kind].astype(np.float32) for each in usual])

    return Scales(scale("joint"), scale("deep"), scale("zero_shot"))


def _usual_distances(judged: Sequence[Seen]) -> tuple[float, float]:
    """Deep distance that 1 % of the good cells reach, and the mean."""
    pool = np.concatenate([each.deep.ravel() for each in judged]).astype(np.float32)
    return float(np.quantile(pool, 0.99)), float(pool.mean())


EVERY: Final = 2
"""Every second row and column of the grid: enough to compare weights."""


def _weight_of(spoiled: Sequence[Spoiled], judged: Sequence[Seen], odd: set[int], scales: Scales) -> float:
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


def _set_aside(judged: Sequence[Seen]) -> list[int]:
    """Indices of good images that look unlike the others."""
    return outliers([mean_of_highest(each.maps["joint"].astype(np.float32), IMAGE_SHARE) for each in judged])

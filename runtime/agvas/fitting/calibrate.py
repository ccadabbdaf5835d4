"""A product's operating point from good parts that it has not learned; its references stay as they are.

    calibrated = calibrate_product(Path("bracket"), "good/", max_false_reject=0.01)
    print(calibrated.statement)

The parts are judged by the whole memory bank, which has nothing of them, so the promise on false rejects holds for the product as it
runs. ``agvas fit`` makes the same promise from the images that it learns, each judged by a bank without it.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agvas.fitting.judging import (
    PAINTED_IMAGES,
    Engine,
    Fitted,
    Progress,
    Seen,
    Steps,
    give_maps,
    judge_bad,
    look,
    open_engine,
    paint,
    painted_defect,
    points_of,
    report_facts,
    statement_of,
    trials_of,
)
from agvas.fitting.operating_point import catch_rates, promise
from agvas.fitting.pictures import bad_pictures, good_pictures
from agvas.fitting.report import render_report
from agvas.fitting.write import write_product
from agvas_core import __version__
from agvas_core.contract.decision import OperatingPoint, image_score
from agvas_core.contract.errors import ImageError, UsageError
from agvas_core.contract.manifest import BANK
from agvas_core.contract.product import FORMAT, GoodImage, Product, load_array
from agvas_runtime.bundle import load_bundle
from agvas_runtime.images.locate import open_locator
from agvas_runtime.pipeline.references import References, Scales

__all__ = ["calibrate_product"]

LEFT_OUT_SHARE: Final = 0.1
LISTED: Final = 5


def calibrate_product(
    folder: Path,
    good: object,
    *,
    bad: Path | None = None,
    max_false_reject: float | None = None,
    threads: int | None = None,
    bits: int | None = None,
    seed: int = 0,
    progress: Progress = lambda step, done, total: None,
) -> Fitted:
    """Sets the operating point of the product in ``folder``, and replaces it once the new one is whole.

    Args:
        good: as for ``fit``: a path, folder or glob, several of them, or arrays. Images that the product has learned are left out.
        bad: folder of images of defective parts, with or without masks; they are judged and reported.
        max_false_reject: share of good parts that may be rejected; by default as for ``fit``.

    Raises:
        UsageError: no product, no image that can be used, or an option out of range.
        BundleError: a product that is broken.
        OutputError: the folder cannot be written; the product is untouched.
    """
    if max_false_reject is not None and not 0.0 < max_false_reject < 1.0:
        raise UsageError(
            f"max_false_reject is {max_false_reject:g}; it is a share between 0 and 1, both excluded: 0.005 is one part in 200"
        )
    before = load_bundle(folder).product
    if before is None:
        raise UsageError(f"{folder} is a bundle that was never fitted: agvas fit GOOD -o PRODUCT makes a product of it")
    steps = Steps(progress)
    rng = np.random.default_rng(seed)
    engine = open_engine(folder, None, threads)
    engine.colour_weight = before.colour_weight
    bank = load_array(engine.bundle.folder / BANK, (before.rows, before.channels))
    scales = Scales.of(before)
    pictures = good_pictures(good, bits)
    locator = open_locator(before, engine.bundle.folder)
    pictures.pictures = [replace(each, locator=locator) for each in pictures.pictures]
    with steps("good images", len(pictures.pictures)) as step:
        looked, left_out, copies = look(engine, pictures.pictures, rng, step)
    with steps("comparing", len(looked)) as step:
        seen, scores = _judged(engine, before, looked, bank, left_out, step)
    if not seen:
        raise UsageError(
            f"none of {len(pictures.pictures)} images can be used ({left_out[0] if left_out else 'there is none'}): give images of good "
            "parts that the product has not learned"
        )
    share = _crop_point(engine).image_share
    with steps("painting", PAINTED_IMAGES) as step:
        spoiled = paint(engine, seen, seen, [bank] * len(seen), rng, step, scales=scales, images=PAINTED_IMAGES)
    trials, painted = trials_of(spoiled, seen, scales)
    point, strict, missing = points_of(scores, trials, before.half, share, max_false_reject)
    defects = tuple(painted_defect(trial, before.half, point, painted[trial.picture][1]) for trial in trials)
    promised = promise(scores, point.seed_threshold, asked=max_false_reject, missing=missing)
    product = before.model_copy(
        update={
            "format": FORMAT,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "agvas": __version__,
            "promise": promised,
            "painted": defects,
            "catch": catch_rates(defects, max(max(each.size) for each in seen)),
            "calibrated": tuple(
                GoodImage(name=each.picture.name, score=score, facts=each.facts, sha256=each.sha256)
                for each, score in zip(seen, scores, strict=True)
            ),
            "bad": (),
        }
    )
    worse = bad_pictures(bad) if bad is not None else None
    caught: tuple[GoodImage, ...] = ()
    notes = list(pictures.notes)
    if worse is not None:
        references = References(engine.bundle, product, bank, engine.stage, engine.vision, engine.head)
        with steps("bad images", len(worse.pictures)) as step:
            located = [replace(each, locator=locator) for each in worse.pictures]
            caught, not_read = judge_bad(engine, [references], located, point, step)
        notes += [*worse.notes, *not_read]
    given = len(pictures.pictures)
    warnings = _warnings(given, left_out, copies, product, bad=bad is not None)
    statement = statement_of(product, point, caught)
    product = product.model_copy(update={"bad": caught, "warnings": (*warnings, *notes), "seconds": steps.seconds})
    report = render_report(report_facts(product, point, strict, statement, seen, scales, scores, trials, painted))
    bundle = write_product(folder, engine.bundle, product, bank, report, (point, strict))
    kept = not missing and len(left_out) <= LEFT_OUT_SHARE * given
    return Fitted(bundle, product, statement, [*warnings, *notes], kept=kept)


def _crop_point(engine: Engine) -> OperatingPoint:
    """The operating point for what the references see: the crop, where the part is located."""
    point, product = engine.bundle.manifest.decision.point(), engine.bundle.product
    if product is None or product.locate is None:
        return point
    return point.model_copy(update={"image_share": point.image_share / product.locate.share})


def _judged(
    engine: Engine,
    before: Product,
    looked: list[Seen],
    bank: NDArray[np.float32],
    left_out: list[str],
    step: Callable[[int], None],
) -> tuple[list[Seen], list[float]]:
    """The images that the product has not learned and takes for its own, with their scores; the others join ``left_out``.

    Scores are those of the product as it runs, to the last bit: the threshold may be one of them.
    """
    references = References(engine.bundle, before, bank, engine.stage, engine.vision, engine.head)
    point = _crop_point(engine)
    learned = {each.sha256 for each in before.good}
    kept: list[Seen] = []
    scores: list[float] = []
    for number, each in enumerate(looked, 1):
        name = each.picture.name
        if each.sha256 in learned:
            left_out.append(f"{name}: the product has learned it, so its score would be too low")
        else:
            image = each.picture.read()
            try:
                zero_shot, prepared = engine.look(name, image)
                scores.append(image_score(references.score_map(image, zero_shot, point.image_share, prepared), point))
                give_maps(engine, each, bank, references.scales)
                kept.append(each)
            except ImageError as error:
                left_out.append(f"{name}: {error}")
        step(number)
    return kept, scores


def _warnings(given: int, left_out: list[str], copies: int, product: Product, *, bad: bool) -> list[str]:
    """What must be known before anything else."""
    said = []
    promised = product.promise
    if left_out:
        more = f"; and {len(left_out) - LISTED} more" if len(left_out) > LISTED else ""
        said.append(f"{len(left_out)} of {given} good images are left out: {'; '.join(left_out[:LISTED])}{more}")
    if promised.missing and promised.asked is not None:
        said.append(
            f"false rejects of at most {promised.asked:.2%} cannot be promised with {promised.good_images} good images: "
            f"{promised.missing} more are needed; what is promised is at most {promised.bound:.1%}"
        )
    if copies:
        said.append(f"{copies} of {given} images are equal to others, pixel by pixel, and count once")
    if not bad:
        said.append(
            "nothing is known about real defects: the catch rates are of painted ones; give images of defective parts with --bad DIR"
        )
    return said

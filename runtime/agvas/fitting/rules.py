"""Which rule adds up the maps of a product: the default, or another one that painted defects clearly prefer.

    rule = choose(good, painted)        # rarities of good images, and of the same images with painted defects

A rule says what is added up for the score map and for the image score. Several rules are compared on the same images, so a small
difference is often chance: another rule than the default is taken only for a gain that is both large and sure.
"""

import math
from collections.abc import Callable, Sequence
from itertools import product as combinations
from typing import Final, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas.fitting.painting import AROUND
from agvas_core.contract.decision import mean_of_highest

__all__ = ["DEFAULT", "IMAGE_RULES", "MAP_RULES", "PaintedRarities", "Rarities", "Rule", "choose"]

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]


class Rarities(NamedTuple):
    """The maps of one image on the common scale, [H, W] each."""

    joint: Float
    joint_placed: Float
    """Of the joint distance less what its place usually shows."""
    deep: Float
    deep_placed: Float
    zero_shot: Float


class Rule(NamedTuple):
    """A weighted sum of rarities."""

    kind: Literal["joint", "deep"]
    """The distance that is looked at."""
    place: float
    """Weight of its rarity less what its place usually shows; that of the plain one is 1 - ``place``."""
    zero_shot: float
    """Weight of the model's own score map."""

    def total(self, maps: Rarities) -> Float:
        """The sum, [H, W]."""
        plain, placed = (maps.joint, maps.joint_placed) if self.kind == "joint" else (maps.deep, maps.deep_placed)
        distance = plain if self.place == 0 else (1 - np.float32(self.place)) * plain + np.float32(self.place) * placed
        return np.asarray(distance + np.float32(self.zero_shot) * maps.zero_shot, np.float32)


class PaintedRarities(NamedTuple):
    """One painted image."""

    good: int
    """Index of the good image that it was painted on."""
    maps: Rarities
    labels: NDArray[np.uint8]
    """0 untouched, i + 1 where defect i lies, [H, W]."""


class Default(NamedTuple):
    """What is taken where painted defects prefer nothing else."""

    map: Rule
    image: Rule


PLACES: Final = (0.0, 0.5, 1.0)
MAP_RULES: Final = tuple(Rule("joint", place, 1.0) for place in PLACES)
IMAGE_RULES: Final = tuple(Rule("deep", place, weight) for place, weight in combinations(PLACES, (0.5, 1.0, 2.0))) + tuple(
    Rule("joint", place, 1.0) for place in PLACES
)
DEFAULT: Final = Default(MAP_RULES[0], Rule("deep", 0.0, 1.0))
LEAST_GAIN: Final = 0.01
SURE: Final = 2.0
"""Standard errors that a gain must be away from nothing."""


def choose(
    good: Sequence[Rarities],
    painted: Sequence[PaintedRarities],
    share: float,
    map_rules: Sequence[Rule] = MAP_RULES,
    image_rules: Sequence[Rule] = IMAGE_RULES,
) -> Default:
    """The rules of the score map and of the image score.

    Args:
        share: of the highest values, that an image's score is the mean of.
    """
    image = _best(image_rules, DEFAULT.image, lambda rule: image_figures(good, painted, rule, share))
    score_map = _best(map_rules, DEFAULT.map, lambda rule: map_figures(good, painted, rule))
    return Default(score_map, image)


class Figures(NamedTuple):
    """How well a rule tells, and the parts that the figure is the mean of."""

    value: float
    parts: tuple[NDArray[np.float64], ...]
    """Independent groups (painted images by their good image; good images): the figure is the mean of each."""


def _best(rules: Sequence[Rule], default: Rule, figures: Callable[[Rule], Figures]) -> Rule:
    base = figures(default)
    best, most = default, 0.0
    for rule in rules:
        if rule == default:
            continue
        found = figures(rule)
        gain = found.value - base.value
        variance = 0.0
        for ours, theirs in zip(found.parts, base.parts, strict=True):
            if len(ours) < 3:
                return default
            variance += float((ours - theirs).var(ddof=1)) / len(ours)
        if gain > max(LEAST_GAIN, SURE * math.sqrt(variance), most):
            best, most = rule, gain
    return best


def image_figures(good: Sequence[Rarities], painted: Sequence[PaintedRarities], rule: Rule, share: float) -> Figures:
    """Image AUROC of single painted defects against all good images.

    Its variance has two parts, painted and good images (DeLong); defects on the same good image are one part.
    """
    totals = [rule.total(maps) for maps in good]
    scores = np.array([mean_of_highest(total, share) for total in totals])
    by_image: dict[int, list[NDArray[np.float64]]] = {}
    for each in painted:
        spoiled = rule.total(each.maps)
        for number in range(1, int(each.labels.max()) + 1):
            label = each.labels == number
            if not label.any():
                continue
            side = 2 * (AROUND * label.shape[0] // 256) + 1
            near = cv2.dilate(label.astype(np.uint8), np.ones((side, side), np.uint8)) > 0
            score = mean_of_highest(np.where(near, spoiled, totals[each.good]), share)
            wins = (score > scores) + 0.5 * (score == scores)
            by_image.setdefault(each.good, []).append(wins.astype(np.float64))
    if not by_image:
        return Figures(0.0, ())
    wins_by_image = np.stack([np.mean(wins, axis=0) for wins in by_image.values()])  # [images with defects, good images]
    return Figures(float(wins_by_image.mean()), (wins_by_image.mean(1), wins_by_image.mean(0)))


def map_figures(good: Sequence[Rarities], painted: Sequence[PaintedRarities], rule: Rule) -> Figures:
    """Mean over the good images of the AP of pixels, of its painted copies and itself."""
    found = []
    for index, maps in enumerate(good):
        copies = [each for each in painted if each.good == index and each.labels.any()]
        if copies:
            values = np.concatenate([rule.total(maps).ravel(), *(rule.total(each.maps).ravel() for each in copies)])
            truth = np.concatenate([np.zeros(maps.joint.size, bool), *((each.labels > 0).ravel() for each in copies)])
            found.append(average_precision(values, truth))
    return Figures(float(np.mean(found)) if found else 0.0, (np.asarray(found, np.float64),))


def average_precision(values: Float, truth: Mask) -> float:
    """Area under the precision-recall curve of pixels, each counted; 0 where nothing is true."""
    hits = truth[np.argsort(-values, kind="stable")]
    ranks = np.flatnonzero(hits) + 1
    return float(np.mean(np.arange(1, len(ranks) + 1) / ranks)) if len(ranks) else 0.0

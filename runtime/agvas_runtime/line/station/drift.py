"""Drift: whether live parts still score like those of the calibration; if not, its bound does not hold.

Three exact one-sided binomial tests over a window of the last parts, each against what the calibration leaves possible:

* more parts are rejected than the bound allows good parts to be: the parts are worse, or the image has changed;
* more, or fewer, reject scores lie above the calibration's median than its own uncertainty explains: light, focus, position, product.

They are looked at every ``EVERY`` parts, and each alarm is wrong with probability ``DOUBT`` at one look.
"""

import logging
from collections import deque
from typing import Final

from agvas_core.contract.errors import UsageError
from agvas_runtime.line.calibration.calibration import binomial_at_most, upper_bound
from agvas_runtime.line.ledger.ledger import Ledger
from agvas_runtime.line.recipe.file import RecipeVersion
from agvas_runtime.line.recipe.image_limits import DirtWatch
from agvas_runtime.line.recipe.recipe import Calibration
from agvas_runtime.line.recipe.thresholds import not_calibrated
from agvas_runtime.line.station.station import Outcome

__all__ = ["DriftMonitor", "ScoreDrift"]


WINDOW: Final = 500
EVERY: Final = 25
LEAST: Final = 50
DOUBT: Final = 1e-5


class ScoreDrift:
    """Takes the reject scores of a station, one by one."""

    def __init__(self, calibration: Calibration, seed_threshold: float, *, window: int = WINDOW) -> None:
        """Raises UsageError where the calibration keeps no scores to compare with."""
        quantiles = calibration.score_quantiles
        if len(quantiles) < 3:
            raise UsageError("the recipe's calibration has no score_quantiles: calibrate again")
        self._calibration, self._seed = calibration, seed_threshold
        self._median = quantiles[len(quantiles) // 2]
        below = sum(value <= self._median for value in quantiles) / len(quantiles)
        n = calibration.good_parts
        above = round((1 - below) * n)
        self._high = upper_bound(above, n, 1 - DOUBT)
        self._low = 1 - upper_bound(n - above, n, 1 - DOUBT)
        self._scores: deque[float] = deque(maxlen=window)
        self._count = 0
        self.alarm: str | None = None
        """What is wrong now, in words; None while nothing is."""

    def add(self, score: float) -> str | None:
        """Takes one score; gives the alarm where it has just begun or changed."""
        self._scores.append(score)
        self._count += 1
        if self._count % EVERY or len(self._scores) < LEAST:
            return None
        before, self.alarm = self.alarm, self._look()
        return self.alarm if self.alarm is not None and (before or "").partition(":")[0] != self.alarm.partition(":")[0] else None

    def _look(self) -> str | None:
        n = len(self._scores)
        rejected = sum(score > self._seed for score in self._scores)
        above = sum(score > self._median for score in self._scores)
        bound = self._calibration.false_reject_bound
        if _at_least(rejected, n, bound) < DOUBT:
            return f"rejects: {rejected} of the last {n} parts are rejected, and of good parts at most {bound:.2%} would be"
        if _at_least(above, n, self._high) < DOUBT:
            return f"scores high: {above} of the last {n} lie above the calibration's median {self._median:.3f}: check light and focus, or calibrate again"
        if binomial_at_most(above, n, self._low) < DOUBT:
            return f"scores low: {above} of the last {n} lie above the calibration's median {self._median:.3f}: is the lens covered, the light off?"
        return None


def _at_least(k: int, n: int, share: float) -> float:
    """P(Binomial(n, share) >= k)."""
    return binomial_at_most(n - k, n, 1 - share)


# A listener of a station that watches for drift and dirt, and tells the ledger.


log = logging.getLogger("agvas.line")


class DriftMonitor:
    """Begins again with each recipe."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._version: RecipeVersion | None = None
        self._drift: ScoreDrift | None = None
        self._dirt, self._dirty = DirtWatch(), False

    @property
    def alarm(self) -> str | None:
        """What has drifted, in words; None while nothing has."""
        return self._drift.alarm if self._drift is not None else None

    @property
    def dirty(self) -> bool:
        """Whether one place is anomalous on part after part."""
        return self._dirty

    def __call__(self, outcome: Outcome) -> None:
        """Takes one part; those without a verdict say nothing."""
        if self._version is None or self._version.sha256 != outcome.version.sha256:
            self._begin(outcome.version)
        if outcome.inspection is None or outcome.result.score is None:
            return
        if self._drift is not None and (alarm := self._drift.add(outcome.result.score)) is not None:
            self._tell(outcome.station, "drift", alarm)
        point = outcome.version.recipe.thresholds
        place = self._dirt.add(outcome.inspection.score_map, point.seed_threshold if point is not None else 0.5)
        if place is not None and not self._dirty:
            self._tell(
                outcome.station, "dirt", f"near {place} px nearly every part is anomalous: clean the lens, look at the fixture"
            )
        self._dirty = place is not None

    def _begin(self, version: RecipeVersion) -> None:
        self._version, self._dirt, self._dirty, self._drift = version, DirtWatch(), False, None
        calibration, point = version.recipe.calibration, version.recipe.thresholds
        if calibration is None or point is None or not_calibrated(version.recipe) is not None:
            return
        try:
            self._drift = ScoreDrift(calibration, point.seed_threshold)
        except UsageError as error:
            log.warning("no drift monitor: %s", error)

    def _tell(self, station: str, kind: str, detail: str) -> None:
        log.warning("%s: %s: %s", station, kind, detail)
        self._ledger.event(station, kind, detail)

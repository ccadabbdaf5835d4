"""A listener of a station that watches for drift and dirt, and tells the ledger."""

import logging

from agvas_core.contract.errors import UsageError
from agvas_runtime.line.drift import DriftMonitor
from agvas_runtime.line.image_check import DirtWatch
from agvas_runtime.line.ledger import Ledger
from agvas_runtime.line.recipe_file import RecipeVersion
from agvas_runtime.line.station import Outcome

__all__ = ["Watch"]

log = logging.getLogger("agvas.line")


class Watch:
    """Begins anew with each recipe."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._version: RecipeVersion | None = None
        self._drift: DriftMonitor | None = None
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
        if outcome.inspection is None or outcome.settlement.score is None:
            return
        if self._drift is not None and (alarm := self._drift.add(outcome.settlement.score)) is not None:
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
        if calibration is None or point is None:
            return
        try:
            self._drift = DriftMonitor(calibration, point.seed_threshold)
        except UsageError as error:
            log.warning("no drift monitor: %s", error)

    def _tell(self, station: str, kind: str, detail: str) -> None:
        log.warning("%s: %s: %s", station, kind, detail)
        self._ledger.event(station, kind, detail)

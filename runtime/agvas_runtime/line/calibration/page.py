"""The calibration as one HTML page with its plots in SVG: false rejects, their bound and escapes against the threshold."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.pages.chart import Chart, legend
from agvas_core.contract.pages.document import document
from agvas_core.contract.pages.document import facts as named_facts
from agvas_runtime.line.calibration.calibration import Calibrated, Scores, upper_bound

__all__ = ["calibration_page"]

STEPS: Final = 200


def calibration_page(
    found: Calibrated,
    good: Scores,
    bad: Scores | None,
    facts: dict[str, str],
    warned: Sequence[str],
    *,
    confidence: float,
) -> str:
    """The page, without anything from the network."""
    scores = np.sort(good.values[:, found.column])
    worse = np.sort(bad.values[:, found.column]) if bad is not None and len(bad) else None
    thresholds = np.linspace(0.0, 1.0, STEPS + 1)
    n = len(scores)
    rejects = n - np.searchsorted(scores, thresholds, side="right")
    curves: list[tuple[str, str, NDArray[np.float64]]] = [
        ("false rejects among the good parts", "series", rejects / n),
        (
            f"their upper bound at {confidence:.0%}, for a threshold fixed beforehand",
            "bound",
            np.array([upper_bound(int(count), n, confidence) for count in rejects]),
        ),
    ]
    if worse is not None:
        escapes = np.searchsorted(worse, thresholds, side="right") / len(worse)
        curves.append(("escapes among the bad parts", "series second", escapes))
    body = (
        f'<section class="panel">{named_facts(facts)}</section><section class="charts">'
        f'<figure class="panel"><figcaption>Rejected against the threshold</figcaption>'
        f"{_plot(thresholds, curves, found.seed_threshold)}</figure>"
        f'<figure class="panel"><figcaption>Reject scores</figcaption>{_histogram(scores, worse, found.seed_threshold)}</figure>'
        "</section>"
    )
    return document("Calibration", body, notes=warned)


def _plot(x: NDArray[np.float64], curves: Sequence[tuple[str, str, NDArray[np.float64]]], chosen: float) -> str:
    chart = Chart((0, 1), (0, 100), "seed threshold", "% of parts", "Share of parts against the seed threshold")
    for name, kind, y in curves:
        chart.line([(float(a), 100 * float(b)) for a, b in zip(x, y, strict=True)], kind, name)
    chart.upright(chosen, f"{chosen:.3f}", "mark")
    return chart.render() + legend([(name, kind) for name, kind, _ in curves])


def _histogram(good: NDArray[np.float64], bad: NDArray[np.float64] | None, chosen: float) -> str:
    edges = np.linspace(0.0, 1.0, 41)
    sets = [(good, "measured", "good"), *([(bad, "bad", "bad")] if bad is not None else [])]
    heights = [np.histogram(values, edges)[0] for values, _, _ in sets]
    top = max(1, max(int(height.max()) for height in heights))
    chart = Chart((0, 1), (0, top * 1.15), "seed threshold", "parts", "Parts against the seed threshold")
    for (_, kind, name), height in zip(sets, heights, strict=True):
        for left, right, count in zip(edges, edges[1:], height, strict=False):
            if count:
                chart.bar(left, right, 0, float(count), kind, f"{count} {name} parts from {left:.3f} to {right:.3f}")
    chart.upright(chosen, f"{chosen:.3f}", "mark")
    return chart.render()

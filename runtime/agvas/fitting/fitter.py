"""``agvas fit`` as ``agvas eval --shots`` asks for it; found by its entry point, group ``agvas.fitters``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from agvas.fitting.fit import fit
from agvas_core.contract.product import FORMAT

__all__ = ["fit_for_evaluation", "fit_head_for_evaluation"]


class _Fitter:
    """See ``agvas_core.evaluation.few_shot.Fitter``."""

    def __init__(self, *, head: bool) -> None:
        self.head = head
        self.identity: Final = f"product format {FORMAT}" + (", head" if head else "")

    def __call__(self, good: Sequence[Path], out: Path, *, model: str, seed: int, threads: int | None) -> None:
        fit(list(good), out, model=model, seed=seed, threads=threads, head=self.head)


fit_for_evaluation: Final = _Fitter(head=False)
fit_head_for_evaluation: Final = _Fitter(head=True)

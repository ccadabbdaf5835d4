"""What ``agvas-run --save`` takes."""

from agvas_core.contract.errors import UsageError
from agvas_core.contract.validation import nearest

__all__ = ["SAVE_DEFAULT", "SAVE_KINDS", "parse_save"]

SAVE_KINDS = ("mask", "overlay", "jsonl", "report", "score", "score-npy")
SAVE_DEFAULT = "mask,overlay,jsonl,report"


def parse_save(text: str) -> tuple[str, ...]:
    """The kinds in a comma list, each once; ``none`` alone saves nothing.

    Raises:
        UsageError: a kind that does not exist.
    """
    kinds = [kind.strip().lower() for kind in text.split(",") if kind.strip()]
    if kinds == ["none"]:
        return ()
    for kind in kinds:
        if kind not in SAVE_KINDS:
            meant = f"did you mean {near}? " if (near := nearest(kind, SAVE_KINDS)) else ""
            raise UsageError(f"--save has {kind!r}: {meant}it takes {', '.join(SAVE_KINDS)}, or none alone")
    if not kinds:
        raise UsageError(f"--save is empty: it takes {', '.join(SAVE_KINDS)}, or none to save nothing")
    return tuple(kind for kind in SAVE_KINDS if kind in kinds)

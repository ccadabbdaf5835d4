"""A bundle on its backends, tuned on this machine: what ``agvas profile --tune`` keeps."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from agvas_core.contract.command_line import printable
from agvas_runtime.counts import Counts
from agvas_runtime.frame import Frame
from agvas_runtime.profile.machine import load_average
from agvas_runtime.profile.tune import tune
from agvas_runtime.segmenter import Segmenter
from agvas_runtime.tuning import Tuning, make_folder, place_here

__all__ = ["tune_here"]


def tune_here(
    model: str, options: Mapping[str, Any], frames: Sequence[Frame], *, command: str, say: Callable[[str], None]
) -> Tuning:
    """Opens the bundle and measures.

    Args:
        options: of ``Segmenter.load``: ``vision``, ``lmm``, ``decoder``, ``threads`` and more.

    Raises:
        UsageError, OutputError: there is nowhere to keep what is found.
        ImageError: a frame that cannot be judged.
    """
    make_folder()  # before minutes of measuring
    load_before = load_average()
    segmenter = Segmenter.load(model, **options, counts=Counts())
    found = tune(segmenter, frames, say=say)
    return Tuning(
        place=place_here(segmenter.bundle.identity, (options["vision"], options["lmm"], options["decoder"]), options["threads"]),
        tiles=found.counts.tiles,
        ahead=found.counts.ahead,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=printable(command),
        frames=found.frames,
        rounds=found.rounds,
        load_before=round(load_before, 2),
        tried=found.tried,
    )

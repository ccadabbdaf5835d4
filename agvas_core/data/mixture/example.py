"""One training example, and the images that were skipped on the way to it."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.durable import write_whole
from agvas_core.contract.errors import OutputError
from agvas_core.contract.prompts import Anchor
from agvas_core.data.datasets.record import Turn
from agvas_core.data.mixture.config import Source
from agvas_core.data.mixture.exchange import Exchange
from agvas_core.data.templates.rules import Task

__all__ = ["Example", "Skip", "SkipLog"]


@dataclass(frozen=True)
class Skip:
    """An image that could not be used, and why."""

    index: int
    """Of the example that it was drawn for."""
    dataset: str
    name: str
    reason: str


@dataclass(frozen=True)
class Example:
    """What a model is trained on once.

    image: RGB uint8 [H, W, 3], at its own size.
    mask: bool [H, W]; None where no anchor is supervised.
    supervised: the anchors whose masks are learned from. Empty for a refusal in words and for plain conversation.
    carried: the anchors that its answers have where they have a mask: all three, because the decoder takes all three (eq. 4), unless the
        source says ``anchors = "supervised"``.
    more: further exchanges about the same image, apart from the first (``questions``).
    """

    index: int
    source: Source
    task: Task
    dataset: str
    name: str
    image: NDArray[np.uint8]
    mask: NDArray[np.bool_] | None
    supervised: tuple[Anchor, ...]
    turns: tuple[Turn, ...]
    """The whole exchange; at most one answer carries the anchors, and not always the last."""
    anomalous: bool | None
    skipped: tuple[Skip, ...]
    """What was drawn before and could not be used; it travels with the example, out of worker processes too."""
    carried: tuple[Anchor, ...] = tuple(Anchor)
    more: tuple[Exchange, ...] = ()

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """All of them; each is a row of the batch."""
        return Exchange(self.task, self.turns, self.mask), *self.more

    @property
    def history(self) -> tuple[Turn, ...]:
        """The turns before the last."""
        return self.turns[:-1]

    @property
    def instruction(self) -> str:
        """Of the last turn."""
        return self.turns[-1].instruction

    @property
    def answer(self) -> str:
        """Of the last turn."""
        return self.turns[-1].answer


class SkipLog:
    """Counts and lists what was skipped; an image that came again counts again and is listed once."""

    def __init__(self) -> None:
        self._skips: dict[tuple[str, str], Skip] = {}
        self._times: Counter[tuple[str, str]] = Counter()

    def add(self, skips: Iterable[Skip]) -> None:
        """Takes in ``Example.skipped``."""
        for skip in skips:
            key = (skip.dataset, skip.name)
            self._skips.setdefault(key, skip)
            self._times[key] += 1

    @classmethod
    def joined(cls, logs: Iterable["SkipLog"]) -> "SkipLog":
        """Those of several processes as one."""
        whole = cls()
        for log in logs:
            whole._skips = log._skips | whole._skips
            whole._times += log._times
        return whole

    def __len__(self) -> int:
        return sum(self._times.values())

    @property
    def images(self) -> int:
        """Different ones."""
        return len(self._skips)

    def save(self, path: Path) -> None:
        """Writes one JSON line for each image, most frequent first.

        Raises:
            OutputError: it cannot be written.
        """
        rows = [{**asdict(self._skips[key]), "times": times} for key, times in self._times.most_common()]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}; choose a folder with space and permission") from error

"""Parts of a ledger, read again: what was decided, by what, and the image it was decided on, where that is kept."""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import LedgerError
from agvas_runtime.line.ledger.images import hash_of_image, read_kept
from agvas_runtime.masks.result import Verdict

__all__ = ["PastPart", "Which", "past_parts"]

_COLUMNS: Final = (
    "seq, station, verdict, cause, detail, settled_utc, frame, image_sha256, image_state, image_path, parts.recipe, product, bundle, "
    "parts.engine, score, findings, broken"
)
_NAMES: Final = tuple(name.strip().removeprefix("parts.") for name in _COLUMNS.split(","))


@dataclass(frozen=True)
class PastPart:
    """One row of a ledger that has its verdict."""

    seq: int
    station: str
    verdict: Verdict
    cause: str | None
    detail: str | None
    settled_utc: str
    frame: str
    image_sha256: str | None
    image_state: str
    """none, kept, dropped or removed."""
    image_path: str | None
    recipe: str | None
    """sha256 of the recipe."""
    product: str | None
    bundle: str | None
    engine: str | None
    score: float | None
    findings: list[dict[str, Any]]
    broken: list[str]

    def image(self, folder: Path) -> tuple[NDArray[np.uint8] | None, str]:
        """The image that was judged, RGB [H, W, 3], or None and why it is not here."""
        if self.image_state != "kept" or self.image_path is None:
            words = {
                "none": "the image was not kept (see keep in the recipe)",
                "dropped": "the image was dropped: the disk was short, or parts came faster than it",
                "removed": "the image was removed to make room (keep.max_gb)",
            }
            return None, words.get(self.image_state, "the image is not kept")
        image = read_kept(folder, self.image_path)
        if image is None:
            return None, f"{self.image_path} is gone or cannot be read"
        if hash_of_image(image) != self.image_sha256:
            return None, f"{self.image_path} is not the image that was judged: its hash is another"
        return image, ""


@dataclass(frozen=True)
class Which:
    """Parts of a ledger that have their verdict; all of them by default."""

    last: int | None = None
    """So many of them at the end."""
    seq: int | None = None
    """This one alone."""
    station: str | None = None
    kept: bool = False
    """Only those whose image is kept."""

    def condition(self) -> tuple[str, list[object]]:
        """In SQL, with its values."""
        where, values = ["verdict IS NOT NULL"], list[object]()
        if self.kept:
            where.append("image_state = 'kept'")
        for name, value in (("seq", self.seq), ("station", self.station)):
            if value is not None:
                where.append(f"{name} = ?")
                values.append(value)
        if self.last is not None:
            among = f"SELECT seq FROM parts WHERE {' AND '.join(where)} ORDER BY seq DESC LIMIT ?"
            where.append(f"seq IN ({among})")
            values = [*values, *values, self.last]
        return " AND ".join(where), values


def past_parts(db: sqlite3.Connection, which: Which) -> Iterator[PastPart]:
    """The parts by their numbers, read a few at a time.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    where, values = which.condition()
    try:
        rows = db.execute(
            f"SELECT {_COLUMNS} FROM parts LEFT JOIN recipes ON recipes.sha256 = parts.recipe WHERE {where} ORDER BY seq", values
        )
        for row in rows:
            known = dict(zip(_NAMES, row, strict=True))
            known |= {"verdict": Verdict(known["verdict"])} | {name: json.loads(known[name]) for name in ("findings", "broken")}
            yield PastPart(**known)
    except sqlite3.Error as error:
        raise LedgerError(f"the ledger cannot be read to its end ({error}): restore it from a copy") from error

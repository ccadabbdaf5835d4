"""A folder of reviewed parts: what a person on the line rejected or corrected, as the training and the evaluation read it.

    FOLDER/
      images/NAME.png           the frame as it was judged, at its own size, in any picture format; sub-folders are allowed
      masks/NAME.png            what is wrong, 0 or 255, of the frame's size; none for a good part
      review.jsonl              one line for each image, in the order of review

One line: ``{"image": "images/NAME.png", "mask": "masks/NAME.png", "good": false, "kind": "scratch", "category": "bracket"}``. ``mask`` is null for a
good part. Where an image has several lines the last one counts: a person may think again. Unknown keys are kept out of the way, so that the
writer may add what it knows (verdict, score, bundle, time, station).

Without ``review.jsonl`` the folder is read by its pictures alone: those with a mask of the same name are defective, the others are good.

Training takes it with one line: ``sets = [{ name = "review", path = "FOLDER" }]``; ``agvas eval --data FOLDER`` scores on it.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from agvas_core.contract.errors import OutputError, UsageError

__all__ = ["IMAGES", "MASKS", "REVIEW", "ReviewLine", "add_line", "read_lines"]

IMAGES: Final = "images"
MASKS: Final = "masks"
REVIEW: Final = "review.jsonl"


class ReviewLine(BaseModel):
    """One image as a person judged it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    image: str
    """Path inside the folder, with ``/``."""
    mask: str | None = None
    """As ``image``; None for a good part."""
    good: bool
    kind: str = ""
    """Of defect, in a word or two; empty if not given."""
    category: str = ""
    """Product or station."""

    @model_validator(mode="after")
    def _can_be_meant(self) -> Self:
        for path in (self.image, self.mask):
            if path is not None and (not path or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts):
                raise ValueError(f"{path!r} leads out of the folder: paths are inside of it")
        if self.good and self.mask is not None:
            raise ValueError(f"{self.image} is good and has the mask {self.mask}: leave out one of the two")
        if not self.good and self.mask is None:
            raise ValueError(f"{self.image} is not good and has no mask: draw one, or leave the line out")
        return self


def read_lines(folder: Path) -> Iterator[ReviewLine]:
    """The last line of each image, in the order of the images' names.

    Raises:
        UsageError: a line that is not one, by its number.
    """
    path = folder / REVIEW
    last: dict[str, ReviewLine] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            found = ReviewLine.model_validate(json.loads(line))
        except (ValueError, ValidationError) as error:
            why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise UsageError(f"{path}, line {number}: {why}; fix the line or remove it") from error
        last[found.image] = found
    yield from (last[image] for image in sorted(last))


def add_line(folder: Path, line: ReviewLine, **more: Any) -> None:
    """Appends one line, on disk when it returns; image and mask are there already.

    Args:
        more: what else the writer knows, for people: score, bundle, time.

    Raises:
        OutputError: it cannot be written.
    """
    text = json.dumps({**more, **line.model_dump()}, ensure_ascii=False) + "\n"
    try:
        with (folder / REVIEW).open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(
            f"cannot write {folder / REVIEW}: {error.strerror}; choose a folder with space and permission"
        ) from error

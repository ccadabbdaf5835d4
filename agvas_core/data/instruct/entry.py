"""One line of the data set: a sample, the five texts about it, and where they came from."""

import hashlib
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from agvas_core.data.datasets.masks import FileMask
from agvas_core.files.picture import MaskLevel

__all__ = ["FIELDS", "Entry", "ReviewState", "texts_digest"]

FIELDS: Final = ("expectation", "observation", "diagnosis", "summary", "explanation")
"""The five texts, in the order in which they build on each other (sec. 3.3)."""

ReviewState = Literal["pending", "accepted", "edited", "rejected"]


class Entry(BaseModel):
    """One sample with its texts. ``image`` and ``mask`` are relative to ``root``, and that to the folder of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    root: str
    image: str
    mask: str
    mask_level: MaskLevel = "any"
    category: str
    kind: str
    expectation: str
    observation: str
    diagnosis: str
    summary: str
    explanation: str
    model: str
    """What was asked for, as the endpoint calls it."""
    endpoint: str
    """Host and port; no path, no key."""
    prompt: str
    """Hash of everything that is the same in each request: system prompt, worked example, wording, how pictures are drawn."""
    review: ReviewState = "pending"

    @property
    def key(self) -> str:
        """What tells this sample from every other."""
        return f"{self.dataset}/{self.image}"

    @property
    def texts(self) -> dict[str, str]:
        """The five texts by field."""
        return {field: getattr(self, field) for field in FIELDS}

    def folder(self, file: Path, root: Path | None = None) -> Path:
        """The folder of the set: ``root`` where one is named, else as seen from the file that this stands in."""
        return root or (file.resolve().parent / self.root).resolve()

    def file_mask(self, folder: Path) -> FileMask:
        """The mask, not read yet."""
        return FileMask(folder / self.mask, self.mask_level)


def texts_digest(texts: dict[str, str]) -> str:
    """Says whether a decision was made on these very texts."""
    return hashlib.sha256("\0".join(texts[field] for field in FIELDS).encode()).hexdigest()[:16]

"""The state of a review: the entries, what was decided, and the log that every decision is written to at once."""

import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

from agvas_core.contract.errors import UsageError
from agvas_core.data.instruct.answer import Wording, checked
from agvas_core.data.instruct.entry import (
    FIELDS,
    Decision,
    Entry,
    decided,
    read_decisions,
    read_entries,
    review_path,
    texts_digest,
)
from agvas_core.data.instruct.journal import Journal
from agvas_core.data.instruct.pictures import jpeg, shrunk, with_mask
from agvas_core.files import read_rgb

__all__ = ["VERBS", "Review", "StaleError", "Verb"]

Verb = Literal["accept", "reject", "reset"]
VERBS: Final = ("accept", "reject", "reset")
SIDE_PX: Final = 1200


class StaleError(UsageError):
    """A decision on an entry that is no longer what the person saw."""


class Review:
    """One person's review of one file. Safe to use from several threads."""

    def __init__(self, path: Path, wording: Wording, *, root: Path | None = None) -> None:
        """Opens the file and its review log.

        Raises:
            UsageError: the file cannot be read, or another process reviews it.
            OutputError: the log cannot be written.
        """
        self.path, self._wording, self._root = path, wording, root
        self._lock = threading.Lock()
        self._entries: list[Entry] = []
        self._seen: tuple[int, int] | None = None
        self.refresh()
        self._log = Journal(review_path(path))
        self._decisions = read_decisions(review_path(path))

    def close(self) -> None:
        """Lets the next process review."""
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def refresh(self) -> None:
        """Reads the file again where it has grown, as it does while texts are being generated."""
        with self._lock:
            try:
                now = (self.path.stat().st_size, self.path.stat().st_mtime_ns)
            except OSError as error:
                raise UsageError(f"{self.path} cannot be read: {error.strerror}; name what agvas data instruct wrote") from error
            if now != self._seen:
                self._entries, self._seen = read_entries(self.path), now

    def __len__(self) -> int:
        return len(self._entries)

    def states(self) -> list[str]:
        """The state of each entry, in the order of the file."""
        return [self._current(entry).review for entry in self._entries]

    def view(self, index: int) -> dict[str, Any]:
        """What a person sees of an entry.

        Raises:
            IndexError: there is no such entry.
        """
        entry = self._current(self._entries[index])
        shown = {name: getattr(entry, name) for name in ("dataset", "image", "category", "kind", "model", "endpoint", "review")}
        return {**shown, "index": index, "key": entry.key, "on": texts_digest(self._entries[index].texts), "texts": entry.texts}

    def picture(self, index: int, *, overlay: bool) -> bytes:
        """The image of an entry as JPEG, with its mask drawn on it or without.

        Raises:
            IndexError: there is no such entry.
            ImageError: image or mask cannot be used.
        """
        entry = self._entries[index]
        folder = entry.folder(self.path, self._root)
        image = read_rgb(folder / entry.image, entry.image)
        return jpeg(
            with_mask(image, entry.file_mask(folder).read(image.shape[:2]), SIDE_PX) if overlay else shrunk(image, SIDE_PX)
        )

    def decide(self, index: int, verb: Verb, *, key: str, on: str, texts: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Decides on an entry and returns its new view; the decision has reached the disk by then.

        Args:
            verb: accept the texts as shown, reject the entry, or reset it to what was generated and is pending.
            key: of the entry that the person saw, and ``on`` of its texts.
            texts: the five texts as the person left them; those that stand where None. They are checked as answers are.

        Raises:
            IndexError: there is no such entry.
            StaleError: the file has another entry there by now.
            AnswerError: edited texts that a model could not have given either.
            OutputError: the log cannot be written.
        """
        with self._lock:
            entry = self._entries[index]
            if (entry.key, texts_digest(entry.texts)) != (key, on):
                raise StaleError(f"entry {index + 1} of {self.path.name} has changed since it was shown: load the page again")
            kept = None if verb == "reset" else self._texts(entry, texts)
            edited = kept is not None and kept != entry.texts
            review = {"accept": "edited" if edited else "accepted", "reject": "rejected", "reset": "pending"}[verb]
            decision = Decision.model_validate(
                {"key": key, "on": on, "review": review, "texts": kept if edited else None, "at": datetime.now(UTC).isoformat()}
            )
            self._log.append(decision.model_dump())
            self._decisions[key] = decision
        return self.view(index)

    def _texts(self, entry: Entry, texts: Mapping[str, Any] | None) -> dict[str, str]:
        if texts is None:
            return self._current(entry).texts
        if missing := [field for field in FIELDS if field not in texts]:
            raise UsageError(f"the texts lack {missing[0]}: send all five")
        return checked(texts, self._wording, f"{entry.category} {entry.kind}")

    def _current(self, entry: Entry) -> Entry:
        return decided(entry, self._decisions)

"""From an instruction to the ids that the language model reads, and from the ids it says to words."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from agvas_core.contract.errors import BundleError, UsageError
from agvas_core.contract.prompts import ANCHOR_TOKENS, ANCHORS_SHOWN, Mode, strip_control_tokens
from agvas_runtime.bundle import Bundle
from agvas_runtime.stages.protocol import Turn

__all__ = ["PromptTokenizer", "Words"]

_CACHED_INSTRUCTIONS = 64
_ANCHOR = re.compile("|".join(re.escape(token) for token in ANCHOR_TOKENS))
_ANCHORS = re.compile(rf"(\s*(?:{_ANCHOR.pattern}))+")


class Words(NamedTuple):
    """An instruction as the LMM graph takes it, each with a batch axis of 1."""

    ids_before: NDArray[np.int64]
    """[1, before]."""
    ids_after: NDArray[np.int64]
    """[1, after]; in direct mode with the answer, up to its last anchor."""
    anchor_positions: NDArray[np.int64]
    """[1, 3] within ids_after; 0 where the answer is still to come."""
    logit_positions: NDArray[np.int64]
    """[1, 1] within ids_after: the last position before the answer."""


class PromptTokenizer:
    """A bundle's tokenizer and what is said around the image.

    Several threads may call it: the tokenizer's cache is safe under the interpreter lock.

    Raises:
        BundleError: a broken tokenizer, or one that belongs to another model.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._prompt, self._anchor_ids = bundle.manifest.prompt, bundle.manifest.anchor_ids
        path = bundle.folder / self._prompt.tokenizer
        # tokenizers raises plain Exception for a file it cannot parse; the hash was right, so the exporter wrote a bad one.
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            raise BundleError(f"{path} is no tokenizer ({error}): export the bundle again") from error
        ids = tuple(self._tokenizer.token_to_id(token) for token in ANCHOR_TOKENS)
        # In place of an anchor that a model was trained without, the first that it has is read.
        kept = [mine for mine, own in zip(self._anchor_ids, ids, strict=True) if mine == own]
        if not kept or any(mine not in (own, kept[0]) for mine, own in zip(self._anchor_ids, ids, strict=True)):
            raise BundleError(f"{path} gives the anchors the ids {ids}, the manifest {self._anchor_ids}: export the bundle again")
        self._control = {id: token.content for id, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        self._anchors = "".join(_ANCHOR.findall(self._prompt.answer))  # as this model's answers write them
        self.first_of_answer, self.first_of_refusal = self._first_ids()
        self.words = lru_cache(maxsize=_CACHED_INSTRUCTIONS)(self._encode)

    def text(self, ids: Sequence[int]) -> str:
        """An answer for people: ``ANCHORS_SHOWN`` for its anchors, nothing for other control tokens."""
        said = self._tokenizer.decode(
            [id for id in ids if id in self._anchor_ids or id not in self._control], skip_special_tokens=False
        )
        return " ".join(_ANCHORS.sub(f" {ANCHORS_SHOWN}", said).split())

    def _first_ids(self) -> tuple[int, int]:
        """First token of the fixed answer and of the refusal."""
        first = [self._ids(text)[:1] for text in (self._prompt.answer, self._prompt.refusal)]
        if not all(first) or first[0] == first[1]:
            raise BundleError(
                f"the bundle's answer {self._prompt.answer!r} and refusal {self._prompt.refusal!r} begin with the tokens {first}; they "
                "must differ: export the bundle again"
            )
        return first[0][0], first[1][0]

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _clean(self, text: str) -> str:
        """Stripped here too, so that no caller can put an anchor where the answer's anchors are looked for."""
        clean = strip_control_tokens(text)[0]
        # A tokenizer may fold signs together, full-width brackets say, and so see tokens where the stripping saw none.
        for id in self._ids(clean):
            if id in self._control:
                raise UsageError(
                    f"part of the prompt {clean!r} is read as the control token {self._control[id]}: write it otherwise"
                )
        return clean

    def _encode(self, instruction: str, mode: Mode = Mode.DIRECT, history: tuple[Turn, ...] = ()) -> Words:
        chat = self._prompt.chat
        instructions = [self._clean(said) for said in (*(turn.instruction for turn in history), instruction)]
        before, after = (self._ids(text) for text in chat.prompt(instructions[0]))
        for turn, following in zip(history, instructions[1:], strict=True):
            after += self._ids(self._clean(turn.answer).replace(ANCHORS_SHOWN, self._anchors) + chat.after_answer)
            after += self._ids(chat.follow_up(following))
        answer = self._ids(self._prompt.answer)  # apart from the prompt, as in training: no token spans where it begins
        if (length := len(before) + len(after) + len(answer)) > self._prompt.max_tokens:
            shorter = "ask again, without what was said before" if history else "shorten it"
            raise UsageError(
                f"the prompt is {length} tokens long with what goes around it; this bundle takes {self._prompt.max_tokens}: {shorter}"
            )
        asked = len(after) - 1
        if mode is not Mode.DIRECT:
            return _words(before, after, [0, 0, 0], [asked])
        try:
            positions = [len(answer) - 1 - answer[::-1].index(anchor) for anchor in self._anchor_ids]
        except ValueError:
            raise BundleError(f"the bundle's answer {self._prompt.answer!r} lacks an anchor: export the bundle again") from None
        shown = after + answer[: max(positions) + 1]  # nothing after the last anchor can reach it in a causal model
        return _words(before, shown, [len(after) + at for at in positions], [asked])


def _words(*rows: list[int]) -> Words:
    return Words(*(np.array([row], np.int64) for row in rows))

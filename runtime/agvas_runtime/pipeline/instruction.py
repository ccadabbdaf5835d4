"""The instruction of the language model, checked before the first frame.

question = ask(manifest.prompt, mode="describe-plus", normal_look="A round metal part with four holes")
"""

import logging
from typing import NamedTuple

from agvas_core.contract.errors import UsageError
from agvas_core.contract.manifest import PromptSpec
from agvas_core.contract.prompts import MAX_INSTRUCTION_CHARS, Mode, strip_control_tokens, with_normal_look
from agvas_core.contract.validation import nearest

__all__ = ["Question", "ask"]

log = logging.getLogger("agvas")


class Question(NamedTuple):
    """An instruction and how it is to be answered."""

    instruction: str
    """As the model reads it: without control tokens, the normal look included."""
    mode: Mode
    prompt: str | None = None
    """The user's own words, where there are any."""
    normal_look: str | None = None
    """How a good part looks (describe-plus)."""


def ask(
    spec: PromptSpec,
    *,
    prompt: str | None = None,
    mode: Mode | str | None = None,
    normal_look: str | None = None,
    before: Question | None = None,
) -> Question:
    """A question from what the caller said; where they said nothing, from ``before``, else from the bundle's own words.

    Raises:
        UsageError: invalid words or mode.
    """
    chosen = _mode(mode) if mode is not None else before.mode if before else Mode.DIRECT
    words = _clean("prompt", prompt) if prompt is not None else before.prompt if before else None
    if chosen is not Mode.DESCRIBE_PLUS:
        if normal_look is not None:
            raise UsageError(
                f"a normal look is given and the mode is {chosen}: only {Mode.DESCRIBE_PLUS} takes one; leave one out"
            )
        return Question(words or spec.instructions[chosen], chosen, words, before.normal_look if before else None)
    look = _clean("normal look", normal_look) if normal_look is not None else before.normal_look if before else None
    if look is None:
        raise UsageError(
            f"mode {chosen} needs a sentence on how a good part looks, and there is none: give it with normal_look (--normal-look)"
        )
    instruction = with_normal_look(look, words or spec.instructions[chosen])
    _check_length("prompt with the normal look", instruction)
    return Question(instruction, chosen, words, look)


def _mode(mode: str) -> Mode:
    try:
        return Mode(mode)
    except ValueError:
        meant = f"did you mean {near}? " if (near := nearest(str(mode), Mode)) else ""
        raise UsageError(f"mode is {mode!r}: {meant}it can be {', '.join(Mode)}") from None


def _clean(what: str, text: str) -> str:
    """The text without control tokens; warns where there were any."""
    _check_length(what, text)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the {what} {text!r} is no valid UTF-8: check the encoding of the terminal or script") from error
    clean, removed = strip_control_tokens(text)
    if removed:
        log.warning("removed %s from the %s: these belong to the model; what is left is %r", ", ".join(removed), what, clean)
    if not clean:
        raise UsageError(f"the {what} {text!r} says nothing: say what to look for, or leave it out")
    return clean


def _check_length(what: str, text: str) -> None:
    if len(text) > MAX_INSTRUCTION_CHARS:
        raise UsageError(f"the {what} has {len(text)} characters; {MAX_INSTRUCTION_CHARS} are allowed: shorten it")

"""What the model answered -> the five texts without forbidden words, or the reason why they cannot be used, in words that the model can act on."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from agvas_core.contract.errors import AgvasError, UsageError
from agvas_core.contract.prompts import ANCHOR_TOKENS, ANCHORS, strip_control_tokens
from agvas_core.data.instruct.entry import FIELDS

__all__ = ["AnswerError", "Wording", "checked", "parsed"]


# Words that a text must not hold, because they speak of what only the annotating model was shown (paper A.2).


KEYS = ("always", "words", "allow")


@dataclass(frozen=True)
class Rule:
    """One subject that is not to be spoken of."""

    subject: str
    always: re.Pattern[str]
    words: re.Pattern[str]
    allow: re.Pattern[str]


@dataclass(frozen=True)
class Wording:
    """The rules of ``prompt/forbidden.toml``."""

    rules: tuple[Rule, ...]

    @classmethod
    def from_table(cls, table: dict[str, Any]) -> "Wording":
        """Raises UsageError for a table that is not one of lists of phrases."""
        rules = []
        for subject, lists in table.items():
            if not isinstance(lists, dict) or set(lists) - set(KEYS):
                raise UsageError(f"forbidden.toml: [{subject}] may have {', '.join(KEYS)}; fix it")
            if not all(
                isinstance(phrases, list) and all(isinstance(one, str) and one for one in phrases) for phrases in lists.values()
            ):
                raise UsageError(f"forbidden.toml: [{subject}]: {', '.join(lists)} must be lists of phrases; fix it")
            rules.append(Rule(subject, *(_pattern(lists.get(key, [])) for key in KEYS)))
        return cls(tuple(rules))

    def offence(self, text: str, topic: str) -> str | None:
        """The first phrase of ``text`` that is refused, in quotes with its subject; None where there is none.

        Args:
            topic: category and kind of the sample: their own words may be used, as a box may be what is inspected.
        """
        plain, topical = _plain(text), _plain(topic)
        for rule in self.rules:
            found = rule.always.search(plain)
            if found is None and rule.words.search(topical) is None:
                found = rule.words.search(rule.allow.sub(" ", plain))
            if found is not None:
                return f'"{found[0]}" ({rule.subject})'
        return None


def _pattern(phrases: list[str]) -> re.Pattern[str]:
    """Any of the phrases as whole words, singular or plural; none where there are none."""
    if not phrases:
        return re.compile(r"(?!)")
    longest_first = sorted((_plain(phrase) for phrase in phrases), key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})(?:s|es)?\b")


def _plain(text: str) -> str:
    return re.sub(r"[\s_\-\u2010-\u2015]+", " ", text).casefold()


MIN_CHARS: Final = 20
MAX_CHARS: Final = 2000
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)  # reasoning models show it unless they are told not to
_ANCHOR = re.compile("|".join(re.escape(token) for token in ANCHOR_TOKENS), re.IGNORECASE)
_SPACED = re.compile(r"\s*".join(re.escape(token) for token in ANCHOR_TOKENS))


class AnswerError(AgvasError):
    """Why an answer cannot be used; it is given to the model or to the reviewer, and is not saved."""


def parsed(reply: str, wording: Wording, topic: str) -> dict[str, str]:
    """The five texts of a reply, by field.

    Args:
        reply: what the model said; a code fence or a thought around the object does no harm.
        topic: category and kind, whose own words may be used.

    Raises:
        AnswerError: no JSON object, other fields than the five, or a text that :func:`checked` refuses.
    """
    answer = _object(_THOUGHT.sub("", reply))
    fields = {str(key).strip().lower(): value for key, value in answer.items()}
    if missing := [field.capitalize() for field in FIELDS if field not in fields]:
        raise AnswerError(f"the JSON object lacks {', '.join(missing)}; it must have {_names()}")
    extra = [str(key) for key in answer if str(key).strip().lower() not in FIELDS]
    if extra or len(answer) != len(FIELDS):
        raise AnswerError(f"the JSON object has {(extra or ['a field twice'])[0]}; it must have {_names()} and no more")
    return checked(fields, wording, topic)


def checked(texts: Mapping[str, Any], wording: Wording, topic: str) -> dict[str, str]:
    """The five texts on one line each.

    Raises:
        AnswerError: too short, too long, anchors missing or out of place, or words that must not be used.
    """
    clean = {}
    for field in FIELDS:
        name, text = field.capitalize(), texts[field]
        if not isinstance(text, str):
            raise AnswerError(f"{name} is no string; each field must be one string")
        text = _SPACED.sub(ANCHORS, " ".join(text.split()))
        if not MIN_CHARS <= len(text) <= MAX_CHARS:
            raise AnswerError(f"{name} has {len(text)} characters; it must have {MIN_CHARS} to {MAX_CHARS}")
        if any(not character.isprintable() for character in text):
            raise AnswerError(f"{name} has control characters; write plain text")
        _check_anchors(field, text)
        bare = _ANCHOR.sub(" ", text)
        if (taken := strip_control_tokens(bare)[1]) or "```" in text:
            raise AnswerError(f"{name} has the control token {(taken or ['```'])[0]}; write plain text")
        if offence := wording.offence(bare, topic):
            raise AnswerError(f"{name} says {offence}; speak only of what the plain photograph shows")
        clean[field] = text
    return clean


def _check_anchors(field: str, text: str) -> None:
    found = _ANCHOR.findall(text)
    if field != "summary" and found:
        raise AnswerError(f"{field.capitalize()} has {found[0]}; the marks {ANCHORS} stand in Summary alone")
    if field == "summary" and (found != list(ANCHOR_TOKENS) or ANCHORS not in text):
        have = "".join(found) or "none"
        raise AnswerError(f"Summary has the marks {have}; it must have {ANCHORS}, each once, in this order and side by side")


def _object(text: str) -> dict[str, Any]:
    """The first JSON object in ``text``."""
    start = text.find("{")
    if start < 0:
        raise AnswerError("there is no JSON object in the answer; answer with one and nothing else")
    try:
        answer, _ = json.JSONDecoder(strict=False).raw_decode(text, start)  # a line break inside a string is meant as a space
    except (ValueError, RecursionError) as error:
        raise AnswerError(f"the JSON object cannot be read ({str(error)[:120]}); answer with one whole, valid object") from error
    assert isinstance(answer, dict)
    return answer


def _names() -> str:
    return ", ".join(field.capitalize() for field in FIELDS)

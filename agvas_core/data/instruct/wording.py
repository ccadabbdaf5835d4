"""Words that a text must not hold, because they speak of what only the annotating model was shown (paper A.2)."""

import re
from dataclasses import dataclass
from typing import Any

from agvas_core.contract.errors import UsageError

__all__ = ["Wording"]

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
                raise UsageError(f"forbidden.toml: [{subject}] may have {', '.join(KEYS)}; mend it")
            if not all(
                isinstance(phrases, list) and all(isinstance(one, str) and one for one in phrases) for phrases in lists.values()
            ):
                raise UsageError(f"forbidden.toml: [{subject}]: {', '.join(lists)} must be lists of phrases; mend it")
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

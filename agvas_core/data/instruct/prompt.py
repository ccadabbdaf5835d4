"""The prompt about a sample (paper A.2, figure 9): all of it is data in ``prompt/``, or in a folder of the user's.

The paper shows its system prompt as a picture only; the texts here are our own.
"""

import hashlib
import json
import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final

from agvas_core.contract.errors import UsageError
from agvas_core.data.instruct.answer import AnswerError, Wording, parsed
from agvas_core.data.instruct.pictures import RECIPE

__all__ = ["Message", "Prompt", "load_prompt"]

Message = dict[str, Any]
"""One message of the chat-completions format."""

FILES: Final = ("system.txt", "example.json", "request.txt", "meanings.toml", "forbidden.toml")
UNKNOWN_KIND: Final = "something differs from how such a part should look"
_FIRST_TWO: Final = (
    "The pictures: the photograph with a green frame round the anomaly; the photograph with the anomaly tinted red"
)
WITH_NORMAL: Final = f"{_FIRST_TWO}; a faultless part of the category."
WITHOUT_NORMAL: Final = f"{_FIRST_TWO}. No picture of a faultless part is at hand."


@dataclass(frozen=True)
class Prompt:
    """The texts of every request."""

    system: str
    example_request: str
    example_answer: str
    request: str
    meanings: dict[str, str]
    """Kind, or category/kind, in lower case -> what it means."""
    wording: Wording
    digest: str
    """Of all of these but the wording, which judges and is not said; and of how pictures are drawn."""

    def prior(self, category: str, kind: str) -> str:
        """The one sentence on what is known beforehand: category, kind of anomaly, meaning; ``kind`` may be empty."""
        named = f'of the kind "{_words(kind)}"' if kind else "of a kind that is not named"
        return f'This is a case of the category "{_words(category)}" with an anomaly {named}, which means that {self.meaning(category, kind)}.'

    def meaning(self, category: str, kind: str) -> str:
        """What a kind means: for the category, else in general, else by the last of its words that is listed."""
        plain = _words(kind)
        for name in (f"{_words(category)}/{plain}", plain, *reversed(plain.split())):
            if name in self.meanings:
                return self.meanings[name]
        return UNKNOWN_KIND

    def messages(self, category: str, kind: str, pictures: list[str]) -> list[Message]:
        """The whole conversation up to where the model answers.

        Args:
            pictures: two or three data URLs: boxes, mask, and a normal image where there is one.
        """
        told = WITH_NORMAL if len(pictures) == 3 else WITHOUT_NORMAL
        text = self.request.replace("{prior}", self.prior(category, kind)).replace("{pictures}", told)
        images = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
        return [
            {"role": "system", "content": self.system},
            {"role": "user", "content": self.example_request},
            {"role": "assistant", "content": self.example_answer},
            {"role": "user", "content": [*images, {"type": "text", "text": text}]},
        ]


def load_prompt(folder: Path | None = None) -> Prompt:
    """The prompt of the package; files in ``folder`` take the place of those of the same name.

    Raises:
        UsageError: a file that cannot be understood, or a folder that has none of them.
    """
    if folder is not None and not any((folder / name).is_file() for name in FILES):
        raise UsageError(f"{folder} has none of {', '.join(FILES)}; --prompt takes a folder with files that replace ours")
    texts = {name: _text(folder, name) for name in FILES}
    wording = Wording.from_table(_table("forbidden.toml", texts))
    example = _example(texts["example.json"], wording)
    said = [texts[name] for name in FILES if name != "forbidden.toml"]
    return Prompt(
        system=texts["system.txt"].strip(),
        example_request=example[0],
        example_answer=example[1],
        request=_request(texts["request.txt"]),
        meanings=_meanings(_table("meanings.toml", texts)),
        wording=wording,
        digest=hashlib.sha256("\0".join([*said, WITH_NORMAL, WITHOUT_NORMAL, RECIPE]).encode()).hexdigest()[:16],
    )


def _text(folder: Path | None, name: str) -> str:
    ours = resources.files("agvas_core.data.instruct").joinpath("prompt", name)
    source: Traversable = folder / name if folder is not None and (folder / name).is_file() else ours
    try:
        return source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{source} cannot be read as UTF-8 text ({error}): write it again") from error


def _table(name: str, texts: dict[str, str]) -> dict[str, Any]:
    try:
        return tomllib.loads(texts[name])
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{name} is no TOML ({error}): fix it") from error


def _example(text: str, wording: Wording) -> tuple[str, str]:
    try:
        example = json.loads(text)
        request, answer = str(example["request"]), json.dumps(example["answer"], indent=1, ensure_ascii=False)
        parsed(answer, wording, request)  # what breaks the rules would teach to break them
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f'example.json must be {{"request": TEXT, "answer": {{five fields}}}} ({error!r}): fix it') from error
    except AnswerError as error:
        raise UsageError(f"example.json breaks the rules for answers: {error}") from error
    return request, answer


def _request(text: str) -> str:
    if text.count("{prior}") != 1 or text.count("{pictures}") != 1:
        raise UsageError("request.txt must have the places {prior} and {pictures}, each once: add them")
    return text.strip()


def _meanings(table: dict[str, Any]) -> dict[str, str]:
    meanings = {_words(name): str(text) for name, text in table.get("meaning", {}).items()}
    for alias, name in table.get("alias", {}).items():
        if _words(str(name)) not in meanings:
            raise UsageError(f"meanings.toml: the alias {alias} stands for {name!r}, which has no meaning: give it one")
        meanings.setdefault(_words(alias), meanings[_words(str(name))])
    return meanings


def _words(name: str) -> str:
    """``broken_large`` -> ``broken large``, in lower case."""
    return re.sub(r"[_\s-]+", " ", name).strip().lower()

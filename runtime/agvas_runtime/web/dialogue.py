"""Messages of a dialogue to one image, one instruction, and what was said about that image before."""

from dataclasses import dataclass

from agvas_core.contract.prompts import DEFAULT_INSTRUCTION
from agvas_runtime.stages.protocol import Turn
from agvas_runtime.web.asked import ChatRequest, ImagePart, Message
from agvas_runtime.web.refusal import Refusal
from agvas_runtime.web.upload import Upload, from_text

__all__ = ["Exchange", "exchange_of"]

SYSTEM_NOTE = "system messages are not read: the model was trained without any"


@dataclass(frozen=True)
class Exchange:
    """What is put to the model."""

    upload: Upload
    prompt: str | None
    """None where the last message has no words: the mode's own instruction is taken."""
    history: tuple[Turn, ...]
    """What was asked and answered about this image, oldest first."""
    notes: tuple[str, ...]
    """What of the request has no effect."""


def exchange_of(request: ChatRequest) -> Exchange:
    """The last message's words, and the newest image up to there.

    Raises:
        Refusal: no image, no user's message at the end, or something that this server does not do.
    """
    if request.n not in (None, 1):
        raise Refusal(400, "usage", f"n is {request.n}; decoding is greedy, so there is one answer")
    if request.tools:
        raise Refusal(400, "usage", "tools are not supported: leave them out")
    *before, last = request.messages
    if last.role != "user":
        raise Refusal(400, "usage", f"the last message is of the role {last.role}; it must be the user's")
    images = [part for message in request.messages if message.role == "user" for part in _images(message)]
    if not images:
        raise Refusal(
            400, "usage", "there is no image: send one as an image_url part with a data: URL, in this or an earlier message"
        )
    if not images[-1].image_url.url.lower().startswith("data:"):
        raise Refusal(400, "usage", "the image_url is no data: URL; this server fetches nothing: send data:image/png;base64,...")
    notes = (SYSTEM_NOTE,) if any(message.role in ("system", "developer") for message in before) else ()
    return Exchange(from_text(images[-1].image_url.url, "image"), _words(last) or None, _history(before, last), notes)


def _history(before: list[Message], last: Message) -> tuple[Turn, ...]:
    """Questions with their answers, since the newest image came; a question that has none is left out."""
    if _images(last):
        return ()
    newest = max(index for index, message in enumerate(before) if message.role == "user" and _images(message))
    turns = zip(before[newest:], before[newest + 1 :], strict=False)
    return tuple(
        Turn(_words(asked) or DEFAULT_INSTRUCTION, _words(said))
        for asked, said in turns
        if asked.role == "user" and said.role == "assistant" and _words(said)
    )


def _images(message: Message) -> list[ImagePart]:
    return [part for part in message.content or () if isinstance(part, ImagePart)]


def _words(message: Message) -> str:
    if isinstance(message.content, str):
        return message.content.strip()
    return " ".join(part.text for part in message.content or () if part.type == "text").strip()

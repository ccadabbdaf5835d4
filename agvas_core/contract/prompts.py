"""Prompts: instructions, answers, chat formats, and the three anchors in the answer (paper 3.1).

One place for the instruction, the fixed answer and the chat format. Training builds its dialogues from these, the bundle
carries them, and the runtime fills them in.
"""

import re
from enum import IntEnum, StrEnum
from typing import Final

from agvas_core.contract.validation import StrictModel

__all__ = [
    "ANCHORS",
    "ANCHORS_SHOWN",
    "ANCHOR_TOKENS",
    "DEFAULT_INSTRUCTION",
    "EMPTY_LOGITS",
    "FIXED_ANSWER",
    "IMAGE_TOKEN",
    "INSTRUCTIONS",
    "NO_ANOMALY_ANSWER",
    "QWEN_CHAT",
    "VICUNA_CHAT",
    "Anchor",
    "ChatFormat",
    "Mode",
    "strip_control_tokens",
    "with_normal_look",
]


# The three semantic anchors and their order (paper 3.1).
#
# The order NOR, ANO, SEG is written here and nowhere else: token ids, anchor states, learnable queries and mask logits all
# follow it along their axis of size 3.


class Anchor(IntEnum):
    """Index of each anchor along every axis of size 3."""

    NOR = 0  # relative: what is normal here
    ANO = 1  # relative: what is anomalous here
    SEG = 2  # absolute: what an anomaly is and where


ANCHOR_TOKENS: Final[tuple[str, str, str]] = ("[NOR]", "[ANO]", "[SEG]")
EMPTY_LOGITS: Final[tuple[float, float, float]] = (200.0, -200.0, -200.0)
"""Mask logits of an answer without anchors: sigmoid(-200) is 0 in float32, so the mask is empty at any threshold."""


class Mode(StrEnum):
    """How the model answers (paper 3.1, 4.3)."""

    DIRECT = "direct"
    """The mask at once: the answer is known, so one prefill and no decoding (implicit mode)."""
    DESCRIBE = "describe"
    """Words first, then the mask (describe-then-segment)."""
    DESCRIBE_PLUS = "describe-plus"
    """As ``describe``, with a sentence on the normal look of the part before the instruction (describe-then-segment-plus)."""
    EXPLAIN = "explain"
    """The mask first, then why (segment-then-explain)."""


ANCHORS = "".join(ANCHOR_TOKENS)
ANCHORS_SHOWN = "[mask]"
"""Stands in a readable answer where the anchors stood; without it, "as indicated by [NOR][ANO][SEG]." would break off."""
DEFAULT_INSTRUCTION = "Please segment the anomalies in this image."  # sec. 3.1, implicit mode
_DESCRIBE = "What anomalies are present in this image? Please describe the anomalies and then output the segmentation map."
INSTRUCTIONS: dict[Mode, str] = {  # sec. 3.1, explicit mode; B.2; figures 9-11
    Mode.DIRECT: DEFAULT_INSTRUCTION,
    Mode.DESCRIBE: _DESCRIBE,
    Mode.DESCRIBE_PLUS: _DESCRIBE,
    Mode.EXPLAIN: "Please segment the anomalies in this image and then explain why they are anomalies.",
}
FIXED_ANSWER = f"Sure, it is {ANCHORS}."  # sec. 3.1: direct mode needs no decoding
NO_ANOMALY_ANSWER = "There are no anomalies in this image."
"""The refusal (figure 11). Its first token against that of :data:`FIXED_ANSWER` tells, without decoding, whether the model refuses."""
IMAGE_TOKEN = "<image>"

MAX_INSTRUCTION_CHARS = 2000
_ANCHORS = re.compile("|".join(re.escape(token) for token in ANCHOR_TOKENS), re.IGNORECASE)
_CONTROL = re.compile(r"<\|[^|<>]{1,40}\|>|</?s>|<image>|<unk>|<pad>", re.IGNORECASE)


class ChatFormat(StrictModel):
    """The text around the image, the instruction and the answer.

    The sequence is ``before_image`` + Concat(f_s, f_align) + ``after_image`` + instruction + ``before_answer`` + answer +
    ``after_answer``.
    """

    before_image: str
    after_image: str
    before_answer: str
    after_answer: str

    def prompt(self, instruction: str) -> tuple[str, str]:
        """Text before and after the image, up to where the answer starts."""
        return self.before_image, f"{self.after_image}{instruction}{self.before_answer}"

    def follow_up(self, instruction: str) -> str:
        """What comes after ``after_answer`` where a conversation goes on, up to where the next answer starts; the image is not shown again."""
        gap = "\n" if self.after_answer.startswith("<|im_end|>") else ""  # as the published chat templates have it
        return f"{gap}{self.before_image.removeprefix('<s>')}{instruction}{self.before_answer}"


QWEN_CHAT = ChatFormat(  # LLaVA-OneVision and nano
    before_image="<|im_start|>user\n",
    after_image="\n",
    before_answer="<|im_end|>\n<|im_start|>assistant\n",
    after_answer="<|im_end|>",
)
VICUNA_CHAT = ChatFormat(  # LLaVA-1.5; its tokenizer's own first token is written out, for none is added when encoding
    before_image="<s>USER: ", after_image="\n", before_answer=" ASSISTANT: ", after_answer="</s>"
)


def with_normal_look(normal_look: str, instruction: str) -> str:
    """The instruction of describe-then-segment-plus: how a good part looks, then what to do."""
    return f"{normal_look.strip().rstrip('.')}. {instruction}"


def strip_control_tokens(text: str) -> tuple[str, list[str]]:
    """Removes anchors and chat-control tokens that a user typed; returns the clean text and what was taken out.

    Removal is repeated until nothing is left to remove, so that ``[S[SEG]EG]`` does not become an anchor.
    """
    removed: list[str] = []
    while True:
        found = _ANCHORS.findall(text) + _CONTROL.findall(text)
        if not found:
            return " ".join(text.split()), removed
        removed += found
        text = _CONTROL.sub(" ", _ANCHORS.sub("", text))

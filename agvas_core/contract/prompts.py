"""What is said to the language model, and what it answers (paper 3.1).

One place for the instruction, the fixed answer and the chat format. Training builds its dialogues from these, the bundle
carries them, and the runtime fills them in.
"""

import re

from pydantic import BaseModel, ConfigDict

from agvas_core.contract.anchors import ANCHOR_TOKENS

__all__ = ["DEFAULT_INSTRUCTION", "FIXED_ANSWER", "IMAGE_TOKEN", "QWEN_CHAT", "VICUNA_CHAT", "ChatFormat", "strip_control_tokens"]

DEFAULT_INSTRUCTION = "Please segment the anomalies in this image."  # sec. 3.1, implicit mode
FIXED_ANSWER = f"Sure, it is {''.join(ANCHOR_TOKENS)}."  # sec. 3.1: direct mode needs no decoding
IMAGE_TOKEN = "<image>"

MAX_INSTRUCTION_CHARS = 2000
_ANCHORS = re.compile("|".join(re.escape(token) for token in ANCHOR_TOKENS), re.IGNORECASE)
_CONTROL = re.compile(r"<\|[^|<>]{1,40}\|>|</?s>|<image>|<unk>|<pad>", re.IGNORECASE)


class ChatFormat(BaseModel):
    """The text around the image, the instruction and the answer.

    The sequence is ``before_image`` + Concat(f_s, f_align) + ``after_image`` + instruction + ``before_answer`` + answer +
    ``after_answer``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    before_image: str
    after_image: str
    before_answer: str
    after_answer: str

    def prompt(self, instruction: str) -> tuple[str, str]:
        """Text before and after the image, up to where the answer starts."""
        return self.before_image, f"{self.after_image}{instruction}{self.before_answer}"


QWEN_CHAT = ChatFormat(  # LLaVA-OneVision and nano
    before_image="<|im_start|>user\n",
    after_image="\n",
    before_answer="<|im_end|>\n<|im_start|>assistant\n",
    after_answer="<|im_end|>",
)
VICUNA_CHAT = ChatFormat(before_image="USER: ", after_image="\n", before_answer=" ASSISTANT: ", after_answer="</s>")  # LLaVA-1.5


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

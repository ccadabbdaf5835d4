"""Joint 2 by torch: features and words to the anchors' states, by the functions that training and evaluation use."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from agvas_core.contract.prompts import Mode
from agvas_core.model.agvas import AgVas, Vision
from agvas_core.model.encoders import PixelFeatures
from agvas_core.model.generation import greedy_generate
from agvas_core.model.lmm import find_anchors
from agvas_runtime.bundle import Bundle
from agvas_runtime.stages.prompt_tokenizer import PromptTokenizer, Words
from agvas_runtime.stages.protocol import Features, Reply, Turn
from agvas_runtime.stages.reference.model import checkpoint_of
from agvas_runtime.stages.settings import StageSettings

__all__ = ["TorchLmm", "open_lmm"]


class TorchLmm:
    """The checkpoint's language model. An answer that was generated is read once more as a whole, as in training."""

    def __init__(self, bundle: Bundle, model: AgVas, device: str = "cpu") -> None:
        self._prompt = bundle.manifest.prompt
        self._tokenizer = PromptTokenizer(bundle)
        self._model, self._device = model, device

    @torch.inference_mode()
    def __call__(self, features: Features, instruction: str, mode: Mode = Mode.DIRECT, history: Sequence[Turn] = ()) -> Reply:
        """Direct mode: one prefill with the fixed answer appended. The others: the most likely word again and again.

        Raises:
            UsageError: the instruction is longer than the bundle takes, or has control tokens in it.
        """
        words = self._tokenizer.words(instruction, mode, tuple(history))
        f_s, f_align = (torch.from_numpy(np.asarray(part)).to(self._device) for part in (features.f_s, features.f_align))
        if mode is Mode.DIRECT:
            return self._prefill(f_s, f_align, words)
        rows = [self._generate(f_s[row, None], f_align[row, None], words) for row in range(len(f_s))]
        return Reply(
            np.concatenate([row.anchor_states for row in rows]),
            np.concatenate([row.accept for row in rows]),
            np.concatenate([row.found for row in rows]),
            [answer for row in rows for answer in row.answers or ()],
        )

    def _prefill(self, f_s: Tensor, f_align: Tensor, words: Words) -> Reply:
        ids = self._ids(f_s, f_align, words)  # [B, L]
        skipped = ids.shape[1] - words.ids_after.shape[1]
        hidden, _ = self._model.lmm(self._model.lmm.embed(ids, f_s, f_align), with_logits=False)
        positions = torch.from_numpy(words.anchor_positions).to(ids.device).expand(len(ids), -1) + skipped
        anchors = self._model.lmm.anchor_states(hidden, positions)  # [B, 3, D]
        logits = self._model.lmm.head(hidden[:, words.logit_positions.item() + skipped])  # [B, V], of the answer's first word
        answers, refuses = (logits[:, id].double() for id in (self._tokenizer.first_of_answer, self._tokenizer.first_of_refusal))
        accept = (answers - refuses).sigmoid().float()
        return Reply(anchors.float().cpu().numpy(), accept.cpu().numpy(), np.ones(len(ids), bool))

    def _generate(self, f_s: Tensor, f_align: Tensor, words: Words) -> Reply:
        """One row, until the end token or ``max_new_tokens``."""
        ids = self._ids(f_s, f_align, words)  # [1, L]
        vision = Vision(f_s, f_align, PixelFeatures(f_s, None))  # the pixel features are not looked at
        said = greedy_generate(self._model, vision, ids, self._prompt.end_id, self._prompt.max_new_tokens)
        whole = torch.cat([ids, ids.new_tensor([said])], 1)  # [1, L + answer]
        hidden, _ = self._model.lmm(self._model.lmm.embed(whole, f_s, f_align), with_logits=False)
        positions, found = find_anchors(whole, self._model.lmm.anchor_ids, ids.new_tensor([ids.shape[1]]))
        anchors = self._model.lmm.anchor_states(hidden, positions) * found[:, None, None]  # [1, 3, D]
        there = found.cpu().numpy()
        return Reply(anchors.float().cpu().numpy(), there.astype(np.float32), there, [self._tokenizer.text(said)])

    def _ids(self, f_s: Tensor, f_align: Tensor, words: Words) -> Tensor:
        """Words around 2N image tokens, [B, L]."""
        image = np.full((1, f_s.shape[1] + f_align.shape[1]), self._prompt.image_id, np.int64)
        row = torch.from_numpy(np.concatenate([words.ids_before, image, words.ids_after], 1))
        return row.to(f_s.device).expand(len(f_s), -1)


def open_lmm(bundle: Bundle, settings: StageSettings) -> TorchLmm:
    """Raises SetupError or BundleError, as ``checkpoint_of``."""
    return TorchLmm(bundle, checkpoint_of(bundle, settings).model)

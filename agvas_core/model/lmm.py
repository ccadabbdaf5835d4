"""The language model and its anchors (paper 3.1, eq. 3): y_txt = F_LLM(Concat(f_s, f_align, f_txt)).

The language model is transformers' own (Qwen2 or LLaMA, as in LLaVA-OneVision and LLaVA-1.5). Visual embeddings take the
place of a run of 2N image tokens, as in those models; anchor states are its last, post-norm hidden states.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Lmm", "LmmOutput", "acceptance", "find_anchors"]


class LmmOutput(NamedTuple):
    """``hidden`` [B, L, D], post-norm; ``logits`` [B, L, V] where asked for."""

    hidden: Tensor
    logits: Tensor | None


def find_anchors(input_ids: Tensor, anchor_ids: tuple[int, int, int], start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Positions of the three anchors in each row.

    The last occurrence of each counts, at or after ``start`` (where the answer begins, [B]). A row in which any of the three
    is missing has no anchors: its mask is empty (the rule ``no anchors, empty mask``). Positions are counted from the
    row's first column, padding included, so rows may be padded on either side.

    Returns:
        positions [B, 3] in anchor order (0 where not found), found [B] bool.
    """
    length = input_ids.shape[1]
    index = torch.arange(length, device=input_ids.device)
    is_anchor = input_ids[:, :, None] == torch.tensor(anchor_ids, device=input_ids.device)  # [B, L, 3]
    if start is not None:
        is_anchor = is_anchor & (index[None, :, None] >= start[:, None, None])
    last = torch.where(is_anchor, index[None, :, None], -1).amax(1)  # [B, 3]
    return last.clamp(min=0), (last >= 0).all(1)


class Lmm(nn.Module):
    """A decoder-only language model with the anchor tokens in its vocabulary.

    Args:
        language_model: transformers' Qwen2Model or LlamaModel.
        head: output head [D -> V].
        image_token_id: id that is repeated where the visual embeddings go.
        anchor_ids: ids of [NOR], [ANO], [SEG].
    """

    def __init__(
        self, *, language_model: nn.Module, head: nn.Module, image_token_id: int, anchor_ids: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.language_model, self.head = language_model, head
        self.image_token_id, self.anchor_ids = image_token_id, anchor_ids

    def embed(self, input_ids: Tensor, f_s: Tensor, f_align: Tensor) -> Tensor:
        """Concat(f_s, f_align, f_txt): ids [B, L] with 2N image tokens in each row -> [B, L, D]."""
        f_txt = self.embed_text(input_ids)  # [B, L, D]
        visual = torch.cat([f_s, f_align], 1).to(f_txt.dtype)  # [B, 2N, D]
        is_image = input_ids == self.image_token_id
        if (counts := is_image.sum(1)).ne(visual.shape[1]).any():
            raise ValueError(
                f"rows have {counts.tolist()} image tokens; f_s and f_align give {visual.shape[1]}: tokenize with that many image tokens"
            )
        return f_txt.masked_scatter(is_image[..., None], visual)

    def embed_text(self, input_ids: Tensor) -> Tensor:
        """f_txt: ids [B, L] -> [B, L, D]."""
        f_txt: Tensor = self.language_model.get_input_embeddings()(input_ids)  # type: ignore[operator]
        return f_txt

    def forward(
        self, embeddings: Tensor, attention_mask: Tensor | None = None, *, with_logits: bool = True, cache: Any = None
    ) -> LmmOutput:
        """One pass.

        Args:
            embeddings: [B, L, D]; with a cache, of the positions that are new.
            attention_mask: [B, L], with a cache [B, all positions so far]; 1 where there is a token, everywhere if None.
            with_logits: also the text's; at 150,000 words they are the largest tensor of all.
            cache: keys and values of earlier positions, as transformers keeps them; for generation.
        """
        positions = None
        if attention_mask is not None:  # left padding must not shift the positions
            positions = (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, -embeddings.shape[1] :]
        # By place: the fourth, the cache, is named past_key_values up to transformers 5.19 and cache after it.
        output = self.language_model(
            None, attention_mask, positions, cache, inputs_embeds=embeddings, use_cache=cache is not None
        )
        hidden = output.last_hidden_state  # [B, L, D], after the final norm
        return LmmOutput(hidden, self.head(hidden) if with_logits else None)

    @staticmethod
    def anchor_states(hidden: Tensor, positions: Tensor) -> Tensor:
        """Hidden [B, L, D] at positions [B, 3] -> [B, 3, D]."""
        return hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))


# Does the language model answer or refuse (paper 3.1, rejection)? Read from one prefill, without decoding.
#
# Direct mode appends the fixed answer, so a model cannot refuse. Its preference is read at the position that predicts
# the answer's first token: the probability of that token against the refusal's.


def acceptance(text_logits: Tensor, answer_start: Tensor, accept_id: int, refuse_id: int) -> Tensor:
    """P(answers) of the two openings, float [B] in 0..1.

    Args:
        text_logits: [B, L, V].
        answer_start: int64 [B], the position of the answer's first token, 1 at least.
        accept_id: the first token of the fixed answer.
        refuse_id: the first token of the refusal.
    """
    rows = torch.arange(len(text_logits), device=text_logits.device)
    said = text_logits[rows, answer_start - 1].float()  # [B, V]
    return (said[:, accept_id] - said[:, refuse_id]).sigmoid()

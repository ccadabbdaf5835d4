"""AG-VAS, the whole path (paper 3.1, figure 3)."""

from typing import NamedTuple

from torch import Tensor, nn

from agvas_core.model.agmd import Agmd
from agvas_core.model.encoders import LinearP, PixelEncoder, PixelFeatures, SemanticEncoder
from agvas_core.model.lmm import Lmm, find_anchors
from agvas_core.model.refiner import TokenRefiner
from agvas_core.model.spam import Spam

__all__ = ["EMPTY_LOGIT", "AgVas", "AgVasOutput", "Vision"]

EMPTY_LOGIT = 200.0  # sigmoid(-200) is 0 in float32: a reply without anchors has an empty mask at any threshold


class Vision(NamedTuple):
    """What the image gives, whatever is asked: f_s and f_align [B, N, D], and the pixel features."""

    f_s: Tensor
    f_align: Tensor
    pixel: PixelFeatures


class AgVasOutput(NamedTuple):
    """``text_logits`` [B, L, V]; ``mask_logits`` [B, 3, H', W'] in anchor order; ``found`` [B]: does the row have anchors."""

    text_logits: Tensor | None
    mask_logits: Tensor
    found: Tensor
    vision: Vision


class AgVas(nn.Module):
    """Ready-made modules, joined. ``build.py`` makes them from a configuration."""

    def __init__(
        self,
        *,
        semantic_encoder: SemanticEncoder,
        pixel_encoder: PixelEncoder,
        linear_p: LinearP,
        spam: Spam,
        lmm: Lmm,
        refiner: TokenRefiner,
        agmd: Agmd,
    ) -> None:
        super().__init__()
        self.semantic_encoder, self.pixel_encoder = semantic_encoder, pixel_encoder
        self.linear_p, self.spam, self.lmm = linear_p, spam, lmm
        self.refiner, self.agmd = refiner, agmd

    def forward(
        self,
        semantic_image: Tensor,
        pixel_image: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        answer_start: Tensor | None = None,
        with_text: bool = True,
    ) -> AgVasOutput:
        """One pass over image, instruction and answer.

        Args:
            semantic_image: uint8 RGB [B, Hs, Ws, 3].
            pixel_image: uint8 RGB [B, Hp, Wp, 3].
            input_ids: int64 [B, L]; 2N image tokens in each row; padded on either side.
            attention_mask: [B, L], 1 where there is a token.
            answer_start: [B], where the answer begins; anchors before it do not count.
        """
        vision = self.see(semantic_image, pixel_image)
        f_in = self.lmm.embed(input_ids, vision.f_s, vision.f_align)  # [B, L, D]
        hidden, text_logits = self.lmm(f_in, attention_mask, with_logits=with_text)  # eq. 3
        positions, found = find_anchors(input_ids, self.lmm.anchor_ids, answer_start)
        anchors = self.lmm.anchor_states(hidden, positions)  # [B, 3, D]
        return AgVasOutput(text_logits, self.decode(anchors, vision.pixel, found), found, vision)

    def see(self, semantic_image: Tensor, pixel_image: Tensor) -> Vision:
        """Joint 1, vision."""
        f_s = self.semantic_encoder(semantic_image)  # eq. 1: [B, N, D]
        pixel = self.pixel_encoder(pixel_image)  # eq. 1: [B, C, h, w]
        f_align = self.spam(f_s, self.linear_p(pixel.f_p))  # eq. 2: [B, N, D]
        return Vision(f_s, f_align, pixel)

    def decode(self, anchors: Tensor, pixel: PixelFeatures, found: Tensor | None = None) -> Tensor:
        """Joint 3, decoder: anchor states [B, 3, D] -> mask logits [B, 3, H', W'].

        Rows that are not ``found`` get the logits of an empty mask (the rule ``no anchors, empty mask``).
        """
        h_anchor = self.refiner(anchors)  # [B, 3, C]
        logits: Tensor = self.agmd(h_anchor, pixel.f_p, pixel.f_detail)  # eq. 4-7: [B, 3, H', W']
        if found is not None:
            empty = logits.new_tensor([EMPTY_LOGIT, -EMPTY_LOGIT, -EMPTY_LOGIT]).view(1, 3, 1, 1)
            logits = logits.where(found.view(-1, 1, 1, 1), empty)
        return logits

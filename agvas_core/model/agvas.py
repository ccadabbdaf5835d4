"""AG-VAS, the whole path (paper 3.1, figure 3)."""

from typing import NamedTuple

from torch import Tensor, nn

from agvas_core.contract.prompts import EMPTY_LOGITS
from agvas_core.model.agmd import Agmd, TokenRefiner
from agvas_core.model.encoders.encoders import LinearP, PixelEncoder, PixelFeatures, SemanticEncoder
from agvas_core.model.lmm import Lmm, find_anchors
from agvas_core.model.sam_decoder import SamMaskDecoder
from agvas_core.model.spam import Spam

__all__ = ["AgVas", "AgVasOutput", "Vision"]


class Vision(NamedTuple):
    """What the image gives, whatever is asked: f_s and f_align [B, N, D] (f_align [B, 0, D] without SPAM), and the pixel features."""

    f_s: Tensor
    f_align: Tensor
    pixel: PixelFeatures

    def of(self, image: Tensor) -> "Vision":
        """One row for each exchange: ``image`` [R] holds the index of the image that it is about."""
        f_p, f_detail = self.pixel.f_p, self.pixel.f_detail
        pixel = PixelFeatures(f_p[image], None if f_detail is None else f_detail[image])
        return Vision(self.f_s[image], self.f_align[image], pixel)


class AgVasOutput(NamedTuple):
    """``text_logits`` [B, L, V]; ``mask_logits`` [B, 3, H', W'] in anchor order; ``found`` [B]: does the row have anchors;
    ``h_anchor`` [B, 3, C]: the refined anchors."""

    text_logits: Tensor | None
    mask_logits: Tensor
    found: Tensor
    vision: Vision
    h_anchor: Tensor


class AgVas(nn.Module):
    """Ready-made modules, joined. ``build.py`` makes them from a configuration.

    Linear_p and SPAM are None in the ablation without SPAM; in LISA, SAM's decoder stands in AGMD's place.
    """

    def __init__(
        self,
        *,
        semantic_encoder: SemanticEncoder,
        pixel_encoder: PixelEncoder,
        linear_p: LinearP | None,
        spam: Spam | None,
        lmm: Lmm,
        refiner: TokenRefiner,
        agmd: Agmd | SamMaskDecoder,
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
        image_of: Tensor | None = None,
        carried: Tensor | None = None,
    ) -> AgVasOutput:
        """One pass over image, instruction and answer.

        Args:
            semantic_image: uint8 RGB [B, Hs, Ws, 3].
            pixel_image: uint8 RGB [B, Hp, Wp, 3].
            input_ids: int64 [B, L]; 2N image tokens in each row; padded on either side.
            attention_mask: [B, L], 1 where there is a token.
            answer_start: [B], where the answer begins; anchors before it do not count.
            image_of: [R], where there are R exchanges about B images: which image each row of ids is about. Encoders run once per image.
            carried: bool [R, 3], the anchors that each row's answer has, where some have fewer than the model; AGMD only.
        """
        vision = self.see(semantic_image, pixel_image)
        asked = vision if image_of is None else vision.of(image_of)
        f_in = self.lmm.embed(input_ids, asked.f_s, asked.f_align)  # [B, L, D]
        hidden, text_logits = self.lmm(f_in, attention_mask, with_logits=with_text)  # eq. 3
        positions, found = find_anchors(input_ids, self.lmm.anchor_ids, answer_start, carried)
        anchors = self.lmm.anchor_states(hidden, positions)  # [B, 3, D]
        h_anchor = self.refiner(anchors)  # [B, 3, C]
        return AgVasOutput(text_logits, self.masks(h_anchor, asked.pixel, found, carried), found, vision, h_anchor)

    def see(self, semantic_image: Tensor, pixel_image: Tensor) -> Vision:
        """Stage 1, vision."""
        f_s = self.semantic_encoder(semantic_image)  # eq. 1: [B, N, D]
        pixel = self.pixel_encoder(pixel_image)  # eq. 1: [B, C, h, w]
        if self.spam is None or self.linear_p is None:
            return Vision(f_s, f_s[:, :0], pixel)
        height, width = pixel.f_p.shape[-2:]
        f_align = self.spam(f_s, self.linear_p(pixel.f_p), (height, width))  # eq. 2: [B, N, D]
        return Vision(f_s, f_align, pixel)

    def decode(self, anchors: Tensor, pixel: PixelFeatures, found: Tensor | None = None) -> Tensor:
        """Stage 3, decoder: anchor states [B, 3, D] -> mask logits [B, 3, H', W']; ``found`` as in :meth:`masks`."""
        return self.masks(self.refiner(anchors), pixel, found)

    def masks(self, h_anchor: Tensor, pixel: PixelFeatures, found: Tensor | None = None, carried: Tensor | None = None) -> Tensor:
        """Refined anchors [B, 3, C] -> mask logits [B, 3, H', W'].

        Rows that are not ``found`` get the logits of an empty mask (the rule ``no anchors, empty mask``). ``carried``: as of ``Agmd``.
        """
        more = () if carried is None else (carried,)  # SAM's decoder has one anchor, which every answer has
        logits: Tensor = self.agmd(h_anchor, pixel.f_p, pixel.f_detail, *more)  # eq. 4-7: [B, 3, H', W']
        if found is not None:
            empty = logits.new_tensor(EMPTY_LOGITS).view(1, 3, 1, 1)
            logits = logits.where(found.view(-1, 1, 1, 1), empty)
        return logits

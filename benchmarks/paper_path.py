"""The model as the paper and LISA run it, for the ratio: Hugging Face ``generate`` with hidden states, SAM as published, one image at a time.

The answer is forced to the fixed sentence, since random weights would never say it; each word still costs a pass of the model, as it does there.
"""

from typing import Any

import torch
from paper_model import words
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaForCausalLM, LogitsProcessor, LogitsProcessorList, Qwen2ForCausalLM

from agvas_core.model.agvas import AgVas
from agvas_core.model.config import ModelConfig
from agvas_core.model.encoders.encoders import PixelFeatures
from agvas_core.model.spam import fold_linear_p


class Forced(LogitsProcessor):
    """Says the words of ``answer``, one after the other."""

    def __init__(self, answer: list[int]) -> None:
        self.answer, self.said = answer, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        word = self.answer[min(self.said, len(self.answer) - 1)]
        self.said += 1
        forced = torch.full_like(scores, -torch.inf)
        forced[:, word] = 0
        return forced


class PaperPath:
    """Three steps as in the paper: encoders and SPAM, generation, decoder."""

    def __init__(self, model: AgVas, config: ModelConfig) -> None:
        self.model, self.config = model, config
        language_model: Any = model.lmm.language_model
        kind = {"Qwen2Model": Qwen2ForCausalLM, "LlamaModel": LlamaForCausalLM}[type(language_model).__name__]
        with torch.device("meta"):
            causal: Any = kind(language_model.config)
        causal.model, causal.lm_head = language_model, model.lmm.head
        self.causal = causal.eval()
        before, after, self.anchors, asked = words(config)
        self.before, self.asked, self.answer = before, after[: asked + 1], after[asked + 1 :]

    def see(self, semantic: Tensor, pixel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """f_s, f_align, f_p; SAM's attention with its bias of L x L, Linear_p not folded."""
        model = self.model
        assert model.linear_p is not None and model.spam is not None
        f_s = model.semantic_encoder(semantic)
        encoder = model.pixel_encoder
        f_p: Tensor = encoder.backbone(encoder.normalize(pixel).to(f_s.dtype))
        return f_s, model.spam(f_s, model.linear_p(f_p)), f_p

    def generate(self, f_s: Tensor, f_align: Tensor) -> Tensor:
        """Anchor states [1, 3, D]."""
        embed, device = self.model.lmm.embed_text, f_s.device
        before, asked = (embed(torch.tensor([ids], device=device)) for ids in (self.before, self.asked))
        f_in = torch.cat([before, f_s.to(before.dtype), f_align.to(before.dtype), asked], 1)  # [1, L, D]
        said = self.causal.generate(
            inputs_embeds=f_in,
            attention_mask=torch.ones(f_in.shape[:2], dtype=torch.long, device=device),
            max_new_tokens=len(self.answer) + 1,  # the last anchor's state comes with the step that reads it
            min_new_tokens=len(self.answer) + 1,
            do_sample=False,
            output_hidden_states=True,
            return_dict_in_generate=True,
            pad_token_id=self.config.lmm.pad_token_id,
            logits_processor=LogitsProcessorList([Forced(self.answer)]),
        )
        read = [step[-1][:, -1] for step in said.hidden_states[1:]]  # of the answer's words, in their order
        return torch.stack(read[-3:], 1)

    @torch.inference_mode()
    def __call__(self, semantic: Tensor, pixel: Tensor) -> Tensor:
        """uint8 views of one image, on the CPU -> mask logits [1, 3, H', W'] on the CPU."""
        device = next(self.model.parameters()).device
        f_s, f_align, f_p = self.see(semantic.to(device), pixel.to(device))
        logits = self.model.decode(self.generate(f_s, f_align).float(), PixelFeatures(f_p.float(), None))
        return logits.cpu()


def useful_tflop(model: AgVas, config: ModelConfig, length: int) -> float:
    """Of one image, a multiply-add counting two: matrix products and convolutions; Linear_p folded, causal attention as the half of its square,
    every row of one prefill. ``model`` is on the device "meta", in float32."""
    assert model.linear_p is not None and model.spam is not None
    text: Any = model.lmm.language_model.config
    sides = config.semantic_view.size_px, config.pixel_view.size_px
    semantic, pixel = (torch.empty(1, side, side, 3, dtype=torch.uint8, device="meta") for side in sides)
    spam = fold_linear_p(model.linear_p, model.spam)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        f_s, features = model.semantic_encoder(semantic), model.pixel_encoder(pixel)
        spam(f_s, model.linear_p.norm(features.f_p.flatten(2).transpose(1, 2)))
        model.decode(torch.empty(1, 3, text.hidden_size, device="meta"), features)
    layers = sum(p.numel() for layer in model.lmm.language_model.layers for p in layer.parameters())  # type: ignore[union-attr]
    attention = 2 * text.num_hidden_layers * length**2 * text.hidden_size
    return float(counter.get_total_flops() + 2 * layers * length + attention) / 1e12

"""Stage 2 in direct mode (eq. 3): one prefill that computes only what is asked for.

The words before the image are the same for every frame, so their keys and values are kept. Of the last layer only four rows are read, the
three anchors and the one that says whether the model answers or refuses: keys and values are needed of all, queries and what follows of these
four. Of the output head two rows are read. Transformers' Qwen2 and LLaMA; equal to ``Lmm.forward`` at these rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agvas_core.contract.errors import BundleError
from agvas_core.model.lmm import Lmm
from agvas_runtime.stages.torch_cuda.pieces import PLAIN, Pieces

__all__ = ["Dense", "Float8", "Product", "Prompt", "Reader", "Wanted", "fused"]


# Linear layers of the language model side by side in one product, in the weights' own dtype or in float8.
#
# float8 (e4m3): weights have one scale a row of the output, kept; activations one scale a token, found as they come. The product accumulates in
# float32 and gives bfloat16 (``torch._scaled_mm``, which GPUs have from compute capability 8.9 on).


_FLOAT8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(_FLOAT8).max  # 448


class Product(Protocol):
    """x [..., K] -> [..., N]; ``rows`` takes a part of the N."""

    def __call__(self, x: Tensor, rows: slice = slice(None)) -> Tensor: ...


class Dense:
    """W x + b."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        return F.linear(x, self.weight[rows], None if self.bias is None else self.bias[rows])


class Float8:
    """W x + b with both factors in float8.

    Args:
        weight: [N, K], both multiples of 16.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        largest = weight.abs().amax(1, keepdim=True).float().clamp(min=1e-12)
        self.scale = largest / _LARGEST  # [N, 1]
        self.weight = (weight.float() / self.scale).to(_FLOAT8)
        self.bias, self.dtype = bias, weight.dtype

    def __call__(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        flat = x.flatten(0, -2)  # [M, K]
        scale = flat.abs().amax(1, keepdim=True).float().clamp(min=1e-12) / _LARGEST  # [M, 1]
        short = (flat.float() / scale).to(_FLOAT8)
        weight = self.weight[rows]
        out = torch._scaled_mm(
            short, weight.t(), scale_a=scale, scale_b=self.scale[rows].t().contiguous(), out_dtype=torch.bfloat16
        )
        out = out.to(self.dtype).view(*x.shape[:-1], len(weight))
        return out if self.bias is None else out + self.bias[rows]


def fused(layers: Sequence[nn.Linear], *, float8: bool = False) -> Product:
    """One product for all of ``layers``, in their order.

    In their own dtype they go on to work by themselves, on parts of the same memory; in float8 their weights are given up.
    """
    with torch.no_grad():
        weight = torch.cat([layer.weight for layer in layers])
        bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
        if float8:
            short = Float8(weight, bias)
            for layer in layers:
                layer.weight.data = layer.weight.data.new_empty(0)
            return short
        at = 0
        for layer in layers:
            layer.weight.data = weight[at : at + len(layer.weight)]
            at += len(layer.weight)
        return Dense(weight, bias)


class Wanted(NamedTuple):
    """Words around the image, and what is read of them; int64."""

    before: Tensor
    """[P]."""
    after: Tensor
    """[A], with the answer up to its last anchor."""
    rows: Tensor
    """[4] within ``after``: where the answer's first word is asked for, then NOR, ANO, SEG."""
    words: Tensor
    """[2]: the first word of the answer and that of the refusal."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """What is known before there is an image; one is the same as another only if it is that one."""

    past: list[tuple[Tensor, Tensor]]
    """Keys and values of the words before, one pair a layer, [1, kv heads, P, d] each."""
    after: Tensor
    """Embeddings of the words after, [1, A, D]."""
    rows: Tensor
    """[4], counted from the end of the sequence: -1 is its last position."""
    words: Tensor
    """Rows of the head, [2, D]."""


class _Layer(NamedTuple):
    qkv: Product
    out: Product
    gate_up: Product
    down: Product
    norms: tuple[Tensor, Tensor]


class Reader:
    """A language model that reads one prompt about many images.

    Args:
        lmm: on the device and in the dtype that it computes in. Its linear layers are laid together; in bfloat16 it goes on to work as before.
        float8: of all linear layers but the head.

    Raises:
        BundleError: a language model of another make.
    """

    def __init__(self, lmm: Lmm, *, float8: bool = False, pieces: Pieces = PLAIN) -> None:
        model: Any = lmm.language_model
        if type(model).__name__ not in ("Qwen2Model", "LlamaModel") or getattr(model, "has_sliding_layers", False):
            raise BundleError(
                f"torch-cuda reads Qwen2 and LLaMA without sliding windows, not {type(model).__name__}: choose torch"
            )
        config = model.config
        self._lmm, self._rotary, self._pieces, self.float8 = lmm, model.rotary_emb, pieces, float8
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._width: int = getattr(config, "head_dim", None) or config.hidden_size // self._heads
        self._eps: float = config.rms_norm_eps
        self._norm: Tensor = model.norm.weight
        self._layers = []
        for layer in model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            self._layers.append(
                _Layer(
                    fused([attention.q_proj, attention.k_proj, attention.v_proj], float8=float8),
                    fused([attention.o_proj], float8=float8),
                    fused([mlp.gate_proj, mlp.up_proj], float8=float8),
                    fused([mlp.down_proj], float8=float8),
                    (layer.input_layernorm.weight, layer.post_attention_layernorm.weight),
                )
            )

    def prepare(self, wanted: Wanted) -> Prompt:
        """What does not depend on the image."""
        past: list[tuple[Tensor, Tensor]] = []
        if len(wanted.before):
            before = self._lmm.embed_text(wanted.before[None])  # [1, P, D]
            self._run(before, [self._nothing(before)] * len(self._layers), None, past)
        else:
            past = [self._nothing(self._lmm.embed_text(wanted.after[None]))] * len(self._layers)
        head = self._lmm.head.weight
        assert isinstance(head, Tensor)
        return Prompt(past, self._lmm.embed_text(wanted.after[None]), wanted.rows - len(wanted.after), head[wanted.words])

    def __call__(self, prompt: Prompt, f_s: Tensor, f_align: Tensor) -> tuple[Tensor, Tensor]:
        """f_s and f_align [B, N, D] each -> anchor states [B, 3, D], and how far the model leans to answering [B]: the difference of two
        logits, float32."""
        batch, dtype = len(f_s), prompt.after.dtype
        x = torch.cat([f_s.to(dtype), f_align.to(dtype), prompt.after.expand(batch, -1, -1)], 1)  # [B, L, D]
        hidden = self._run(x, prompt.past, prompt.rows, None)  # [B, 4, D]
        logits = hidden[:, 0].float() @ prompt.words.float().t()  # [B, 2]
        return hidden[:, 1:], logits[:, 0] - logits[:, 1]

    def _run(
        self, x: Tensor, past: list[tuple[Tensor, Tensor]], rows: Tensor | None, kept: list[tuple[Tensor, Tensor]] | None
    ) -> Tensor:
        """New positions [B, L, D] after P old ones -> post-norm states of ``rows``; ``kept`` gets keys and values instead of being read."""
        length, before = x.shape[1], past[0][0].shape[2]
        places = torch.arange(before, before + length, device=x.device)
        cos, sin = (table[0] for table in self._rotary(x, places[None]))  # [L, d]
        add = torch.zeros_like(x)
        for number, (layer, old) in enumerate(zip(self._layers, past, strict=True)):
            x, normed = self._pieces.add_norm(x, add, layer.norms[0], self._eps)
            last = rows if number == len(self._layers) - 1 else None
            attended, new = self._attend(layer, normed, old, (cos, sin), last)
            if kept is not None:
                kept.append(new)
            if last is not None:
                x = x[:, last]  # [B, 4, D]
            x, normed = self._pieces.add_norm(x, layer.out(attended), layer.norms[1], self._eps)
            add = layer.down(self._pieces.gated(layer.gate_up(normed)))
        return self._pieces.add_norm(x, add, self._norm, self._eps)[1]

    def _attend(
        self, layer: _Layer, x: Tensor, old: tuple[Tensor, Tensor], turn: tuple[Tensor, Tensor], rows: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x [B, L, D] -> [B, L or 4, heads * d], and the new keys and values."""
        batch, length, _ = x.shape
        asked, kept = self._heads * self._width, self._kv_heads * self._width
        cos, sin = turn
        if rows is None:
            q, k, v = layer.qkv(x).split([asked, kept, kept], -1)  # type: ignore[no-untyped-call]
        else:
            q = layer.qkv(x[:, rows], slice(asked))
            k, v = layer.qkv(x, slice(asked, None)).split([kept, kept], -1)  # type: ignore[no-untyped-call]
        q, k, v = (part.view(batch, part.shape[1], -1, self._width).transpose(1, 2) for part in (q, k, v))  # [B, heads, n, d]
        if rows is None:
            q, k = self._pieces.rotate(q, k, cos, sin)
        else:
            q, _ = self._pieces.rotate(q, q, cos[rows], sin[rows])
            _, k = self._pieces.rotate(k, k, cos, sin)
        old_k, old_v = (part.expand(batch, -1, -1, -1) for part in old)
        k, v = torch.cat([old_k, k], 2), torch.cat([old_v, v], 2)  # [B, kv heads, P + L, d]
        before = k.shape[2] - length
        if rows is None:
            # Queries of nothing for the old positions make a square, whose causal form every fused kernel has.
            out = F.scaled_dot_product_attention(F.pad(q, (0, 0, before, 0)), k, v, is_causal=True, enable_gqa=True)[
                :, :, before:
            ]
        else:
            keys = torch.arange(-k.shape[2], 0, device=x.device)  # counted from the end, as the rows are
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=keys <= rows[:, None], enable_gqa=True)
        return out.transpose(1, 2).flatten(2), (k, v)

    def _nothing(self, like: Tensor) -> tuple[Tensor, Tensor]:
        empty = like.new_empty(1, self._kv_heads, 0, self._width)
        return empty, empty

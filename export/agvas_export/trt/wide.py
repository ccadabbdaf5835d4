"""The wide parts of the paper's model with random weights, for ``--check``: SAM ViT-B at 1024 px, SPAM at width 3584, AGMD at 256.

Their weights are not public and would not fit here; TensorRT looks at operators and shapes, and these are the real ones.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agvas_core.model.agmd import Agmd
from agvas_core.model.encoders.encoders import LinearP
from agvas_core.model.encoders.sam import SAM_SIZES, SamImageEncoder
from agvas_core.model.spam import Spam, fold_linear_p
from agvas_export.graphs import export_stage
from agvas_export.stages import Stage

__all__ = ["WIDE", "export_wide"]

WIDE = ("sam-vit-b", "spam-3584", "agmd-256")

_LMM_WIDTH, _HEADS = 3584, 28  # Qwen2-7B, and 28 heads of 128
_TOKENS = 729  # SigLIP so400m at 384 px
_CHANNELS, _GRID = 256, 64  # of SAM, at 1024 px


class _WideSpam(nn.Module):
    """SPAM with Linear_p folded into it, as the vision graph has it."""

    def __init__(self) -> None:
        super().__init__()
        linear_p = LinearP(_CHANNELS, _LMM_WIDTH)
        self.norm = linear_p.norm
        self.spam = fold_linear_p(linear_p, Spam(_LMM_WIDTH, _HEADS))

    def forward(self, f_s: Tensor, f_p: Tensor) -> Tensor:
        """[B, N, D], [B, C, h, w] -> f_align [B, N, D]."""
        aligned: Tensor = self.spam(f_s, self.norm(f_p.flatten(2).transpose(1, 2)))
        return aligned


def export_wide(folder: Path, names: tuple[str, ...] = WIDE) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Name, graph and shapes of each part, written into ``folder`` one after the other."""
    for name in names:
        module, inputs = _part(name)
        with torch.no_grad():
            outputs = {"out": module(*inputs.values())}
        export_stage(Stage(name, module, inputs, outputs, {key: {} for key in (*inputs, *outputs)}), folder)
        shapes = {key: (tuple(tensor.shape),) * 3 for key, tensor in inputs.items()}
        yield name, folder / f"{name}.onnx", shapes


def _part(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    f_p = torch.randn(1, _CHANNELS, _GRID, _GRID)
    if name == "sam-vit-b":
        return SamImageEncoder(image_px=16 * _GRID, **SAM_SIZES["vit_b"]).eval(), {
            "image": torch.randn(1, 3, 16 * _GRID, 16 * _GRID)
        }
    if name == "spam-3584":
        return _WideSpam().eval(), {"f_s": torch.randn(1, _TOKENS, _LMM_WIDTH), "f_p": f_p}
    return Agmd(dim=_CHANNELS).eval(), {"h_anchor": torch.randn(1, 3, _CHANNELS), "f_p": f_p}

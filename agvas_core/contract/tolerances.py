"""How far two engines may be apart: torch, ONNX Runtime, TensorRT and native kernels give one answer, within this table.

Export refuses a bundle beyond it and the tests compare with it; no other number stands anywhere else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

__all__ = ["TOLERANCES", "Tolerance"]


@dataclass(frozen=True)
class Tolerance:
    """The largest error allowed at each joint.

    The error of a tensor is its largest difference, divided by the reference's largest magnitude where that is above 1.
    """

    features: float
    """f_s, f_align, f_p, f_detail."""
    anchor_states: float
    text: float
    """Logits of the next word, keys and values."""
    logits: float
    """Of the masks."""
    probability: float
    """P of eq. 8 and the acceptance, the graphs one after the other. Not scaled. Only pixels this close to the threshold may change
    sides."""


# ONNX Runtime on a CPU against torch, a trained nano: features 4e-6, anchor states 4e-7, logits 5e-7, P 6e-6, no pixel of twelve
# masks changed. torch in single against double precision is itself off by 1e-5 in the features, by the prior's logarithms.
TOLERANCES: Final[Mapping[str, Tolerance]] = MappingProxyType(
    {
        "fp32": Tolerance(features=5e-5, anchor_states=5e-5, text=1e-4, logits=1e-4, probability=5e-5),
        # The runtime's native core against NumPy and OpenCV, from the same logits: 2.1e-6 on examples/parts. OpenCV multiplies and adds in
        # one rounding where the CPU can, and has another exponential.
        "native": Tolerance(features=0.0, anchor_states=0.0, text=0.0, logits=0.0, probability=1e-5),
        # Half precision, nano's graphs on ONNX Runtime's CPU provider against torch in float32, as agvas-export bundle prints them: features
        # 1.2e-3, anchor states 4.1e-4, text 5.5e-4, logits of the masks 1.6e-4, P and acceptance 1.2e-3. Allowed is about four times that:
        # other pictures, and engines that add up in another order.
        "fp16": Tolerance(features=5e-3, anchor_states=2e-3, text=3e-3, logits=2e-3, probability=5e-3),
        # bfloat16 rounds eight times as coarsely: eight times what fp16 may. With weights rounded to it, and nothing else, nano is off by 8.3e-3,
        # 9.0e-4, 2.0e-3, 1.3e-3, 8.1e-3.
        "bf16": Tolerance(features=4e-2, anchor_states=1.6e-2, text=2.4e-2, logits=1.6e-2, probability=4e-2),
    }
)
"""Precision of the graphs -> what is allowed; ``native``: what comes before and after them."""

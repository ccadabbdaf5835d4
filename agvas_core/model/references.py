"""Reference distances: how far each cell of an image is from its nearest neighbours in a memory bank of good cells.

    distance = ReferenceDistance(EncoderCells(trunk))
    seen = distance(image, bank)         # bank: embeddings of good images, any number of rows
    seen.joint                           # [B, h, w], larger where the image is unlike every good cell

The idea is PatchCore's (Roth et al. 2022): patch embeddings of a pretrained encoder, a memory bank, nearest neighbours. Colour
is three more channels, because ImageNet features ignore much of it.

The module has one of two front ends: ``EncoderCells`` reads the image with an encoder of its own, ``FeatureCells`` takes
features of the vision stage: those of its trunk where that is the same encoder, so that one pass serves both, else ``f_p``.
All of it exports to ONNX: the bank is an input, so one graph serves every product.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agvas_core.contract.errors import UsageError
from agvas_core.model.encoders.efficientnet_lite import IMAGENET_MEAN, IMAGENET_STD, EfficientNetLite
from agvas_core.model.encoders.encoders import Normalize

__all__ = [
    "COLOUR_CHANNELS",
    "ColourCells",
    "Distances",
    "EncoderCells",
    "FeatureCells",
    "ReferenceDistance",
    "ReferenceHead",
]

COLOUR_CHANNELS: Final = 3
DEFAULT_BLOCKS: Final = (4, 10)
"""Of EfficientNet-Lite0: the last blocks with 40 channels at stride 8 and with 112 at stride 16."""


class Distances(NamedTuple):
    """Output of ``ReferenceDistance``."""

    embedding: Tensor
    """[B, h, w, D], deep channels first, colour last; rows of a bank have this form."""
    deep: Tensor
    """Euclidean distance of the deep channels to the nearest row of the bank, [B, h, w]."""
    joint: Tensor
    """The same of deep and colour channels as one vector, with the colour channels weighted, [B, h, w]."""


class EncoderCells(nn.Module):
    """Front end with an encoder of its own: the image to one deep vector per cell of the finest stride.

    Args:
        trunk: the encoder.
        blocks: whose outputs are joined, finest first.
        pool: side of the mean over neighbouring cells; 1 for none.
        pad_px: the image is padded by reflection and the padding is cut off the features. Zero padding would make every border
            an anomaly. A multiple of the coarsest stride.

    Each block's features are divided by their mean norm over the cells of the image, so that all blocks weigh the same.

    Raises:
        UsageError: ``pad_px`` does not suit the strides.
    """

    def __init__(
        self,
        trunk: EfficientNetLite,
        blocks: Sequence[int] = DEFAULT_BLOCKS,
        *,
        pool: int = 3,
        pad_px: int = 32,
    ) -> None:
        super().__init__()
        self.trunk, self.blocks, self.pool, self.pad_px = trunk, tuple(sorted(blocks)), pool, pad_px
        strides = [trunk.strides[block] for block in self.blocks]
        self.stride = strides[0]
        if pad_px % strides[-1]:
            raise UsageError(
                f"pad_px is {pad_px}; it must be a multiple of the coarsest stride, {strides[-1]}: choose "
                f"{-(-pad_px // strides[-1]) * strides[-1]}"
            )
        self.channels = sum(trunk.channels[block] for block in self.blocks)
        self.normalize = Normalize(IMAGENET_MEAN, IMAGENET_STD)

    def forward(self, image: Tensor) -> Tensor:
        """uint8 RGB [B, H, W, 3], sides multiples of 32 and above ``pad_px`` -> [B, C, H / stride, W / stride]."""
        return self.join(self.features(image))

    def features(self, image: Tensor) -> list[Tensor]:
        """Outputs of the blocks for the padded image."""
        pixels = self.normalize(image)  # [B, 3, H, W]
        if self.pad_px:
            pixels = F.pad(pixels, (self.pad_px,) * 4, mode="reflect")
        return self.trunk.features(pixels, self.blocks)

    def join(self, features: Sequence[Tensor]) -> Tensor:
        """Outputs of the blocks to the vectors of the cells; the padding is cut off."""
        strides = [self.trunk.strides[block] for block in self.blocks]
        return _joined(features, strides, self.pool, self.pad_px // self.stride)


class FeatureCells(nn.Module):
    """Front end that takes features of the vision stage: ``f_p`` of any pixel encoder, or ``trunk_8`` and ``trunk_16``.

    Args:
        channels: of each of the features.
        strides: of each, in pixels of the pixel view, finest first.
        pool: side of the mean over neighbouring cells; 1 for none.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], *, pool: int = 3) -> None:
        super().__init__()
        self.of_feature, self.strides, self.pool = tuple(channels), tuple(strides), pool
        self.channels, self.stride = sum(channels), strides[0]

    def forward(self, *features: Tensor) -> Tensor:
        """[B, C, h, w] of each -> [B, sum of C, h, w] at the finest stride."""
        return _joined(features, self.strides, self.pool, edge=0)


class ColourCells(nn.Module):
    """Mean colour of each cell and a margin of a quarter of its side, as CIE L*a*b* (sRGB, D65).

    The mean is taken of the sRGB values, before the conversion: the conversion then runs on few cells, and in ONNX it is
    the same operators in the same order. L* is scaled by 2.55 as in OpenCV's 8-bit form, then all three are divided by
    ``scale``, which balances them with the deep channels.
    """

    matrix: Tensor
    factor: Tensor

    def __init__(self, stride: int, scale: float = 60.0) -> None:
        super().__init__()
        self.stride, self.margin = stride, stride // 4
        to_xyz = torch.tensor(
            [
                [0.412453, 0.357580, 0.180423],
                [0.212671, 0.715160, 0.072169],
                [0.019334, 0.119193, 0.950227],
            ]
        )
        white = torch.tensor([0.950456, 1.0, 1.088754])
        self.register_buffer("matrix", to_xyz / white[:, None], persistent=False)
        self.register_buffer("factor", torch.tensor([2.55, 1.0, 1.0]) / scale, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """uint8 RGB [B, H, W, 3] -> [B, H / stride, W / stride, 3]."""
        pixels = image.to(self.matrix.dtype).permute(0, 3, 1, 2) / 255  # cast first: TensorRT does not transpose uint8
        side = self.stride + 2 * self.margin
        mean = F.avg_pool2d(pixels, side, self.stride, self.margin, count_include_pad=False)
        rgb = mean.permute(0, 2, 3, 1)  # [B, h, w, 3]
        linear = torch.where(rgb > 0.04045, ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
        xyz = linear @ self.matrix.T  # relative to white
        root = torch.where(xyz > 0.008856, xyz.clamp(min=0.008856) ** (1 / 3), 7.787 * xyz + 16 / 116)
        x, y, z = root[..., :1], root[..., 1:2], root[..., 2:]
        lab = torch.cat([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)
        return lab * self.factor


class ReferenceDistance(nn.Module):
    """Image (or features) and memory bank to distances; what the graph ``references`` computes.

    Args:
        cells: the front end.
        neighbours: the distance is the mean over so many nearest rows.
        pieces: the products are made for so many bands of the image one after the other, so that a band's products stay in
            the CPU's cache (a third faster); must divide the number of rows of cells.
        colour_scale: of ``ColourCells``.
    """

    def __init__(
        self,
        cells: EncoderCells | FeatureCells,
        *,
        neighbours: int = 1,
        pieces: int = 4,
        colour_scale: float = 60.0,
    ) -> None:
        super().__init__()
        if neighbours < 1:
            raise UsageError(f"neighbours is {neighbours}; it must be 1 or more")
        self.cells, self.neighbours, self.pieces = cells, neighbours, pieces
        self.colour = ColourCells(cells.stride, colour_scale)
        self.channels = cells.channels + COLOUR_CHANNELS
        """D of embedding and bank."""

    def embed(self, image: Tensor, *features: Tensor) -> Tensor:
        """Embedding of each cell.

        Args:
            image: uint8 RGB [B, H, W, 3]: the reference view, or, with features, the pixel view that they were made from.
            features: [B, C, h, w] each, for a front end that takes them.

        Returns:
            [B, h, w, D].
        """
        deep = self.cells(*(features or (image,)))  # [B, C, h, w]
        return torch.cat([deep.permute(0, 2, 3, 1), self.colour(image)], 3)

    def distances(self, embedding: Tensor, bank: Tensor, colour_weight: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """Deep and joint distances, [B, h, w] each, of an embedding [B, h, w, D] to a bank [M, D]."""
        height = embedding.shape[1]
        sizes = [self.cells.channels, COLOUR_CHANNELS]
        # |e - b|^2 = |e|^2 + |b|^2 - 2 e b: one product of [e, 1] and [-2 b, |b|^2], for deep and colour channels.
        of_bank = bank.split(sizes, 1)  # type: ignore[no-untyped-call]
        stored = [torch.cat([-2 * part, part.square().sum(1, keepdim=True)], 1).T for part in of_bank]  # [C + 1, M]
        stored[1] = stored[1] * colour_weight
        found = []
        bands = embedding.unflatten(1, (self.pieces, height // self.pieces))  # type: ignore[no-untyped-call]
        for piece in bands.unbind(1):
            rows = piece.flatten(0, 2)  # [N, D]
            deep, colour = (
                torch.cat([part, torch.ones_like(part[:, :1])], 1) @ prepared
                for part, prepared in zip(rows.split(sizes, 1), stored, strict=True)
            )  # [N, M] each
            deep_square, colour_square = (part.square().sum(1) for part in rows.split(sizes, 1))
            nearest = (
                self._nearest(deep) + deep_square,
                self._nearest(deep + colour) + deep_square + colour_weight * colour_square,
            )
            found.append([each.clamp(min=0).sqrt().view(piece.shape[:3]) for each in nearest])
        deep_maps, joint_maps = zip(*found, strict=True)
        return torch.cat(deep_maps, 1), torch.cat(joint_maps, 1)

    def forward(
        self,
        image: Tensor,
        bank: Tensor,
        colour_weight: Tensor | float = 1.0,
        features: Sequence[Tensor] = (),
    ) -> Distances:
        """As ``embed`` and ``distances``.

        Args:
            bank: float32 [M, D], M >= ``neighbours``.
            colour_weight: of the squared colour distance in the joint one, a scalar; 0 leaves colour out.
        """
        embedding = self.embed(image, *features)
        return Distances(embedding, *self.distances(embedding, bank, colour_weight))

    def _nearest(self, squares: Tensor) -> Tensor:
        """[N, M] -> [N]."""
        if self.neighbours == 1:
            return squares.amin(1)
        return squares.topk(self.neighbours, dim=1, largest=False, sorted=False).values.mean(1)


class ReferenceHead(nn.Module):
    """Where the cells of one product look like a defect; fitted to the product by defects painted on its good images.

    Args:
        channels: D of an embedding.
        width: channels within.
        members: so many networks side by side, whose logits are averaged.
        dropout: of whole channels of the embedding, in training.
    """

    WIDTH: Final = 24
    RARITIES: Final = 3

    def __init__(self, channels: int, *, width: int = WIDTH, members: int = 1, dropout: float = 0.1) -> None:
        super().__init__()
        wide = width * members
        self.dropout = nn.Dropout2d(dropout)
        self.cells = nn.Conv2d(channels, wide, 1)
        self.rarities = nn.Conv2d(self.RARITIES, wide, 1)
        self.near = nn.Conv2d(wide, wide, 3, padding=1, padding_mode="replicate", groups=members)
        self.wider = nn.Conv2d(wide, wide, 3, padding=1, padding_mode="replicate", groups=members)
        self.logit = nn.Conv2d(wide, 1, 1)

    def forward(self, embedding: Tensor, rarities: Tensor) -> Tensor:
        """[B, h, w, D] and [B, 3, h, w] -> [B, h, w]."""
        y = self.cells(self.dropout(embedding.permute(0, 3, 1, 2))) + self.rarities(rarities)
        y = F.relu(self.wider(F.relu(self.near(F.relu(y)))))
        logit: Tensor = self.logit(y)[:, 0]
        return logit

    @classmethod
    def joined(cls, members: Sequence["ReferenceHead"]) -> "ReferenceHead":
        """One network whose logit is the mean of those of the members, which have one shape."""
        states = [member.state_dict() for member in members]
        state = {name: torch.cat([each[name] for each in states]) for name in states[0] if not name.startswith("logit.")}
        state["logit.weight"] = torch.cat([each["logit.weight"] for each in states], 1) / len(states)
        state["logit.bias"] = torch.stack([each["logit.bias"] for each in states]).mean(0)
        joined = cls.like(state)
        assert joined is not None, "the state is one of ours"
        return joined.eval()

    @classmethod
    def like(cls, state: dict[str, Tensor]) -> "ReferenceHead | None":
        """The network with these weights; None where they are not those of one."""
        try:
            wide, channels = state["cells.weight"].shape[:2]
            inside = state["near.weight"].shape[1]
            module = cls(channels, width=inside, members=wide // inside)
            module.load_state_dict(state)
        except (KeyError, IndexError, RuntimeError, ZeroDivisionError):
            return None
        return module


def _joined(features: Sequence[Tensor], strides: Sequence[int], pool: int, edge: int) -> Tensor:
    """Features [B, C, h, w] at rising strides to one vector per cell of the first stride; ``edge`` cells of it are cut off each side."""
    cells = []
    for feature, stride in zip(features, strides, strict=True):
        mean = _neighbour_mean(feature, pool)
        if stride > strides[0]:
            mean = F.interpolate(mean, scale_factor=float(stride // strides[0]), mode="bilinear")
        cells.append(_unit_mean_norm(mean[..., edge:-edge, edge:-edge] if edge else mean))
    return torch.cat(cells, 1) if len(cells) > 1 else cells[0]


def _neighbour_mean(features: Tensor, side: int) -> Tensor:
    """Mean over ``side`` x ``side`` cells; at the border over those that exist."""
    return F.avg_pool2d(features, side, 1, side // 2, count_include_pad=False) if side > 1 else features


def _unit_mean_norm(features: Tensor) -> Tensor:
    """[B, C, h, w] divided, per image, by the mean length of its vectors."""
    length = features.square().sum(1, keepdim=True).sqrt().mean((2, 3), keepdim=True)
    return features / length.clamp(min=1e-6)

"""What is unusual within this one image, without learning: the second input of nano's pixel encoder.

"Normal" is what the rest of the image looks like. Fixed local features (colour, Gabor energy over two octaves, local
contrast) are compared with the image's own robust mean and covariance. docs/experiments.md has the measurements: with these
channels a small network finds defects on surfaces it never saw; without them it does not. The paper has nothing of the kind: SAM's
features make it unnecessary there.

Everything is matrix products and pooling, without sorting, quantiles or factorisations, so that ONNX and TensorRT take it.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ImagePrior"]


def gabor_bank(wavelengths: tuple[float, ...] = (4.0, 7.0), orientations: int = 4, radius: int = 4) -> Tensor:
    """Even and odd filters for each wavelength (px) and orientation, zero mean: [2 * len * orientations, 1, k, k]."""
    y, x = torch.meshgrid(torch.arange(-radius, radius + 1.0), torch.arange(-radius, radius + 1.0), indexing="ij")
    filters = []
    for wavelength in wavelengths:
        envelope = torch.exp(-(x**2 + y**2) / (2 * (0.3 * wavelength + 0.5) ** 2))
        for index in range(orientations):
            angle = math.pi * index / orientations
            phase = 2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / wavelength
            for wave in (phase.cos(), phase.sin()):
                kernel = envelope * wave
                kernel = kernel - envelope * kernel.sum() / envelope.sum()
                filters.append(kernel / kernel.abs().sum())
    return torch.stack(filters)[:, None]


def local_mean(x: Tensor, size: int) -> Tensor:
    """Mean over ``size`` x ``size`` px, of what lies inside the image: [B, C, h, w] -> the same shape.

    Rows, then columns: as one 15 x 15 pool it took a third of the exported vision graph's time.
    """
    pad = size // 2
    rows = F.avg_pool2d(x, (size, 1), 1, (pad, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, size), 1, (0, pad), count_include_pad=False)


def spd_inverse(matrix: Tensor, ridge: float, iterations: int = 14) -> Tensor:
    """Inverse of [..., C, C] + ridge * mean(diagonal) * I by Newton-Schulz.

    The condition number is at most (C + ridge) / ridge (about 1,000 here: 20 features, ridge 0.02), for which 14 doublings are
    exact in fp32.
    """
    size = matrix.shape[-1]
    identity = torch.eye(size, device=matrix.device, dtype=matrix.dtype)
    mean_variance = (matrix * identity).sum((-2, -1), keepdim=True) / size + 1e-6
    matrix = matrix + ridge * mean_variance * identity
    inverse = identity * (2 / ((size * (1 + ridge) + ridge) * mean_variance))
    for _ in range(iterations):
        inverse = inverse @ (2 * identity - matrix @ inverse)
    return inverse


class ImagePrior(nn.Module):
    """Normalised pixels [B, 3, H, W] -> [B, ``channels``, H/2, W/2]. H and W are multiples of 16. Nothing is trained.

    Channels: one z-score for each feature; log squared Mahalanobis distance from the image's own statistics, as they are, with
    the local mean taken out, and after the best of three mirrorings was taken off (symmetric parts); kernel density among the
    image's other pixels at two bandwidths; colour distance from the image's border (what is background). All but the z-scores and
    the first distance are computed at a quarter of the image's size: at half of it they took two thirds of the vision graph's time.
    """

    bank: Tensor
    to_opponent: Tensor
    reflection: Tensor
    ridge = 0.02

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bank", gabor_bank(), persistent=False)
        opponent = torch.tensor([[0.299, 0.587, 0.114], [0.5, -0.5, 0.0], [-0.25, -0.25, 0.5]])  # grey, red-green, yellow-blue
        self.register_buffer("to_opponent", opponent[:, :, None, None], persistent=False)
        self.features = 3 + 2 * (len(self.bank) // 2) + 1
        self.channels = self.features + 6
        turned = [3 + group + (4 - angle) % 4 for group in range(0, len(self.bank), 4) for angle in range(4)]
        self.register_buffer("reflection", torch.tensor([0, 1, 2, *turned, self.features - 1]), persistent=False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        # Statistics and their inverse need float32, whatever the training computes in.
        device = "cpu" if pixels.is_meta else pixels.device.type  # autocast has no word for shapes alone
        with torch.autocast(device, enabled=False):
            return self.channels_of(pixels.float())

    def channels_of(self, pixels: Tensor) -> Tensor:
        """The channels, in the dtype of ``pixels``."""
        f = self.local_features(pixels.contiguous())  # [B, F, h, w]
        z, distance, inverse = self.mahalanobis(f[:, None])  # [B, F, h, w], [B, 1, h, w], [B, F, F]
        small = F.avg_pool2d(f, 2)  # [B, F, h/2, w/2]
        pooled = F.interpolate(local_mean(F.avg_pool2d(small, 2), 7), scale_factor=2.0, mode="bilinear")
        reflected = small[:, self.reflection]  # a mirror turns 45 degrees into 135; half a turn does not
        mirrored = [small - reflected.flip(3), small - reflected.flip(2), small - small.flip((2, 3))]
        _, others, _ = self.mahalanobis(torch.stack([small - pooled, *mirrored], 1))  # [B, 4, h/2, w/2]
        symmetric = others[:, 1:].amin(1, keepdim=True)
        density = self.density(small, inverse)  # [B, 2, h/2, w/2]
        coarse = torch.cat([others[:, :1].log1p(), symmetric.log1p(), density], 1)
        coarse = F.interpolate(coarse, scale_factor=2.0, mode="bilinear")  # [B, 4, h, w]
        colour = f[:, :3]
        edge = torch.cat([colour[:, :, 0], colour[:, :, -1], colour[:, :, :, 0], colour[:, :, :, -1]], 2).mean(2)  # [B, 3]
        off_border = (colour - edge[:, :, None, None]).square().sum(1, keepdim=True).sqrt()
        return torch.cat([z, distance.log1p(), coarse, (4 * off_border).log1p()], 1)

    def local_features(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, F, H/2, W/2]."""
        half = F.conv2d(F.avg_pool2d(pixels, 2), self.to_opponent)  # [B, 3, h, w]
        grey = half[:, :1]
        contrast = (grey - local_mean(grey, 15)).abs()
        energies = [self.energy(grey), F.interpolate(self.energy(F.avg_pool2d(grey, 2)), scale_factor=2.0, mode="bilinear")]
        smooth = F.avg_pool2d(half, 3, 1, 1, count_include_pad=False)
        return torch.cat([smooth, *energies, F.avg_pool2d(contrast, 3, 1, 1, count_include_pad=False)], 1)

    def energy(self, grey: Tensor) -> Tensor:
        """Log Gabor energy, [B, 1, h, w] -> [B, 8, h, w]."""
        pad = self.bank.shape[-1] // 2
        response = F.conv2d(F.pad(grey, (pad, pad, pad, pad), mode="replicate"), self.bank)
        energy = (response[:, ::2].square() + response[:, 1::2].square() + 1e-8).sqrt()
        return F.avg_pool2d((energy + 0.01).log(), 5, 1, 2, count_include_pad=False)

    def mahalanobis(self, variants: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, K, F, h, w] -> z-scores of the first [B, F, h, w], mean squared distances [B, K, h, w], inverse of the first.

        Robust statistics: far pixels lose weight, 1 / (1 + (d2 / 2)^2), twice. (A trimmed quantile does the same and sorts.)
        Every second pixel each way is enough for them.
        """
        batch, count, features, height, width = variants.shape
        samples = variants[..., ::2, ::2].flatten(3).contiguous()  # [B, K, F, n]
        weight = torch.ones_like(samples[:, :, :1])
        for _ in range(3):
            share = weight / weight.sum(3, keepdim=True)
            mean = samples @ share.transpose(2, 3)  # [B, K, F, 1]
            centred = samples - mean
            covariance = (centred * share) @ centred.transpose(2, 3)  # [B, K, F, F]
            inverse = spd_inverse(covariance, self.ridge)
            weight = 1 / (1 + (self.quadratic(centred, inverse) / 2).square())
        every = variants.flatten(3) - mean  # [B, K, F, hw]
        distance = self.quadratic(every, inverse).clamp(min=0)  # [B, K, 1, hw]
        variance = torch.diagonal(covariance[:, 0], dim1=1, dim2=2)  # [B, F]
        deviation = (variance + self.ridge * variance.mean(1, keepdim=True) + 1e-6).sqrt()
        z = (every[:, 0] / (3 * deviation[:, :, None])).clamp(-2, 2)
        return z.view(batch, features, height, width), distance.view(batch, count, height, width), inverse[:, 0]

    @staticmethod
    def quadratic(centred: Tensor, inverse: Tensor) -> Tensor:
        """Mean over features of x^T inverse x: [B, K, F, n] -> [B, K, 1, n]."""
        return (centred * (inverse @ centred)).mean(2, keepdim=True)

    def density(self, small: Tensor, inverse: Tensor, keys: int = 12, excluded: int = 4) -> Tensor:
        """How far a pixel is from its likes elsewhere: soft minimum of Mahalanobis distances to ``keys`` x ``keys`` of the image's pixels.

        [B, F, h, w] -> [B, 2, h, w]. Likes nearer than ``excluded`` px (of this grid) each way do not count.
        """
        batch, features, height, width = small.shape
        small = small - small.mean((2, 3), keepdim=True)
        query = small.flatten(2).transpose(1, 2)  # [B, n, F]
        key = F.interpolate(small, size=(keys, keys), mode="bilinear").flatten(2)  # [B, F, m]
        scale = 1 / (0.5 * features)  # the wider bandwidth, and the mean over features
        whitened = inverse @ key
        of_query = (query * (query @ inverse)).sum(2, keepdim=True)  # [B, n, 1]
        of_key = (key * whitened).sum(1, keepdim=True)  # [B, 1, m]
        wide = (scale * (2 * query @ whitened - of_key - of_query)).clamp(max=0).exp()  # [B, n, m]
        near_y, near_x = (self.near(side, keys, excluded, small) for side in (height, width))  # [h, keys], [w, keys]
        far = (1 - near_y[:, None, :, None] * near_x[None, :, None, :]).flatten(2).flatten(0, 1)  # [n, m]
        wide = wide * far
        narrow = wide.square().square() * wide  # a fifth of the bandwidth, without a second exponential
        maps = []
        for bandwidth, likeness in ((0.1, narrow), (0.5, wide)):
            maps.append(-bandwidth * (likeness.sum(2) / (far.sum(1) + 1e-6) + 1e-12).log())  # [B, n]
        return torch.stack(maps, 1).view(batch, 2, height, width).clamp(min=0).log1p()

    @staticmethod
    def near(side: int, keys: int, excluded: int, like: Tensor) -> Tensor:
        """1 where a pixel and a key are less than ``excluded`` px apart along one axis: [side, keys]."""
        pixel = torch.arange(side, device=like.device, dtype=like.dtype)
        key = (torch.arange(keys, device=like.device, dtype=like.dtype) + 0.5) * (side / keys) - 0.5
        return ((pixel[:, None] - key).abs() < excluded).to(like.dtype)

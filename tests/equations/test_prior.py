"""The nano encoder's prior: the numbers it rests on, and what must not change them."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from agvas_core.model.encoders.prior import ImagePrior, gabor_bank, spd_inverse

RIDGE = ImagePrior.ridge
SIDE = 96  # px; maps are half of that
MAPS = ("distance", "local distance", "symmetric distance", "density 0.1", "density 0.5", "off border")


@pytest.fixture(scope="module")
def prior() -> ImagePrior:
    return ImagePrior()


def texture(seed: int = 0, side: int = SIDE) -> Tensor:
    """Smoothed noise [1, 3, side, side] in about -1..1."""
    noise = torch.randn(1, 3, side + 4, side + 4, generator=torch.Generator().manual_seed(seed))
    return 0.6 * F.avg_pool2d(noise, 5, 1)


def with_patch(y: int, x: int, size: int = 16) -> Tensor:
    """A texture with a brighter, smoother square at (y, x)."""
    image = texture()
    image[..., y : y + size, x : x + size] = 0.5 + 0.3 * texture(seed=1, side=size)
    return image


def maps(prior: ImagePrior, image: Tensor) -> Tensor:
    """The six maps that are no z-scores, [6, h, w]."""
    out: Tensor = prior(image)[0, prior.features :]
    assert len(out) == len(MAPS)
    return out


def peak(score: Tensor) -> tuple[int, int]:
    """Row and column of the highest value, in px of the image."""
    index = int(score.flatten().argmax())
    return 2 * (index // score.shape[1]), 2 * (index % score.shape[1])


def is_inside(at: tuple[int, int], patch: tuple[int, int], size: int = 16, reach: int = 4) -> bool:
    """Features reach a few pixels beyond the patch."""
    return all(start - reach <= a < start + size + reach for a, start in zip(at, patch, strict=True))


def random_covariance(spread: float, size: int = 20) -> Tensor:
    """Of features whose deviations span ``spread`` orders of magnitude, [3, size, size]."""
    samples = torch.randn(3, size, 4 * size, generator=torch.Generator().manual_seed(0))
    samples = samples * torch.logspace(0, spread, size)[:, None]
    return samples @ samples.transpose(1, 2) / (4 * size)


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_the_iterated_inverse_is_that_of_a_factorisation(spread: float) -> None:
    matrix = random_covariance(spread)
    mean_variance = matrix.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] + 1e-6
    expected = torch.linalg.inv(matrix.double() + RIDGE * mean_variance.double() * torch.eye(20))
    scale = expected.abs().amax((1, 2), keepdim=True)
    torch.testing.assert_close(spd_inverse(matrix, RIDGE).double() / scale, expected / scale, rtol=0, atol=1e-4)


def test_features_that_say_the_same_are_no_obstacle() -> None:
    one = torch.randn(20, 1, generator=torch.Generator().manual_seed(0))
    matrix = one @ one.T  # rank 1
    ridge = RIDGE * (matrix.diagonal().mean() + 1e-6)
    expected = torch.linalg.inv(matrix.double() + ridge.double() * torch.eye(20))
    scale = expected.abs().max()
    torch.testing.assert_close(spd_inverse(matrix, RIDGE).double() / scale, expected / scale, rtol=0, atol=1e-4)
    assert spd_inverse(torch.zeros(20, 20), RIDGE).isfinite().all()


def test_distances_are_mahalanobis_distances(prior: ImagePrior) -> None:
    features = torch.randn(1, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    _, distance, inverse = prior.mahalanobis(features)
    samples = features[0, 0, :, ::2, ::2].flatten(1).double()  # every second pixel makes the statistics
    weight = [1.0] * 16
    for _ in range(3):
        total = sum(weight)
        mean = sum(w / total * sample for w, sample in zip(weight, samples.T, strict=True))
        outer = [w / total * torch.outer(s - mean, s - mean) for w, s in zip(weight, samples.T, strict=True)]
        covariance = torch.stack(outer).sum(0)
        precision = torch.linalg.inv(covariance + RIDGE * (covariance.diagonal().mean() + 1e-6) * torch.eye(3))
        weight = [1 / (1 + (((s - mean) @ precision @ (s - mean)).item() / 3 / 2) ** 2) for s in samples.T]
    torch.testing.assert_close(inverse[0].double(), precision, rtol=0, atol=1e-4)
    for y in range(8):
        for x in range(8):
            centred = features[0, 0, :, y, x].double() - mean
            assert distance[0, 0, y, x].item() == pytest.approx((centred @ precision @ centred).item() / 3, abs=1e-4)


def test_filters_see_no_brightness() -> None:
    assert gabor_bank().sum((1, 2, 3)).abs().max() < 1e-6


@pytest.mark.parametrize("shift", [-0.4, 0.7])
def test_brightness_changes_nothing(prior: ImagePrior, shift: float) -> None:
    image = with_patch(32, 48)
    torch.testing.assert_close(prior(image + shift), prior(image), rtol=0, atol=1e-4)


@pytest.mark.parametrize("gain", [0.5, 0.7, 1.5])
def test_contrast_changes_the_distances_by_little(prior: ImagePrior, gain: float) -> None:
    # Exactly, whitened distances do not change with gain. What is left: the ridge is a share of the mean variance, and log
    # energies, which a gain only shifts, do not shrink with the colours; and energies have a floor.
    image = with_patch(32, 48)
    for name, before, after in zip(MAPS[:5], maps(prior, image), maps(prior, gain * image), strict=False):
        correlation = torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1].item()
        assert correlation > 0.97, name
        assert (after - before).abs().mean() < 0.05 * (before.max() - before.min()), name


@pytest.mark.parametrize("place", [(16, 16), (32, 48), (64, 24)])
def test_an_odd_patch_is_the_farthest_from_the_rest(prior: ImagePrior, place: tuple[int, int]) -> None:
    for name, score in zip(MAPS, maps(prior, with_patch(*place)), strict=True):
        if name != "symmetric distance":
            assert is_inside(peak(score), place), name


def test_an_odd_patch_is_the_farthest_from_the_rest_of_a_symmetric_part(prior: ImagePrior) -> None:
    part = texture()
    part = part + part.flip(3)
    part = part + part.flip(2)
    part[..., 24:40, 56:72] = with_patch(24, 56)[..., 24:40, 56:72]
    symmetric = maps(prior, part)[MAPS.index("symmetric distance")]
    assert is_inside(peak(symmetric), (24, 56))


def test_a_patch_that_moves_takes_its_distance_along(prior: ImagePrior) -> None:
    one, other = with_patch(24, 24), torch.roll(with_patch(24, 24), (32, 16), (2, 3))
    for name, before, after in zip(MAPS, maps(prior, one), maps(prior, other), strict=True):
        if name == "symmetric distance":  # depends on the place of the mirror
            continue
        (y, x), (moved_y, moved_x) = peak(before), peak(after)
        assert math.dist((y + 32, x + 16), (moved_y, moved_x)) <= 4, name


@pytest.mark.parametrize("level", [-2.0, 0.0, 0.3])
def test_an_image_without_any_structure_is_nothing_unusual(prior: ImagePrior, level: float) -> None:
    out = prior(torch.full((1, 3, 64, 64), level))
    assert out.isfinite().all()
    assert out.abs().max() < 0.01


@pytest.mark.parametrize("height, width", [(16, 16), (32, 96), (64, 64)])
def test_maps_have_half_the_size(prior: ImagePrior, height: int, width: int) -> None:
    out = prior(torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0)))
    assert out.shape == (2, prior.channels, height // 2, width // 2)
    assert out.isfinite().all()


def test_black_and_white_noise_stays_finite(prior: ImagePrior) -> None:
    noise = (torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) > 0.5).float() * 4 - 2  # the view's extremes
    assert prior(noise).isfinite().all()


def test_an_image_is_judged_by_itself(prior: ImagePrior) -> None:
    images = torch.cat([with_patch(32, 48), texture(seed=3), torch.zeros(1, 3, SIDE, SIDE)])
    together = prior(images)
    for index in range(3):
        # In the blank one rounding is all there is, divided by the floor of the deviation.
        torch.testing.assert_close(prior(images[index : index + 1])[0], together[index], rtol=0, atol=1e-4 if index < 2 else 5e-3)


def test_nothing_in_it_is_trained(prior: ImagePrior) -> None:
    assert not list(prior.parameters())
    assert not prior.state_dict()
    assert not prior(texture().requires_grad_()).requires_grad


@torch.no_grad()
@pytest.mark.parametrize("axis", [2, 3])
def test_a_mirror_symmetric_part_is_its_own_mirror_image(axis: int) -> None:
    torch.manual_seed(5)
    half = torch.randn(1, 3, 128, 64) if axis == 3 else torch.randn(1, 3, 64, 128)
    prior = ImagePrior()
    symmetric = prior(torch.cat([half, half.flip(axis)], axis))[:, prior.features + 2]
    other = prior(torch.randn(1, 3, 128, 128))[:, prior.features + 2]
    assert symmetric.max() < 1e-3 < other.min()

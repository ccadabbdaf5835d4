"""Reference distances against the same written out in NumPy and OpenCV."""

from collections.abc import Iterator

import cv2
import numpy as np
import pytest
import torch

from agvas_core.contract.errors import UsageError
from agvas_core.model.encoders.efficientnet_lite import EfficientNetLite
from agvas_core.model.references import ColourCells, EncoderCells, FeatureCells, ReferenceDistance


@pytest.fixture(scope="module")
def trunk() -> EfficientNetLite:
    torch.manual_seed(3)
    return EfficientNetLite(0, last_block=10).fold_norms().eval()


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def random_image(batch: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_distances_are_those_to_the_nearest_row(trunk: EfficientNetLite, weight: float) -> None:
    model = ReferenceDistance(EncoderCells(trunk)).eval()
    bank = model.embed(random_image(1, 64, 64)).flatten(0, 2)[::3] + 0.1
    embedding, deep, joint = model(random_image(2, 64, 96), bank, weight)
    cells, rows = embedding.double().numpy().reshape(-1, 155), bank.double().numpy()
    squares = (cells[:, None] - rows[None]) ** 2
    expected_deep = np.sqrt(squares[..., :152].sum(2).min(1))
    whole = squares[..., :152].sum(2) + weight * squares[..., 152:].sum(2)
    assert deep.shape == joint.shape == (2, 8, 12)
    np.testing.assert_allclose(deep.numpy().ravel(), expected_deep, atol=1e-4)
    np.testing.assert_allclose(joint.numpy().ravel(), np.sqrt(whole.min(1)), atol=1e-4)


def test_the_mean_over_several_neighbours(trunk: EfficientNetLite) -> None:
    model = ReferenceDistance(EncoderCells(trunk), neighbours=3).eval()
    bank = torch.randn(9, 155, generator=torch.Generator().manual_seed(1))
    embedding, deep, _ = model(random_image(1, 64, 64), bank)
    squares = torch.cdist(embedding[..., :152].reshape(1, -1, 152), bank[None, :, :152])[0] ** 2
    expected = squares.sort(1).values[:, :3].mean(1).sqrt()
    torch.testing.assert_close(deep.flatten(), expected, atol=1e-3, rtol=1e-4)


def test_cells_of_the_bank_are_at_no_distance(trunk: EfficientNetLite) -> None:
    model = ReferenceDistance(EncoderCells(trunk)).eval()
    image = random_image(1, 64, 64)
    _, deep, joint = model(image, model.embed(image).flatten(0, 2))
    assert float(deep.max()) < 5e-3 and float(joint.max()) < 5e-3


def test_each_block_weighs_the_same(trunk: EfficientNetLite) -> None:
    cells = EncoderCells(trunk).eval()
    found = cells(random_image(2, 64, 96))
    assert found.shape == (2, 152, 8, 12)
    for part in found.split([40, 112], 1):
        lengths = part.norm(dim=1).mean((1, 2))
        torch.testing.assert_close(lengths, torch.ones(2), atol=1e-4, rtol=0)


def test_the_border_is_like_the_middle_on_a_plain_image(trunk: EfficientNetLite) -> None:
    """Zero padding would make the border of every image an anomaly."""
    plain = torch.full((1, 96, 96, 3), 130, dtype=torch.uint8)
    middle = (slice(None), slice(4, 8), slice(4, 8))

    def border_distance(pad_px: int) -> float:
        model = ReferenceDistance(EncoderCells(trunk, pad_px=pad_px)).eval()
        bank = model.embed(plain)[middle].flatten(0, 2)
        return float(model(plain, bank).deep[0, 0].mean())

    assert border_distance(32) < 0.7 * border_distance(0)


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (200, 30, 60), (12, 9, 14), (40, 120, 250)])
def test_colour_is_cie_lab(colour: tuple[int, int, int]) -> None:
    image = np.full((1, 32, 32, 3), colour, np.uint8)
    found = ColourCells(8)(torch.from_numpy(image)) * 60 / torch.tensor([2.55, 1.0, 1.0])
    lab = cv2.cvtColor(image[0].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0, 0]
    assert found.shape == (1, 4, 4, 3)
    np.testing.assert_allclose(found.numpy().reshape(-1, 3), np.tile(lab, (16, 1)), atol=0.3)  # OpenCV interpolates in a table


def test_features_of_another_encoder_are_measured_the_same_way() -> None:
    model = ReferenceDistance(FeatureCells([6], [16]), pieces=1).eval()
    f_p = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(2))
    image = random_image(2, 64, 64)
    bank = model.embed(image, f_p)[:1].flatten(0, 2)
    _, deep, joint = model(image, bank, 1.0, [f_p])
    assert deep.shape == (2, 4, 4)
    assert float(joint[0].max()) < 5e-3 < float(joint[1].min())
    assert bool((joint >= deep - 1e-3).all())


def test_features_that_the_vision_stage_made_give_the_cells_of_an_encoder_of_its_own(trunk: EfficientNetLite) -> None:
    own = ReferenceDistance(EncoderCells(trunk, pad_px=0)).eval()
    shared = ReferenceDistance(FeatureCells([40, 112], [8, 16])).eval()
    image = random_image(2, 64, 96)
    features = own.cells.features(image)  # type: ignore[operator]
    assert [tuple(each.shape) for each in features] == [(2, 40, 8, 12), (2, 112, 4, 6)]
    assert torch.equal(own.embed(image), shared.embed(image, *features))


def test_padding_that_does_not_suit_the_strides_is_refused(trunk: EfficientNetLite) -> None:
    with pytest.raises(UsageError, match=r"pad_px is 24.*16.*32"):
        EncoderCells(trunk, pad_px=24)

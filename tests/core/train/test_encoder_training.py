"""Gentle training of the encoder: only its last blocks move, a little, and the same way each time."""

import json
from pathlib import Path

import pytest
import torch

from agvas_core.contract.errors import SetupError, UsageError
from agvas_core.model.encoders.efficientnet_lite import (
    TRUNK,
    EfficientNetLite,
    imagenet_file,
    load_imagenet,
    load_trunk,
    save_trunk,
)
from agvas_core.train.encoder import EncoderTraining, held_out_quality, train_encoder

CONFIG = EncoderTraining(steps=3, parts=1, size_px=96, learning_rate=1e-5, margin=2.0)


@pytest.fixture(scope="module")
def start() -> EfficientNetLite:
    torch.manual_seed(0)
    return EfficientNetLite(0, last_block=10).fold_norms().eval()


def test_only_the_last_blocks_learn_and_their_features_stay_close(start: EfficientNetLite) -> None:
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    log: list[dict[str, float]] = []
    trained = train_encoder(CONFIG, start=start, log=log.append)
    moved = {name for name, tensor in trained.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved and all(name.split(".")[1] in ("8", "9", "10") for name in moved)
    assert all(torch.equal(tensor, before[name]) for name, tensor in start.state_dict().items())
    assert [record["step"] for record in log] == [1, 2, 3]
    assert log[0]["cosine"] < 1e-6 < log[-1]["cosine"]
    assert not any(parameter.requires_grad for parameter in trained.parameters())


def test_the_shipped_weights_stay_close_to_where_they_began() -> None:
    began, shipped = load_imagenet(imagenet_file(), last_block=10).fold_norms(), load_trunk(TRUNK)
    torch.manual_seed(0)
    image = torch.rand(1, 3, 96, 96) * 2 - 1
    with torch.no_grad():
        for before, after in zip(began(image), shipped(image), strict=True):
            turned = 1 - torch.nn.functional.cosine_similarity(before, after, dim=1)
            assert float(turned.mean()) < 0.05
    assert any(not torch.equal(tensor, shipped.state_dict()[name]) for name, tensor in began.state_dict().items())


def test_the_same_seed_gives_the_same_weights(start: EfficientNetLite) -> None:
    one, other = (train_encoder(CONFIG, start=start).state_dict() for _ in range(2))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_trunk_is_read_as_it_was_written(start: EfficientNetLite, tmp_path: Path) -> None:
    path = tmp_path / "trunk.safetensors"
    save_trunk(start, path)
    found = load_trunk(path)
    assert found.is_folded and len(found.blocks) == 11
    for name, tensor in start.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=1e-3, atol=1e-6)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    with pytest.raises(UsageError, match="fold_norms"):
        save_trunk(EfficientNetLite(0, last_block=1), path)


def test_what_is_no_trunk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="does not exist"):
        load_trunk(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text(json.dumps({"no": "trunk"}))
    with pytest.raises(SetupError, match="not the trunk of an encoder"):
        load_trunk(tmp_path / "text")


def test_the_quality_of_distances_is_that_of_painted_defects(start: EfficientNetLite) -> None:
    found = held_out_quality(start, parts=1, good=1, tests=2)
    assert all(0.0 <= value <= 1.0 for value in found)
    assert found == held_out_quality(start, parts=1, good=1, tests=2)

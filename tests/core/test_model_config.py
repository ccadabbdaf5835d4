"""Configurations: what is wrong is named, with what was meant."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers.image_transforms import resize
from transformers.image_utils import PILImageResampling

from agvas_core.contract.errors import UsageError
from agvas_core.contract.preprocess import ViewSpec, make_view
from agvas_core.model.build import build_model
from agvas_core.model.config import ModelConfig, load_preset, parse_config, preset_names


@pytest.fixture
def table() -> dict[str, Any]:
    """Nano's ``model`` table, to change at will."""
    table: dict[str, Any] = load_preset("nano")["model"]
    return table


def test_the_presets_that_ship_are_the_papers_and_nano() -> None:
    assert preset_names() == [
        "llava-13b",
        "llava-7b",
        "nano",
        "nano-decoder",
        "nano-lora",
        "ov-0.5b",
        "ov-7b",
        "paper",
    ]


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid_and_survives_json(name: str) -> None:
    config = parse_config(load_preset(name)["model"])
    assert config.name == name
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    "where, key, near",
    [
        ((), "semantic_vew", "semantic_view"),
        (("spam",), "head", "heads"),
        (("lmm",), "anchor_id", "anchor_ids"),
        (("agmd",), "mlp_dims", "mlp_dim"),
        (("pixel_view",), "max_aspects", "max_aspect"),
    ],
)
def test_an_unknown_key_names_the_nearest_that_exists(table: dict[str, Any], where: tuple[str, ...], key: str, near: str) -> None:
    inner = table
    for part in where:
        inner = inner[part]
    inner[key] = 1
    message = re.escape(".".join((*where, key))) + rf".*did you mean {near}\?"
    with pytest.raises(UsageError, match=message):
        parse_config(table)


@pytest.mark.parametrize(
    "where, key, near",
    [
        (("lmm", "vision"), "hidden_sizes", "hidden_size"),
        (("lmm", "text"), "num_hidden_layer", "num_hidden_layers"),
        (("pixel", "arguments"), "width", "widths"),
    ],
)
def test_a_key_that_a_library_would_swallow_is_refused_when_building(
    table: dict[str, Any], where: tuple[str, str], key: str, near: str
) -> None:
    table[where[0]][where[1]][key] = 1
    with pytest.raises(UsageError, match=re.escape(".".join((*where, key))) + rf".*did you mean {near}\?"):
        build_model(parse_config(table), device="meta")


@pytest.mark.parametrize("key", ["vocab_size", "pad_token_id"])
def test_numbers_of_the_vocabulary_stand_in_one_place(table: dict[str, Any], key: str) -> None:
    table["lmm"]["text"][key] = 7
    with pytest.raises(UsageError, match=rf"lmm\.text\.{key}"):
        build_model(parse_config(table), device="meta")


def test_a_missing_key_is_named(table: dict[str, Any]) -> None:
    del table["spam"]["heads"]
    with pytest.raises(UsageError, match=r"spam\.heads: Field required"):
        parse_config(table)


def test_ids_must_have_rows_of_their_own(table: dict[str, Any]) -> None:
    lmm = table["lmm"]
    lmm["anchor_ids"] = [4, 5, lmm["vocab_size"]]
    with pytest.raises(UsageError, match=r"lmm.*0\.\.511.*raise vocab_size"):
        parse_config(table)
    lmm["anchor_ids"] = [4, 5, lmm["image_token_id"]]
    with pytest.raises(UsageError, match="must all differ"):
        parse_config(table)


def test_an_unknown_preset_names_those_that_exist_and_the_nearest() -> None:
    with pytest.raises(
        UsageError,
        match=r"no preset 'ov-7'; there are llava-13b, llava-7b, nano, nano-decoder, nano-lora, ov-0\.5b, ov-7b, paper; did you mean ov-7b\?",
    ):
        load_preset("ov-7")
    with pytest.raises(UsageError, match="there are llava-13b, llava-7b, nano") as caught:
        load_preset("resnet")
    assert "did you mean" not in str(caught.value)


def test_a_preset_can_be_a_file(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('[model]\nname = "own"\n', encoding="utf-8")
    assert load_preset(own) == load_preset(str(own)) == {"model": {"name": "own"}}
    with pytest.raises(UsageError, match=r"absent\.toml.*an existing \.toml file"):
        load_preset(tmp_path / "absent.toml")
    own.write_text("[model\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"own\.toml is not TOML"):
        load_preset(own)


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(90, 70), (24, 20)])
def test_a_view_can_be_resized_as_published_encoders_were_fed(resample: str, size: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    half = (0.5, 0.5, 0.5)
    spec = ViewSpec.model_validate({"fit": "stretch", "size_px": 32, "mean": half, "std": half, "resample": resample})
    theirs = resize(image, (32, 32), resample=PILImageResampling[resample.upper()], input_data_format="channels_last")
    assert np.array_equal(make_view(spec, image).pixels, theirs)
    assert ViewSpec.model_validate(spec.model_dump()) == spec
    plain = spec.model_copy(update={"resample": "opencv"})
    assert not np.array_equal(make_view(plain, image).pixels, theirs) and "resample" not in plain.model_dump()

"""Presets that extend others, and what a configuration refuses before anything is built."""

from pathlib import Path
from typing import Any

import pytest

from agvas_core.contract.errors import UsageError
from agvas_core.data.mixture.config import MixtureConfig, Source
from agvas_core.model.build import named_anchors, visual_tokens
from agvas_core.model.config import load_preset, parse_config
from agvas_core.model.preset import ablation_names


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_preset_that_extends_another_holds_what_differs(tmp_path: Path) -> None:
    own = write(tmp_path / "own.toml", 'extends = "ov-7b"\n[model]\nname = "own"\n[model.agmd]\ndepth = 3\n[train]\nx = 1\n')
    table, base = load_preset(own), load_preset("ov-7b")
    assert table["model"]["agmd"] == base["model"]["agmd"] | {"depth": 3}
    assert table == {"train": {"x": 1}, "model": base["model"] | {"name": "own", "agmd": table["model"]["agmd"]}}


def test_a_file_can_extend_a_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path / "base.toml", 'extends = "nano"\n[model]\nname = "base"\n')
    own = write(tmp_path / "deep" / "own.toml", 'extends = "../base.toml"\n[model.spam]\nheads = 2\n')
    table = load_preset(own)["model"]
    assert (table["name"], table["spam"], table["pixel"]["kind"]) == (
        "base",
        {"heads": 2, "positions": True, "interleaved": True},
        "lite",
    )


def test_another_model_takes_the_place_of_the_whole_table(tmp_path: Path) -> None:
    own = write(
        tmp_path / "own.toml", 'extends = "ov-7b"\n[model.pixel]\npretrained = "./sam_vit_b.pth"\n[model.lora]\nrank = 8\n'
    )
    table = load_preset(own)["model"]
    assert table["pixel"] == {"pretrained": "./sam_vit_b.pth"}  # ViT-H's numbers mean nothing to it
    assert table["lora"] == {"rank": 8, "alpha": 32.0, "dropout": 0.05, "targets": ["q_proj", "v_proj"]}


def test_presets_that_extend_each_other_or_nothing_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.toml", 'extends = "b.toml"\n')
    write(tmp_path / "b.toml", 'extends = "a.toml"\n')
    with pytest.raises(UsageError, match="extends itself"):
        load_preset(tmp_path / "a.toml")
    with pytest.raises(UsageError, match=r"no preset 'ov-8b'.*did you mean ov-7b\?"):
        load_preset(write(tmp_path / "c.toml", 'extends = "ov-8b"\n'))
    with pytest.raises(UsageError, match=r"extends is \['ov-7b'\]: give the name of one preset"):
        load_preset(write(tmp_path / "d.toml", 'extends = ["ov-7b"]\n'))
    with pytest.raises(UsageError, match=r"did you mean ablations/no-spam\?.*ablations/agmd-from-sam"):
        load_preset("ablations/no-span")


@pytest.mark.parametrize("name", ablation_names())
def test_ablations_are_valid_and_say_what_is_missing(name: str) -> None:
    table = load_preset(name)
    config = parse_config(table["model"])
    assert parse_config(config.model_dump(mode="json")) == config
    lacks = {"no-seg": "[SEG]", "no-nor-ano": "[NOR], [ANO]", "no-spam": "SPAM", "lisa": "[NOR], [ANO], SPAM, AGMD"}
    kind = name.removeprefix("ablations/").removesuffix("-llava-13b")
    assert config.ablation == lacks.get(kind, "")
    assert named_anchors(config) == {"no-seg": "[NOR][ANO]", "no-nor-ano": "[SEG]", "lisa": "[SEG]"}.get(kind, "[NOR][ANO][SEG]")
    without_align = kind in ("no-spam", "lisa")
    assert visual_tokens(config) == (576 if "13b" in name else 729) * (1 if without_align else 2)


@pytest.mark.parametrize(
    "name, source", [("no-general", Source.GENERAL), ("no-instruct", Source.INSTRUCT), ("no-anomaly-seg", Source.SEG)]
)
def test_an_ablation_of_data_leaves_out_one_source_of_the_mixture(name: str, source: Source) -> None:
    table: dict[str, Any] = load_preset(f"ablations/{name}")["mixture"]
    shares = MixtureConfig(sets=(), **table).used_shares()
    assert set(shares) == set(Source) - {source}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"anchors": ["SEG", "NOR"]}, r"anchors \['SEG', 'NOR'\]: there are"),
        ({"anchors": ["SEG"]}, r"decision\.alpha is 0\.5, .* set alpha = 1\.0"),
        ({"anchors": ["NOR", "ANO"], "decision": {"alpha": 1.0}}, r"set alpha = 0\.0"),
        ({"decoder": "sam"}, r'decoder "sam" has one prompt'),
        ({"lora": {"rank": 0}}, r"lora\.rank"),
        ({"lora": {"target": ["q_proj"]}}, r"lora\.target.*did you mean targets\?"),
        ({"spam": {"heads": 2, "head": 2}}, r"spam\.head.*did you mean heads\?"),
        ({"spam": True}, r"spam: Input should be a valid dictionary"),
    ],
)
def test_what_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_config(load_preset("ov-7b")["model"] | changes)

"""``agvas model``: parts and parameters, before anything is loaded."""

import re
from pathlib import Path

import pytest

from agvas_core.contract.command_line import exit_code_of
from agvas_core.model.cli import model


def shown(capsys: pytest.CaptureFixture[str], name: str) -> dict[str, str]:
    """Its lines by their first words."""
    assert exit_code_of(lambda: model, name="agvas model", arguments=[name]) == 0
    lines = [re.split(r" {2,}", line.strip(), maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.strip()]
    return {line[0]: line[1] if len(line) > 1 else "" for line in lines}


def test_the_papers_model_in_parts(capsys: pytest.CaptureFixture[str]) -> None:
    rows = shown(capsys, "ov-7b")
    counted = re.compile(r"[\d,]+ +([\d,]+|-)")
    numbers = {
        part: tuple(int(number.replace(",", "").replace("-", "0")) for number in row.split())
        for part, row in rows.items()
        if counted.fullmatch(row)
    }
    assert numbers["pixel encoder"] == (637_026_048, 0)
    assert numbers["embeddings"] == numbers["head"] == (152128 * 3584, 152128 * 3584)
    lora = 28 * 16 * (3584 + 3584 + 3584 + 512)  # rank times inputs and outputs of q and v, in 28 layers
    assert numbers["language model"][1] == lora
    total = numbers.pop("all")
    assert total == (sum(row[0] for row in numbers.values()), sum(row[1] for row in numbers.values()))
    assert rows["LoRA"] == "rank 16, alpha 32, dropout 0.05, on q_proj, v_proj"
    assert rows["image tokens"] == "1458"


def test_tied_tables_count_once_and_parts_that_are_not_there_not_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    rows = shown(capsys, "ov-0.5b")
    assert rows["head"].split() == ["0", "-"]
    rows = shown(capsys, "ablations/lisa")
    assert "ov-7b-lisa, without [NOR], [ANO], SPAM, AGMD" in rows
    assert not {"SPAM", "Linear_p", "adapter"} & rows.keys()
    assert "adapter" in shown(capsys, "ablations/encoder-dinov3-h")


def test_a_file_and_a_checkpoint_can_be_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.toml").write_text('extends = "nano"\n[model]\nbase = "nano"\ntrained = ["agmd"]\n', encoding="utf-8")
    rows = shown(capsys, str(tmp_path / "own.toml"))
    assert rows["starts from"] == "nano" and rows["trained"] == "agmd"
    assert rows["SPAM"].split()[1] == "-"
    import agvas_core

    checkpoint = Path(agvas_core.__file__).parent / "checkpoints" / "nano"
    assert shown(capsys, str(checkpoint))["trained"] == "all"


def test_a_part_that_does_not_exist_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.toml").write_text('extends = "ov-7b"\n[model]\ntrained = ["agdm"]\n', encoding="utf-8")
    assert exit_code_of(lambda: model, name="agvas model", arguments=[str(tmp_path / "own.toml")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "did you mean agmd?" in error

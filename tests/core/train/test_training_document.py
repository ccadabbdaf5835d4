"""docs/training.md at tiny size: every command that it shows is run, in its order."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agvas.cli import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
DOCUMENT = (ROOT / "docs/training.md").read_text(encoding="utf-8")


def agvas(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """``agvas ...`` in this process: each command of its own would import torch again."""
    monkeypatch.setattr(sys, "argv", ["agvas", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0, words


def test_every_step_of_the_document_runs(
    tables: dict[str, Any],
    as_toml: Callable[[dict[str, Any]], str],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(folder / "sets", tmp_path / "datasets")
    shutil.copytree(folder / "sets/parts", tmp_path / "test-sets/parts")
    shutil.copytree(folder / "sets/parts/bolt/test", tmp_path / "reviewed/images")
    (tmp_path / "reviewed/masks/scratch").mkdir(parents=True)
    shutil.copy(folder / "sets/parts/bolt/ground_truth/scratch/001_mask.png", tmp_path / "reviewed/masks/scratch/001.png")
    (tmp_path / "tiny.toml").write_text(as_toml({"model": tables["model"], "train": tables["train"]}), encoding="utf-8")
    mine = re.search(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)
    assert mine is not None
    small = (
        mine[1]
        .replace('"ov-7b"', '"tiny.toml"')
        .replace("10000", "4")
        .replace("80 ", "4 ")
        .replace("0.01 ", "0.65 ")
        .replace("1000", "2")
    )
    (tmp_path / "mine.toml").write_text(small, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    ran = []
    for block in re.findall(r"```bash\n(.*?)```", DOCUMENT, re.DOTALL):
        for line in block.strip().splitlines():
            words = line.split()
            if words[0] in ("pip", "agvas-export"):  # export has its own tests
                continue
            if words[0] == "torchrun":  # processes have theirs; here the same command without them
                words = [word for word in words[words.index("agvas") :] if word not in ("--deepspeed", "zero2")]
            if words[0] == "python":
                assert (ROOT / words[1]).is_file()
                continue
            if "--overfit" in words:
                words[words.index("--steps") + 1] = "4"
            if "nano-decoder" in words:
                words += ["--steps", "12", "--batch", "2", "--micro-batch", "1"]
            agvas(words[1:], monkeypatch)
            ran.append(words[1])
    assert ran.count("train") == 6 and ran.count("eval") == 1
    assert (tmp_path / "runs/mine/model.safetensors").is_file() and (tmp_path / "runs/eval/result.json").is_file()


def test_ablations_are_trained_scored_and_tabulated(
    tables: dict[str, Any],
    as_toml: Callable[[dict[str, Any]], str],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "whole.toml").write_text(as_toml({"model": tables["model"]}), encoding="utf-8")
    (tmp_path / "no-spam.toml").write_text(
        'extends = "whole.toml"\n[model]\nspam = false\ntrained = ["refiner", "agmd"]\n', encoding="utf-8"
    )
    train = tables["train"] | {"steps": 2, "warmup_steps": 1}
    train.pop("validation")
    mixture = tables["mixture"] | {
        "held_out": 0.0
    }  # which images it takes depends on the seed, and here it may take all of a set
    (tmp_path / "data.toml").write_text(as_toml({"mixture": mixture, "train": train}), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    arguments = [
        "--seeds",
        "2",
        "--with",
        "data.toml",
        "--data",
        str(folder / "sets/parts"),
        "--out",
        "runs",
        "whole.toml",
        "no-spam.toml",
    ]
    monkeypatch.setattr(sys, "argv", ["ablations.py", *arguments])
    runpy.run_path(str(ROOT / "benchmarks/ablations.py"), run_name="__main__")
    table = (tmp_path / "runs/table.md").read_text(encoding="utf-8").splitlines()
    assert [line.split(" | ")[0] for line in table] == ["| preset", "|---|---:|---:|---:|---:|", "| whole.toml", "| no-spam.toml"]
    found = [
        json.loads((tmp_path / f"runs/whole-seed-{seed}/eval/result.json").read_text())["mean_of_sets"]["ap"] for seed in (0, 1)
    ]
    assert found[0] != found[1]
    assert table[2].split(" | ")[1] == f"{50 * sum(found):.1f} ± {100 * abs(found[0] - found[1]) / 2**0.5:.1f}"


def test_the_paper_at_small_size_trains_and_prints_its_tables(tmp_path: Path) -> None:
    """``benchmarks/paper_in_small.py``: the 17 sets, the whole mixture, two processes, two ablations, five tables."""
    command = [
        sys.executable,
        str(ROOT / "benchmarks/paper_in_small.py"),
        "--out",
        str(tmp_path),
        "--steps",
        "4",
        "--images",
        "4",
    ]
    stamps = set()
    for _ in range(2):  # the second finds everything done
        done = subprocess.run([*command, "no-spam", "encoder-siglip"], capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, done.stderr[-3000:]
        stamps.add((tmp_path / "runs/paper/model.safetensors").stat().st_mtime_ns)
    assert len(stamps) == 1
    runs = json.loads((tmp_path / "summary.json").read_text())["runs"]
    assert [run["preset"] for run in runs] == ["paper", "ablations/no-spam", "ablations/encoder-siglip"]
    assert all(set(run["sources"]) == {"general", "instruct", "seg", "vqa"} for run in runs)
    text = (tmp_path / "tables.md").read_text()
    assert [int(number) for number in re.findall(r"\*\*Table (\d)", text)] == [1, 2, 3, 4, 6]
    assert [row.split(" | ")[0] for row in text.splitlines() if row.startswith(("| w/o", "| SigLIP", "| explain"))] == [
        "| w/o SPAM", "| explain", "| SigLIP",
    ]  # fmt: skip
    table = json.loads((tmp_path / "runs/paper.json").read_text())["mixture"]
    assert len({one["name"] for one in table["sets"]} - {"goodsad"}) == 18  # 17 of table 5; instruct is about three of them

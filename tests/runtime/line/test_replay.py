"""Parts that are judged again: what a new recipe would change, and whether an old verdict comes out as it did."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from agvas.run import run as app
from agvas_core.contract.command_line import exit_code_of
from agvas_runtime.line.app.replay_cli import replay_command
from agvas_runtime.line.ledger.images import mask_of_findings
from agvas_runtime.line.ledger.ledger import LEDGER_NAME

from .conftest import write_part

MakePart = Callable[..., np.ndarray]


@pytest.fixture
def state(tmp_path: Path, tiny_bundle: Path, make_part: MakePart) -> Path:
    """A ledger of two good parts, a small spot, a large one, a ring, and a file that is none; four images are kept: all but one PASS."""
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    ring = make_part(spots=[(60, 40, 16)])
    cv2.circle(ring, (60, 40), 8, (200, 200, 200), -1)
    pictures = [make_part(), make_part(), make_part(spots=[(20, 20, 6)]), make_part(spots=[(60, 40, 12)]), ring]
    for number, picture in enumerate(pictures):
        write_part(tmp_path / "parts" / f"{number}.png", picture)
    (tmp_path / "parts" / "5.png").write_bytes(b"none")
    (tmp_path / "r.yaml").write_text(
        f"product: part\nmodel: {bundle}\ndeadline_ms: 60000\nkeep: {{sample_every: 2, first: 0}}\nmm_per_px: 0.1\nrules: [{{name: spots}}]\n"
    )
    arguments = [
        str(tmp_path / "parts"),
        "--recipe",
        str(tmp_path / "r.yaml"),
        "--state",
        str(tmp_path / "line"),
        "--threads",
        "1",
    ]
    assert exit_code_of(lambda: app, name="agvas-run", arguments=[*arguments, "--log", "json"]) == 0
    return tmp_path / "line"


@pytest.fixture
def replay(state: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[int, dict[str, Any]], str]]:
    def call(*arguments: object) -> tuple[int, dict[int, dict[str, Any]], str]:
        capsys.readouterr()
        words = [str(state), *map(str, arguments), "--json"]
        code = exit_code_of(lambda: replay_command, name="agvas replay", arguments=words)
        said = capsys.readouterr()
        return code, {row["seq"]: row for row in map(json.loads, said.out.splitlines())}, said.err

    return call


def test_a_past_verdict_comes_out_to_the_last_digit_or_says_why_not(state: Path, replay: Callable[..., Any]) -> None:
    code, rows, summary = replay()
    assert code == 0
    assert [rows[seq]["end"] for seq in range(1, 7)] == ["skipped", "same", "same", "same", "same", "skipped"]
    assert [rows[seq]["score"] == rows[seq]["score_before"] for seq in (2, 3, 4, 5)] == [True] * 4
    assert "not kept" in rows[1]["why"] and "no verdict (source)" in rows[6]["why"]
    assert "4 reproduced, 0 differ, 2 not judged again" in summary

    # An image that is another one, one that is gone, another engine, another bundle: each is said.
    with sqlite3.connect(state / LEDGER_NAME) as db:
        paths = dict(db.execute("SELECT seq, image_path FROM parts WHERE image_state = 'kept'").fetchall())
    db.close()
    shutil.copy(state / paths[4], state / paths[3])
    (state / paths[5]).unlink()
    assert [replay("--part", seq)[1][seq]["end"] for seq in (3, 5)] == ["skipped"] * 2
    assert "its hash is another" in replay("--part", 3)[1][3]["why"] and "is gone" in replay("--part", 5)[1][5]["why"]
    with sqlite3.connect(state / LEDGER_NAME) as db:
        (facts,) = db.execute("SELECT facts FROM engines").fetchone()
        db.execute(
            "INSERT INTO engines VALUES ('onnx@000000000000', ?)", (json.dumps({**json.loads(facts), "onnxruntime": "0.1"}),)
        )
        db.execute("DROP TRIGGER a_verdict_stands")
        db.execute("UPDATE parts SET engine = 'onnx@000000000000', bundle = 'tiny@000000000000', score = score / 2 WHERE seq = 4")
    db.close()
    why = replay("--part", 4)[1][4]["why"]
    assert "in place of tiny@000000000000" in why and "onnxruntime 0.1 then" in why and "score came out otherwise" in why
    shutil.rmtree(state.parent / "bundle")
    code, rows, _ = replay("--part", 2)
    assert (code, rows[2]["end"]) == (0, "skipped") and "bundle" in rows[2]["why"]


def test_a_verdict_that_does_not_come_out_ends_with_three(state: Path, replay: Callable[..., Any]) -> None:
    with sqlite3.connect(state / LEDGER_NAME) as db:
        db.execute("DROP TRIGGER a_verdict_stands")
        db.execute("UPDATE parts SET findings = '[]' WHERE seq = 4")
    db.close()
    code, rows, _ = replay("--last", 3)
    assert (code, sorted(rows), rows[4]["end"], rows[4]["why"]) == (3, [4, 5, 6], "changed", "findings came out otherwise")


def test_a_new_recipe_says_which_verdicts_change_before_it_goes(state: Path, replay: Callable[..., Any]) -> None:
    new = state.parent / "new.yaml"
    new.write_text((state.parent / "r.yaml").read_text().replace("{name: spots}", "{name: large, min_area_px: 300}"))
    code, rows, summary = replay("--recipe", new, "--fail-on-change", "--threads", 1)
    assert code == 1
    assert [rows[seq]["end"] for seq in range(1, 7)] == ["skipped", "same", "changed", "same", "same", "skipped"]
    assert (rows[3]["before"], rows[3]["now"]) == ("FAIL", "PASS") and "1 FAIL -> PASS" in summary
    assert replay("--recipe", state.parent / "r.yaml", "--fail-on-change")[0] == 0
    assert replay("--station", "elsewhere")[1] == {} and sorted(replay("--station", "files", "--last", 2)[1]) == [5, 6]
    new.write_text((state.parent / "r.yaml").read_text().replace("product: part", "product: other"))
    assert "it is a part of part" in replay("--recipe", new, "--part", 4)[1][4]["why"]
    new.write_text((state.parent / "r.yaml").read_text() + "frame: {width_px: 64, height_px: 64}\n")
    code, rows, summary = replay("--recipe", new)
    assert code == 0 and rows[2]["now"] == "NO_VERDICT" and "64x64" in rows[2]["why"]


def test_the_mask_of_a_rows_findings_keeps_its_hole(state: Path) -> None:
    with sqlite3.connect(state / LEDGER_NAME) as db:
        (findings,) = db.execute("SELECT findings FROM parts WHERE seq = 5").fetchone()
    db.close()
    (finding,) = json.loads(findings)
    mask = mask_of_findings(findings, 96, 128)
    assert not mask[40, 60] and mask[40, 48]
    assert abs(int(mask.sum()) - finding["area_px"]) <= 0.05 * finding["area_px"]

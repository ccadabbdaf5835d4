"""``benchmarks/bench.py``, which makes the figures of docs/benchmarks.md."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

BENCH = Path(__file__).resolve().parents[2] / "benchmarks" / "bench.py"


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, BENCH, *map(str, arguments)], capture_output=True, text=True)


def test_every_set_has_its_speed_its_scores_and_a_page_of_overlays(
    tiny_bundle: Path, tmp_path: Path, make_part: Callable[..., NDArray[np.uint8]]
) -> None:
    for kind, spots in (("good", []), ("hole", [(30, 30, 9)])):
        folder = tmp_path / "data/plates/plate/test" / kind
        folder.mkdir(parents=True)
        for number in range(2):
            cv2.imwrite(str(folder / f"{number}.png"), make_part(64, 96, spots=spots))
    (tmp_path / "data/plates/meta_plates.json").write_text("[]")
    out = tmp_path / "bench"
    done = bench("--data", tmp_path / "data", "--out", out, "--model", tiny_bundle, "--threads", "1")
    assert done.returncode == 0, done.stderr
    speed, scores = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| plates")]
    assert int(speed[1]) == 4 and float(speed[3]) > 0 and float(speed[-1]) > 10  # images, images/s, MB
    assert float(scores[1]) < float(scores[2])  # mean score of good and of bad ones
    assert [cell.strip() for cell in scores[3:]] == ["2 of 2", "2 of 2", "0"]
    assert cv2.imread(str(out / "plates.png")).any()


def test_a_folder_without_sets_says_what_to_give(tmp_path: Path) -> None:
    done = bench("--data", tmp_path)
    assert done.returncode == 1 and "--data" in done.stderr

"""A product is a model: every command takes it, and all of them say the same of an image."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agvas.fitting.fit import Fitted
from agvas_core.contract.decision import OperatingPoint, image_score
from agvas_runtime import Segmenter, Verdict
from agvas_runtime.images.frame import Frame
from agvas_runtime.line.recipe.recipe import Recipe
from agvas_runtime.line.recipe.rules import Judge, Looked
from agvas_runtime.masks.regions import judge_map
from agvas_runtime.profile.load import overhead
from agvas_runtime.profile.work import count_work, recorded

Rgb = NDArray[np.uint8]
Scores = dict[str, tuple[str, float]]


@pytest.fixture(scope="module")
def parts(photograph: Callable[..., Rgb], save: Callable[[Rgb, Path], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in MVTec's layout: three good parts and three with a spot."""
    root = tmp_path_factory.mktemp("set")
    for number in range(3):
        save(photograph(300 + number), root / "plate" / "test" / "good" / f"{number}.png")
        image = photograph(400 + number, red=(40 + 20 * number, 60, 13))
        save(image, root / "plate" / "test" / "spot" / f"{number}.png")
        mask = np.zeros_like(image)
        mask[47:74, 27 + 20 * number : 54 + 20 * number] = 255
        save(mask, root / "plate" / "ground_truth" / "spot" / f"{number}_mask.png")
    return root


@pytest.fixture(scope="module")
def expected(fitted: Fitted, parts: Path) -> Scores:
    """Name -> verdict and score, from Python."""
    found = Segmenter.load(fitted.bundle.folder, threads=1).predict(parts / "plate" / "test")
    scores = {str(Path(each.name).relative_to(parts)): (str(each.verdict), each.score or 0.0) for each in found}
    assert [verdict for verdict, _ in scores.values()] == ["PASS"] * 3 + ["FAIL"] * 3
    return scores


def run(*arguments: object, cwd: Path) -> str:
    """Runs ``agvas`` and returns what it prints."""
    program = "import sys; from agvas.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, timeout=120, cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_run(fitted: Fitted, parts: Path, expected: Scores, tmp_path: Path) -> None:
    out = tmp_path / "r"
    run("run", parts, "--model", fitted.bundle.folder, "--out", out, "--save", "score-npy,jsonl", "--threads", 1, cwd=tmp_path)
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert {str(Path(line["name"]).relative_to(parts)): (line["verdict"], line["score"]) for line in lines} == expected
    point = fitted.bundle.manifest.decision.point()
    for path in (out / "scores").rglob("*.npy"):
        values = np.load(path, allow_pickle=False)
        assert values.dtype == np.float32 and values.min() >= 0 and values.max() <= 1
        assert (image_score(values, point) > point.seed_threshold) == ("spot" in str(path))


def test_eval_scores_images_as_the_product_does(fitted: Fitted, parts: Path, tmp_path: Path) -> None:
    run("eval", "--data", parts, "--model", fitted.bundle.folder, "--out", tmp_path / "e", cwd=tmp_path)
    found = json.loads((tmp_path / "e" / "result.json").read_text())["mean_of_sets"]
    assert found["image_auroc"] == 1.0 and found["iou_nor"] == 1.0
    point = fitted.bundle.manifest.decision.point()
    records = [json.loads(path.read_text()) for path in (tmp_path / "e" / "images").glob("*.json")]
    records = [record for record in records if "score" in record]
    assert len(records) == 6 and all((record["score"] > point.seed_threshold) == record["anomalous"] for record in records)


def test_batch(fitted: Fitted, parts: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow.parquet")
    from pyarrow import parquet

    run("batch", parts / "plate" / "test", "--model", fitted.bundle.folder, "-o", tmp_path / "b", "--workers", 1, cwd=tmp_path)
    rows = [row for path in (tmp_path / "b" / "results").rglob("*.parquet") for row in parquet.read_table(path).to_pylist()]
    assert sorted(row["verdict"] for row in rows) == ["FAIL"] * 3 + ["PASS"] * 3
    assert all(row["score"] > 0 for row in rows)


def test_a_line_keeps_the_raw_score_of_a_good_part(fitted: Fitted, parts: Path, expected: Scores, tmp_path: Path) -> None:
    (tmp_path / "plate.yaml").write_text(f"product: plate\nmodel: {fitted.bundle.folder}\n")
    shutil.copytree(parts / "plate" / "test", tmp_path / "in")
    run(
        "line", tmp_path / "in", "--recipe", "plate.yaml", "--sink", "jsonl:out.jsonl", "--limit", 6, "--threads", 1, cwd=tmp_path
    )  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    found = sorted((row["verdict"], round(row["score"], 4)) for row in rows)
    assert found == sorted((verdict, round(score, 4)) for verdict, score in expected.values())


def test_strict_and_threshold_keep_their_meaning(fitted: Fitted, photograph: Callable[..., Rgb]) -> None:
    folder = fitted.bundle.folder
    faint = photograph(7, red=(80, 80, 13))
    usual = Segmenter.load(folder, threads=1)
    strict = Segmenter.load(folder, threads=1, operating_point="strict")
    assert strict.point.seed_threshold >= usual.point.seed_threshold
    score = usual.predict([faint])[0].score
    assert score is not None and score == strict.predict([faint])[0].score
    for threshold, verdict in ((score + 0.01, Verdict.PASS), (score - 0.01, Verdict.FAIL)):
        (result,) = usual.predict([faint], threshold=threshold)
        assert result.verdict == verdict and result.score == score


def maps() -> list[NDArray[np.float32]]:
    """Score maps of all sorts."""
    rng = np.random.default_rng(0)
    spot = rng.random((60, 80)).astype(np.float32) * 0.3
    spot[20:30, 20:30] = 0.8
    single = np.full((60, 80), 0.2, np.float32)
    single[5, 5] = 0.95
    return [
        spot,
        single,
        np.full((60, 80), 0.9, np.float32),
        np.zeros((60, 80), np.float32),
        rng.random((60, 80)).astype(np.float32),
    ]


@pytest.mark.parametrize("rule", [{}, {"min_area_px": 30}, {"min_area_px": 4000}, {"max_count": 1}])
@pytest.mark.parametrize("threshold", [0.4, 0.6, 0.85])
@pytest.mark.parametrize("share", [0.0, 0.01])
def test_a_recipe_fails_exactly_above_the_reject_score(rule: dict[str, Any], threshold: float, share: float) -> None:
    point = OperatingPoint(threshold=min(threshold, 0.6) if not share else threshold, seed_threshold=0.6, image_share=share)
    judge = Judge(Recipe.model_validate({"product": "p", "rules": [rule]}), point, 60, 80)
    for score_map in maps():
        judged = judge.judge({"anomaly": Looked(score_map, 1.0)})
        assert (judged.verdict == Verdict.FAIL) == (judged.reject_score > 0.6)
        assert (judged.reject_score > 0) == bool(score_map.any())
        if judged.verdict == Verdict.FAIL:
            assert judged.findings and judged.mask.any()
        if not rule:
            mask, regions = judge_map(score_map, point)
            assert bool(regions) == mask.any() == (judged.verdict == Verdict.FAIL)


def test_a_profile_counts_the_graph_of_the_references(fitted: Fitted, photograph: Callable[..., Rgb]) -> None:
    segmenter, image = Segmenter.load(fitted.bundle.folder, threads=1), photograph(70)
    work = count_work(segmenter, image)
    assert work["references"].calls == 1 and work["references"].io_bytes > 0
    assert segmenter.references is not None
    graph = segmenter.references.cells.stage.graph  # type: ignore[attr-defined]
    with recorded(graph) as seen:
        assert overhead(segmenter, Frame("part", 0, image=image), pairs=2) is not None
    assert (
        len(seen.calls) == 4 + 2 + 2
    )  # a frame for each of four graphs, to see what it asks; then two pairs of a frame and graphs alone

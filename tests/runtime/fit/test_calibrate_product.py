"""``agvas calibrate --product``, the recipe of a product, and what the line does with it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from agvas.fitting.calibrate_cli import calibrate
from agvas.fitting.fit import Fitted
from agvas.run import run as app
from agvas_core.contract.command_line import exit_code_of
from agvas_core.contract.manifest import BANK
from agvas_core.evaluation.cli import evaluate
from agvas_runtime import Segmenter, Verdict
from agvas_runtime.batch.cli import batch
from agvas_runtime.bundle import load_bundle
from agvas_runtime.line.app.replay_cli import replay_command
from agvas_runtime.line.ledger.ledger import Ledger
from agvas_runtime.line.recipe.cli import activate, lint, new
from agvas_runtime.line.recipe.file import read_recipe

Rgb = NDArray[np.uint8]
Photograph = Callable[..., Rgb]
Save = Callable[[Rgb, Path], None]


@pytest.fixture
def product(fitted: Fitted, tmp_path: Path) -> Path:
    """A product of its own for each test."""
    folder = tmp_path / "plate"
    shutil.copytree(fitted.bundle.folder, folder)
    return folder


@pytest.fixture
def more(photograph: Photograph, save: Save, tmp_path: Path) -> Path:
    """Good images that the product has not learned, somewhat rougher, and defective ones in ``bad``."""
    for seed in range(100, 110):
        save(photograph(seed), tmp_path / "more" / f"{seed}.png")
    for seed in range(200, 204):
        save(photograph(seed, red=(90, 70, 20)), tmp_path / "bad" / f"{seed}.png")
    return tmp_path / "more"


def call(command: Any, *arguments: object) -> int:
    return exit_code_of(lambda: command, name="agvas", arguments=[str(argument) for argument in arguments])


def test_the_operating_point_follows_the_good_parts_and_the_bank_stays(
    product: Path, more: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_bundle(product)
    bank = (product / BANK).read_bytes()
    assert call(calibrate, "--good", more, "--product", product, "--bad", more.parent / "bad", "--threads", 1) == 0
    said = capsys.readouterr()
    after = load_bundle(product)  # hashes of all files are compared
    assert after.product is not None and before.product is not None
    assert (product / BANK).read_bytes() == bank and after.identity != before.identity
    assert after.product.promise.good_images == len(after.product.calibrated) == 10
    assert after.product.good == before.product.good
    assert max(each.score for each in after.product.calibrated) <= after.manifest.decision.point().seed_threshold
    assert len(after.product.bad) == 4 and "4 are caught" in said.out and "nothing is known" not in said.err
    segmenter = Segmenter.load(product, threads=1)
    assert [result.verdict for result in segmenter.predict(more)] == [Verdict.PASS] * 10
    assert "good images" in said.err  # not a terminal, and yet it says how far it is


def test_too_few_parts_for_the_promise_and_none_of_defects_are_said_first(
    product: Path, more: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--good", more, "--product", product, "--threads", 1, "--quiet"]
    assert call(calibrate, *options, "--max-false-reject", 0.01) == 4
    said = capsys.readouterr().err
    assert "289 more" in said and "nothing is known about real defects" in said
    promise = load_bundle(product).product.promise  # type: ignore[union-attr]
    assert promise.missing == 289 and promise.asked == 0.01


def test_learned_and_unlike_images_are_left_out_and_named(
    product: Path, more: Path, good: Path, capsys: pytest.CaptureFixture[str], save: Save
) -> None:
    shutil.copy(good / "03.png", more / "learned.png")
    save(np.zeros((144, 160, 3), np.uint8), more / "black.png")
    assert call(calibrate, "--good", more, "--product", product, "--threads", 1, "--quiet") == 4  # 2 of 12
    said = capsys.readouterr().err
    assert said.startswith("warning: 2 of 12") and "learned.png" in said and "black.png: unlike" in said
    assert call(calibrate, "--good", good, "--product", product, "--threads", 1, "--quiet") == 2
    assert "has learned" in capsys.readouterr().err


def test_images_of_several_sizes_are_all_used(product: Path, more: Path, photograph: Photograph, save: Save) -> None:
    save(photograph(300, size=(150, 158)), more / "other.png")
    assert call(calibrate, "--good", more, "--product", product, "--threads", 1, "--quiet") == 0
    assert load_bundle(product).product.promise.good_images == 11  # type: ignore[union-attr]


def test_a_recipe_has_what_its_product_knows(product: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.yaml"
    assert call(new, "bracket", "--product", product, "-o", path) == 0
    recipe, bundle = read_recipe(path).recipe, load_bundle(product)
    assert recipe.product == "bracket" and Path(recipe.model) == product
    assert recipe.thresholds == bundle.manifest.decision.point()
    assert recipe.frame is not None and (recipe.frame.width_px, recipe.frame.height_px) == (160, 144)
    assert recipe.image.min_mean is not None and recipe.image.max_mean is not None
    assert recipe.calibration is not None and recipe.calibration.good_parts == 12
    capsys.readouterr()
    assert call(lint, path) == 0
    said = capsys.readouterr().out
    assert "differ" not in said and "not calibrated" not in said
    assert call(new, "bracket", "--product", product, "--model", "nano") == 2
    assert call(new, "bracket", "--product", bundle.folder.parent) != 0


def test_the_line_passes_good_parts_rejects_bad_ones_and_has_no_verdict_on_what_is_unlike(
    product: Path, more: Path, tmp_path: Path, save: Save, photograph: Photograph, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, state, lines = tmp_path / "r.yaml", tmp_path / "line", tmp_path / "v.jsonl"
    assert call(new, "bracket", "--product", product, "-o", recipe) == 0
    save(photograph(400), tmp_path / "in" / "1-good.png")
    save(photograph(401, red=(90, 70, 20)), tmp_path / "in" / "2-bad.png")
    save(np.zeros((144, 160, 3), np.uint8), tmp_path / "in" / "3-black.png")
    noise = np.random.default_rng(0).integers(0, 255, (144, 160, 3), dtype=np.uint8)
    save(noise, tmp_path / "in" / "4-noise.png")
    text = recipe.read_text().replace("deadline_ms: 2000 ", "deadline_ms: 60000 ")
    recipe.write_text(text)
    options = ["--recipe", recipe, "--state", state, "--sink", f"jsonl:{lines}", "--threads", 1]
    assert call(app, tmp_path / "in", *options) == 0
    sent = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [line["verdict"] for line in sent] == ["PASS", "FAIL", "NO_VERDICT", "NO_VERDICT"]
    assert sent[0]["score"] > 0  # a good part has a margin that can be watched
    assert all(line["detail"].startswith("unlike:") and line["cause"] == "source" for line in sent[2:])
    # The product's own limits hold where the recipe has none.
    bare = tmp_path / "bare.yaml"
    bare.write_text(f"product: bracket\nmodel: {product}\ndeadline_ms: 60000\n")
    arguments = ["--recipe", bare, "--state", tmp_path / "bare", "--threads", 1]
    assert call(app, tmp_path / "in", *arguments) == 0
    with Ledger(tmp_path / "bare") as ledger:
        rows = ledger.read("SELECT verdict, detail FROM parts ORDER BY seq")
    assert [verdict for verdict, _ in rows] == ["PASS", "FAIL", "NO_VERDICT", "NO_VERDICT"]
    assert all(detail.startswith("unlike:") for _, detail in rows[2:])
    # Judged again, or as a batch, they are still without a verdict.
    capsys.readouterr()
    assert call(replay_command, state, "--recipe", bare, "--threads", 1, "--json") == 0
    again = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["now"] for line in again if line["seq"] in (3, 4)] == ["NO_VERDICT"] * 2
    pytest.importorskip("pyarrow")
    assert call(batch, tmp_path / "in", "-o", tmp_path / "b", "--recipe", bare, "--workers", 1) == 0
    assert "PASS 1, FAIL 1, NO_VERDICT 2" in capsys.readouterr().err


def test_the_recipe_of_a_product_is_calibrated_with_images_of_any_size(
    product: Path, more: Path, tmp_path: Path, photograph: Photograph, save: Save
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"product: bracket\nmodel: {product}\n")
    save(photograph(300, size=(150, 158)), more / "other.png")
    options = ["--good", more, "--bad", tmp_path / "bad", "--recipe", recipe, "--max-false-reject", 0.3, "--threads", 1]
    assert call(calibrate, *options) == 0
    found = read_recipe(tmp_path / "r-calibrated.yaml").recipe
    assert found.frame is None and found.thresholds is not None and found.calibration is not None
    assert (found.calibration.good_parts, found.calibration.escapes) == (11, 0)
    assert found.thresholds.image_share == load_bundle(product).manifest.decision.point().image_share


def test_thresholds_that_are_not_the_product_s_are_said_loudly(
    product: Path, more: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, state = tmp_path / "r.yaml", tmp_path / "line"
    assert call(new, "bracket", "--product", product, "-o", recipe) == 0
    arguments = [more, "--recipe", recipe, "--state", state, "--threads", 1]
    assert call(app, *arguments, "--check") == 0
    assert "WARN" not in capsys.readouterr().out
    found = yaml.safe_load(recipe.read_text())
    found["thresholds"]["seed_threshold"] = 0.9999
    found["deadline_ms"] = 60000
    recipe.write_text(yaml.safe_dump(found))
    assert call(app, *arguments, "--check") == call(app, *arguments) == call(lint, recipe) == 2
    assert "0.9999" in capsys.readouterr().err
    assert call(activate, recipe, "--store", tmp_path / "store") == 0  # by name, so it goes
    arguments[2] = tmp_path / "store"
    assert call(app, *arguments, "--check") == 0
    said = capsys.readouterr().out
    assert "WARN  product" in said and "0.9999" in said
    assert call(app, *arguments, "--limit", 1) == 0
    assert "0.9999" in capsys.readouterr().err
    with Ledger(state) as ledger:
        ((detail,),) = ledger.read("SELECT detail FROM events WHERE kind = 'thresholds'")
        assert len(ledger.read("SELECT detail FROM events WHERE kind = 'not-calibrated'")) == 1
    assert "seed_threshold" in detail
    del found["calibration"]
    recipe.write_text(yaml.safe_dump(found))
    assert call(lint, recipe) == 0
    assert "differ from those of its product" in capsys.readouterr().out


def test_a_product_is_evaluated_by_its_own_score(product: Path, photograph: Photograph, save: Save, tmp_path: Path) -> None:
    for seed in range(3):
        save(photograph(500 + seed), tmp_path / "set/part/test/good" / f"{seed}.png")
        save(photograph(600 + seed, red=(90, 70, 20)), tmp_path / "set/part/test/spot" / f"{seed}.png")
        mask = np.zeros((144, 160, 3), np.uint8)
        mask[50:91, 70:111] = 255
        save(mask, tmp_path / "set/part/ground_truth/spot" / f"{seed}_mask.png")
    save(np.zeros((144, 160, 3), np.uint8), tmp_path / "set/part/test/good" / "black.png")
    out = tmp_path / "out"
    assert call(evaluate, "--data", tmp_path / "set", "--model", product, "--out", out, "--jobs", 1) == 0
    result = json.loads((out / "result.json").read_text())
    (images,) = (category["per_image"] for category in result["sets"][0]["categories"])
    by_name = {one["name"]: one for one in images}
    (own,) = Segmenter.load(product, threads=1).predict(tmp_path / "set/part/test/spot/0.png")
    assert by_name["part/test/spot/0.png"]["score"] == pytest.approx(own.score, abs=1e-4)
    assert "unlike" in by_name["part/test/good/black.png"]
    assert result["sets"][0]["mean"]["image_auroc"] == 0.75 and "0.5" not in str(result["threshold"])


def test_the_fitter_of_an_evaluation_is_fit(base: Path, good: Path, photograph: Photograph, save: Save, tmp_path: Path) -> None:
    for seed in range(4):
        save(photograph(500 + seed), tmp_path / "set/part/test/good" / f"{seed}.png")
        save(photograph(600 + seed, red=(90, 70, 20)), tmp_path / "set/part/test/spot" / f"{seed}.png")
        mask = np.zeros((144, 160, 3), np.uint8)
        mask[50:91, 70:111] = 255
        save(mask, tmp_path / "set/part/ground_truth/spot" / f"{seed}_mask.png")
    shutil.copytree(good, tmp_path / "set/part/train/good")
    out = tmp_path / "out"
    options = ["--data", tmp_path / "set", "--model", base, "--shots", "4", "--seeds", "1", "--out", out, "--jobs", 1]
    assert call(evaluate, *options) == 0
    (line,) = json.loads((out / "result.json").read_text())["table"]
    assert line["mean"]["image_auroc"] == 1 and line["mean"]["caught_5"] == 1 and line["images"] == 8

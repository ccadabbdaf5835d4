"""``agvas eval --shots``: what is drawn, that nothing is tested that was fitted on, figures over the draws, and going on."""

import csv
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from agvas_core.contract.command_line import exit_code_of
from agvas_core.contract.errors import UsageError
from agvas_core.data.datasets.layouts import find_test_sets
from agvas_core.evaluation.cli import evaluate
from agvas_core.evaluation.few_shot import Plan, Spread, draw, parse_shots, splits

# Knows nothing at first; a product of it knows the mean of its good images. One pixel of noise spoils the highest pixel, not its score.
MEAN_OF_GOOD = """
import json
from pathlib import Path

import cv2
import numpy

from agvas_core.contract.errors import ImageError, UnlikeError

def read(path):
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise ImageError(f"{path} cannot be read")
    return image.astype("float32") / 255

class Mean:
    operating_point = "P > 0.25"

    def __init__(self, model, options):
        self.name, self.identity = "mean", f"mean@{model if model == 'plain' else 'product'}"
        product = Path(model) / "mean.npy"
        self.mean = numpy.load(product) if product.is_file() else None

    def predict(self, path):
        image = read(path)
        if self.mean is None:
            return numpy.full(image.shape, 0.1, "float32"), numpy.zeros(image.shape, bool), "PASS"
        if image.mean() < 0.05:
            raise UnlikeError("unlike: brightness is 0.02, the least allowed is 0.05")
        scores = numpy.abs(image - self.mean)
        scores[0, 0] = 1.0
        mask = scores > 0.25
        mask[0, 0] = False
        return scores, mask, "FAIL" if mask.any() else "PASS", float(numpy.sort(scores.ravel())[-8:-1].mean())

def open_mean(model, **options):
    return Mean(model, options)

class Fitter:
    identity = "mean-fitter@1"

    def __call__(self, good, out, *, model, seed, threads):
        with open(out.parent.parent / "fits.log", "a") as log:
            log.write(json.dumps([[str(path) for path in good], model, seed]) + "\\n")
        out.mkdir()
        numpy.save(out / "mean.npy", numpy.mean([read(path) for path in good], axis=0))

fit_mean = Fitter()
"""

SIZE = (24, 30)


@pytest.fixture
def mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options that name a predictor and a fitter that an installed package brings."""
    site = tmp_path / "site"
    info = site / "agvas_test_mean-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: agvas-test-mean\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[agvas.predictors]\nmean = agvas_test_mean:open_mean\n[agvas.fitters]\nmean = agvas_test_mean:fit_mean\n"
    )
    (site / "agvas_test_mean.py").write_text(MEAN_OF_GOOD)
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "agvas_test_mean", raising=False)
    return ["--model", "plain", "--predictor", "mean", "--fitter", "mean"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A set with a training half, one without, and one that has no good image."""
    chance = np.random.default_rng(0)
    ground = chance.integers(90, 160, SIZE).astype(np.float32)
    counts = {"apart/cap": (6, 4, 3), "drawn/disc": (0, 8, 3), "none/film": (0, 0, 2)}
    for name, (train, good, bad) in counts.items():
        folder = tmp_path / "data" / name
        kinds = {"train/good": train, "test/good": good, "test/hole": bad}
        for kind, count in kinds.items():
            for number in range(count):
                image = ground + chance.normal(0, 4, SIZE)
                if kind.endswith("hole"):
                    image[8:14, 8 : 14 + number] = 250
                    mask = np.zeros(SIZE, np.uint8)
                    mask[8:14, 8 : 14 + number] = 255
                    write(folder / f"ground_truth/hole/{number}_mask.png", mask)
                write(folder / kind / f"{number}.png", np.clip(image, 0, 255).astype(np.uint8))
    return tmp_path / "data"


def write(path: Path, pixels: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)  # type: ignore[call-overload]


def agvas_eval(*arguments: object) -> int:
    return exit_code_of(lambda: evaluate, name="agvas eval", arguments=[str(argument) for argument in arguments])


def measured(out: Path) -> dict[tuple[str, str, int], dict[str, object]]:
    result = json.loads((out / "result.json").read_text())
    return {(line["set"], line["category"], line["shots"]): line for line in result["table"]}


def test_good_images_teach_and_every_file_says_so(
    mean: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code = agvas_eval("--data", data, *mean, "--shots", "0,1,4", "--seeds", "2", "--out", out)
    said = capsys.readouterr()
    assert code == 0, said.err
    table = measured(out)
    assert table["drawn", "disc", 0]["mean"]["image_auroc"] == 0.5  # type: ignore[index]
    for key in ("image_auroc", "caught_0", "caught_5", "ap", "iou_ano", "iou_nor"):
        assert table["drawn", "disc", 4]["mean"][key] > 0.8, key  # type: ignore[index]
        assert table["drawn", "disc", 4]["deviation"][key] is not None  # type: ignore[index]
    assert [key[:2] for key in table if key[2] == 0] == [("apart", "cap"), ("drawn", "disc"), ("all sets", "mean")]
    with (out / "result.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 9 and float(lines[-1]["ap"]) == table["all sets", "mean", 4]["mean"]["ap"]  # type: ignore[index]
    assert (out / "result.md").read_text().count("\n| ") >= 9 and r"\pm" in (out / "result.tex").read_text()
    assert "none/film" in said.err and "image AUROC" in said.out
    assert "drawn/disc, 4 good images, seed 1" in said.err  # not a terminal, and yet it says how far it is
    page = (out / "report.html").read_text()
    assert "<svg" in page and "±" in page and "http" not in page.replace("http-equiv", "")
    assert not list((out / "products").glob("*/"))  # what was fitted is of no more use


def test_nothing_is_tested_that_was_fitted_on(mean: list[str], data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert agvas_eval("--data", data, *mean, "--shots", "2,4", "--seeds", "2", "--out", out, "--quiet") == 0
    fits = [json.loads(line) for line in (out / "fits.log").read_text().splitlines()]
    assert len(fits) == 8 and all(model == "plain" for _, model, _ in fits)
    trials = json.loads((out / "result.json").read_text())["trials"]
    assert len(trials) == 8
    for (good, _, seed), trial in zip(fits, trials, strict=True):
        assert trial["seed"] == seed and trial["used"] == len(good) == trial["shots"]
        tested = {one["name"] for one in trial["per_image"]}
        names = {Path(path).relative_to(data / trial["set"]).as_posix() for path in good}
        assert not names & tested
        assert all(name.startswith("cap/train/" if trial["set"] == "apart" else "disc/test/good/") for name in names)
        assert len(tested) == 7  # 4 + 3 of the test half; 8 - 4 + 3 where that half gave the good images
    by_seed = {(trial["set"], trial["seed"], trial["shots"]): {one["name"] for one in trial["per_image"]} for trial in trials}
    assert by_seed["drawn", 0, 2] == by_seed["drawn", 0, 4] != by_seed["drawn", 1, 4]
    smaller, larger = (good for good, _, seed in fits if seed == 0 and "drawn" in good[0])
    assert set(smaller) < set(larger)


def test_at_most_half_of_the_test_images_are_taken_and_it_is_said(
    mean: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert agvas_eval("--data", data, *mean, "--set", "drawn", "--shots", "16", "--seeds", "1", "--out", out) == 0
    line = measured(out)["drawn", "disc", 16]
    assert line["used"] == [4] and line["images"] == 7 and line["deviation"]["ap"] is None  # type: ignore[index]
    said = capsys.readouterr()
    assert "drawn/disc (4)" in said.err and "16 (4)" in said.out


def test_a_second_call_fits_nothing_again_and_a_third_only_what_is_new(mean: list[str], data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--data", data, *mean, "--set", "drawn", "--seeds", "1", "--out", out, "--quiet"]
    assert agvas_eval(*arguments, "--shots", "0,4") == 0
    first = json.loads((out / "result.json").read_text())
    assert agvas_eval(*arguments, "--shots", "0,4") == 0
    again = json.loads((out / "result.json").read_text())
    assert again["table"] == first["table"] and again["trials"] == first["trials"]
    assert len((out / "fits.log").read_text().splitlines()) == 1
    assert agvas_eval(*arguments, "--shots", "0,2,4") == 0
    assert len((out / "fits.log").read_text().splitlines()) == 2


def test_the_product_s_own_score_ranks_images_and_unlike_ones_are_rejected(
    mean: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    black = np.zeros(SIZE, np.uint8)
    write(data / "apart/cap/test/good/9.png", black)
    out = tmp_path / "out"
    assert agvas_eval("--data", data, *mean, "--set", "apart", "--shots", "4", "--seeds", "1", "--out", out) == 0
    (trial,) = json.loads((out / "result.json").read_text())["trials"]
    scores = {one["name"]: one["score"] for one in trial["per_image"]}
    assert scores["cap/test/good/1.png"] < 0.2  # its highest pixel is 1
    (unlike,) = (one for one in trial["per_image"] if "unlike" in one)
    assert unlike["name"] == "cap/test/good/9.png"
    assert trial["metrics"]["iou_nor"] == 0.8 and trial["metrics"]["image_auroc"] == pytest.approx(12 / 15)
    assert trial["metrics"]["caught_0"] == 0 and trial["metrics"]["ap"] > 0.8
    assert "NO_VERDICT" in capsys.readouterr().err


def test_draws_are_the_same_everywhere_and_one_contains_the_other(data: Path) -> None:
    (drawn,) = find_test_sets(data, only="drawn", train=True)
    small, large = draw(drawn, "disc", 2, 7), draw(drawn, "disc", 4, 7)
    assert large.good[:2] == small.good and draw(drawn, "disc", 4, 7) == large != draw(drawn, "disc", 4, 8)
    limited = splits(drawn, Plan((4,), 1, limit=1), 0)["disc"]
    assert len(limited.test.items) == 2 and len(limited.good) == 4


@pytest.mark.parametrize(
    "arguments",
    [
        ["--shots", "1,x"],
        ["--shots", "4,4"],
        ["--shots", "-1"],
        ["--shots", "4", "--beside-paper"],
        ["--shots", "4", "--fitter", "nobody"],
        ["--shots", "4", "--set", "none"],
    ],
)
def test_invalid_options_are_2(
    arguments: list[str], mean: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert agvas_eval("--data", data, *mean, "--out", tmp_path / "out", *arguments) == 2
    assert capsys.readouterr().err.startswith("agvas eval: ")


def test_shots_and_spread() -> None:
    assert parse_shots("16,0,4") == (0, 4, 16)
    with pytest.raises(UsageError):
        parse_shots("")
    spread = Spread.of([0.5, 0.7, None])
    assert spread is not None and spread.mean == pytest.approx(0.6) and spread.deviation == pytest.approx(np.sqrt(0.02))
    assert Spread.of([None]) is None

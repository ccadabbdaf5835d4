"""``agvas eval`` from the command line: what is printed, what is written, and a model behind an entry point."""

import csv
import html.parser
import json
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path

import cv2
import numpy as np
import pytest

from agvas_core.contract.command_line import exit_code_of
from agvas_core.contract.errors import UsageError
from agvas_core.data.synthetic.cli import synth
from agvas_core.evaluation.cli import evaluate
from agvas_core.evaluation.metrics import METRICS
from agvas_core.evaluation.predictor import find_opener
from agvas_core.evaluation.tables import paper_note, paper_rows

DARK_IS_ANOMALOUS = '''
import cv2
import numpy

class Dark:
    """A model that finds what is dark."""
    def __init__(self, model, options):
        self.operating_point = "balanced: P > 0.4375"
        self.name, self.identity, self.threshold = model, f"{model}@1", options.get("threshold", 0.5)
        if options.get("operating_point") == "strict":
            self.threshold = 0.9

    def predict(self, path):
        if self.name == "nan":
            return numpy.full((40, 50), numpy.nan, "float32"), numpy.zeros((40, 50), bool), "PASS"
        scores = (255 - cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)).astype("float32") / 255
        mask = scores > self.threshold
        return scores, mask, "FAIL" if mask.any() else "PASS"

def open_dark(model, **options):
    return Dark(model, options)
'''


@pytest.fixture
def dark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a predictor that an installed package brings."""
    site = tmp_path / "site"
    info = site / "agvas_test_dark-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: agvas-test-dark\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[agvas.predictors]\ndark = agvas_test_dark:open_dark\n")
    (site / "agvas_test_dark.py").write_text(DARK_IS_ANOMALOUS)
    monkeypatch.syspath_prepend(site)
    return "dark"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two sets, one of them under a name that the paper has as well; grey noise with dark squares."""
    chance = np.random.default_rng(0)
    for name, category in (("mvtec", "bottle"), ("<b>mine", "a_part")):
        for kind, number in (("good", 0), ("good", 1), ("hole", 0), ("hole", 1)):
            image = chance.integers(140, 256, (40, 50), dtype=np.uint8)
            mask = np.zeros((40, 50), np.uint8)
            if kind == "hole":
                mask[5 : 15 + number, 10:20] = 255
                image[mask > 0] = chance.integers(0, 160, int((mask > 0).sum()))
            folder = tmp_path / "data" / name / category
            pictures = {folder / "test" / kind / f"{number}.png": image}
            if kind == "hole":
                pictures[folder / "ground_truth" / kind / f"{number}_mask.png"] = mask
            for path, pixels in pictures.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(path), pixels)
    return tmp_path / "data"


def agvas_eval(*arguments: object) -> int:
    return exit_code_of(lambda: evaluate, name="agvas eval", arguments=[str(argument) for argument in arguments])


def test_a_model_is_scored_and_everything_is_written(
    dark: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code = agvas_eval("--model", "night", "--predictor", dark, "--data", data, "--out", out, "--beside-paper")
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "night@1" in said.out and "bottle" in said.out and "(paper)" not in said.out and "all sets" in said.out
    result = json.loads((out / "result.json").read_text())
    assert result["subject"] == "night@1" and result["protocol"]["name"] == "native"
    assert [one["set"] for one in result["sets"]] == ["<b>mine", "mvtec"]
    assert 0.9 < result["mean_of_sets"]["ap"] <= 1 and result["mean_of_sets"]["iou_nor"] == 1
    with (out / "result.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    measured = [line for line in lines if line["origin"] == "measured"]
    assert [(line["set"], line["category"]) for line in measured] == [
        ("<b>mine", "a_part"), ("mvtec", "bottle"), ("all sets", "mean"),
    ]  # fmt: skip
    assert float(measured[-1]["ap"]) == result["mean_of_sets"]["ap"]
    assert lines == measured and "1,258 anomalous and 467 normal images, these are 2 and 2" in said.err
    assert list(measured[-1])[5] == "image_auroc" and 0 <= float(measured[-1]["caught_5"]) <= 1
    for head in (said.out.splitlines()[2:4], (out / "result.md").read_text().splitlines()[:1]):
        words = " ".join(head)
        assert words.index("image AUROC") < words.index("caught at 5 %") < words.index("AP")
    page = (out / "report.html").read_text()
    assert "P &gt; 0.4375" in page and "threshold 0.5" not in page and result["threshold"] is None
    assert (out / "result.md").read_text().count("\n| ") >= 4
    assert r"a\_part" in (out / "result.tex").read_text()


def test_a_category_with_the_papers_images_has_its_row_below(
    dark: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, mask = tmp_path / "sets/mvtec/toothbrush", np.zeros((16, 16), np.uint8)
    mask[4:8, 4:8] = 255
    for kind, count in (("good", 12), ("defective", 30)):
        for number in range(count):
            image = np.full((16, 16), 200, np.uint8) if kind == "good" else np.where(mask, 20, 200).astype(np.uint8)
            pictures = {root / f"test/{kind}/{number:03d}.png": image}
            if kind != "good":
                pictures[root / f"ground_truth/{kind}/{number:03d}_mask.png"] = mask
            for path, pixels in pictures.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(path), pixels)
    out = tmp_path / "out"
    arguments = ("--model", "night", "--predictor", dark, "--data", tmp_path / "sets", "--out", out, "--beside-paper")
    assert agvas_eval(*arguments) == 0
    assert "(paper)" in capsys.readouterr().out and "arXiv" in (out / "result.tex").read_text()
    with (out / "result.csv").open(newline="") as file:
        (theirs,) = [line for line in csv.DictReader(file) if line["origin"].startswith("paper: ")]
    assert (theirs["category"], theirs["ap"], theirs["auroc"]) == ("toothbrush", "0.534", "")


def test_the_page_needs_nothing_but_itself_and_survives_names(dark: str, data: Path, tmp_path: Path) -> None:
    assert agvas_eval("--model", "<i>", "--predictor", dark, "--data", data, "--out", tmp_path / "out", "--quiet") == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;b&gt;mine" in page and "<b>mine" not in page and "<i>@1" not in page
    assert "http" not in page.replace("http-equiv", "")

    class Balanced(html.parser.HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []
            self.pictures = 0

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag not in ("meta", "br"):
                self.open.append(tag)

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.pictures += tag == "image" and (dict(attrs)["href"] or "").startswith("data:image/jpeg;base64,")

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    seen = Balanced()
    seen.feed(page)
    assert seen.open == [] and seen.pictures == 8  # every image of the small sets is among the worst or the best


def test_limit_and_set_are_kept_to_and_written_down(dark: str, data: Path, tmp_path: Path) -> None:
    options = ["--limit", "1", "--seed", "3", "--set", "mvtec", "--protocol", "resized-256", "--quiet"]
    assert agvas_eval("--model", "night", "--predictor", dark, "--data", data, "--out", tmp_path / "out", *options) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [one["set"] for one in result["sets"]] == ["mvtec"]
    assert result["sets"][0]["categories"][0]["images"] == 2
    assert (result["limit per kind"], result["seed"], result["protocol"]["size_px"]) == (1, 3, 256)


def test_predictions_are_scored_without_any_model(data: Path, tmp_path: Path) -> None:
    for path in data.glob("*/*/test/*/*.png"):
        target = (tmp_path / "maps" / path.relative_to(data)).with_suffix(".npy")
        target.parent.mkdir(parents=True, exist_ok=True)
        np.save(target, np.full((20, 25), 0.25, np.float32))
    out = tmp_path / "out"
    assert agvas_eval("--predictions", tmp_path / "maps", "--data", data, "--out", out, "--jobs", "1", "--quiet") == 0
    result = json.loads((out / "result.json").read_text())
    assert result["mean_of_sets"]["auroc"] == 0.5 and result["mean_of_sets"]["iou_ano"] == 0
    assert any("resized" in note for note in result["notes"])


def test_progress_is_told_without_a_terminal_too(
    dark: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agvas_core.evaluation.cli.LINE_EVERY_S", 0.0)
    assert agvas_eval("--model", "night", "--predictor", dark, "--data", data, "--out", tmp_path / "out") == 0
    assert "8 of 8 images scored" in capsys.readouterr().err
    assert agvas_eval("--model", "night", "--predictor", dark, "--data", data, "--out", tmp_path / "out", "--quiet") == 0
    assert capsys.readouterr().err == ""


def test_what_needs_good_parts_has_no_column_where_there_are_none(
    dark: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in data.glob("mvtec/bottle/test/good/*"):
        path.unlink()
    options = ["--predictor", dark, "--data", data, "--set", "mvtec", "--out", tmp_path / "out"]
    assert agvas_eval("--model", "night", *options) == 0
    assert "caught" not in capsys.readouterr().out


def test_maps_with_nan_are_the_model_s_fault_and_named(
    dark: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert agvas_eval("--model", "nan", "--predictor", dark, "--data", data, "--out", tmp_path / "out", "--quiet") == 2
    said = capsys.readouterr().err
    assert "nan@1 gave values that are NaN" in said and "a_part/test/good/0.png" in said


def test_the_bundled_model_is_scored_on_generated_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts, out = tmp_path / "parts", tmp_path / "out"
    options = ["--count", "6", "--size", "128x96", "--normal-fraction", "0.4", "--seed", "7", "--quiet"]
    assert exit_code_of(lambda: synth, name="agvas synth", arguments=[str(parts), *options]) == 0
    (parts / "meta_synthetic.json").unlink()  # by its folders, as a set that somebody else made
    assert agvas_eval("--model", "nano", "--data", parts, "--out", out) == 0
    said = capsys.readouterr().out
    assert "nano@" in said and "synthetic" in said
    result = json.loads((out / "result.json").read_text())
    assert [one["layout"] for one in result["sets"]] == ["mvtec"] and result["subject"].startswith("nano@")
    metrics = result["mean_of_sets"]
    assert all(metrics[key] is not None and 0 <= metrics[key] <= 1 for key in METRICS)
    assert metrics["auroc"] > 0.5  # it is no dice
    assert agvas_eval("--model", "nano", "--data", parts, "--out", out, "--quiet") == 0
    assert json.loads((out / "result.json").read_text())["mean_of_sets"] == metrics


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--model", "a", "--predictions", "b"],
        ["--model", "a", "--protocol", "mine"],
        ["--model", "a", "--predictor", "nobody"],
        ["--model", "a", "--predictor", "dark", "--prompt", "find", "--predictions", "b"],
        ["--predictions", "nowhere"],
        ["--predictions", "b", "--strict"],
        ["--model", "a", "--predictor", "dark", "--strict", "--threshold", "0.3"],
        ["--model", "a", "--predictor", "dark", "--strict", "--protocol", "paper"],
    ],
)
def test_what_cannot_be_meant_is_2(
    arguments: list[str], dark: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert agvas_eval(*arguments, "--data", data, "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err.startswith("agvas eval: ")
    assert not (tmp_path / "out").exists()


def test_a_predictor_that_nobody_brings_is_refused(dark: str) -> None:
    with pytest.raises(UsageError, match=r"installed are.* dark"):
        find_opener("nobody")


def test_the_paper_s_rows_are_its_own_and_add_up() -> None:
    categories = "bottle cable capsule carpet grid hazelnut leather metal_nut pill screw tile toothbrush transistor wood zipper"
    data = tomllib.loads(resources.files("agvas_core.evaluation").joinpath("paper.toml").read_text(encoding="utf-8"))
    counts = {name: tuple(data["images-mvtec"][name]) for name in categories.split()}
    rows = list(paper_rows("mvtec", counts))
    single = [row for row in rows if row.category]
    mean = next(row for row in rows if row.category is None)
    assert len(single) == 15 and all(row.method == mean.method for row in single)
    for key in ("ap", "f1_max", "iou_ano", "iou_nor"):
        values = [row.metrics[key] for row in single]
        assert np.mean([value for value in values if value is not None]) == pytest.approx(mean.metrics[key], abs=6e-4), key
    assert sum(row.category is None for row in rows) == 15  # the methods of table 1
    assert list(paper_rows("neu", {"steel": (3, 3)})) == []
    assert next(paper_rows("isic", {"skin": (379, 0)})).metrics["iou_nor"] is None


@pytest.mark.parametrize(
    ("name", "counts", "there"),
    [
        ("KSDD2", {"Metal": (356, 356)}, True),
        ("ksdd2", {"surface": (110, 894)}, False),  # its published test half
        ("rsdd", {"type-i": (67, 0), "type-ii": (128, 0)}, False),  # whole rails
        ("RSDD", {"Metal15": (387, 387)}, True),
        ("isic", {"skin": (600, 0)}, False),  # of 2017
        ("mvtec", {"bottle": (63, 20)}, False),  # one category: its own row, and not the mean of 15
    ],
)
def test_the_paper_stands_beside_ours_only_where_the_images_are_the_same(
    name: str, counts: dict[str, tuple[int, int]], there: bool
) -> None:
    means = [row for row in paper_rows(name, counts) if row.category is None]
    assert bool(means) == there == (paper_note(name, counts) is None)


def test_the_papers_images_are_1725_of_mvtec() -> None:
    data = tomllib.loads(resources.files("agvas_core.evaluation").joinpath("paper.toml").read_text(encoding="utf-8"))
    sums = [sum(column) for column in zip(*data["images-mvtec"].values(), strict=True)]
    assert sums == data["images"]["MVTec-AD"] and sum(sums) == 1725
    assert data["images-mvtec"].keys() == data["mvtec"].keys()


def test_evaluation_leaves_torch_and_the_runtime_unimported() -> None:
    code = "import sys, agvas_core.evaluation.cli\nprint([m for m in ('torch', 'sklearn', 'agvas_runtime') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_option_that_a_predictor_does_not_take_is_refused_in_words(
    dark: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = "\n\ndef open_plain(model, threads=None):\n    return Dark(model, {})\n"
    (tmp_path / "site/agvas_test_dark.py").write_text(DARK_IS_ANOMALOUS + plain)
    entry = tmp_path / "site/agvas_test_dark-1.0.dist-info/entry_points.txt"
    entry.write_text("[agvas.predictors]\ndark = agvas_test_dark:open_plain\n")
    sys.modules.pop("agvas_test_dark", None)
    arguments = ("--model", "night", "--predictor", dark, "--data", data, "--out", tmp_path / "out")
    assert agvas_eval(*arguments, "--prompt", "Holes.") == 2 and "leave out --prompt" in capsys.readouterr().err
    assert agvas_eval(*arguments) == 0
    sys.modules.pop("agvas_test_dark", None)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--mode", "describe-plus"], "--normal-looks FILE go together"),
        (["--normal-looks", "looks.toml"], "--normal-looks FILE go together"),
        (["--mode", "describe-plus", "--normal-looks", "looks.toml"], "says nothing of bottle"),
        (["--mode", "describe-plus", "--normal-looks", "no.toml"], "cannot be read"),
        (["--shots", "0,1", "--mode", "explain"], "leave out --mode"),
    ],
)
def test_modes_that_cannot_be_measured_are_refused(
    options: list[str], said: str, dark: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("looks.toml").write_text('a_part = "A grey square."\n')
    assert agvas_eval("--model", "night", "--predictor", dark, "--data", data, "--out", "out", *options) == 2
    assert said in capsys.readouterr().err


def test_maps_are_compared_at_any_size_and_smoothed_as_the_cited_protocol_is(data: Path, dark: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    base = ("--model", "night", "--predictor", dark, "--data", data, "--set", "mvtec", "--out", out, "--quiet")
    assert agvas_eval(*base, "--protocol", "cited") == 0
    protocol = json.loads((out / "result.json").read_text())["protocol"]
    assert (protocol["size_px"], protocol["sigma_px"], protocol["own_mask"]) == (518, 8.0, False)
    assert agvas_eval(*base, "--size-px", "64", "--sigma-px", "1") == 0
    protocol = json.loads((out / "result.json").read_text())["protocol"]
    assert (protocol["name"], protocol["size_px"], protocol["sigma_px"]) == ("native-64-sigma-1", 64, 1.0)

"""The measure of words: an oracle that reads the truth scores 1, a model that hears nothing scores its baseline, and neither by luck."""

import html.parser
import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agvas_core.contract.command_line import exit_code_of
from agvas_core.contract.errors import ImageError, UsageError
from agvas_core.contract.prompts import ANCHORS, FIXED_ANSWER, NO_ANOMALY_ANSWER
from agvas_core.data.synthetic.captions import describe, group_of, kind_of
from agvas_core.data.synthetic.sample import PLACES, SIZES, Sample
from agvas_core.data.synthetic.synthesis import HELD_OUT_FAMILIES, synthesize
from agvas_core.evaluation.cli import evaluate
from agvas_core.evaluation.grounding import cases, families
from agvas_core.evaluation.grounding.cases import ASKED, SHUFFLED, TASKS, draw, mention_of
from agvas_core.evaluation.grounding.figures import FIELDS, figures_of, stated_fields
from agvas_core.evaluation.grounding.measure import Grounding, Plan, measure
from agvas_core.evaluation.grounding.report import markdown_text, render_page
from agvas_core.evaluation.grounding.trial import Answer, TrialRecord, says_nothing_is_there
from agvas_core.evaluation.predictor import Model

Reply = tuple[NDArray[np.float32], NDArray[np.bool_], str | None, float]
IMAGES = 5
_drawn: dict[bytes, Sample] = {}


@cache  # most tests ask about the same images
def remembered(*arguments: Any) -> Sample:
    """What the generator draws, remembered for the oracle."""
    sample = synthesize(*arguments)
    _drawn[sample.image.tobytes()] = sample
    return sample


@pytest.fixture(autouse=True)
def _remember(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (cases, families):
        monkeypatch.setattr(module, "synthesize", remembered)


class Oracle:
    """Knows the truth of every generated image, and reads an instruction for itself."""

    name = identity = "oracle"

    def __init__(self, *, gives_text: bool = True, replies: int = 10**9) -> None:
        self.gives_text, self.left = gives_text, replies
        self.asked: list[str | None] = []

    def predict(self, path: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_], str]:
        raise AssertionError("grounding has no files")

    def reply(
        self, image: NDArray[np.uint8], instruction: str | None = None, mode: str = "direct", zero_anchors: bool = False
    ) -> Reply:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.asked.append(instruction)
        region = self._meant(image, instruction) & (not zero_anchors)
        text = None if mode == "direct" or not self.gives_text else self._text(image, instruction, bool(region.any()))
        return region.astype(np.float32), region, text, float(region.any())

    def _meant(self, image: NDArray[np.uint8], instruction: str | None) -> NDArray[np.bool_]:
        sample = _drawn.get(image.tobytes())
        if sample is None:
            return np.zeros(image.shape[:2], bool)
        labels = [defect.label for defect in sample.defects if instruction is None or self._is_meant(defect, instruction)]
        return np.isin(sample.labels, labels)

    @staticmethod
    def _is_meant(defect: Any, instruction: str) -> bool:
        target = target_of(instruction)
        if "anomaly" not in target:
            kind = kind_of(target)
            assert kind is not None, f"{instruction!r} names no kind"
            return group_of(kind) == group_of(defect.kind)
        return target in (f"anomaly at the {defect.place}", f"{defect.size} anomaly", f"{defect.tone} anomaly")

    @staticmethod
    def _text(image: NDArray[np.uint8], instruction: str | None, there: bool) -> str:
        if instruction is None:
            sample = _drawn.get(image.tobytes())
            found = describe(sample.defects) if sample is not None and sample.defects else None
            return NO_ANOMALY_ANSWER if found is None else f"There is {found}, as indicated by {ANCHORS}."
        return FIXED_ANSWER if there else f"There is no {target_of(instruction)} in this image."


class Deaf(Oracle):
    """Sees some noise in every image, always the same in the same image, whatever it is asked; always sure and always says the same."""

    name = identity = "deaf"

    def reply(
        self, image: NDArray[np.uint8], instruction: str | None = None, mode: str = "direct", zero_anchors: bool = False
    ) -> Reply:
        scores = np.random.default_rng(int(image.sum())).random(image.shape[:2]).astype(np.float32)
        return scores, scores > 0.3, f"There is a small dark scratch at the center, as indicated by {ANCHORS}.", 0.5


class Silent(Oracle):
    """Never finds anything."""

    name = identity = "silent"

    def reply(
        self, image: NDArray[np.uint8], instruction: str | None = None, mode: str = "direct", zero_anchors: bool = False
    ) -> Reply:
        nothing = np.zeros(image.shape[:2], np.float32)
        return nothing, nothing > 0, NO_ANOMALY_ANSWER if mode != "direct" else None, 0.0


def target_of(instruction: str) -> str:
    found = re.search(r" the (.+?)(?: in this image| and segment it)?\.$", instruction)
    return found[1] if found else ""


def measured(predictor: object, out: Path, images: int = IMAGES, seed: int = 0) -> Grounding:
    return measure(Model(lambda _: predictor, repr(predictor)), Plan(images, seed, out))  # type: ignore[arg-type, return-value]


def values(found: Grounding) -> dict[str, float | None]:
    return {figure.key: figure.value for figure in found.figures}


def test_an_oracle_scores_one_in_everything(tmp_path: Path) -> None:
    found = measured(Oracle(), tmp_path)
    wanted_zero = {"iou_other", "iou_shuffled", "iou_zeroed"}
    for key, value in values(found).items():
        wanted = None if key == "asked_over_other" else 0 if key in wanted_zero else 1
        assert value == (wanted if wanted is None else pytest.approx(wanted)), key
    assert any("no bound" in note for note in found.notes)
    assert [blank.text for blank in found.blanks] == [NO_ANOMALY_ANSWER] * 3
    counts = {figure.key: figure.count for figure in found.figures}
    assert counts["swap_kind_score"] == 2 * IMAGES and counts["swap_place_score"] == 4  # both regions are asked for
    assert counts["caption_kind"] == IMAGES and counts["ap_held_out"] == IMAGES


def test_a_model_that_hears_nothing_scores_its_baseline(tmp_path: Path) -> None:
    found = measured(Deaf(), tmp_path)
    figures = {figure.key: figure for figure in found.figures}
    for task in ("kind", "place", "size", "tone"):  # right on one of the two, in every image
        assert figures[f"swap_{task}_score"].value == 0.5 == figures[f"swap_{task}_score"].baseline
        assert (figures[f"swap_{task}_mask"].value or 0) <= 0.5
    assert figures["asked_over_other"].value == pytest.approx(1) and figures["asked_over_other"].times == pytest.approx(1)
    assert figures["loss_shuffled"].value == figures["loss_zeroed"].value == 0
    for key, figure in figures.items():
        if "balanced" in key or key.startswith("accept_"):
            assert figure.value == 0.5 == figure.baseline, key
    for field in FIELDS:
        figure = figures[f"caption_{field}"]
        assert figure.value is not None and figure.baseline is not None and figure.value <= figure.baseline
    assert abs((figures["ap_shown"].value or 0) - (figures["ap_shown"].baseline or 0)) < 0.02


def test_a_model_that_finds_nothing_is_right_about_nothing_but_good_parts(tmp_path: Path) -> None:
    found = values(measured(Silent(), tmp_path))
    for task in ("kind", "place", "size", "tone"):  # equal is not right
        assert found[f"swap_{task}_score"] == found[f"swap_{task}_mask"] == 0
    for how in ("mask", "words"):
        assert found[f"{how}_refused_good_parts"] == 1 and found[f"{how}_accepted_against_good_parts"] == 0
        assert found[f"{how}_balanced_good_parts"] == found[f"{how}_balanced_absent_kinds"] == 0.5
    assert found["asked_over_other"] is None and found["loss_zeroed"] is None and found["caption_stated"] == 0
    families_of = {figure.key: figure for figure in measured(Silent(), tmp_path).figures if figure.key.startswith("ap_")}
    assert all(figure.value == pytest.approx(figure.baseline) for figure in families_of.values())


@pytest.mark.parametrize("task", TASKS)
def test_a_case_asks_for_what_it_says_and_is_the_same_when_drawn_again(task: cases.Task) -> None:
    for number in range(3):
        case, again = draw(task, 0, number), draw(task, 0, number)
        assert case is not None and again is not None
        assert np.array_equal(case.sample.image, again.sample.image) and case.questions == again.questions
        assert case.sample.image.shape[:2] == cases.SIZE
        assert case.sample.family not in HELD_OUT_FAMILIES
        asked = [question for question in case.questions if question.name == ASKED]
        if task in ("kind", "place", "size", "tone"):
            one, two = asked
            assert (one.asked, one.other) == (two.other, two.asked) and one.about != two.about
            assert all(np.isin(case.sample.labels, question.asked).any() for question in asked)
        defects = {defect.label: defect for defect in case.sample.defects}
        if task in ("place", "tone"):
            assert len({defect.kind for defect in defects.values()}) == 1
        if task == "place":
            assert {question.about for question in asked} <= set(PLACES)
        if task == "size":
            assert {question.about for question in asked} == {SIZES[0], SIZES[2]}
        for question in case.questions:
            if question.name == SHUFFLED:
                kind = kind_of(target_of(question.instruction or ""))
                assert kind is not None and group_of(kind) != question.about
        if task == "good":
            assert not defects
        if task == "caption":
            assert case.truth == mention_of(case.sample.defects)


def test_seeds_are_other_images() -> None:
    one, two = draw("caption", 0, 0), draw("caption", 1, 0)
    assert one is not None and two is not None and not np.array_equal(one.sample.image, two.sample.image)


def answer(name: str, **facts: Any) -> Answer:
    empty = Answer(name, None, "", 0.5, None, 0, None, None, None, None, "")
    return replace(empty, **facts)


def test_figures_are_those_of_their_definitions() -> None:
    pairs = [(0.9, 0.1, 0.6, 0.2), (0.2, 0.4, 0.2, 0.2), (0.5, 0.5, 0.1, 0.0), (0.3, 0.2, 0.3, 0.0)]
    asked = [answer(ASKED, about="hole", asked_score=a, other_score=b, asked_iou=c, other_iou=d) for a, b, c, d in pairs]
    without = [answer(name, asked_iou=iou) for name, iou in (("shuffled", 0.15), ("zeroed", 0.06))]
    truths = [("small", "dark", "crack", "left"), ("small", "dark", "stain", ""), ("large", "dark", "stain", "top")]
    told = ["There is a small dark scratch at the left and a large dark stain at the top", "It is a hole.", None]
    trials = [TrialRecord("kind", 0, (*asked, *without), None)]
    trials += [TrialRecord("caption", n, (answer("caption", text=told[n]),), truths[n]) for n in range(3)]
    figures = {figure.key: figure for figure in figures_of(trials)}
    assert figures["swap_kind_score"].value == 2 / 4 and figures["swap_kind_mask"].value == 3 / 4
    assert figures["asked_over_other"].value == pytest.approx(0.3 / 0.1)
    assert figures["loss_shuffled"].value == pytest.approx(0.5) and figures["loss_zeroed"].value == pytest.approx(0.8)
    # A crack that is called a scratch is of the right visible kind; what is spread over the part has no place to be right about.
    found = {field: (figures[f"caption_{field}"].value, figures[f"caption_{field}"].baseline) for field in FIELDS}
    third, half = pytest.approx(1 / 3), pytest.approx(1 / 2)
    assert found == {
        "kind": (third, 2 * third.expected),
        "place": (half, half),
        "size": (third, 2 * third.expected),
        "tone": (third, 1),
    }
    assert figures["caption_stated"].value == third
    assert figures["swap_place_score"].value is None and figures["accept_good"].value is None


def test_refusals_in_words_are_told_from_answers() -> None:
    assert says_nothing_is_there(NO_ANOMALY_ANSWER) and says_nothing_is_there("There is no scratch in this image.")
    assert not says_nothing_is_there(FIXED_ANSWER) and not says_nothing_is_there("")
    assert not says_nothing_is_there(f"There is no doubt, it is {ANCHORS}.")
    assert not says_nothing_is_there("There is no doubt, it is [mask].")
    assert stated_fields(NO_ANOMALY_ANSWER) is None and stated_fields(None) is None


@pytest.mark.parametrize("killed_after", [5, 30])
def test_a_killed_measurement_goes_on_where_it_was(killed_after: int, tmp_path: Path) -> None:
    whole, rest, nothing = Oracle(), Oracle(), Oracle()
    wanted = measured(whole, tmp_path / "whole", 2)
    with pytest.raises(KeyboardInterrupt):
        measured(Oracle(replies=killed_after), tmp_path / "out", 2)
    assert values(measured(rest, tmp_path / "out", 2)) == values(wanted)
    assert values(measured(nothing, tmp_path / "out", 2)) == values(wanted)
    blanks, most_in_a_case = 3, 6
    assert len(rest.asked) <= len(whole.asked) - (killed_after - blanks - most_in_a_case)
    assert len(nothing.asked) == blanks  # these are always asked: they tell whether there is text


def test_another_model_or_seed_is_not_taken_for_this_one(tmp_path: Path) -> None:
    assert values(measured(Oracle(), tmp_path, 2))["swap_kind_score"] == 1
    assert values(measured(Silent(), tmp_path, 2))["swap_kind_score"] == 0
    other = Oracle()
    measured(other, tmp_path, 2, seed=1)
    assert len(other.asked) > 20


def test_a_model_without_text_is_measured_by_its_masks_and_that_is_said(tmp_path: Path) -> None:
    found = measured(Oracle(gives_text=False), tmp_path, 2)
    assert values(found)["mask_balanced_absent_kinds"] == 1 and values(found)["swap_kind_score"] == 1
    assert values(found)["caption_kind"] is None and values(found)["words_balanced_good_parts"] is None
    assert found.blanks == () and any("no text" in note for note in found.notes)
    json.dumps(found.to_dict(), allow_nan=False)


def test_maps_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    class Broken(Oracle):
        def reply(
            self, image: NDArray[np.uint8], instruction: str | None = None, mode: str = "direct", zero_anchors: bool = False
        ) -> Reply:
            scores, mask, text, accept = super().reply(image, instruction, mode, zero_anchors)
            return scores * np.float32("nan"), mask, text, accept

    with pytest.raises(ImageError, match="no usable map"):
        measured(Broken(), tmp_path, 1)


def test_the_page_shows_what_was_asked_and_loads_nothing(tmp_path: Path) -> None:
    class Rude(Oracle):
        identity = "<b>rude"

    found = measured(Rude(), tmp_path, 2)
    page = render_page(found)

    class Balanced(html.parser.HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []
            self.pictures: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag not in ("meta", "br"):
                self.open.append(tag)

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.pictures.append(f"{tag} {dict(attrs).get('class')}")

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    seen = Balanced()
    seen.feed(page)
    assert seen.open == [] and seen.pictures.count("image None") >= 2 * 2 + 3 * 2 + 2
    assert {"path truth", "path other", "path mask"} <= set(seen.pictures)
    assert "http" not in page.replace("http-equiv", "") and "<b>rude" not in page and "&lt;b&gt;rude" in page
    assert "shuffled" not in page and "as indicated by" in page
    assert "| by kind, score | 1.000 | 0.500 | 2.0x |" in markdown_text(found)


LISTENER = """
import numpy as np

class Listener:
    name, identity = "listener", "listener@1"
    def reply(self, image, instruction=None, mode="direct", zero_anchors=False):
        scores = image.mean(2).astype("float32") / 255
        return scores, scores > 0.5, None, 1.0

class Mute:
    name, identity = "mute", "mute@1"

def open_listener(model, **options):
    return {"listener": Listener, "mute": Mute}[model]()
"""


@pytest.fixture
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a predictor that an installed package brings."""
    site = tmp_path / "site"
    info = site / "agvas_test_listener-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: agvas-test-listener\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[agvas.predictors]\nlistener = agvas_test_listener:open_listener\n")
    (site / "agvas_test_listener.py").write_text(LISTENER)
    monkeypatch.syspath_prepend(site)
    return "listener"


def agvas_eval(*arguments: object) -> int:
    return exit_code_of(lambda: evaluate, name="agvas eval", arguments=[str(argument) for argument in arguments])


def test_the_command_needs_no_data_and_writes_everything(
    listener: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ("--grounding", "--model", "listener", "--predictor", listener, "--out", out, "--images", "1", "--seed", "3")
    assert agvas_eval(*command) == 0
    said = capsys.readouterr()
    assert "listener@1: do words matter?" in said.out and "asked / other" in said.out and "no text" in said.err
    result = json.loads((out / "grounding.json").read_text())
    assert (result["subject"], result["images"], result["seed"]) == ("listener@1", 1, 3)
    assert {figure["key"]: figure["value"] for figure in result["figures"]}["swap_kind_score"] == 0.5  # it hears nothing
    assert (out / "grounding.md").read_text().startswith("| figure | value | baseline |")
    assert "do words matter?" in (out / "grounding.html").read_text()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--grounding"],
        ["--grounding", "--model", "listener", "--data", "."],
        ["--grounding", "--model", "listener", "--prompt", "Segment the hole."],
        ["--grounding", "--predictions", "."],
        ["--model", "listener"],
        ["--grounding", "--model", "mute"],
    ],
)
def test_what_cannot_be_asked_in_words_is_refused(
    arguments: list[str], listener: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert agvas_eval(*arguments, "--predictor", listener, "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err.startswith("agvas eval: ")
    assert not (tmp_path / "out").exists()


def test_a_predictor_without_reply_is_named() -> None:
    with pytest.raises(UsageError, match=r"no reply\(\)"):
        _ = Model(lambda _: object(), "mute").listener  # type: ignore[arg-type, return-value]

"""What is taken for an answer and what is not, and which words are refused."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agvas_core.contract.errors import AgvasError
from agvas_core.data.instruct.answer import AnswerError, parsed
from agvas_core.data.instruct.entry import FIELDS
from agvas_core.data.instruct.prompt import load_prompt

WORDING = load_prompt().wording
GOOD = {
    "Expectation": "A faultless part is evenly grey, with a fine grain and no marks on its surface.",
    "Observation": "Left of the centre lies a dark, roundish spot about a quarter of the part wide.",
    "Diagnosis": "The grain is interrupted there, so material is missing or burnt.",
    "Summary": "Segment the dark, roundish spot left of the centre [NOR][ANO][SEG].",
    "Explanation": "The part should be evenly grey. A dark spot with a clear edge interrupts it, which is an anomaly.",
}


def answer(topic: str = "plate dark spot", **changes: object) -> dict[str, str]:
    fields = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    return parsed(json.dumps(fields), WORDING, topic)


@pytest.mark.parametrize("around", ["{}", "```json\n{}\n```", "<think>A box? {{}}</think>\n{}", "Here it is: {} Anything else?"])
def test_the_five_texts_come_out_whatever_stands_around_them(around: str) -> None:
    texts = parsed(around.replace("{}", json.dumps(GOOD)).replace("{{}}", "{}"), WORDING, "plate")
    assert list(texts) == list(FIELDS)
    assert texts["summary"] == GOOD["Summary"]


def test_line_breaks_and_spaced_anchors_are_mended() -> None:
    texts = answer(Summary="Segment the dark\n  spot here: [NOR] [ANO]  [SEG].", expectation=None)
    assert texts["summary"] == "Segment the dark spot here: [NOR][ANO][SEG]."
    assert (
        parsed(json.dumps(GOOD).replace("evenly grey, with", "evenly\ngrey, with"), WORDING, "")["expectation"]
        == GOOD["Expectation"]
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"Diagnosis": None}, "lacks Diagnosis"),
        ({"Notes": "Something more that nobody asked for."}, "has Notes"),
        ({"expectation": "The same field in another spelling, once more."}, "a field twice"),
        ({"Observation": ["a list", "of words"]}, "Observation is no string"),
        ({"Observation": "too short"}, "Observation has 9 characters"),
        ({"Observation": "long " * 500}, "at most|20 to 2000"),
        ({"Observation": "A bell\x07 rings in the middle of this text."}, "control characters"),
        ({"Observation": "A dark spot lies on the left <|im_end|> of it."}, "control token"),
        ({"Summary": "Segment the dark spot left of the centre."}, "has the marks none"),
        ({"Summary": "Segment the dark spot [ANO][NOR][SEG] left."}, r"has the marks \[ANO\]\[NOR\]\[SEG\]"),
        ({"Summary": "Segment [NOR][ANO][SEG] the spot [SEG]."}, "each once"),
        ({"Summary": "Segment the spot [nor][ano][seg] on the left."}, r"marks \[nor\]"),
        ({"Summary": "Segment [NOR] the dark spot [ANO][SEG] left."}, "side by side"),
        ({"Explanation": GOOD["Explanation"] + " [SEG]"}, "stand in Summary alone"),
    ],
)
def test_an_answer_that_is_not_as_asked_is_refused_with_the_reason(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(AnswerError, match=reason):
        answer(**changes)


@pytest.mark.parametrize(
    "reply", ["", "I cannot see any picture.", "[1, 2]", '{"Expectation": "It is', "{" * 100_000, "<think>{}"]
)
def test_what_is_no_json_object_is_refused(reply: str) -> None:
    with pytest.raises(AnswerError, match="JSON object"):
        parsed(reply, WORDING, "plate")


@given(st.text())
def test_no_reply_breaks_the_reader(reply: str) -> None:
    for text in (reply, json.dumps({**GOOD, "Observation": reply})):
        with contextlib.suppress(AgvasError):
            assert set(parsed(text, WORDING, "plate")) == set(FIELDS)


@pytest.mark.parametrize(
    "text",
    [
        "The area inside the bounding box is darker than the rest.",
        "The Bounding-Boxes show two dark areas on the surface.",
        "A dark spot fills the green_box on the left of the part.",
        "The box on the left contains a dark spot of irregular shape.",
        "The mask covers a dark spot on the left of the part.",
        "The masked area is darker than the metal around it.",
        "The ground-truth annotation shows a dark spot here.",
        "The red overlay lies on a dark spot of irregular shape.",
        "Compared with the reference image, a piece is missing here.",
        "In contrast to the normal image, the edge is ragged here.",
        "The third picture has no such dark spot on its left.",
        "As the prior sentence says, the surface is scratched here.",
        "Given the prior knowledge, this dark spot is a burn mark.",
        "The region outlined in red is darker than the metal around.",
    ],
)
def test_text_about_what_only_the_annotator_saw_is_refused(text: str) -> None:
    with pytest.raises(AnswerError, match="speak only of what the plain photograph shows"):
        answer(Explanation=text)


@pytest.mark.parametrize(
    "text",
    [
        "A strip of masking tape was left on the painted edge.",
        "The solder mask is chipped, and bare copper shows through.",
        "Prior to coating, the surface was not cleaned well enough.",
        "The stain masks the grain of the wood on the left side.",
        "A crack runs from the reference mark to the edge of the part.",
        "The gearbox housing and the fuse box show a long scratch.",
        "A boxy imprint lies below the label of the bottle, right of it.",
        "The highlights on the rim are interrupted by a notch.",
        "The unmasked metal underneath the coating has begun to rust.",
    ],
)
def test_ordinary_words_are_not_taken_for_it(text: str) -> None:
    assert answer(Explanation=text)["explanation"] == text


def test_a_product_may_be_called_by_its_name() -> None:
    text = "The lid of the box is torn along its front edge, left."
    assert answer("cigarette_box opened", Observation=text)["observation"] == text
    assert answer("face-mask torn", Observation=text.replace("box", "mask"))["observation"]
    with pytest.raises(AnswerError, match='"box"'):
        answer("drink_bottle opened", Observation=text)
    with pytest.raises(AnswerError, match='"bounding box"'):
        answer("cigarette_box opened", Observation="The lid inside the bounding box is torn.")
    with pytest.raises(AnswerError, match='"segmentation mask"'):
        answer("face mask torn", Observation="The segmentation mask covers the left strap.")

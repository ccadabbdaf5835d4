"""Templates are checked when they are read, and a user's folder adds to ours or takes their place."""

from pathlib import Path

import pytest

from agvas_core.contract.errors import UsageError
from agvas_core.contract.prompts import ANCHOR_TOKENS, ANCHORS, DEFAULT_INSTRUCTION, FIXED_ANSWER, NO_ANOMALY_ANSWER
from agvas_core.data.templates.library import load_library
from agvas_core.data.templates.rules import Task, filled

VALUES = {
    "class_name": "flaws",
    "expression": "the man on the left",
    "expectation": "A good rim is closed.",
    "observation": "The rim has a chip.",
    "diagnosis": "It leaks.",
    "summary": f"The anomaly is a chip, as indicated by {ANCHORS}.",
    "explanation": "A piece has broken away.",
}
MASKED = [Task.DIRECT, Task.DESCRIBE, Task.DESCRIBE_PLUS, Task.EXPLAIN, Task.REJECTION, Task.GENERAL, Task.REFERRING]


@pytest.mark.parametrize("task", MASKED)
def test_every_answer_of_ours_carries_the_anchors_once_and_no_refusal_does(task: Task) -> None:
    templates = load_library()[task]
    for line in templates.answers:
        answer = filled(line, VALUES)
        assert answer.count(ANCHORS) == 1 and all(answer.count(token) == 1 for token in ANCHOR_TOKENS), line
    for line in templates.refusals + templates.instructions:
        text = filled(line, VALUES)
        assert not any(token in text for token in ANCHOR_TOKENS) and "{" not in text, line


def test_a_refusal_is_told_by_its_first_word() -> None:
    """The runtime compares the first token of the two fixed sentences: training must not blur it."""
    library = load_library()
    accept, refuse = FIXED_ANSWER.split()[0], NO_ANOMALY_ANSWER.split()[0]
    for task in (Task.DIRECT, Task.REJECTION, Task.EXPLAIN, Task.GENERAL, Task.REFERRING):
        assert {filled(line, VALUES).split()[0] for line in library[task].answers} == {accept}, task
        assert {filled(line, VALUES).split()[0] for line in library[task].refusals} <= {refuse}, task


def test_the_sentence_of_inference_is_among_those_of_training() -> None:
    library = load_library()
    direct = library[Task.DIRECT]
    assert DEFAULT_INSTRUCTION in {filled(line, VALUES) for line in direct.instructions}
    assert FIXED_ANSWER in {filled(line, VALUES) for line in direct.answers}
    assert {"anomalies", "defects", "flaws"} <= set(library.words)  # named in A.2


@pytest.mark.parametrize(("task", "count"), [(Task.DIALOGUE, 1), (Task.CONVERSATION, 0)])
def test_dialogues_carry_the_anchors_as_often_as_they_should(task: Task, count: int) -> None:
    for dialogue in load_library()[task].dialogues:
        assert sum(filled(answer, VALUES).count(ANCHORS) for _, answer in dialogue) == count


def test_a_users_folder_adds_to_ours_or_stands_alone(tmp_path: Path) -> None:
    ours = load_library()
    (tmp_path / "direct.toml").write_text('instructions = ["Cherchez les {class_name}."]\n')
    (tmp_path / "words.toml").write_text('replace = true\nwords = ["scratches"]\n')
    both = load_library(tmp_path)
    assert both[Task.DIRECT].instructions == (*ours[Task.DIRECT].instructions, "Cherchez les {class_name}.")
    assert both[Task.DIRECT].answers == ours[Task.DIRECT].answers
    assert both.words == ("scratches",)
    (tmp_path / "direct.toml").write_text('replace = true\ninstructions = ["Go."]\nanswers = ["Sure, {anchors}."]\n')
    assert load_library(tmp_path)[Task.DIRECT].instructions == ("Go.",)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "direct.toml",
            'answers = ["Sure."]',
            r"direct.toml: answers\[0\] carries the anchors 0 times, not once: 'Sure.'; write {anchors}",
        ),
        ("direct.toml", 'answers = ["{anchors} {fixed_answer}"]', "carries the anchors 2 times"),
        ("direct.toml", 'answers = ["It is [SEG]."]', r"has \[SEG\] typed out.*write {anchors}"),
        ("direct.toml", 'instructions = ["Segment {clas_name}."]', "no placeholder {clas_name} here.*class_name"),
        ("direct.toml", 'instructions = ["Segment {}."]', "no placeholder {} here"),
        ("direct.toml", 'instructions = ["Segment {class_name!r}."]', "no placeholder"),
        ("direct.toml", 'instructions = ["Segment {class_name."]', "expected '}'"),
        ("direct.toml", 'instructions = ["It is {anchors}."]', "no placeholder {anchors}"),
        ("direct.toml", 'answers = ["{summary}"]', "no placeholder {summary} here"),
        ("direct.toml", 'instructions = [" "]', "is empty"),
        ("direct.toml", 'refusals = ["None."]', "refusals have no meaning for direct"),
        ("direct.toml", 'anwsers = ["{anchors}"]', "anwsers.*a file may have replace"),
        ("direct.toml", "replace = true\n", "has no instructions"),
        ("direct.toml", "instructions = [", "is not TOML"),
        ("general.toml", 'instructions = ["Segment it."]', "never says {class_name}"),
        ("referring.toml", 'answers = ["{class_name} {anchors}"]', "no placeholder {class_name}"),
        ("rejection.toml", 'refusals = ["None, {anchors}."]', "no placeholder {anchors}"),
        ("dialogue.toml", '[[dialogues]]\nturns = [["How?", "So."]]', "carries the anchors 0 times; dialogue needs 1"),
        (
            "conversation.toml",
            '[[dialogues]]\nturns = [["How?", "{anchors}"]]',
            "carries the anchors 1 times; conversation needs 0",
        ),
        ("words.toml", "replace = true", "leaves no word"),
        ("words.toml", 'instructions = ["a"]', "words and replace only"),
        ("diret.toml", "", "named after no task; there are words.toml, direct.toml"),
    ],
)
def test_a_template_that_cannot_be_used_is_named_with_its_line(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=said):
        load_library(tmp_path)


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not there"):
        load_library(tmp_path / "no")
    with pytest.raises(UsageError, match=r"has no .toml file"):
        load_library(tmp_path)

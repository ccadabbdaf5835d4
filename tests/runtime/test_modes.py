"""The four modes on the tiny bundle: words before or after the mask, referring, and refusal of what is not there."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from agvas.run import run as app
from agvas_core.contract.command_line import exit_code_of
from agvas_core.contract.errors import BundleError, ImageError, UsageError
from agvas_core.contract.prompts import FIXED_ANSWER, INSTRUCTIONS, NO_ANOMALY_ANSWER, Mode
from agvas_runtime import Segmenter, Verdict
from agvas_runtime.bundle import Bundle, load_bundle
from agvas_runtime.pipeline.instruction import ask
from agvas_runtime.pipeline.predictors import BundlePredictor
from agvas_runtime.stages.onnx import OnnxDecoder, OnnxLmm, OnnxVision
from agvas_runtime.stages.protocol import Features

Part = Callable[..., NDArray[np.uint8]]
SPOKEN = [Mode.DESCRIBE, Mode.DESCRIBE_PLUS, Mode.EXPLAIN]
LOOK = "A light part."
SAID = "sure it is [mask] ."


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def segmenter(tiny_bundle: Path) -> Segmenter:
    return Segmenter.load(tiny_bundle, threads=1)


def look_for(mode: Mode) -> str | None:
    return LOOK if mode is Mode.DESCRIBE_PLUS else None


def with_prompt(bundle: Bundle, **changes: object) -> Segmenter:
    """The tiny bundle with other numbers in its prompt."""
    prompt = bundle.manifest.prompt.model_copy(update=changes)
    bundle = replace(bundle, manifest=bundle.manifest.model_copy(update={"prompt": prompt}))
    return Segmenter(bundle, OnnxVision(bundle, threads=1), OnnxLmm(bundle, threads=1), OnnxDecoder(bundle, threads=1))


@pytest.mark.parametrize("mode", SPOKEN)
@pytest.mark.parametrize("prompt", ["find the dark spots", "find the bright spots"])
def test_every_mode_gives_the_mask_that_direct_mode_gives_where_it_says_the_same(
    segmenter: Segmenter, make_part: Part, mode: Mode, prompt: str
) -> None:
    part = make_part(96, 128, [(90, 30, 14)])
    (direct,) = segmenter.predict(part, prompt=prompt)
    (spoken,) = segmenter.predict(part, prompt=prompt, mode=mode, normal_look=look_for(mode))
    np.testing.assert_array_equal(spoken.score_map, direct.score_map)
    assert direct.mask is not None and direct.mask.any()
    assert spoken.answer == SAID and direct.answer is None
    assert spoken.accept == 1.0 and direct.accept is not None and direct.accept > 0.99


@pytest.mark.parametrize("mode", SPOKEN)
def test_an_answer_without_anchors_has_an_empty_mask(segmenter: Segmenter, make_part: Part, mode: Mode) -> None:
    (result,) = segmenter.predict(
        np.zeros((64, 64, 3), np.uint8), prompt="Segment the hole.", mode=mode, normal_look=look_for(mode)
    )
    assert result.answer == NO_ANOMALY_ANSWER.lower().replace(".", " .")
    assert result.accept == 0.0 and result.verdict is Verdict.PASS
    assert result.mask is not None and not result.mask.any() and result.score is not None and result.score < 1e-6


def test_direct_mode_reads_the_refusal_without_decoding(segmenter: Segmenter, make_part: Part) -> None:
    accepts = [segmenter.predict(make_part(), prompt=prompt)[0].accept for prompt in ("find spots", "find the hole")]
    assert accepts == pytest.approx([1 / (1 + np.exp(-5)), 1 / (1 + np.exp(5))], abs=1e-6)


def test_of_tiles_the_surest_counts_and_words_are_about_the_whole(segmenter: Segmenter, make_part: Part) -> None:
    part = make_part(700, 700, [(350, 350, 60)])
    (direct,) = segmenter.predict(part)
    (spoken,) = segmenter.predict(part, mode="describe")
    assert direct.tiles > 1 and spoken.tiles == 1
    assert direct.accept is not None and direct.accept > 0.99 and spoken.answer == SAID


def test_each_mode_has_its_own_instruction_and_the_prompt_takes_its_place(segmenter: Segmenter, make_part: Part) -> None:
    for mode in Mode:
        look = look_for(mode)
        before = f"{LOOK} " if look else ""
        (own,) = segmenter.predict(make_part(), mode=mode, normal_look=look)
        (asked,) = segmenter.predict(make_part(), mode=mode, normal_look=look, prompt="Segment the spots.")
        assert own.prompt == before + INSTRUCTIONS[mode] and asked.prompt == f"{before}Segment the spots."
        assert own.mode == asked.mode == mode.value


def test_what_was_said_when_loading_stands_until_a_call_says_otherwise(tiny_bundle: Path, make_part: Part) -> None:
    segmenter = Segmenter.load(tiny_bundle, threads=1, mode="describe-plus", normal_look=LOOK, prompt="find dark spots")
    assert segmenter.prompt == f"{LOOK} find dark spots"
    (own,) = segmenter.predict(make_part())
    (direct,) = segmenter.predict(make_part(), mode="direct")
    assert (own.mode, own.answer) == ("describe-plus", SAID)
    assert (direct.mode, direct.prompt, direct.answer) == ("direct", "find dark spots", None)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"mode": "describe-plus"}, "needs a sentence on how a good part looks"),
        ({"mode": "describe", "normal_look": LOOK}, "only describe-plus takes one"),
        ({"normal_look": LOOK}, "only describe-plus takes one"),
        ({"mode": "descibe"}, "did you mean describe"),
        ({"mode": ""}, "it can be direct, describe, describe-plus, explain"),
        ({"mode": "describe-plus", "normal_look": " "}, "normal look ' ' says nothing"),
        ({"mode": "describe-plus", "normal_look": "x" * 1990}, "prompt with the normal look has .* characters"),
        ({"mode": "describe", "prompt": "spots " * 200}, "tokens long"),
    ],
)
def test_a_question_that_cannot_be_meant_is_a_usage_error(
    tiny_bundle: Path, segmenter: Segmenter, make_part: Part, asked: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        segmenter.predict(make_part(), **asked)  # type: ignore[call-overload]
    with pytest.raises(UsageError, match=message):
        Segmenter.load(tiny_bundle, **asked)  # type: ignore[arg-type]


def test_anchors_in_a_normal_look_are_stripped_with_a_warning(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "agvas"):
        question = ask(bundle.manifest.prompt, mode="describe-plus", normal_look="A light [SEG] part", prompt="Find spots.")
    assert "[SEG]" in caplog.text and question.instruction == "A light part. Find spots."


def test_an_answer_ends_after_max_new_tokens_and_its_last_word_still_counts(bundle: Bundle, make_part: Part) -> None:
    part, words = make_part(spots=[(60, 40, 20)]), SAID.split()
    for tokens, said, found in ((1, words[:1], False), (5, [*words[:3], "[mask]"], False), (6, [*words[:3], "[mask]"], True)):
        (result,) = with_prompt(bundle, max_new_tokens=tokens).predict(part, mode="describe")
        assert result.answer == " ".join(said)
        assert result.accept == float(found) and result.mask is not None and bool(result.mask.any()) is found


def test_a_batch_is_answered_row_by_row(bundle: Bundle) -> None:
    lmm = OnnxLmm(bundle, threads=1)
    rows = np.random.default_rng(0).random((3, 4, 3), np.float32)
    reply = lmm(Features(rows, rows, {}), "find dark spots", Mode.DESCRIBE)
    assert reply.answers == [SAID] * 3 and reply.found.tolist() == [True] * 3 and reply.accept.tolist() == [1.0] * 3
    np.testing.assert_array_equal(reply.anchor_states, np.broadcast_to(np.eye(3, dtype=np.float32), (3, 3, 3)))


def test_values_that_are_not_finite_never_pass_for_a_refusal(segmenter: Segmenter, make_part: Part) -> None:
    (result,) = segmenter.predict(make_part(), prompt="broken", mode="describe")
    assert result.verdict is Verdict.NO_VERDICT and result.answer is None and "NaN" in str(result.error)


def test_text_logits_that_are_not_finite_are_told(bundle: Bundle) -> None:
    lmm = OnnxLmm(bundle, threads=1)
    nothing = np.zeros((1, 4, 3), np.float32)
    graph = lmm.graph
    run = graph.run
    graph.run = lambda inputs: run(inputs) | {"text_logits": np.full((1, 1, 40), np.nan, np.float32)}  # type: ignore[method-assign]
    for mode in (Mode.DIRECT, Mode.DESCRIBE):
        with pytest.raises(ImageError, match="NaN or infinite"):
            lmm(Features(nothing, nothing, {}), "find", mode)


def test_an_answer_and_a_refusal_that_begin_alike_are_no_bundle(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"begin with.*must differ"):
        with_prompt(bundle, refusal="Sure, it is fine.")


def test_a_prompt_without_an_instruction_for_each_mode_is_no_bundle(bundle: Bundle) -> None:
    table = bundle.manifest.model_dump(mode="json")
    table["prompt"]["instructions"].pop("explain")
    with pytest.raises(ValueError, match="mode explain has no instruction"):
        type(bundle.manifest).model_validate(table)
    assert bundle.manifest.prompt.answer == FIXED_ANSWER


# --- as agvas eval asks, and as agvas-run does


def test_a_predictor_replies_to_words_and_without_anchors_finds_nothing(segmenter: Segmenter, make_part: Part) -> None:
    predictor, part = BundlePredictor(segmenter), make_part(96, 128, [(90, 30, 14)])
    (result,) = segmenter.predict(part, prompt="find the dark spots", mode="describe")
    score_map, mask, answer, accept = predictor.reply(part, "find the dark spots", "describe")
    np.testing.assert_array_equal(score_map, result.score_map)
    assert mask.any() and answer == SAID and accept == 1.0
    _, silenced, *_ = predictor.reply(part, zero_anchors=True)
    assert not silenced.any()
    assert predictor.reply(part, mode="describe-plus", normal_look=LOOK)[2] == SAID
    with pytest.raises(ImageError, match="NaN"):
        predictor.reply(part, "broken")


def run(*arguments: str) -> int:
    return exit_code_of(lambda: app, name="agvas-run", arguments=list(arguments))


@pytest.fixture
def picture(tmp_path: Path, make_part: Part) -> Path:
    (tmp_path / "parts").mkdir()
    path = tmp_path / "parts" / "a.png"
    cv2.imwrite(str(path), make_part(spots=[(60, 40, 20)]))
    return path


def test_the_command_records_mode_answer_and_acceptance(
    tiny_bundle: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--mode", "describe-plus", "--normal-look", LOOK, "--prompt", "Find <b> spots.")
    assert run(str(picture), "--model", str(tiny_bundle), "--out", str(tmp_path / "run"), *asked) == 0
    (line,) = (tmp_path / "run" / "results.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert (record["mode"], record["answer"], record["accept"]) == ("describe-plus", SAID, 1.0)
    assert record["prompt"] == f"{LOOK} Find <b> spots."
    page = (tmp_path / "run" / "report.html").read_text()
    assert SAID in page and '"mode":"describe-plus"' in page and "<b> spots" not in page
    assert f"a.png  {SAID}" in capsys.readouterr().err  # one image: its answer stands on the terminal


def test_verbose_says_a_line_for_every_image_and_quiet_none(
    tiny_bundle: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (picture.parent / "b.png").write_text("no picture")
    here = (str(picture.parent), "--model", str(tiny_bundle), "--save", "none")
    assert run(*here, "-v", "--mode", "explain") == 0
    said = capsys.readouterr().err
    assert f"a.png  {SAID}" in said and "b.png  " in said and "NO_VERDICT" in said
    assert run(*here, "--mode", "explain") == 0
    assert SAID not in capsys.readouterr().err
    assert run(str(picture), *here[1:], "-q", "--mode", "explain") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--mode", "describe-plus"), "--normal-look"),
        (("--normal-look", LOOK), "only describe-plus takes one"),
        (("--mode", "explane"), "did you mean explain"),
        (("-q", "-v"), "leave one out"),
    ],
)
def test_options_that_contradict_each_other_are_usage_and_write_nothing(
    tiny_bundle: Path, picture: Path, tmp_path: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(str(picture), "--model", str(tiny_bundle), "--out", str(tmp_path / "run"), *arguments) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()

"""Counts change how fast, and never what: any of them gives the same results, and what was measured is taken up where exactly it holds."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agvas_core.contract.certificate import TOLERANCES
from agvas_core.contract.command_line import exit_code_of
from agvas_core.contract.errors import ImageError, UsageError
from agvas_runtime.doctor import State, look_at_tunings
from agvas_runtime.images.frame import Frame
from agvas_runtime.line.app.replay import inspector_as
from agvas_runtime.line.station.inspector import SegmenterInspector
from agvas_runtime.masks.result import Result
from agvas_runtime.pipeline import batching as tuning
from agvas_runtime.pipeline.batching import (
    MAX_AHEAD,
    MAX_TILES,
    Counts,
    Tuning,
    keep_tuning,
    kept_tunings,
    place_here,
    tuned_bundles,
)
from agvas_runtime.pipeline.options import SegmentOptions
from agvas_runtime.pipeline.segmenter import Segmenter
from agvas_runtime.profile.cli import profile
from agvas_runtime.profile.compare import compare_profiles
from agvas_runtime.profile.record import InUse, read
from agvas_runtime.profile.session import generated_frame
from agvas_runtime.profile.tune import fastest, frame_in_tiles, tune
from agvas_runtime.stages.open import StageSettings

MakePart = Callable[..., NDArray[np.uint8]]
ONNX = ("onnx", "onnx", "onnx")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGVAS_TUNING", str(tmp_path / "tuning"))
    return tmp_path / "tuning"


@pytest.fixture
def kept(folder: Path, tiny_bundle: Path) -> Path:
    """A tuning of the tiny bundle on one thread: 2 tiles, 2 ahead."""
    return keep_tuning(tuned(Segmenter.load(tiny_bundle).bundle.identity))


def tuned(bundle: str, **changes: Any) -> Tuning:
    facts = {"place": place_here(bundle, ONNX, 1), "tiles": 2, "ahead": 2, "created": "2026-01-01T00:00:00+00:00"}
    return Tuning.model_validate(facts | {"command": "x", "frames": "x", "rounds": 1, "load_before": 0.0} | changes)


@pytest.fixture(scope="module", params=["tiny", "nano"])
def one_by_one(
    request: pytest.FixtureRequest, tiny_bundle: Path, make_part: MakePart
) -> tuple[Segmenter, list[Frame], list[Result]]:
    """A segmenter, frames, and their results with the smallest counts."""
    segmenter = Segmenter.load(tiny_bundle if request.param == "tiny" else "nano")
    frames = [
        Frame("small.png", 0, image=make_part(90, 120, [(20, 30, 6)])),
        Frame("broken.png", 1, error=ImageError("broken.png: cut short")),
        Frame("tiled.png", 2, image=make_part(1100, 1500, [(300, 200, 40), (1200, 900, 60)])),
        Frame("good.png", 3, image=generated_frame(200).image),
    ]
    return segmenter, frames, list(segmenter.with_counts(Counts(1, 0)).stream(frames))


@pytest.mark.parametrize("counts", [Counts(1, 1), Counts(2, 0), Counts(4, 2), Counts(16, 1)], ids=str)
def test_whatever_the_counts_the_results_are_the_same(
    one_by_one: tuple[Segmenter, list[Frame], list[Result]], counts: Counts
) -> None:
    segmenter, frames, expected = one_by_one
    found = list(segmenter.with_counts(counts).stream(frames))
    allowed = TOLERANCES["fp32"].probability
    assert [result.tiles for result in found] == [result.tiles for result in expected]
    for now, then in zip(found, expected, strict=True):
        assert (now.name, now.verdict, now.error) == (then.name, then.verdict, then.error)
        if now.score_map is None or then.score_map is None or now.mask is None or then.mask is None:
            assert now.error is not None
            continue
        assert np.abs(now.score_map - then.score_map).max() <= allowed
        thresholds = (then.threshold, then.seed_threshold)
        near = np.min([np.abs(then.score_map - one) for one in thresholds], axis=0) <= allowed
        assert near.any() or np.array_equal(now.mask, then.mask)


def test_counts_out_of_range_are_refused() -> None:
    for wrong in ({"tiles": 0}, {"tiles": MAX_TILES + 1}, {"ahead": -1}, {"ahead": MAX_AHEAD + 1}):
        with pytest.raises(UsageError, match="are possible"):
            Counts(**wrong)


def test_a_larger_count_is_taken_where_it_is_faster_by_more_than_a_little_and_chance() -> None:
    assert fastest({1: [1.0] * 8, 2: [0.98] * 8, 4: [0.96] * 8}) == 4  # each against the one that is taken
    assert fastest({1: [1.0] * 8, 2: [0.98] * 8}) == 1
    assert fastest({1: [1.0] * 8, 2: [0.5] * 5 + [1.1] * 3}) == 1  # the slower one in three of eight rounds
    assert fastest({0: [1.0, 9.0, 1.0, 5.0], 1: [0.9, 8.1, 0.9, 4.5]}) == 1  # a busy machine disturbs both
    assert fastest({0: [1.0]}) == 0


def test_the_frame_in_tiles_is_the_users_where_it_has_enough(tiny_bundle: Path, make_part: MakePart) -> None:
    manifest = Segmenter.load(tiny_bundle).bundle.manifest
    small, large = (Frame(f"{side}.png", 0, image=make_part(side, side)) for side in (64, 600))
    assert frame_in_tiles(manifest, [small, large]) is large
    generated = frame_in_tiles(manifest, [small])
    assert Segmenter.load(tiny_bundle).segment(generated).tiles == 16


def test_what_bundle_and_engine_do_not_allow_is_not_tried(tiny_bundle: Path) -> None:
    loaded = Segmenter.load(tiny_bundle)
    two = replace(loaded.bundle, manifest=loaded.bundle.manifest.model_copy(update={"max_batch": 2}))
    segmenter = Segmenter(two, *loaded.stages)
    assert segmenter.counts.tiles == 2
    found = tune(segmenter, [generated_frame(64)], rounds=1, frames_a_round=1)
    assert [(one.what, one.count) for one in found.tried] == [
        ("tiles", 1),
        ("tiles", 2),
        *(("ahead", count) for count in range(3)),
    ]


def test_by_default_nothing_is_made_ahead_where_each_stage_has_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "usable_cores", lambda: 4)
    assert [tuning.default_counts(ONNX, threads).ahead for threads in (None, 4, 3, 1)] == [0, 0, 1, 1]
    assert (
        tuning.default_counts(("trt", "trt", "trt"), None).ahead
        == tuning.default_counts(("onnx", "vllm", "onnx"), None).ahead
        == 1
    )


def test_what_was_measured_holds_for_exactly_this(
    kept: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = Segmenter.load(tiny_bundle, threads=1).counts
    assert (found.tiles, found.ahead, found.tuned) == (2, 2, "2026-01-01T00:00:00+00:00")
    assert Segmenter.load(tiny_bundle, settings=StageSettings(threads=1)).counts == found
    assert Segmenter.load(tiny_bundle, threads=1, counts=Counts(3)).counts == Counts(3)
    for threads in (None, 2):
        assert Segmenter.load(tiny_bundle, threads=threads).counts == tuning.default_counts(ONNX, threads)
    assert Segmenter.load("nano", threads=1).counts == tuning.default_counts(ONNX, 1)
    for name, other in (("cpu_name", lambda: "another CPU"), ("usable_cores", lambda: 4096), ("version", lambda package: "99")):
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(tuning, name, other)
            assert Segmenter.load(tiny_bundle, threads=1).counts == tuning.default_counts(ONNX, 1)
    monkeypatch.setenv("AGVAS_TUNING", "off")
    assert Segmenter.load(tiny_bundle, threads=1).counts == tuning.default_counts(ONNX, 1) and caplog.records == []


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda text: text[: len(text) // 2], "no JSON"),
        (lambda text: "[" * 100_000, "no JSON"),
        (lambda text: "{}", "Field required"),
        (lambda text: text.replace('"tiles": 2', '"tiles": 65'), "tiles"),
        (lambda text: text.replace('"schema_version": 1', '"schema_version": 99'), "schema 99"),
        (lambda text: text.replace('"threads": 1', '"threads": 2'), "not what its name says"),
        (lambda text: text + " " * (1 << 20), "more than 1 MiB"),
    ],
)
def test_a_file_that_is_broken_or_foreign_is_told_of_once_and_left_alone(
    kept: Path, tiny_bundle: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[str], str], words: str
) -> None:
    kept.write_text(spoil(kept.read_text(encoding="utf-8")), encoding="utf-8")
    with caplog.at_level(logging.WARNING, logger="agvas"):
        assert Segmenter.load(tiny_bundle, threads=1).counts == tuning.default_counts(ONNX, 1)
    (record,) = caplog.records
    assert words in record.getMessage() and "agvas profile --tune" in record.getMessage() and str(kept) in record.getMessage()
    (finding,) = look_at_tunings()
    assert finding.state is State.WARN and words in finding.detail


def test_a_file_that_may_not_be_read_stops_nothing(kept: Path, tiny_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept.unlink()
    kept.mkdir()
    assert Segmenter.load(tiny_bundle, threads=1).counts == tuning.default_counts(ONNX, 1)
    assert "cannot be read" in caplog.text


def test_a_line_takes_it_up_and_the_ledger_says_so(kept: Path, tiny_bundle: Path) -> None:
    identity = Segmenter.load(tiny_bundle).bundle.identity
    inspector = SegmenterInspector(SegmentOptions(threads=1))
    assert inspector.facts["tiles"] == {identity: 2} and inspector._opened(str(tiny_bundle)).counts.tiles == 2
    other = SegmenterInspector(SegmentOptions(threads=2))
    assert "tiles" not in other.facts and other._opened(str(tiny_bundle)).counts == Counts()
    # A verdict of the past is judged again as it was, whatever was measured since.
    facts = json.loads(json.dumps(dict(inspector.facts)))
    kept.unlink()
    again = inspector_as(facts)
    assert again.identity == inspector.identity and isinstance(again, SegmenterInspector)
    assert again._opened(str(tiny_bundle)).counts.tiles == 2
    untuned = {name: fact for name, fact in facts.items() if name != "tiles"}
    keep_tuning(tuned(identity))
    assert "tiles" not in inspector_as(untuned).facts


def test_of_another_machine_or_version_the_doctor_says_which(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = look_at_tunings()
    assert finding.state is State.OK and "onnx, 1 thread: 2 tiles a launch, 2 passes ahead" in finding.detail
    monkeypatch.setattr(tuning, "cpu_name", lambda: "another CPU")
    (finding,) = look_at_tunings()
    assert finding.state is State.ABSENT and "and is another CPU: it does not hold here" in finding.detail
    kept.unlink()
    (finding,) = look_at_tunings()
    assert finding.state is State.ABSENT and "the defaults stand: 4 tiles a launch, one pass after the other" in finding.detail


def agvas_profile(*arguments: object) -> int:
    return exit_code_of(lambda: profile, name="agvas profile", arguments=[str(argument) for argument in arguments])


def test_the_command_measures_keeps_and_every_command_takes_it(
    folder: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--model", tiny_bundle, "--size-px", 64, "--threads", 1]
    assert agvas_profile(*common, "--tune", "--json") == 0
    told = capsys.readouterr()
    found = Tuning.model_validate_json(told.out)
    assert [(path.parent, one) for path, one in kept_tunings()] == [(folder, found)]
    assert (
        "16 a launch" in told.err and "2 ahead" in told.err and "chosen" in told.err and str(folder) in told.err.replace("\n", "")
    )
    assert [one.count for one in found.tried] == [1, 2, 4, 8, 16, 0, 1, 2]
    assert all(one.least_per_s <= one.frames_per_s <= one.most_per_s for one in found.tried)
    assert Segmenter.load(tiny_bundle, threads=1).counts == found.counts == tuned_bundles(ONNX, 1)[found.place.bundle]
    few = ["--frames", 2, "--warmup", 0, "--offered", 0, "--no-count"]
    assert agvas_profile(*common, *few, "-o", tmp_path / "p") == 0
    measured = read(tmp_path / "p" / "profile.json")
    assert measured.counts == InUse.of(found.counts)
    assert f"(tuned {found.created})" in (tmp_path / "p" / "profile.html").read_text(encoding="utf-8")
    assert f"(tuned {found.created})" in " ".join(capsys.readouterr().out.split())


def test_two_profiles_with_other_counts_are_told_apart(tiny_bundle: Path, tmp_path: Path) -> None:
    few = ["--frames", 2, "--warmup", 0, "--offered", 0, "--no-count", "--size-px", 64, "--model", tiny_bundle]
    assert agvas_profile(*few, "-o", tmp_path) == 0
    now = read(tmp_path / "profile.json")
    assert now.counts == InUse.of(tuning.default_counts(ONNX, None))
    tuned_alike = now.model_copy(update={"counts": now.counts.model_copy(update={"tuned": "2026-01-01"})})
    unknown = now.model_copy(update={"counts": None})
    for other in (tuned_alike, unknown):
        assert not [line for line in compare_profiles(other, now).warnings if "at once" in line]
    other = now.model_copy(update={"counts": InUse(tiles=4, ahead=3)})
    assert any(
        "how many at once differs: 4 tiles a launch, 3 passes ahead" in line for line in compare_profiles(other, now).warnings
    )


def test_bad_input(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for given, code, arguments, words in (
        (str(folder), 2, ["--rate", "1/s"], "--rate has no meaning with --tune"),
        (str(folder), 2, ["--mode", "describe"], "--mode has no meaning with --tune"),
        (str(folder), 2, ["-o", "x"], "--out has no meaning with --tune"),
        ("off", 2, [], "AGVAS_TUNING is off"),
        (str(tmp_path / "file" / "below"), 3, [], "name another folder with AGVAS_TUNING"),
    ):
        monkeypatch.setenv("AGVAS_TUNING", given)
        assert agvas_profile("--tune", *arguments) == code
        assert words in " ".join(capsys.readouterr().err.split())

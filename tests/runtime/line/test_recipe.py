"""What recipes promise: a wrong one is refused with the key and the nearest right one, and the version that goes is never half."""

import hashlib
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agvas_core.contract.errors import OutputError, RecipeError
from agvas_runtime.bundle import load_bundle
from agvas_runtime.line.recipe.cli import differences, recipe_template
from agvas_runtime.line.recipe.file import parse_recipe, read_recipe
from agvas_runtime.line.recipe.store import RecipeStore
from agvas_runtime.line.recipe.thresholds import check_against, oddities

FULL = """
product: bracket-42
model: nano
kinds:
  scratch: {prompt: Please segment the scratches in this image.}
  stain: {prompt: Please segment the stains in this image.}
frame: {width_px: 640, height_px: 480}
mm_per_px: 0.05
rois:
  face: [[40, 40], [600, 40], [600, 440], [40, 440]]
ignore:
  - [[0, 0], [30, 0], [30, 30]]
thresholds: {threshold: 0.4, seed_threshold: 0.6}
rules:
  - {roi: face, kind: scratch, min_length_mm: 1.5, max_count: 2}
  - {min_area_px: 30, min_score: 0.8}
deadline_ms: 800
"""


def test_a_full_recipe_is_understood_and_its_version_is_the_hash_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(FULL)
    version = read_recipe(tmp_path / "r.yaml")
    assert version.sha256 == hashlib.sha256(FULL.encode()).hexdigest()
    assert version.identity == f"bracket-42@{version.sha256[:12]}"
    assert version.recipe.rules[0].min_length_mm == 1.5
    assert list(version.recipe.prompts) == ["scratch", "stain"]


def test_the_template_is_valid_and_every_comment_in_it_too() -> None:
    text = recipe_template("valve", model="nano", identity="nano@0123456789ab", frame_px=(640, 480))
    assert parse_recipe(text, "template").recipe.frame is not None
    lines = [line.removeprefix("# ") if re.match(r"# +(- \[|[a-z_0-9]+:)", line) else line for line in text.splitlines()]
    whole = "\n".join(
        line
        for line in lines
        if not line.startswith("bundle: nano@") and line != "prompt: Please segment the scratches in this image."
    )
    assert parse_recipe(whole, "template").recipe.mm_per_px == 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("deadline_ms: 800|dedline_ms: 800", "did you mean deadline_ms"),
        ("min_area_px: 30|min_aera_px: 30", "did you mean min_area_px"),
        ("{width_px: 640|{width: 640", "did you mean width_px"),
        ("{prompt: Please segment the stains|{promt: Please segment the stains", "did you mean prompt"),
        ("roi: face|roi: fcae", "did you mean face"),
        ("kind: scratch|kind: scatch", "did you mean scratch"),
        ("[[40, 40], [600, 40]|[[40, 40], [700, 40]", "outside the frame of 640x480"),
        ("[[40, 40], [600, 40], [600, 440], [40, 440]]|[[40, 40], [600, 440], [600, 40], [40, 440]]", "cross"),
        ("[[0, 0], [30, 0], [30, 30]]|[[0, 0], [30, 0], [20, 0]]", "no area"),
        ("mm_per_px: 0.05|note: none", "no mm_per_px"),
        ("frame: {width_px: 640, height_px: 480}|note: none", "frame is missing"),
        ("min_area_px: 30|min_area_px: 30, min_area_mm2: 2", "leave one out"),
        ("threshold: 0.4, seed_threshold: 0.6|threshold: 0.7, seed_threshold: 0.6", "below threshold"),
        ("deadline_ms: 800|deadline_ms: yes", "deadline_ms"),
        ("deadline_ms: 800|deadline_ms: '800'", "deadline_ms"),
        ("deadline_ms: 800|deadline_ms: .nan", "deadline_ms"),
        ("deadline_ms: 800|deadline_ms: 800\ndeadline_ms: 900", "given twice"),
        ("max_count: 2|max_count: -1", "max_count"),
        ("product: bracket-42|product: ../x", "is no name: letters"),
        ("roi: face, kind|roi: '*', kind", "no rule looks at roi 'face'"),
        ("product: bracket-42|product: &x bracket-42\nnote: *x", "alias"),
        ("deadline_ms: 800|prompt: both", "leave prompt out"),
        ("deadline_ms: 800|2: 800", "keys are words"),
        ("product: bracket-42|product: 2026-01-01", "product"),
    ],
)
def test_a_wrong_recipe_is_refused_with_what_is_possible(change: str, message: str) -> None:
    old, new = change.split("|")
    assert old in FULL
    with pytest.raises(RecipeError, match=message.replace("[", r"\[")):
        parse_recipe(FULL.replace(old, new, 1), "r.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- 1",
        "a: [",
        "[" * 5000,
        "{" * 5000,
        "\x00",
        "product: x\nrules: []",
        "x: !!python/object:os.system {}",
        "product: 0x" + "f" * 4000,
    ],
)
def test_what_is_no_recipe_is_refused(text: str) -> None:
    with pytest.raises(RecipeError):
        parse_recipe(text, "r.yaml")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_text_whatsoever_ends_in_a_traceback(data: st.DataObject) -> None:
    text = data.draw(st.one_of(st.text(max_size=80), st.sampled_from([FULL])))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(text)))
        text = (
            text[:at]
            + data.draw(st.text(alphabet=":{}[]-*&!#'\" \n0aé.", max_size=4))
            + text[at + data.draw(st.integers(0, 5)) :]
        )
    try:
        parse_recipe(text, "r.yaml")
    except RecipeError as error:
        assert "r.yaml" in str(error)


def test_a_recipe_for_another_bundle_is_refused(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    check_against(parse_recipe("product: x", "x").recipe, bundle, "x")
    with pytest.raises(RecipeError, match="was made for"):
        check_against(parse_recipe("product: x\nbundle: nano@0123456789ab", "x").recipe, bundle, "x")


def test_lint_says_that_nothing_is_known_of_false_rejects() -> None:
    assert any("calibrate" in line for line in oddities(parse_recipe("product: x", "x").recipe))


def test_differences_ignore_comments_and_order() -> None:
    old, new = parse_recipe("product: x\nmode: explain # why", "x"), parse_recipe("# new\nmode: explain\nproduct: x", "x")
    assert differences(old.recipe, new.recipe) == []
    assert differences(old.recipe, parse_recipe("product: x\nmode: explain\nnote: y", "x").recipe) == ['note: "" -> "y"']


def test_versions_go_forward_and_back(tmp_path: Path) -> None:
    store, versions = RecipeStore(tmp_path), [parse_recipe(f"product: x\nnote: v{n}", "x") for n in range(3)]
    with pytest.raises(RecipeError, match="no active recipe"):
        store.active()
    for version in versions:
        store.activate(version)
    assert store.active() == versions[2]
    assert store.rollback().after == versions[1]
    assert store.rollback().after == versions[0]
    with pytest.raises(RecipeError, match="no active recipe"):
        RecipeStore(tmp_path / "typo").rollback()
    assert not (tmp_path / "typo").exists()
    with pytest.raises(RecipeError, match="nothing to go back to"):
        store.rollback()
    assert store.active() == versions[0]
    assert store.version(versions[2].sha256[:6]) == versions[2]  # a version that was left is not lost


def test_a_version_that_was_changed_on_disk_is_refused(tmp_path: Path) -> None:
    store, version = RecipeStore(tmp_path), parse_recipe("product: x", "x")
    store.activate(version)
    (tmp_path / "versions" / f"{version.sha256[:12]}.yaml").write_text("product: y")
    with pytest.raises(RecipeError, match="was changed"):
        store.active()


def test_a_store_that_cannot_be_written_keeps_what_is_active(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        RecipeStore(tmp_path / "file" / "store").activate(parse_recipe("product: x", "x"))


ACTIVATE_FOR_EVER = """
import itertools, sys
from pathlib import Path
from agvas_runtime.line.recipe.file import parse_recipe
from agvas_runtime.line.recipe.store import RecipeStore
store = RecipeStore(Path(sys.argv[1]))
for n in itertools.count():
    store.activate(parse_recipe(f"product: x\\nnote: v{n}", "x"))
    print(n, flush=True)
"""


def test_an_activation_that_is_killed_leaves_a_whole_recipe_active(tmp_path: Path) -> None:
    for attempt in range(3):
        process = subprocess.Popen([sys.executable, "-c", ACTIVATE_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        last = int(process.stdout.readline())
        time.sleep(0.02 * attempt)
        process.send_signal(signal.SIGKILL)
        rest = process.communicate()[0].split()
        last = int(rest[-1]) if rest else last
        note = RecipeStore(tmp_path).active().recipe.note
        assert int(note[1:]) in (last, last + 1)

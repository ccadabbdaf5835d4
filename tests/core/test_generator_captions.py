"""Captions say what is there, can be read back, and refer to defects without doubt."""

import re

import numpy as np
import pytest

from agvas_core.data.synthetic.captions import (
    GROUPS,
    KINDS,
    NO_DEFECT,
    NOUNS,
    SYNONYMS,
    absent_kind,
    describe,
    group_of,
    kind_of,
    normal_look,
    parse,
    referring,
    referring_pair,
)
from agvas_core.data.synthetic.sample import Defect
from agvas_core.data.synthetic.synthesis import Sample, SynthesisSpec, synthesize

SPEC = SynthesisSpec(normal_fraction=0)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [synthesize(4, index, (112, 112), SPEC) for index in range(120)]


def drawn(*fields: tuple[str, str, str, str, float]) -> Sample:
    """A sample with one row of pixels per (kind, place, size, tone, area)."""
    labels = np.zeros((10, 10), np.uint8)
    defects = []
    for label, (kind, place, size, tone, area) in enumerate(fields, start=1):
        labels[label - 1] = label
        defects.append(Defect(kind, place, size, tone, area, label))
    return Sample(np.zeros((10, 10, 3), np.uint8), labels, tuple(defects), "texture", "flat")


def test_a_caption_reads_as_it_should() -> None:
    scratch = ("line", "top left", "small", "dark", 0.001)
    stain = ("stain", "center", "large", "colored", 0.1)
    assert describe(drawn(scratch).defects) == "a small dark scratch at the top left"
    assert (
        describe(drawn(scratch, stain).defects) == "a large colored stain at the center and a small dark scratch at the top left"
    )
    assert describe(()) == NO_DEFECT


def test_many_of_a_kind_are_told_as_a_group() -> None:
    holes = [("hole", place, "small", "dark", 0.001) for place in ("top", "left", "bottom", "right")]
    assert describe(drawn(*holes).defects) == "a group of small dark holes in several places"


def test_at_most_three_are_told() -> None:
    many = [(kind, "top", "small", "dark", 0.001) for kind in KINDS]
    assert len(parse(describe(drawn(*many).defects))) == 3


def test_captions_parse_back_to_the_truth(samples: list[Sample]) -> None:
    for sample in samples:
        if not sample.defects:
            continue
        mentions = parse(describe(sample.defects))
        assert 1 <= len(mentions) <= 3
        truths = {(defect.size, defect.tone, defect.kind, defect.place) for defect in sample.defects}
        for mention in mentions:
            if not mention.group:
                assert mention[:4] in truths
            assert mention.kind in {defect.kind for defect in sample.defects}


def test_every_kind_has_a_noun_and_every_word_a_kind() -> None:
    assert set(NOUNS) == set(KINDS) == set(SYNONYMS.values())
    for kind, (one, many) in NOUNS.items():
        assert kind_of(one) == kind_of(many) == kind
    assert kind_of("Scratches") == "line"
    assert kind_of("fractures") == "crack"
    assert kind_of("elephant") is None


def test_referring_means_these_defects_and_no_others(samples: list[Sample]) -> None:
    rng = np.random.default_rng(0)
    for sample in samples:
        if not sample.defects:
            assert referring(sample, rng) is None
            continue
        for _ in range(4):
            found = referring(sample, rng)
            assert found is not None
            instruction, mask = found
            chosen = set(np.unique(sample.labels[mask])) - {0}
            meant = {defect.label for defect in sample.defects if fits(defect, instruction)}
            assert chosen == meant, instruction
            assert np.array_equal(mask, np.isin(sample.labels, sorted(chosen)))


def fits(defect: Defect, instruction: str) -> bool:
    """Reads an instruction as a person would."""
    found = re.fullmatch(
        r"(?:Please segment the (.+) in this image\.|Segment the (.+)\.|Please find the (.+) and segment it\.)", instruction
    )
    assert found is not None, instruction
    noun, _, place = next(group for group in found.groups() if group).partition(" at the ")
    if place and defect.place != place:
        return False
    *adjective, head = noun.split(" ", 1)
    if head == "anomaly" or noun == "anomaly":
        return not adjective or adjective[0] in (defect.size, defect.tone)
    kind = kind_of(noun)
    return kind is not None and group_of(kind) == group_of(defect.kind)


def test_two_kinds_give_two_different_requests() -> None:
    sample = drawn(("line", "top left", "small", "dark", 0.001), ("stain", "bottom right", "large", "bright", 0.1))
    rng = np.random.default_rng(0)
    requests = {found[0]: found[1].sum() for found in (referring(sample, rng) for _ in range(300)) if found}
    text = " ".join(requests)
    assert "scratch" in text and "stain" in text
    assert "anomaly at the top left" in text and "large anomaly" in text and "bright anomaly" in text
    assert set(requests.values()) == {10}


def test_every_kind_is_in_one_group() -> None:
    assert sorted(kind for kinds in GROUPS.values() for kind in kinds) == sorted(KINDS)
    assert group_of("thread") == group_of("crack") == "line"


def test_a_pair_asks_for_different_defects_by_the_same_attribute(samples: list[Sample]) -> None:
    rng = np.random.default_rng(0)
    pairs = 0
    for sample in samples:
        found = referring_pair(sample, rng)
        if found is None:
            continue
        pairs += 1
        (first, one), (second, other) = found
        assert first != second and one.any() and other.any() and not (one & other).any()
        assert ("anomaly" in first) == ("anomaly" in second)
        assert all(fits(defect, first) == bool((one & (sample.labels == defect.label)).any()) for defect in sample.defects)
    assert pairs > 5
    alike = drawn(("crack", "top", "medium", "dark", 0.01), ("line", "top left", "medium", "dark", 0.01))
    assert referring_pair(alike, rng) is None


def test_the_normal_look_says_nothing_of_defects(samples: list[Sample]) -> None:
    for sample in samples:
        words = normal_look(sample)
        assert words.startswith("The normal look is ") and not parse(words)
        assert not set(words.split()) & {noun for pair in NOUNS.values() for noun in pair}


def test_neighbouring_places_and_middle_sizes_are_not_referred_to() -> None:
    sample = drawn(("stain", "top", "medium", "dark", 0.01), ("stain", "top left", "large", "dark", 0.1))
    rng = np.random.default_rng(0)
    for _ in range(60):
        found = referring(sample, rng)
        assert found is not None and "anomaly" not in found[0] and found[1].sum() == 20


def test_an_absent_kind_is_clearly_absent(samples: list[Sample]) -> None:
    rng = np.random.default_rng(0)
    for sample in samples:
        noun = absent_kind(sample, rng)
        if noun is not None:
            kind = kind_of(noun)
            assert kind is not None and kind not in {defect.kind for defect in sample.defects}
    cracked = drawn(("crack", "top", "small", "dark", 0.01))
    assert {kind_of(absent_kind(cracked, rng) or "") for _ in range(60)}.isdisjoint({"crack", "line", "thread"})
    everything = drawn(*((kind, "top", "small", "dark", 0.01) for kind in KINDS))
    assert absent_kind(everything, rng) is None


def test_the_vocabulary_stays_small(samples: list[Sample]) -> None:
    rng = np.random.default_rng(0)
    words: set[str] = set()
    for sample in samples:
        found = referring(sample, rng)
        words |= set(re.findall(r"[a-z]+", describe(sample.defects) + " " + (found[0].lower() if found else "")))
    assert len(words) < 80

"""What the generator promises of every sample."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agvas_core.contract.errors import UsageError
from agvas_core.data.synthetic.sample import PLACES, SIZES, TONES, place_name
from agvas_core.data.synthetic.synthesis import DEFAULT_SPEC, HELD_OUT_FAMILIES, KINDS, Sample, SynthesisSpec, synthesize
from agvas_core.data.synthetic.textures import FAMILIES

SIZE = (128, 160)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [synthesize(7, index, SIZE) for index in range(160)]


def digest(seed: int, indices: range) -> str:
    state = hashlib.sha256()
    for index in indices:
        sample = synthesize(seed, index, SIZE)
        state.update(sample.image.tobytes() + sample.labels.tobytes() + repr(sample.defects).encode())
    return state.hexdigest()


def test_another_process_makes_the_same_bytes_without_torch() -> None:
    program = f"""
import hashlib, sys
from agvas_core.data.synthetic.synthesis import synthesize
state = hashlib.sha256()
for index in range(8):
    sample = synthesize(3, index, {SIZE})
    state.update(sample.image.tobytes() + sample.labels.tobytes() + repr(sample.defects).encode())
assert "torch" not in sys.modules
print(state.hexdigest())
"""
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    assert other == digest(3, range(8))


def test_order_of_indices_does_not_matter() -> None:
    late_first = synthesize(0, 9, SIZE).image
    synthesize(0, 1, SIZE)
    assert np.array_equal(synthesize(0, 9, SIZE).image, late_first)
    assert not np.array_equal(synthesize(1, 9, SIZE).image, late_first)


def test_labels_hold_exactly_the_listed_defects(samples: list[Sample]) -> None:
    for sample in samples:
        assert sample.image.shape == (*SIZE, 3) and sample.image.dtype == np.uint8
        assert sample.labels.shape == SIZE and sample.labels.dtype == np.uint8
        assert [defect.label for defect in sample.defects] == list(range(1, len(sample.defects) + 1))
        assert set(np.unique(sample.labels)) - {0} == {defect.label for defect in sample.defects}
        for defect in sample.defects:
            area = np.count_nonzero(sample.labels == defect.label) / sample.labels.size
            assert defect.area_fraction == pytest.approx(area)
            assert defect.kind in KINDS and defect.place in PLACES and defect.size in SIZES and defect.tone in TONES


def test_place_is_where_the_label_lies(samples: list[Sample]) -> None:
    for sample in samples:
        for defect in sample.defects:
            y, x = np.nonzero(sample.labels == defect.label)
            assert defect.place == place_name((x.mean() + 0.5) / SIZE[1], (y.mean() + 0.5) / SIZE[0])


def test_a_third_is_normal_and_every_kind_scene_and_tone_comes(samples: list[Sample]) -> None:
    normal = np.mean([not sample.defects for sample in samples])
    assert 0.2 < normal < 0.48
    seen = [defect for sample in samples for defect in sample.defects]
    assert {defect.kind for defect in seen} == set(KINDS)
    assert {defect.tone for defect in seen} == set(TONES)
    assert {sample.scene for sample in samples} == {"texture", "object", "frame", "organic"}


def test_large_repeated_and_several_kinds_are_well_represented(samples: list[Sample]) -> None:
    bad = [sample for sample in samples if sample.defects]
    large = [sample for sample in bad if sample.mask.mean() > 0.05]
    repeated = [sample for sample in bad if len(sample.defects) >= 5]
    several = [sample for sample in bad if len({defect.kind for defect in sample.defects}) >= 2]
    assert len(large) > 0.1 * len(bad)
    assert len(repeated) > 0.03 * len(bad)
    assert len(several) > 0.2 * len(bad)
    assert max(sample.mask.mean() for sample in samples) < 0.6


def test_normal_fraction_is_obeyed_at_its_ends() -> None:
    assert not any(synthesize(1, i, SIZE, SynthesisSpec(normal_fraction=1)).defects for i in range(12))
    painted = [bool(synthesize(1, i, SIZE, SynthesisSpec(normal_fraction=0)).defects) for i in range(40)]
    assert np.mean(painted) > 0.9  # a few images hide every defect that was tried


def test_held_out_families_never_appear() -> None:
    spec = SynthesisSpec(texture=1, object=0, frame=0, organic=0, held_out_families=HELD_OUT_FAMILIES)
    families = {synthesize(2, index, (96, 96), spec).family for index in range(60)}
    assert not families & set(HELD_OUT_FAMILIES)
    assert len(families) > 8


def test_only_the_asked_kinds_appear() -> None:
    spec = SynthesisSpec(kinds=("crack", "hole"), normal_fraction=0)
    kinds = {defect.kind for index in range(40) for defect in synthesize(2, index, (96, 96), spec).defects}
    assert kinds == {"crack", "hole"}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(height=st.integers(96, 300), width=st.integers(96, 300), index=st.integers(0, 10**9))
def test_any_size_works(height: int, width: int, index: int) -> None:
    sample = synthesize(5, index, (height, width))
    assert sample.image.shape == (height, width, 3) and sample.labels.shape == (height, width)
    assert sample.image.flags.c_contiguous


@pytest.mark.parametrize("size", [(1024, 400), (96, 1024)])
def test_long_and_large_images_work(size: tuple[int, int]) -> None:
    for index in range(4):
        assert synthesize(5, index, size).image.shape == (*size, 3)


def test_images_are_neither_empty_nor_burnt_out(samples: list[Sample]) -> None:
    spreads = np.array([sample.image.std() for sample in samples])
    assert (spreads > 1).mean() > 0.97
    assert np.mean([((sample.image < 3) | (sample.image > 252)).all(2).mean() > 0.9 for sample in samples]) < 0.06


@pytest.mark.parametrize("size", [(95, 128), (128, 3000)])
def test_impossible_sizes_are_refused_with_the_bound(size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=r"96\.\.2048"):
        synthesize(0, 0, size)


def test_negative_seed_is_refused() -> None:
    with pytest.raises(UsageError, match="0 or more"):
        synthesize(-1, 0)


def test_an_unknown_family_or_kind_is_named() -> None:
    with pytest.raises(ValueError, match="unknown families velvet; known are asphalt"):
        SynthesisSpec(families=("velvet",))
    with pytest.raises(ValueError, match="unknown kinds scar"):
        SynthesisSpec(kinds=("scar",))
    with pytest.raises(ValueError, match="no kind or no family is left"):
        SynthesisSpec(held_out_families=tuple(FAMILIES))


def test_default_spec_shows_every_family() -> None:
    assert set(DEFAULT_SPEC.shown_families) == set(FAMILIES)

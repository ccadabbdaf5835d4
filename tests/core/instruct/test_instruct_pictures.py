"""What the model is shown: boxes, mask, the nearest normal image; and what is said with it."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError, UsageError
from agvas_core.data.datasets.catalog import find_training_sets
from agvas_core.data.instruct.answer import parsed
from agvas_core.data.instruct.generation import pictures_of
from agvas_core.data.instruct.likeness import ReferenceShelf, bhattacharyya, fingerprint, likeness, ssim
from agvas_core.data.instruct.pictures import GREEN, RED, with_boxes, with_mask
from agvas_core.data.instruct.prompt import load_prompt
from agvas_core.data.instruct.samples import samples_of
from agvas_core.files import read_rgb

MakeSet = Callable[..., Path]


def grey(height: int = 120, width: int = 160) -> NDArray[np.uint8]:
    return np.full((height, width, 3), 128, np.uint8)


def painted(image: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    return np.asarray((image == colour).all(axis=2))


def test_the_box_goes_round_the_anomaly_and_covers_none_of_it() -> None:
    mask = np.zeros((120, 160), bool)
    mask[40:60, 50:90] = True
    green = painted(with_boxes(grey(), mask, 1000), GREEN)
    assert green.any() and not (green & mask).any()
    rows, columns = np.nonzero(green)
    assert rows.min() < 40 and rows.max() > 59 and columns.min() < 50 and columns.max() > 89


def test_near_regions_share_a_box_far_ones_do_not_and_many_get_one() -> None:
    def boxes(*corners: tuple[int, int]) -> int:
        mask = np.zeros((200, 200), bool)
        for top, left in corners:
            mask[top : top + 4, left : left + 4] = True
        green = painted(with_boxes(grey(200, 200), mask, 1000), GREEN)
        return int(cv2.connectedComponents(green.astype(np.uint8))[0]) - 1

    assert boxes((50, 50), (50, 56)) == 1
    assert boxes((20, 20), (150, 150)) == 2
    assert boxes(*((top, left) for top in (10, 70, 130) for left in (10, 60, 110, 160))) == 1


def test_a_box_and_a_mask_at_the_rim_stay_in_the_picture() -> None:
    mask = np.zeros((120, 160), bool)
    mask[0, 0] = mask[-1, -1] = True
    assert painted(with_boxes(grey(), mask, 1000), GREEN).any()
    assert painted(with_mask(grey(), mask, 1000), RED)[0, 0]


def test_a_hairline_is_still_seen_when_the_picture_is_made_small() -> None:
    mask = np.zeros((1000, 1000), bool)
    mask[500, 100:900] = True
    small = with_mask(grey(1000, 1000), mask, 100)
    assert small.shape == (100, 100, 3)
    assert painted(small, RED)[:, 12:88].any(axis=0).all()


def test_drawing_leaves_the_image_as_it_was() -> None:
    image, mask = grey(), np.ones((120, 160), bool)
    with_boxes(image, mask, 1000), with_mask(image, mask, 1000)
    assert (image == 128).all()


# --- the nearest normal image


def noise(seed: int, *, low: int = 0, high: int = 255) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(low, high, (128, 128, 3), dtype=np.uint8)


def test_ssim_is_that_of_the_paper_it_comes_from() -> None:
    """Against Wang et al. 2004 in plain loops, window by window."""
    first, second = noise(1), cv2.GaussianBlur(noise(1), (3, 3), 1)
    one, other = fingerprint(first), fingerprint(np.asarray(second, np.uint8))
    x, y = one.grey, other.grey
    weights = np.array([[np.exp(-(i * i + j * j) / (2 * 1.5**2)) for j in range(-5, 6)] for i in range(-5, 6)])
    weights /= weights.sum()
    values = np.empty((118, 118))
    for row in range(118):
        for column in range(118):
            a, b = x[row : row + 11, column : column + 11], y[row : row + 11, column : column + 11]
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
            covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            values[row, column] = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
                (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
            )
    assert ssim(one, other) == pytest.approx(values.mean(), abs=1e-9)


def test_bhattacharyya_is_the_definition() -> None:
    one, other = fingerprint(noise(1)), fingerprint(noise(2, low=60))
    p, q = one.colours.astype(np.float64).ravel(), other.colours.astype(np.float64).ravel()
    assert bhattacharyya(one, other) == pytest.approx(np.sqrt(1 - np.sqrt(p * q).sum()), abs=1e-4)


def test_likeness_of_equal_images_is_one_and_of_others_less() -> None:
    views = [fingerprint(noise(1)), fingerprint(noise(2)), fingerprint(noise(1, high=128)), fingerprint(grey())]
    assert likeness(views[0], views[0]) == pytest.approx(1, abs=1e-3)
    assert all(likeness(views[0], view) < 0.9 for view in views[1:])
    assert likeness(views[0], views[2]) == likeness(views[2], views[0])


def test_structure_and_colour_both_choose_the_reference(tmp_path: Path) -> None:
    stripes = np.tile(np.repeat(np.array([60, 200], np.uint8), 16), 4)[None, :, None].repeat(128, 0).repeat(3, 2)
    candidates = {
        "same.png": np.roll(stripes, 1, axis=1),
        "turned.png": stripes.transpose(1, 0, 2),
        "blue.png": stripes * np.array([1, 0.3, 0.3]),
    }
    for name, image in candidates.items():
        cv2.imwrite(str(tmp_path / name), image[..., ::-1])
    spoilt = stripes.copy()
    spoilt[50:70, 50:70] = 0
    assert ReferenceShelf(list(tmp_path.iterdir())).nearest(spoilt) == tmp_path / "same.png"


def test_a_broken_reference_is_left_out_and_said(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    cv2.imwrite(str(tmp_path / "b.png"), grey())
    shelf = ReferenceShelf([tmp_path / "a.png", tmp_path / "b.png"])
    assert shelf.nearest(grey()) == tmp_path / "b.png"
    assert len(shelf.unreadable) == 1 and "a.png" in shelf.unreadable[0]
    assert ReferenceShelf([]).nearest(grey()) is None


def test_of_very_many_references_the_same_few_are_chosen(tmp_path: Path) -> None:
    for number in range(12):
        cv2.imwrite(str(tmp_path / f"{number:02d}.png"), noise(number))
    paths = sorted(tmp_path.iterdir())
    chosen = [ReferenceShelf(order, limit=4).nearest(noise(3)) for order in (paths, paths[::-1])]
    assert chosen[0] == chosen[1]


# --- samples and pictures together


def test_a_sample_gets_three_pictures_and_references_of_the_training_half_too(make_set: MakeSet) -> None:
    root = make_set(bad=2)
    (found,) = find_training_sets(root)
    group = samples_of(found.records(), found.root, "parts")
    assert [sample.key for sample in group.samples] == [f"parts/plate/test/dark_spot/00{number}.png" for number in (0, 1)]
    assert not group.alone and not group.unusable
    assert len(group.samples[0].references._paths) == 4
    pictures = pictures_of(group.samples[0], 64)
    assert len(pictures) == 3
    decoded = [
        cv2.imdecode(np.frombuffer(base64.b64decode(url.removeprefix("data:image/jpeg;base64,")), np.uint8), cv2.IMREAD_COLOR)
        for url in pictures
    ]
    assert [image.shape for image in decoded] == [(48, 64, 3)] * 3
    blue, green, red = (decoded[0][..., channel].astype(int) for channel in range(3))
    assert ((green - red > 60) & (green - blue > 60)).any(), "no green box in the first"
    blue, green, red = (decoded[1][..., channel].astype(int) for channel in range(3))
    assert ((red - green > 60) & (red - blue > 60)).any(), "no red mask in the second"


def test_without_a_normal_image_there_are_two_pictures_and_it_is_said(make_set: MakeSet) -> None:
    root = make_set(bad=1, good=0)
    (found,) = find_training_sets(root)
    group = samples_of(found.records(), found.root, "parts")
    assert group.alone == ["plate"]
    assert len(pictures_of(group.samples[0], 64)) == 2
    text = load_prompt().messages("plate", "dark spot", ["a", "b"])[-1]["content"][-1]["text"]
    assert "No picture of a faultless part" in text


def test_an_empty_mask_and_one_of_another_size_are_refused(make_set: MakeSet) -> None:
    root = make_set(bad=2)
    masks = sorted((root / "plate" / "ground_truth" / "dark_spot").iterdir())
    cv2.imwrite(str(masks[0]), np.zeros((96, 128), np.uint8))
    cv2.imwrite(str(masks[1]), np.full((9, 12), 255, np.uint8))
    (found,) = find_training_sets(root)
    empty, other = samples_of(found.records(), found.root, "parts").samples
    with pytest.raises(ImageError, match=r"000_mask\.png is empty"):
        pictures_of(empty, 64)
    with pytest.raises(ImageError, match="12x9 px"):
        pictures_of(other, 64)


@pytest.mark.parametrize("name", ["mvtec", "magtile"])
def test_real_photographs_get_a_reference_that_looks_like_them(name: str) -> None:
    data = Path(__file__).resolve().parents[4] / "shared" / "data" / name
    if not data.is_dir():
        pytest.skip("../shared/data is not there")
    (found,) = find_training_sets(data)
    group = samples_of(found.records(), found.root, name)
    sample = group.samples[0]
    assert sample.kind and len(pictures_of(sample, 256)) == 3
    nearest = sample.references.nearest(read_rgb(sample.image, "image"))
    assert nearest is not None and "good" in nearest.parts


# --- words


def test_the_prior_is_one_sentence_with_category_kind_and_meaning() -> None:
    prior = load_prompt().prior("drink_bottle", "cap_scratch")
    assert '"drink bottle"' in prior and '"cap scratch"' in prior and "thin line in the surface" in prior
    assert prior.count(".") == 1 and prior.endswith(".")


def test_kinds_without_a_name_or_a_meaning_still_make_a_sentence() -> None:
    prompt = load_prompt()
    assert "of a kind that is not named, which means that something differs" in prompt.prior("plate", "")
    assert "something differs" in prompt.prior("plate", "zzyx_17")


def test_the_worked_example_obeys_the_rules_that_it_teaches() -> None:
    prompt = load_prompt()
    assert "[NOR][ANO][SEG]" in parsed(prompt.example_answer, prompt.wording, prompt.example_request)["summary"]
    roles = [message["role"] for message in prompt.messages("plate", "dark spot", ["a", "b", "c"])]
    assert roles == ["system", "user", "assistant", "user"]


def test_a_folder_of_ones_own_replaces_file_by_file_and_changes_the_hash(tmp_path: Path) -> None:
    ours = load_prompt()
    (tmp_path / "meanings.toml").write_text('[meaning]\n"plate/dark_spot" = "the lacquer has burnt"\n', encoding="utf-8")
    theirs = load_prompt(tmp_path)
    assert theirs.meaning("Plate", "dark spot") == "the lacquer has burnt"
    assert theirs.system == ours.system and theirs.digest != ours.digest == load_prompt().digest


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("meanings.toml", "[meaning\n", "no TOML"),
        ("meanings.toml", '[alias]\nx = "nothing"\n', "which has no meaning"),
        ("request.txt", "Look at {pictures}", "each once"),
        ("example.json", "{}", "example.json must be"),
        ("example.json", json.dumps({"request": "x", "answer": {"Expectation": "y"}}), "breaks the rules"),
        ("forbidden.toml", '[box]\nnever = ["x"]\n', "may have always, words, allow"),
        ("forbidden.toml", '[box]\nwords = "x"\n', "lists of phrases"),
        ("other.txt", "x", "has none of"),
    ],
)
def test_a_prompt_folder_with_a_mistake_is_refused_by_name(tmp_path: Path, name: str, text: str, reason: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=reason):
        load_prompt(tmp_path)

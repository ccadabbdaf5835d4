"""Parts that move: found, cut out, judged, and shown where they lie in the frame."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from agvas.fitting.calibrate import calibrate_product
from agvas.fitting.fit import Fitted
from agvas.fitting.locating import learn_locator
from agvas.fitting.pictures import Picture
from agvas_core.contract.errors import BundleError, UnlikeError, UsageError
from agvas_core.contract.product import LOCATE, Locate
from agvas_runtime import Segmenter, Verdict
from agvas_runtime.images.locate import Locator

Rgb = NDArray[np.uint8]
QuickFit = Callable[..., Fitted]

CENTRE = (150.0, 110.0)


def part(
    seed: int,
    shift: tuple[float, float] = (0.0, 0.0),
    turn_deg: float = 0.0,
    *,
    spot: tuple[float, float] | None = None,
    scale: float = 1.0,
    ground: int = 40,
) -> Rgb:
    """A bracket on an even ground, drawn at four times its size; ``spot`` lies at this place from its centre, before it is turned."""
    big = 4
    size = (round(300 * scale), round(220 * scale))
    rng = np.random.default_rng(seed)
    image = np.full((size[1] * big, size[0] * big, 3), ground, np.uint8)
    angle = np.deg2rad(turn_deg)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    def at(x: float, y: float) -> NDArray[np.float64]:
        return (turn @ np.array([x, y]) + np.array(CENTRE) + np.array(shift)) * scale * big

    def block(x0: float, y0: float, x1: float, y1: float, colour: tuple[int, int, int]) -> None:
        corners = np.array([at(x0, y0), at(x1, y0), at(x1, y1), at(x0, y1)])
        cv2.fillPoly(image, [np.round(corners).astype(np.int32)], colour)

    block(-50, -22, 50, 22, (190, 180, 170))
    block(-46, -18, -26, 18, (120, 140, 170))
    block(10, -4, 40, 10, (225, 215, 160))
    if spot is not None:
        cv2.circle(image, tuple(np.round(at(*spot)).astype(int).tolist()), round(5 * scale * big), (255, 60, 200), -1)
    small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.float64)
    return np.clip(small * rng.uniform(0.98, 1.02) + rng.normal(0, 2, small.shape), 0, 255).astype(np.uint8)


def moves(seed: int, reach: float = 40.0) -> tuple[float, float]:
    rng = np.random.default_rng(1000 + seed)
    return float(rng.uniform(-reach, reach)), float(rng.uniform(-reach, reach))


def pictures(images: list[Rgb]) -> list[Picture]:
    return [Picture(str(number), pixels=image) for number, image in enumerate(images)]


def textured(shift: tuple[int, int] = (0, 0), seed: int = 5) -> Rgb:
    """A camera's field on a printed sheet that fills the frame and more."""
    sheet = np.random.default_rng(seed).uniform(0, 255, (60, 60, 3)).astype(np.uint8)
    whole = np.asarray(cv2.resize(sheet, (520, 520), interpolation=cv2.INTER_CUBIC), np.uint8)
    x, y = 110 + shift[0], 150 + shift[1]
    return np.ascontiguousarray(whole[y : y + 220, x : x + 300])


def outline_of(images: list[Rgb], way: Locate = Locate.AUTO) -> Locator:
    locator = learn_locator(pictures(images), way).locator
    assert locator is not None
    return locator


def test_a_part_that_moves_is_located_to_a_pixel_and_one_that_stays_is_not() -> None:
    locator = outline_of([part(seed, moves(seed)) for seed in range(10)])
    assert locator.spec.method == "outline" and not locator.spec.turns
    first = locator.find(part(0, moves(0))).matrix[:, 2] - np.array(moves(0))
    for seed in range(20, 40):
        found = locator.find(part(seed, moves(seed))).matrix[:, 2] - np.array(moves(seed))
        assert np.abs(found - first).max() <= 1.0, seed
    assert learn_locator(pictures([part(seed, moves(seed, 1.5)) for seed in range(10)]), Locate.AUTO).locator is None


def test_a_part_that_turns_is_turned_back_whichever_way_it_lies() -> None:
    angles = [0, 35, 90, 140, 181, 230, 275, 320, 12, 60]
    locator = outline_of([part(seed, moves(seed, 25), angle) for seed, angle in enumerate(angles)])
    assert locator.spec.turns
    wanted = locator.find(part(50, moves(0, 25))).crop(part(50, moves(0, 25))).astype(float)
    for seed, angle in enumerate(range(5, 360, 27)):
        image = part(60 + seed, moves(seed, 25), angle)
        crop = locator.find(image).crop(image).astype(float)
        assert np.corrcoef(crop.ravel(), wanted.ravel())[0, 1] > 0.97, angle


def test_a_field_that_moves_as_a_whole_is_located_by_template() -> None:
    shifts = [(0, 0), (12, -9), (-15, 4), (8, 14), (-11, -13), (5, 6)]
    locator = outline_of([textured(shift) for shift in shifts])
    assert locator.spec.method == "template"
    base = locator.find(textured()).matrix[:, 2]
    for shift in [(10, 10), (-14, 2), (3, -12)]:
        found = locator.find(textured(shift)).matrix[:, 2]
        assert np.abs(base - np.array(shift) - found).max() <= 1.0


@pytest.mark.parametrize("what", ["textures", "grids", "sizes", "two kinds", "frame-filling"])
def test_nothing_is_switched_on_where_it_would_not_help(what: str) -> None:
    grid = np.indices((220, 300)).sum(0) // 10 % 2 * 200
    images = {
        "textures": [textured(seed=seed) for seed in range(8)],
        "grids": [np.repeat(np.roll(grid, (4 * seed, 3 * seed), (0, 1))[..., None], 3, 2).astype(np.uint8) for seed in range(8)],
        "sizes": [part(seed, moves(seed), scale=1 + 0.1 * (seed % 2)) for seed in range(8)],
        "two kinds": [part(seed, moves(seed)) if seed % 2 else np.full((220, 300, 3), 40, np.uint8) for seed in range(8)],
        "frame-filling": [part(seed, moves(seed))[60:160, 100:200] for seed in range(8)],
    }[what]
    assert learn_locator(pictures(images), Locate.AUTO).locator is None


def test_what_is_no_part_is_not_found() -> None:
    locator = outline_of([part(seed, moves(seed)) for seed in range(10)])
    black, noise = np.zeros((220, 300, 3), np.uint8), np.random.default_rng(0).integers(0, 255, (220, 300, 3), np.uint8)
    piece = part(1)
    piece[:, :170] = 40
    cut_off = part(2, (125.0, 0.0))
    for image in (black, noise, piece, cut_off, textured(), part(3)[:150]):
        with pytest.raises(UnlikeError, match="not found"):
            locator.find(image)
    assert locator.find(part(4, moves(4), scale=2.0)).frame == (600, 440)  # another resolution of the same field


@pytest.fixture(scope="module")
def bracket(quick_fit: QuickFit, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """A product of a bracket that lies everywhere in the frame; read it only."""
    return quick_fit([part(seed, moves(seed)) for seed in range(12)], tmp_path_factory.mktemp("moving") / "bracket")


def test_a_product_that_locates_judges_parts_wherever_they_lie(bracket: Fitted) -> None:
    assert bracket.product.locate is not None and any("located by its outline" in note for note in bracket.warnings)
    assert bracket.product.frame_px == (300, 220)
    segmenter = Segmenter.load(bracket.bundle.folder, threads=1)
    for seed in range(100, 112):
        shift = moves(seed)
        (passed,) = segmenter.predict([part(seed, shift)])
        assert passed.verdict == Verdict.PASS and passed.score is not None and passed.score <= passed.seed_threshold
        (failed,) = segmenter.predict([part(seed, shift, spot=(-8, 6))])
        assert failed.verdict == Verdict.FAIL and failed.mask is not None and failed.score_map is not None
        assert failed.mask.shape == failed.score_map.shape == (220, 300)
        x, y = round(CENTRE[0] + shift[0] - 8), round(CENTRE[1] + shift[1] + 6)
        assert failed.mask[y, x] and failed.image is not None and failed.image.shape == (220, 300, 3)
        box_x, box_y, wide, high = failed.regions[0].box
        assert box_x <= x <= box_x + wide and box_y <= y <= box_y + high
    (lost,) = segmenter.predict([np.full((220, 300, 3), 40, np.uint8)])
    assert lost.verdict == Verdict.NO_VERDICT and "not found" in str(lost.error) and lost.score is None


def test_the_whole_frame_misses_what_the_located_part_shows(bracket: Fitted, quick_fit: QuickFit, tmp_path: Path) -> None:
    images = [part(seed, moves(seed)) for seed in range(12)]
    whole = quick_fit(images, tmp_path / "whole", locate="off")
    assert whole.product.locate is None and not (tmp_path / "whole" / LOCATE).exists()
    spots = [part(seed, moves(seed), spot=(-36, 0)) for seed in range(200, 208)]

    def caught(product: Fitted) -> int:
        found = Segmenter.load(product.bundle.folder, threads=1).predict(spots)
        return sum(result.verdict == Verdict.FAIL for result in found)

    assert caught(bracket) == len(spots) >= caught(whole)


def test_a_line_takes_scores_of_the_frame_as_the_product_does(bracket: Fitted, tmp_path: Path) -> None:
    from agvas_core.contract.command_line import exit_code_of
    from agvas_runtime.images.frame import Frame
    from agvas_runtime.line.recipe.cli import new
    from agvas_runtime.line.recipe.file import read_recipe
    from agvas_runtime.line.station.inspector import SegmenterInspector
    from agvas_runtime.pipeline.options import SegmentOptions

    arguments = ["bracket", "--product", str(bracket.bundle.folder), "-o", str(tmp_path / "r.yaml")]
    assert exit_code_of(lambda: new, name="agvas recipe new", arguments=arguments) == 0
    version = read_recipe(tmp_path / "r.yaml")
    assert version.recipe.image.max_mean is None and version.recipe.frame is not None
    inspector = SegmenterInspector(SegmentOptions(threads=1))
    inspector.prepare(version)
    segmenter = Segmenter.load(bracket.bundle.folder, threads=1)
    for seed, spot in ((300, None), (301, (-8.0, 6.0))):
        image = part(seed, moves(seed), spot=spot)
        judgement = inspector.inspect(Frame("part", 0, image=image), version).judgement
        (result,) = segmenter.predict([image])
        assert result.score is not None and str(judgement.verdict) == str(result.verdict)
        if spot is not None:
            assert judgement.reject_score == pytest.approx(result.score, rel=1e-5)
    with pytest.raises(UnlikeError, match="not found"):
        inspector.inspect(Frame("empty", 0, image=np.full((220, 300, 3), 40, np.uint8)), version)


def test_add_and_calibrate_keep_the_way_to_find_the_part(quick_fit: QuickFit, tmp_path: Path) -> None:
    folder = tmp_path / "bracket"
    quick_fit([part(seed, moves(seed)) for seed in range(8)], folder)
    grown = quick_fit([part(seed, moves(seed)) for seed in range(20, 26)], folder, add=True)
    assert grown.product.locate is not None and len(grown.product.good) == 14
    share = grown.bundle.manifest.decision.point().image_share
    with pytest.raises(UsageError, match="--locate off"):
        quick_fit([part(50)], folder, add=True, locate="off")
    calibrated = calibrate_product(folder, [part(seed, moves(seed)) for seed in range(40, 52)], threads=1)
    assert calibrated.product.locate == grown.product.locate
    assert calibrated.bundle.manifest.decision.point().image_share == pytest.approx(share)
    results = Segmenter.load(folder, threads=1).predict([part(seed, moves(seed)) for seed in range(60, 66)])
    assert all(result.verdict == Verdict.PASS for result in results)
    (folder / LOCATE).write_bytes(b"another")
    with pytest.raises(BundleError, match=LOCATE):
        Segmenter.load(folder)


def test_a_way_that_is_not_possible_is_refused_before_anything_is_written(quick_fit: QuickFit, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--locate outline"):
        quick_fit([textured(seed=seed) for seed in range(4)], tmp_path / "p", locate="outline")
    with pytest.raises(UsageError, match="sideways"):
        quick_fit([part(0)], tmp_path / "p", locate="sideways")
    assert not (tmp_path / "p").exists()

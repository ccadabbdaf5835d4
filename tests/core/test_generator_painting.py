"""Textures and single defects, each by itself: in range, visible, tight, inside the part."""

import numpy as np
import pytest

from agvas_core.data.synthetic.canvas import Ground, ground_of, settled
from agvas_core.data.synthetic.defects import KINDS, PAINTERS, centre_in, hairline, paint
from agvas_core.data.synthetic.photometry import Photometry
from agvas_core.data.synthetic.raster import grown, shrunk
from agvas_core.data.synthetic.scenes import Scene, frame_scene, object_scene, silhouette
from agvas_core.data.synthetic.textures import FAMILIES, flat

PLAIN = Photometry(light=None, blur_px=0.0, noise=0.0, coloured_noise=False, grey=False, gamma=1.0, jpeg_quality=None)
NAMES = tuple(FAMILIES)
H, W = 150, 190


def flat_ground(seed: int = 0, exposure: Photometry = PLAIN) -> Ground:
    image = np.clip(flat(np.random.default_rng(seed), H, W) * 0.2 + 0.4, 0, 1).astype(np.float32)
    return ground_of(Scene(image, np.ones((H, W), np.bool_), "texture", "flat"), exposure, NAMES)


def object_ground(seed: int) -> Ground:
    return ground_of(object_scene(np.random.default_rng(seed), H, W, NAMES), PLAIN, NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(96, 97), (97, 251), (301, 120)])
def test_every_family_renders_at_odd_sizes(name: str, size: tuple[int, int]) -> None:
    for seed in range(3):
        image = FAMILIES[name](np.random.default_rng(seed), *size)
        assert image.shape == (*size, 3) and image.dtype == np.float32
        assert np.isfinite(image).all()
        assert np.clip(image, 0, 1).std() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_every_painter_makes_a_visible_defect(kind: str) -> None:
    for recipe in PAINTERS[kind]:
        made = 0
        for seed in range(12):
            rng = np.random.default_rng(seed)
            # Shifted structure cannot be seen on flat ground: it needs some.
            scene = object_scene(rng, H, W, NAMES) if recipe.at_edge else frame_scene(rng, H, W, NAMES)
            ground = ground_of(scene, PLAIN, NAMES)
            done = paint(rng, ground, kind, recipe=recipe)
            if done is None:
                continue
            made += 1
            after, painting, mask = done
            assert np.isfinite(after.image).all() and after.image.min() >= 0 and after.image.max() <= 1
            change = np.abs(after.image - ground.image).max(2)[painting.window]
            assert change[mask].mean() > 0.01
        assert made >= 3, recipe


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_tight(kind: str) -> None:
    """What changed strongly is labelled: nearly all strong change lies within a few pixels of the mask, and the reverse."""
    for seed in range(20):
        ground = flat_ground(seed)
        done = paint(np.random.default_rng(seed), ground, kind)
        if done is None:
            continue
        after, painting, mask = done
        full = np.zeros((H, W), np.bool_)
        full[painting.window] = mask
        change = np.abs(after.image - ground.image).max(2)
        strong = change > 0.7 * np.percentile(change[full], 90)
        # the thread's shadow and the soft skirt of a streak reach a little further than the label
        assert (strong & ~grown(full, 4)).sum() <= 0.15 * strong.sum() + 2, (kind, seed)
        assert change[~grown(full, 12)].sum() <= 0.35 * change.sum(), (kind, seed)


def test_a_hairline_is_labelled_as_thin_as_it_is_drawn() -> None:
    widths = []
    for seed in range(30):
        rng, ground = np.random.default_rng(seed), flat_ground(seed)
        done = settled(ground, hairline(rng, np.random.default_rng(seed), ground, (W / 2, H / 2), 80.0))
        if done is not None:
            widths.append(done[1].sum() / max(1, skeleton_length(done[1])))
    assert len(widths) > 15
    assert np.median(widths) < 2.5


def skeleton_length(mask: np.ndarray) -> float:
    """Longer side of what the mask spans: a lower bound of the line's length."""
    y, x = np.nonzero(mask)
    return float(max(np.ptp(x), np.ptp(y)) + 1)


def test_defects_stay_on_the_part_and_off_each_other() -> None:
    for seed in range(40):
        rng, ground = np.random.default_rng(seed), object_ground(seed)
        first = paint(rng, ground, "stain")
        if first is None:
            continue
        ground_after, painting, mask = first
        taken = np.zeros((H, W), np.bool_)
        taken[painting.window] = mask
        assert not (taken & ~ground.part).any()
        second = paint(rng, ground_after, "hole")
        if second is not None:
            _, other, other_mask = second
            assert not (taken[other.window] & other_mask).any()
            assert np.array_equal(second[0].image[taken], ground_after.image[taken])


def test_the_same_random_texture_again_is_no_defect() -> None:
    """Every pixel changes and yet there is nothing to see: such a change must not be labelled."""
    from agvas_core.data.synthetic.canvas import Painting

    rng = np.random.default_rng(0)
    noise = (0.5 + 0.1 * rng.standard_normal((2, H, W, 1))).clip(0, 1).astype(np.float32).repeat(3, 3)
    ground = ground_of(Scene(noise[0], np.ones((H, W), np.bool_), "texture", "noise"), PLAIN, NAMES)
    alpha = np.zeros((H, W), np.float32)
    alpha[40:100, 50:120] = 1
    image = np.where(alpha[..., None] > 0, noise[1], noise[0])
    everywhere = (slice(0, H), slice(0, W))
    assert settled(ground, Painting(everywhere, image, alpha)) is None
    assert settled(ground, Painting(everywhere, image + 0.15 * alpha[..., None], alpha)) is not None


def test_what_noise_hides_is_not_labelled() -> None:
    noisy = Photometry(light=None, blur_px=0.0, noise=0.2, coloured_noise=False, grey=False, gamma=1.0, jpeg_quality=None)
    counts = []
    for exposure in (PLAIN, noisy):
        made = [paint(np.random.default_rng(seed), flat_ground(seed, exposure), "line") for seed in range(15)]
        counts.append(sum(done is not None for done in made))
    assert counts[1] < counts[0]


def test_grey_images_get_grey_defects() -> None:
    grey = Photometry(light=None, blur_px=0.0, noise=0.0, coloured_noise=False, grey=True, gamma=1.0, jpeg_quality=None)
    for seed in range(10):
        done = paint(np.random.default_rng(seed), flat_ground(seed, grey), "stain")
        if done is not None:
            assert np.ptp(done[0].image, axis=2).max() < 1e-5


def test_good_silhouettes_leave_room_for_defects() -> None:
    for seed in range(60):
        for size in ((128, 128), (128, 400)):
            alpha = silhouette(np.random.default_rng(seed), *size).alpha
            assert alpha.min() >= 0 and alpha.max() <= 1 + 1e-5
            assert (alpha > 0.5).sum() > 100
            assert shrunk(alpha > 0.5, 1).any()


def test_no_centre_in_an_empty_region() -> None:
    rng = np.random.default_rng(0)
    region = np.zeros((20, 30), np.bool_)
    assert centre_in(rng, region) is None
    region[3, 28] = True
    assert centre_in(rng, region) == (28.0, 3.0)


def test_photometry_keeps_shape_and_range() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        exposure = Photometry.draw(rng, H, W)
        image = exposure.apply(rng, rng.random((H, W, 3), dtype=np.float32))
        assert image.shape == (H, W, 3) and image.dtype == np.uint8
        if exposure.grey:
            assert np.ptp(image.astype(int), axis=2).max() <= 3  # JPEG may tint a little

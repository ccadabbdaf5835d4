"""Views of the native core are those of the contract, to the bit, whatever the camera sends."""

from types import ModuleType

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agvas_core.contract.errors import ImageError, UsageError
from agvas_core.contract.images.rgb import to_rgb
from agvas_core.contract.preprocess import ViewSpec, make_view
from agvas_runtime import native
from agvas_runtime.images import views

SIDE = st.integers(1, 90)
HALF = (0.5, 0.5, 0.5)


def picture(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def shrunk(core: ModuleType, image: np.ndarray, size: tuple[int, int], threads: int = 0) -> np.ndarray:
    out = np.full((*size, 3), 7, np.uint8)
    height, width, _ = image.shape
    core.make_views(
        image.reshape(height, -1),
        "RGB8",
        height,
        width,
        (0, 0, height, width),
        [(out, *size, (0, 0, 0))],
        threads=threads,
    )
    return out


@settings(deadline=None, max_examples=150)
@given(height=SIDE, width=SIDE, high=SIDE, wide=SIDE, seed=st.integers(0, 99))
def test_any_shrinking_is_opencvs_to_the_bit(core: ModuleType, height: int, width: int, high: int, wide: int, seed: int) -> None:
    size = min(high, height), min(wide, width)
    image = picture(seed, height, width, 3)
    np.testing.assert_array_equal(shrunk(core, image, size), cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA))


@pytest.mark.parametrize(("by", "across"), [(2, 2), (1, 2), (2, 1), (3, 3), (4, 2), (16, 9)])
def test_whole_ratios_round_as_opencv_does(core: ModuleType, by: int, across: int) -> None:
    image = picture(by, 30 * by, 31 * across, 3)
    np.testing.assert_array_equal(shrunk(core, image, (30, 31)), cv2.resize(image, (31, 30), interpolation=cv2.INTER_AREA))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_instruction_set_and_number_of_threads_gives_the_same_view(
    core: ModuleType, instructions: str, threads: int
) -> None:
    image = picture(3, 301, 407, 3)
    expected = cv2.resize(image, (97, 64), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(shrunk(core, image, (64, 97), threads), expected)


@settings(deadline=None, max_examples=60)
@given(
    fit=st.sampled_from(["stretch", "area", "letterbox"]),
    size_px=st.integers(8, 70),
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    resample=st.sampled_from(["opencv", "bilinear", "bicubic"]),
)
def test_views_are_the_contracts_whether_they_shrink_or_not(
    fit: str, size_px: int, height: int, width: int, resample: str
) -> None:
    spec = ViewSpec(fit=fit, size_px=size_px, multiple_px=4, mean=(0.3, 0.5, 0.7), std=HALF, resample=resample)  # type: ignore[arg-type]
    other = spec.model_copy(update={"size_px": 16})
    image = picture(size_px, height + 9, width + 9, 3)[4:-5, 3:-6]  # a crop, as tiles are
    for found, wanted in zip(views.make_views(image, [spec, other]), [spec, other], strict=True):
        expected = make_view(wanted, image)
        np.testing.assert_array_equal(found.pixels, expected.pixels)
        assert found.content == expected.content


def raw_frame(pixel_format: str, height: int, width: int) -> np.ndarray:
    shape = {
        "NV12": (height * 3 // 2, width),
        "YUYV": (height, 2 * width),
        "RGB8": (height, 3 * width),
        "BGR8": (height, 3 * width),
    }
    if pixel_format == "Mono16":
        return np.random.default_rng(5).integers(0, 65536, (height, width), np.uint16)
    return picture(5, *shape.get(pixel_format, (height, width)))


@pytest.mark.parametrize("pixel_format", views.PIXEL_FORMATS)
@pytest.mark.parametrize("size", [(60, 84), (4, 6), (122, 50)])
def test_every_camera_format_gives_opencvs_colours(pixel_format: str, size: tuple[int, int]) -> None:
    raw = raw_frame(pixel_format, *size)
    specs = [
        ViewSpec(fit="letterbox", size_px=8, mean=HALF, std=HALF),
        ViewSpec(fit="area", size_px=24, max_upscale=1.0, mean=HALF, std=HALF),
    ]
    found, image = views.camera_views(raw, pixel_format, size, specs)
    np.testing.assert_array_equal(image, views.camera_image(raw, pixel_format, size))
    for view, spec in zip(found, specs, strict=True):
        np.testing.assert_array_equal(view.pixels, make_view(spec, image).pixels)


def test_grey_frames_follow_the_rule_for_files() -> None:
    raw = np.random.default_rng(1).integers(0, 4096, (40, 50), np.uint16)
    for bits in (12, 14, 16):
        np.testing.assert_array_equal(views.camera_image(raw, "Mono16", (40, 50), bits=bits), to_rgb(raw, bits=bits))
    with pytest.raises(ImageError, match="full scale"):
        views.camera_image(raw, "Mono16", (40, 50), bits=10)


def test_grey_alone_needs_no_colour_copy(core: ModuleType) -> None:
    grey = picture(8, 60, 84)
    out = np.empty((20, 28, 3), np.uint8)
    core.make_views(grey, "Mono8", 60, 84, (0, 0, 60, 84), [(out, 20, 28, (0, 0, 0))])
    np.testing.assert_array_equal(out, cv2.resize(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), (28, 20), interpolation=cv2.INTER_AREA))


def test_a_frame_that_is_not_what_it_is_said_to_be_is_refused() -> None:
    specs = [ViewSpec(fit="stretch", size_px=8, mean=HALF, std=HALF)]
    with pytest.raises(UsageError, match="BayerXX"):
        views.camera_views(picture(0, 20, 20), "BayerXX", (20, 20), specs)
    with pytest.raises(ImageError, match="600 bytes"):
        views.camera_views(picture(0, 20, 20), "NV12", (20, 20), specs)
    with pytest.raises(ImageError, match="even sides"):
        views.camera_views(picture(0, 21, 30), "YUYV", (21, 15), specs)
    with pytest.raises(ImageError, match="3x3"):
        views.camera_views(picture(0, 2, 20), "BayerRG8", (2, 20), specs)


def test_buffers_that_do_not_fit_are_refused(core: ModuleType) -> None:
    frame, out = picture(0, 20, 60), np.empty((8, 8, 3), np.uint8)
    plan = (out, 8, 8, (0, 0, 0))
    for wrong in [
        (frame, "RGB8", 21, 20, (0, 0, 20, 20), [plan]),
        (frame, "RGB8", 20, 21, (0, 0, 20, 20), [plan]),
        (frame, "RGB8", 20, 20, (0, 0, 20, 21), [plan]),
        (frame, "RGB8", 20, 20, (-1, 0, 20, 20), [plan]),
        (frame, "RGB8", 20, 20, (0, 0, 4, 20), [plan]),
        (frame, "RGB8", 20, 20, (0, 0, 20, 20), [(out, 9, 8, *plan[3:])]),
        (frame, "RGB8", 20, 20, (0, 0, 20, 20), [(out.astype(np.float32), *plan[1:])]),
        (frame, "RGB8", 20, 20, (0, 0, 20, 20), [(np.empty((8, 16, 3), np.uint8)[:, ::2], *plan[1:])]),
        (frame, "RGB9", 20, 20, (0, 0, 20, 20), [plan]),
        (frame, "Mono16", 20, 20, (0, 0, 20, 20), [plan]),
    ]:
        with pytest.raises(ValueError):
            core.make_views(*wrong)


def test_without_the_core_views_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ViewSpec(fit="area", size_px=32, multiple_px=8, mean=HALF, std=HALF)
    raw = picture(4, 90, 64)
    (with_core,), image = views.camera_views(raw, "NV12", (60, 64), [spec])
    monkeypatch.setattr(native, "core", None)
    (without,), same = views.camera_views(raw, "NV12", (60, 64), [spec])
    np.testing.assert_array_equal(with_core.pixels, without.pixels)
    np.testing.assert_array_equal(image, same)

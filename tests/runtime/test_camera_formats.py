"""What a camera sends goes to a verdict in one pass, and the verdict is that of the same picture as RGB; threads reach the native core."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from agvas_core.contract.command_line import exit_code_of
from agvas_core.contract.errors import SourceError, UsageError
from agvas_runtime import Segmenter, Verdict, native
from agvas_runtime.cli import app
from agvas_runtime.frame import Frame, Sent
from agvas_runtime.sources import CameraSource, device
from agvas_runtime.views import PIXEL_FORMATS, camera_image

HEIGHT, WIDTH = 120, 160


@pytest.fixture(scope="module")
def segmenter(tiny_bundle: Path) -> Segmenter:
    return Segmenter.load(tiny_bundle, threads=2)


def sent(pixel_format: str, height: int = HEIGHT, width: int = WIDTH) -> Sent:
    """A textured part with a dark spot, as bytes of a format; what they mean as colours is the format's affair."""
    rng = np.random.default_rng(3)
    rows, columns = {"NV12": (height * 3 // 2, width), "YUYV": (height, 2 * width)}.get(pixel_format, (height, width))
    if pixel_format in ("RGB8", "BGR8"):
        columns *= 3
    data = rng.normal(150, 8, (rows, columns))
    data[rows // 3 : rows // 3 + 20, columns // 2 : columns // 2 + 30] = 20
    grey = np.clip(data, 0, 255).astype(np.uint8)
    whole: NDArray[Any] = grey.astype(np.uint16) * 16 if pixel_format == "Mono16" else grey
    return Sent(whole, pixel_format, (height, width), bits=12)


@pytest.mark.parametrize("pixel_format", PIXEL_FORMATS)
def test_every_format_gives_the_verdict_of_its_rgb_image(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch, pixel_format: str
) -> None:
    raw = sent(pixel_format)
    frame = segmenter.camera_frame(raw, "camera")
    assert frame.image is not None and frame.views.keys() == set(segmenter.whole_views(HEIGHT, WIDTH)) != set()
    rgb = camera_image(raw.data, pixel_format, raw.size, bits=12)
    np.testing.assert_array_equal(frame.image, rgb)
    expected = segmenter.segment(Frame("rgb", 0, image=rgb))
    # The views are not made a second time.
    monkeypatch.setattr("agvas_runtime.scoring.make_views", lambda *given: pytest.fail("the views were there"))
    result = segmenter.segment(frame)
    assert result.error is None and result.score_map is not None and expected.score_map is not None
    np.testing.assert_array_equal(result.score_map, expected.score_map)


def test_tiles_of_a_large_frame_are_cut_from_its_image(segmenter: Segmenter) -> None:
    raw = sent("Mono8", 400, 480)
    rgb = camera_image(raw.data, "Mono8", raw.size)
    result, expected = segmenter.segment(segmenter.camera_frame(raw, "camera")), segmenter.segment(Frame("rgb", 0, image=rgb))
    assert result.tiles > 1 and result.score_map is not None and expected.score_map is not None
    np.testing.assert_array_equal(result.score_map, expected.score_map)


def test_bytes_that_are_missing_give_no_verdict_and_an_unknown_format_is_refused(segmenter: Segmenter) -> None:
    raw = sent("BayerRG8")
    result = segmenter.segment(segmenter.camera_frame(Sent(raw.data[1:], "BayerRG8", raw.size), "camera"))
    assert result.verdict is Verdict.NO_VERDICT and "is 19200 bytes" in str(result.error)
    with pytest.raises(UsageError, match=r"UYVY.*is not known"):
        segmenter.camera_frame(Sent(raw.data, "UYVY", raw.size), "camera")


class FakeCapture:
    """OpenCV's capture of a V4L2 camera, of which there is none here: it sends what it is set to, or its own format where it is stubborn."""

    def __init__(self, raw: Sent, stubborn: bool = False) -> None:
        self.raw, self.stubborn = raw, stubborn
        self.values = {cv2.CAP_PROP_FRAME_HEIGHT: raw.size[0], cv2.CAP_PROP_FRAME_WIDTH: raw.size[1], cv2.CAP_PROP_CONVERT_RGB: 1}
        self.values[cv2.CAP_PROP_FOURCC] = cv2.VideoWriter.fourcc(*"MJPG")

    def open(self, *given: object) -> bool:
        return True

    def set(self, what: int, value: float) -> bool:
        if not (self.stubborn and what == cv2.CAP_PROP_FOURCC):
            self.values[what] = value
        return True

    def get(self, what: int) -> float:
        return float(self.values[what])

    def grab(self) -> bool:
        return True

    def retrieve(self) -> tuple[bool, NDArray[Any]]:
        assert self.values[cv2.CAP_PROP_CONVERT_RGB] == 0
        return True, self.raw.data

    def release(self) -> None: ...


def test_a_camera_of_this_machine_sends_in_the_format_that_is_asked_for(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = sent("YUYV")
    monkeypatch.setattr(device, "os", SimpleNamespace(path=SimpleNamespace(exists=lambda path: True)))
    monkeypatch.setattr(device.cv2, "VideoCapture", lambda: FakeCapture(raw))
    with CameraSource("/dev/video7", pixel_format="YUYV") as camera:
        for result in segmenter.predict(camera, stream=True):
            assert result.error is None and result.image is not None
            np.testing.assert_array_equal(result.image, camera_image(raw.data, "YUYV", raw.size))
            break
        assert list(camera.whole_views(HEIGHT, WIDTH)) == segmenter.whole_views(HEIGHT, WIDTH)
    monkeypatch.setattr(device.cv2, "VideoCapture", lambda: FakeCapture(raw, stubborn=True))
    with (
        pytest.raises(SourceError, match=r"sends 'MJPG' and not 'YUYV'.*v4l2-ctl"),
        CameraSource("/dev/video7", pixel_format="YUYV") as camera,
    ):
        next(iter(camera))


def test_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["--camera", "rtsp://host/line", "--pixel-format", "YUYV"], "for cameras of this machine"),
        (["--camera", "0", "--pixel-format", "YUV"], "it can be Mono8"),
        (["part.png", "--pixel-format", "YUYV"], "is for --camera"),
    ):
        assert exit_code_of(lambda: app, name="agvas-run", arguments=[*arguments, "--save", "none"]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.skipif(native.core is None, reason="the native core was not built")
def test_threads_are_those_of_the_native_core_too(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = native.core
    assert real is not None

    class Recorder:
        def __getattr__(self, name: str) -> Any:
            function = getattr(real, name)

            def call(*given: Any) -> Any:
                asked.append(given[-1])
                return function(*given)

            return call if name in ("make_views", "judge_parts", "score_map") else function

    monkeypatch.setattr(native, "core", Recorder())
    raw = sent("Mono8")
    one = segmenter.segment(Frame("part", 0, image=camera_image(raw.data, "Mono8", raw.size)))
    segmenter.segment(segmenter.camera_frame(raw, "camera"))
    assert len(asked) >= 3 and set(asked) == {2}
    assert one.error is None

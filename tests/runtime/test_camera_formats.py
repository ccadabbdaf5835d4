"""What a camera sends goes to a verdict in one pass, and the verdict is that of the same picture as RGB; threads reach the native core."""

from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from agvas.run import run as app
from agvas_core.contract.command_line import exit_code_of
from agvas_core.contract.errors import SourceError, UsageError
from agvas_runtime import Segmenter, Verdict, native
from agvas_runtime.images.frame import Frame, Sent
from agvas_runtime.images.views import PIXEL_FORMATS, camera_frame, camera_image
from agvas_runtime.line.ledger.check import check_ledger, open_for_reading
from agvas_runtime.line.ledger.images import hash_of_image, read_kept
from agvas_runtime.line.recipe.file import parse_recipe
from agvas_runtime.line.station.inspector import SegmenterInspector
from agvas_runtime.sources import CameraSource, device

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
    monkeypatch.setattr("agvas_runtime.pipeline.scorer.make_views", lambda *given: pytest.fail("the views were there"))
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


RECIPE = """product: part
model: {model}
deadline_ms: 60000
frame: {{width_px: 160, height_px: 120}}
keep: {{sample_every: 1}}
kinds:
  spot: {{prompt: Please segment the dark spots in this image.}}
  light: {{prompt: Please segment the bright spots in this image.}}
rois:
  right: [[{left}, 0], [159, 0], [159, 119], [{left}, 119]]
rules:
  - {{roi: right, kind: spot, min_area_px: 40}}
"""


@pytest.mark.parametrize("left", [75, 130])  # the spot lies in the ROI, and outside of it
@pytest.mark.parametrize("pixel_format", PIXEL_FORMATS)
def test_a_recipe_gives_what_a_camera_sends_the_verdict_of_its_rgb_image(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, pixel_format: str, left: int
) -> None:
    version = parse_recipe(RECIPE.format(model=tiny_bundle, left=left), "test")
    inspector, raw = SegmenterInspector(), sent(pixel_format)
    inspector.prepare(version)
    image = camera_image(raw.data, pixel_format, raw.size, bits=12)
    expected = inspector.inspect(Frame("rgb", 0, image=image), version)
    frame = camera_frame(raw, inspector.whole_views(version, *raw.size), "camera")
    monkeypatch.setattr(
        "agvas_runtime.pipeline.scorer.make_views", lambda *given: pytest.fail("the views were there, for every kind")
    )
    found = inspector.inspect(frame, version)
    np.testing.assert_array_equal(found.score_map, expected.score_map)
    assert found.judgement.verdict is expected.judgement.verdict and found.judgement.findings == expected.judgement.findings
    if pixel_format in ("Mono8", "Mono16", "RGB8", "BGR8"):
        assert found.judgement.verdict is (Verdict.FAIL if left == 75 else Verdict.PASS)


def test_a_station_takes_a_pixel_format_and_keeps_the_rgb_image(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = sent("BayerRG8")
    image = camera_image(raw.data, "BayerRG8", raw.size)
    monkeypatch.setattr(device, "os", SimpleNamespace(path=SimpleNamespace(exists=lambda path: True)))
    monkeypatch.setattr(device.cv2, "VideoCapture", lambda: FakeCapture(raw))
    seen: list[Frame] = []
    real = SegmenterInspector.inspect

    def inspect(self: SegmenterInspector, frame: Frame, version: Any) -> Any:
        seen.append(frame)
        return real(self, frame, version)

    monkeypatch.setattr(SegmenterInspector, "inspect", inspect)
    recipe, state = tmp_path / "r.yaml", tmp_path / "line"
    recipe.write_text(RECIPE.format(model=tiny_bundle, left=75))
    options = ["--recipe", str(recipe), "--state", str(state), "--limit", "3", "--pixel-format", "BayerRG8"]
    assert exit_code_of(lambda: app, name="agvas-run", arguments=["--camera", "/dev/video7", *options]) == 0
    assert len(seen) == 3 and all(frame.views for frame in seen)
    with closing(open_for_reading(state)) as db:
        rows = db.execute("SELECT verdict, image_sha256, image_path FROM parts").fetchall()
    (row,) = set(row[:2] for row in rows)
    expected = SegmenterInspector()
    version = parse_recipe(recipe.read_text(), "test")
    expected.prepare(version)
    assert row == (expected.inspect(Frame("rgb", 0, image=image), version).judgement.verdict, hash_of_image(image))
    for *_, path in rows:
        kept = read_kept(state, path)
        assert kept is not None and np.array_equal(kept, image)
    assert check_ledger(state).faults == []


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["--camera", "rtsp://host/line", "--pixel-format", "YUYV"], "for cameras of this machine"),
        (["--camera", "0", "--pixel-format", "YUV"], "it can be Mono8"),
        (["part.png", "--pixel-format", "YUYV"], "is for --camera"),
        (["--camera", "0", "--pixel-format", "YUYV", "--pixel-format", "NV12"], "give it once"),
    ):
        assert exit_code_of(lambda: app, name="agvas-run", arguments=[*arguments, "--save", "none"]) == 2
        assert words in capsys.readouterr().err
    for arguments, words in (
        (["part.png", "--pixel-format", "YUYV"], "is for --camera"),
        (["--camera", f"watch:{tmp_path}", "--pixel-format", "YUYV"], "is for a camera"),
        (["--camera", "0", "--pixel-format", "YUYV", "--pixel-format", "NV12"], "once for each"),
        (["--camera", "0", "--pixel-format", "YUV"], "it can be Mono8"),
    ):
        recipe = ["--recipe", "r.yaml", "--state", str(tmp_path / "line")]
        assert exit_code_of(lambda: app, name="agvas-run", arguments=[*arguments, *recipe]) == 2
        assert words in capsys.readouterr().err, arguments


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

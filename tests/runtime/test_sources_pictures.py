"""Pictures in memory and behind web addresses: images of Pillow, tensors of torch, http."""

import base64
import http.server
import io
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from agvas_core.contract.errors import ImageError, UsageError
from agvas_runtime.images.read import read_image
from agvas_runtime.pipeline.segmenter import Segmenter
from agvas_runtime.sources import ArraySource, CameraSource, WebSource, open_source
from agvas_runtime.sources.web_pictures import is_web_picture

torch = pytest.importorskip("torch")

Part = Callable[..., NDArray[np.uint8]]

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def only(source: object) -> NDArray[np.uint8]:
    (frame,) = open_source(source)
    assert frame.image is not None, frame.error
    return frame.image


# --- Pillow


def test_an_image_of_pillow_is_read_as_its_file_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(PIXELS).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        (frame,) = open_source(image)
    assert frame.image is not None and frame.image.shape == (9, 6, 3)
    assert np.array_equal(frame.image, read_image(tmp_path / "turned.png"))
    assert frame.name == str(tmp_path / "turned.png")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"])
def test_every_mode_of_pillow_is_read(mode: str) -> None:
    image = Image.fromarray(PIXELS).convert("RGB")
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")  # type: ignore[assignment]
    else:
        image = image.convert(mode)
    assert only(image).shape == (6, 9, 3)


def test_sixteen_bits_of_pillow_are_not_cut_to_eight() -> None:
    wide = np.array([[0, 65535], [32768, 257]], np.uint16)
    assert only(Image.fromarray(wide)).tolist() == [[[0] * 3, [255] * 3], [[128] * 3, [1] * 3]]
    assert only(Image.fromarray(wide.astype(np.int32))).tolist() == only(wide).tolist()
    (frame,) = open_source(Image.fromarray(np.full((2, 2), 70_000, np.int32)))
    assert isinstance(frame.error, ImageError) and "70000" in str(frame.error)


def test_a_file_cut_short_is_an_error_of_its_frame() -> None:
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (99, 99, 3), np.uint8)).save(data, "PNG")
    image = Image.open(io.BytesIO(data.getvalue()[:400]))
    frames = list(open_source([image, Image.fromarray(PIXELS)]))
    assert isinstance(frames[0].error, ImageError) and frames[1].image is not None


# --- torch


@pytest.mark.parametrize("first", [True, False])
def test_tensors_have_channels_first_or_last(first: bool) -> None:
    tensor = torch.from_numpy(PIXELS)
    tensor = tensor.permute(2, 0, 1) if first else tensor
    assert np.array_equal(only(tensor), PIXELS)
    batch = torch.stack([tensor, tensor])
    assert [frame.index for frame in open_source(batch)] == [0, 1]
    assert all(np.array_equal(frame.image, PIXELS) for frame in open_source(batch) if frame.image is not None)
    assert open_source(batch).total == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_floats_of_torch_run_from_0_to_1(dtype: "torch.dtype") -> None:
    tensor = (torch.from_numpy(PIXELS).permute(2, 0, 1) / 255).to(dtype).requires_grad_()
    assert np.abs(only(tensor).astype(int) - PIXELS).max() <= (1 if dtype is torch.bfloat16 else 0)
    (frame,) = open_source(tensor * 2)
    assert isinstance(frame.error, ImageError)


def test_a_grey_tensor_and_a_list_of_kinds() -> None:
    grey = torch.from_numpy(PIXELS[..., 0])
    assert np.array_equal(only(grey), only(grey[None]))
    frames = list(open_source([grey, PIXELS, Image.fromarray(PIXELS)]))
    assert [frame.name for frame in frames] == ["array-000000", "array-000001", "array-000002"]
    with pytest.raises(UsageError, match="dict"):
        list(open_source([grey, {}]))


def test_arrays_do_not_import_torch() -> None:
    script = "import sys, numpy; from agvas_runtime.sources import open_source; list(open_source(numpy.zeros((4, 4, 3), 'uint8'))); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


# --- the web


class Server(http.server.ThreadingHTTPServer):
    """Answers by path; ``asked`` has the paths and headers of all requests."""

    daemon_threads = True

    def __init__(self, png: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.png = png
        self.asked: list[tuple[str, dict[str, str]]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.asked.append((self.path, dict(self.headers)))
        path = self.path.partition("?")[0]
        if path.startswith("/to/"):
            self.send_response(302)
            self.send_header(
                "Location",
                {
                    "/to/part.png": "/part.png",
                    "/to/loop.png": "/to/loop.png",
                    "/to/file.png": "file:///etc/passwd",
                    "/to/other.png": f"http://localhost:{server.server_port}/part.png",
                }[path],
            )
            self.end_headers()
            return
        if path == "/missing.png":
            self.send_error(404)
            return
        if path == "/slow.png":
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.end_headers()
            for _ in range(200):
                try:
                    self.wfile.write(server.png[:1])
                    self.wfile.flush()
                except OSError:
                    return
                time.sleep(0.05)
            return
        if path == "/silent.png":
            time.sleep(3)
            return
        self.send_response(200)
        kind = {"/page.png": "text/html; charset=utf-8", "/file.png": "application/octet-stream", "/bare.png": None}.get(
            path, "image/png"
        )
        if kind:
            self.send_header("Content-Type", kind)
        if path != "/long.png":
            self.send_header("Content-Length", str(len(server.png) + (50 if path == "/short.png" else 0)))
        self.end_headers()
        self.wfile.write(server.png * (100 if path == "/long.png" else 1))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(make_part: Part) -> Iterator[Server]:
    done, png = cv2.imencode(".png", make_part(spots=[(40, 40, 12)]))
    assert done
    with Server(png.tobytes()) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_addresses_of_pictures_are_told_from_cameras() -> None:
    assert is_web_picture("https://host/a/Part%201.JPG?size=2#x") and is_web_picture("HTTP://host/x.tiff")
    for other in (
        "http://host/video.mjpg",
        "http://host/",
        "rtsp://host/x.png",
        "x.png",
        "file:///x.png",
        "ftp://host/x.png",
        "http://[x.png",
    ):
        assert not is_web_picture(other)
    assert isinstance(open_source("http://127.0.0.1:9/video"), CameraSource)


def test_a_picture_of_the_web_is_judged(server: Server, tiny_bundle: Path, make_part: Part) -> None:
    segmenter = Segmenter.load(tiny_bundle)
    found = segmenter.predict([f"{server.address}/part.png", f"{server.address}/missing.png", f"{server.address}/bare.png"])
    assert [str(result.verdict) for result in found] == ["FAIL", "NO_VERDICT", "FAIL"]
    expected = segmenter.predict(make_part(spots=[(40, 40, 12)]))[0]
    assert found[0].regions == expected.regions
    assert found[0].name == f"{server.address}/part.png" and "404" in str(found[1].error)


@pytest.mark.parametrize("path", ["/file.png", "/to/part.png", "/to/other.png", "/a%20b.png", "/a b.png", "/ü.png"])
def test_what_is_a_picture_in_the_end_is_read(server: Server, path: str) -> None:
    assert only(f"{server.address}{path}").shape == (96, 128, 3)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/missing.png", "404"),
        ("/page.png", "text/html"),
        ("/short.png", "50 bytes"),
        ("/to/file.png", "file"),
        ("/to/loop.png", "infinite loop"),
    ],
)
def test_what_cannot_be_had_is_an_error_of_its_frame(server: Server, path: str, says: str) -> None:
    (frame,) = open_source(f"{server.address}{path}")
    assert isinstance(frame.error, ImageError) and says in str(frame.error) and path in str(frame.error)


def test_downloads_are_bounded_in_bytes_and_time(server: Server) -> None:
    size = len(server.png)
    for path in ("/part.png", "/long.png"):  # with and without a length that is said beforehand
        (frame,) = WebSource([f"{server.address}{path}"], max_bytes=size - 1)
        assert isinstance(frame.error, ImageError) and str(size - 1) in str(frame.error)
    (frame,) = WebSource([f"{server.address}/slow.png"], download_s=0.3)
    assert isinstance(frame.error, ImageError) and "0.3 s" in str(frame.error)
    (frame,) = WebSource([f"{server.address}/silent.png"], connect_s=0.2)
    assert isinstance(frame.error, ImageError) and "timed out" in str(frame.error)
    (frame,) = open_source("http://127.0.0.1:9/part.png")
    assert isinstance(frame.error, ImageError)


def test_a_password_goes_to_its_host_only_and_is_never_shown(server: Server) -> None:
    address = server.address.replace("http://", "http://eva:s3%20cret@")
    (frame,) = open_source(f"{address}/to/other.png?token=abc")
    assert frame.image is not None and "s3" not in frame.name and "abc" not in frame.name
    (first, headers), (_, later) = server.asked
    assert "token=abc" in first and base64.b64decode(headers["Authorization"].split()[1]) == b"eva:s3 cret"
    assert "Authorization" not in later
    (frame,) = open_source(f"{address}/missing.png?token=abc")
    assert "s3" not in str(frame.error) and "abc" not in str(frame.error)


def test_addresses_and_files_do_not_mix_and_every_counts_addresses(server: Server, tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="do not mix"):
        open_source([f"{server.address}/part.png", str(tmp_path / "a.png")])
    source = open_source([f"{server.address}/{number}.png" for number in range(5)], every=2)
    assert source.total == 3 and len(list(source)) == 3
    assert [path for path, _ in server.asked] == ["/0.png", "/2.png", "/4.png"]
    with pytest.raises(UsageError, match=r"http:///part\.png"):
        open_source("http:///part.png")


def test_arrays_stay_as_they_were() -> None:
    assert np.array_equal(only(PIXELS), PIXELS)
    assert ArraySource(np.stack([PIXELS, PIXELS])).total == 2

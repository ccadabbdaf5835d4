"""What read_image promises: right colours, right way up, within bounds, and never half a picture."""

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError
from agvas_runtime.images.read import decode_image, read_image

Rgb = NDArray[np.uint8]
LOSSLESS = [".png", ".bmp", ".tiff", ".webp", ".ppm", ".pam"]
MORE_HEADERS = {
    ".jpg": b"\xff\xd8\xff",
    ".png": b"\x89PNG\r\n\x1a\n",
    ".tiff": b"II*\0",
    ".webp": b"RIFF0000WEBP",
    ".pgm": b"P5 ",
}


@pytest.fixture
def picture() -> Rgb:
    """RGB [24, 40, 3]: smooth, with another colour in each corner."""
    rows, columns = np.mgrid[0:24, 0:40]
    return np.stack([rows * 10, columns * 6, 255 - rows * 5 - columns], axis=-1).astype(np.uint8)


def encode(suffix: str, rgb: NDArray[np.integer | np.floating], *options: int) -> bytes:
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}
    swapped = rgb[..., order[rgb.shape[2]]] if rgb.ndim == 3 else rgb
    if suffix == ".webp" and not options:
        options = (cv2.IMWRITE_WEBP_QUALITY, 101)  # lossless
    done, data = cv2.imencode(suffix, swapped, list(options))
    assert done
    return data.tobytes()


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


def exif(orientation: int) -> bytes:
    return b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 274, 3, 1, orientation, 0, 0)


def jpeg_with_exif(jpeg: bytes, orientation: int) -> bytes:
    block = b"Exif\0\0" + exif(orientation)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:]


def tiff(width: int, height: int, bits: int, rows: bytes, *more: tuple[int, int]) -> bytes:
    """Uncompressed grey TIFF in one strip, its directory first; ``more`` are further (tag, value)."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 277: 1, 278: height, 279: len(rows), 273: 0, **dict(more)}
    start = 8 + 2 + 12 * len(tags) + 4
    tags[273] = start
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + rows


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_lossless_formats_give_the_very_colours(tmp_path: Path, picture: Rgb, suffix: str) -> None:
    path = tmp_path / f"part{suffix}"
    path.write_bytes(encode(suffix, picture))
    read = read_image(path)
    assert read.dtype == np.uint8 and read.flags.c_contiguous
    np.testing.assert_array_equal(read, picture)


def test_jpeg_gives_nearly_the_colours(picture: Rgb) -> None:
    error = np.abs(decode_image(encode(".jpg", picture)).astype(int) - picture)
    assert error.mean() < 4


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tiff", ".pgm"])
def test_grey_becomes_three_equal_channels(picture: Rgb, suffix: str) -> None:
    read = decode_image(encode(suffix, picture[..., 0]))
    assert read.shape == picture.shape
    assert (read == read[..., :1]).all()


@pytest.mark.parametrize("suffix", [*LOSSLESS, ".jpg", ".pgm"])
def test_one_pixel_is_a_picture(suffix: str) -> None:
    pixel = np.full((1, 1, 3) if suffix != ".pgm" else (1, 1), 200, np.uint8)
    np.testing.assert_allclose(decode_image(encode(suffix, pixel)), np.full((1, 1, 3), 200), atol=2)


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".webp"])
def test_alpha_is_laid_over_white(suffix: str) -> None:
    rgba = np.array([[[200, 100, 50, 255], [200, 100, 50, 128], [200, 100, 50, 0]]], np.uint8)
    read = decode_image(encode(suffix, rgba))
    np.testing.assert_allclose(read, [[[200, 100, 50], [227, 177, 152], [255, 255, 255]]], atol=1)


@pytest.mark.parametrize("kind", [1, 2])
def test_tiff_with_declared_alpha_is_laid_over_white(kind: int) -> None:
    # Kind 1 stores colours multiplied by alpha, kind 2 as they are.
    stored = bytes([100, 50, 25, 128]) if kind == 1 else bytes([200, 100, 50, 128])
    data = tiff(1, 1, 8, stored, (262, 2), (277, 4), (338, kind))
    # Four samples need four bit depths, which do not fit into the entry.
    data = data.replace(struct.pack("<HHII", 258, 4, 1, 8), struct.pack("<HHII", 258, 3, 4, len(data))) + struct.pack(
        "<4H", 8, 8, 8, 8
    )
    np.testing.assert_allclose(decode_image(data), [[[227, 177, 152]]], atol=1)


def test_unused_fourth_byte_of_a_bmp_is_no_transparency() -> None:
    masks = struct.pack("<3I", 0xFF0000, 0xFF00, 0xFF)
    info = struct.pack("<IiiHHIIiiII", 40, 1, 1, 1, 32, 3, 4, 0, 0, 0, 0)
    data = b"BM" + struct.pack("<IHHI", 70, 0, 0, 66) + info + masks + bytes([50, 100, 200, 0])
    np.testing.assert_array_equal(decode_image(data), [[[200, 100, 50]]])


def test_grey_png_with_alpha_and_one_bit_png() -> None:
    np.testing.assert_array_equal(decode_image(png(2, 1, 8, 4, b"\0\x10\xff\x30\x00"))[0, :, 0], [0x10, 255])
    np.testing.assert_array_equal(decode_image(png(4, 1, 1, 0, b"\0\xa0"))[0, :, 0], [255, 0, 255, 0])


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".pgm"])
def test_sixteen_bits_use_the_full_range_whatever_is_in_the_picture(suffix: str) -> None:
    dark = np.array([[0, 257, 4095]], np.uint16)
    bright = np.array([[0, 257, 65535]], np.uint16)
    assert decode_image(encode(suffix, dark))[0, :, 0].tolist() == [0, 1, 16]
    assert decode_image(encode(suffix, bright))[0, :, 0].tolist() == [0, 1, 255]


def test_twelve_bits_are_scaled_when_asked_for_and_hinted_at_when_not() -> None:
    data = encode(".png", np.array([[0, 2048, 4095]], np.uint16))
    assert decode_image(data, bits=12)[0, :, 0].tolist() == [0, 128, 255]
    notes: list[str] = []
    decode_image(data, note=notes.append)
    assert len(notes) == 1 and "--bits 12" in notes[0]
    with pytest.raises(ImageError, match=r"4095.*1023"):
        decode_image(data, bits=10)


def test_netpbm_maximum_is_white() -> None:
    samples = np.array([0, 2048, 4095], ">u2")
    assert decode_image(b"P5\n# a comment\n3 1\n4095\n" + samples.tobytes())[0, :, 0].tolist() == [0, 128, 255]
    assert decode_image(b"P5 3 1 100\n" + bytes([0, 50, 100]))[0, :, 0].tolist() == [0, 128, 255]
    assert decode_image(b"P2 3 1 4095\n0 2048 4095\n")[0, :, 0].tolist() == [0, 128, 255]
    assert decode_image(b"P1 2 1\n0 1\n")[0, :, 0].tolist() == [255, 0]


def test_packed_twelve_bit_tiff_uses_the_full_range() -> None:
    read = decode_image(tiff(2, 1, 12, bytes([0xFF, 0xF0, 0x00])))
    assert read[0, :, 0].tolist() == [255, 0]


def test_floats_run_from_zero_to_one_and_others_are_refused() -> None:
    assert decode_image(encode(".tiff", np.array([[0.0, 0.5, 1.0]], np.float32)))[0, :, 0].tolist() == [0, 128, 255]
    for value in (-0.1, 255.0, np.nan):
        with pytest.raises(ImageError, match="0 to 1 is needed"):
            decode_image(encode(".tiff", np.array([[0.5, value]], np.float32)))


def test_samples_of_unknown_full_scale_are_refused() -> None:
    with pytest.raises(ImageError, match="int32"):
        decode_image(encode(".tiff", np.array([[1]], np.int32)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_alike_to_every_format(picture: Rgb, orientation: int) -> None:
    # Tag 274 says where row 0 and column 0 of what is stored belong; 6: row 0 is the right side, so turn clockwise.
    stored = picture.astype(np.uint8)
    upright = {
        1: stored,
        2: np.fliplr(stored),
        3: np.rot90(stored, 2),
        4: np.flipud(stored),
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: np.rot90(stored, 2).transpose(1, 0, 2),
        8: np.rot90(stored, 1),
    }[orientation]
    jpeg = jpeg_with_exif(encode(".jpg", stored, cv2.IMWRITE_JPEG_QUALITY, 100), orientation)
    read = decode_image(jpeg)
    assert read.shape == upright.shape
    assert np.abs(read.astype(int) - upright).mean() < 3
    rows = b"".join(b"\0" + row.tobytes() for row in stored)
    np.testing.assert_array_equal(decode_image(png(40, 24, 8, 2, rows, (b"eXIf", exif(orientation)))), upright)
    grey = decode_image(tiff(40, 24, 8, stored[..., 0].tobytes(), (274, orientation)))
    np.testing.assert_array_equal(grey[..., 0], upright[..., 0])
    webp = encode(".webp", stored)
    pixels = webp[12:]
    flags = struct.pack("<I", 0x08) + (39).to_bytes(3, "little") + (23).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + flags + pixels + b"EXIF" + struct.pack("<I", len(exif(1))) + exif(orientation)
    np.testing.assert_array_equal(decode_image(b"RIFF" + struct.pack("<I", len(body)) + body), upright)


def test_a_broken_exif_block_does_not_spoil_the_picture(picture: Rgb) -> None:
    jpeg = encode(".jpg", picture)
    block = b"Exif\0\0MM\0*\xff\xff\xff\xff"
    spoilt = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:]
    np.testing.assert_array_equal(decode_image(spoilt), decode_image(jpeg))


def whole_files() -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(5)
    noise = cv2.GaussianBlur(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8), (0, 0), 1)
    for suffix in (*LOSSLESS, ".jpg"):
        yield suffix, encode(suffix, noise)
    yield ".pfm", encode(".pfm", noise.astype(np.float32) / 255)
    yield "progressive.jpg", encode(".jpg", noise, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    yield "restart.jpg", encode(".jpg", noise, cv2.IMWRITE_JPEG_RST_INTERVAL, 2)
    yield "thumbnail.jpg", with_thumbnail(encode(".jpg", noise), encode(".jpg", noise[:8, :8]))
    yield "directory-first.tiff", tiff(64, 48, 8, noise[..., 0].tobytes())


def with_thumbnail(jpeg: bytes, small: bytes) -> bytes:
    block = b"Exif\0\0" + exif(1) + small
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:]


@pytest.mark.parametrize(("name", "data"), [pytest.param(*item, id=item[0]) for item in whole_files()])
def test_a_file_cut_short_is_an_error_or_still_the_whole_picture(
    name: str, data: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = decode_image(data)
    for kept in [*range(0, len(data), max(1, len(data) // 40)), *range(len(data) - 4, len(data))]:
        try:
            read = decode_image(data[:kept])
        except ImageError:
            continue
        np.testing.assert_array_equal(read, whole, err_msg=f"{name} cut to {kept} of {len(data)} bytes")
    assert "OpenCV" not in capfd.readouterr().err  # the log stays quiet; libpng's own print is out of reach


@pytest.mark.parametrize("options", [(), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)])
def test_a_jpeg_closed_before_its_last_rows_is_an_error(options: tuple[int, ...]) -> None:
    rng = np.random.default_rng(6)
    data = encode(".jpg", rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), *options)
    for kept in (0.3, 0.5, 0.8):
        with pytest.raises(ImageError, match=r"fewer pixels|cannot be decoded"):
            decode_image(data[: int(len(data) * kept)].rstrip(b"\xff") + b"\xff\xd9")


def test_a_jpeg_that_is_mid_grey_is_a_whole_picture() -> None:
    for options in ((), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)):
        assert (decode_image(encode(".jpg", np.full((64, 64, 3), 128, np.uint8), *options)) == 128).all()


def test_what_follows_the_end_of_a_jpeg_is_ignored(picture: Rgb) -> None:
    data = encode(".jpg", picture)
    np.testing.assert_array_equal(decode_image(data + bytes(100)), decode_image(data))


def test_a_changed_byte_in_a_png_is_noticed(picture: Rgb) -> None:
    data = bytearray(encode(".png", picture))
    data[len(data) // 2] ^= 1
    with pytest.raises(ImageError, match="checksum"):
        decode_image(bytes(data))


def test_the_pixel_cap_holds_before_decoding_and_names_its_flag(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    path.write_bytes(png(20_000, 20_000, 8, 0, b""))  # no pixels in it at all: whoever decodes gets another error
    with pytest.raises(ImageError, match=r"20000x20000 px, 400\.0 megapixels; the cap is 100: pass --max-pixels 400000000"):
        read_image(path)
    with pytest.raises(ImageError, match="cannot be decoded"):
        read_image(path, max_pixels=400_000_000)


@pytest.mark.parametrize("suffix", [*LOSSLESS, ".jpg", ".pgm", ".pfm"])
def test_every_format_tells_its_size_before_decoding(picture: Rgb, suffix: str) -> None:
    pixels = picture[..., 0] if suffix == ".pgm" else picture.astype(np.float32) / 255 if suffix == ".pfm" else picture
    data = encode(suffix, pixels)
    assert decode_image(data, max_pixels=24 * 40).shape == picture.shape
    with pytest.raises(ImageError, match=r"is 40x24 px"):
        decode_image(data, max_pixels=24 * 40 - 1)


def test_lossy_webp_and_webp_with_alpha_tell_their_size() -> None:
    rgba = np.full((5, 7, 4), 90, np.uint8)
    for data in (
        encode(".webp", rgba[..., :3], cv2.IMWRITE_WEBP_QUALITY, 50),
        encode(".webp", rgba, cv2.IMWRITE_WEBP_QUALITY, 50),
    ):
        with pytest.raises(ImageError, match="is 7x5 px"):
            decode_image(data, max_pixels=1)


def test_what_is_no_image_says_why(tmp_path: Path, picture: Rgb) -> None:
    text = tmp_path / "text.png"
    text.write_text("hello, this is a note")
    with pytest.raises(ImageError, match=r"text\.png: file starts with b'hello, t'.*convert"):
        read_image(text)
    empty = tmp_path / "empty.jpg"
    empty.touch()
    with pytest.raises(ImageError, match=r"empty\.jpg: file is empty \(0 bytes\)"):
        read_image(empty)
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match="No such file"):
        read_image(tmp_path / "gone.png")
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    with pytest.raises(ImageError, match="a device or a pipe"):
        read_image(pipe)
    padded = tmp_path / "padded.png"
    padded.write_bytes(encode(".png", picture))
    os.truncate(padded, 1 << 30)
    with pytest.raises(ImageError, match="has 1073741824 bytes for 40x24 px"):
        read_image(padded)


def test_a_wrong_suffix_does_not_matter(tmp_path: Path, picture: Rgb) -> None:
    path = tmp_path / "really-a-png.jpg"
    path.write_bytes(encode(".png", picture))
    np.testing.assert_array_equal(read_image(path), picture)


def test_a_file_that_may_not_be_read_is_an_error(tmp_path: Path, picture: Rgb) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encode(".png", picture))
    path.chmod(0)
    root = os.geteuid() == 0  # root reads everything, so it becomes somebody else for a moment
    try:
        if root:
            os.seteuid(65534)
        with pytest.raises(ImageError, match="Permission denied"):
            read_image(path)
    finally:
        if root:
            os.seteuid(0)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(MORE_HEADERS)), st.binary(max_size=400), st.booleans())
def test_random_bytes_are_an_image_error_or_an_image(suffix: str, noise: bytes, with_header: bool) -> None:
    try:
        read = decode_image((MORE_HEADERS[suffix] if with_header else b"") + noise, max_pixels=1_000_000)
    except ImageError:
        return
    assert read.dtype == np.uint8 and read.ndim == 3


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([item[1] for item in whole_files()]), st.data())
def test_changed_bytes_are_an_image_error_or_an_image(data: bytes, draw: st.DataObject) -> None:
    changed = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 6))):
        changed[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        read = decode_image(bytes(changed), max_pixels=1_000_000)
    except ImageError:
        return
    assert read.dtype == np.uint8 and read.ndim == 3


def test_a_bmp_that_may_end_early_without_telling_is_refused() -> None:
    palette = b"".join(bytes((grey, grey, grey, 0)) for grey in range(256))
    info = struct.pack("<IiiHHIIiiII", 40, 100, 100, 1, 8, 1, 0, 0, 0, 256, 0)  # 100x100, 8 bits, run-length encoded
    ten_rows = b"\x64\xd0\x00\x00" * 10 + b"\x00\x01"  # and the mark of the end: OpenCV gives black for the other ninety
    with pytest.raises(ImageError, match="run-length"):
        decode_image(struct.pack("<2sIHHI", b"BM", 0, 0, 0, 54 + 1024) + info + palette + ten_rows)


def test_a_jpeg_that_never_comes_to_its_size_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8" + b"\xff" * 3_000_000)
    with pytest.raises(ImageError, match="no frame header within its first 65536 markers"):
        read_image(tmp_path / "a.jpg")

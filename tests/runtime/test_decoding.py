"""Files as cameras and programs write them, and files that were damaged: the right pixels, or none."""

import importlib.util
import struct
import sys
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms

from agvas_core.contract.errors import ImageError
from agvas_core.contract.images.shifted import shifted_from
from agvas_runtime.images.read import count_pages, decode_image, read_image
from agvas_runtime.sources import FileSource, FolderWatch

Rgb = NDArray[np.uint8]
ROOT = Path(__file__).parents[2]
CASES = ROOT.parent / "shared" / "cases"


@pytest.fixture
def picture() -> Rgb:
    """RGB [48, 80, 3]: smooth, with another colour in each corner."""
    rows, columns = np.mgrid[0:48, 0:80]
    return np.stack([rows * 5, columns * 3, 255 - rows * 2 - columns], axis=-1).astype(np.uint8)


def tif(pixels: NDArray[Any], **options: Any) -> bytes:
    file = BytesIO()
    tifffile.imwrite(file, pixels, metadata=None, **options)
    return file.getvalue()


def jpeg(rgb: Rgb, *options: int) -> bytes:
    return cv2.imencode(".jpg", rgb[..., ::-1], list(options))[1].tobytes()


def with_segment(data: bytes, code: int, content: bytes) -> bytes:
    return data[:2] + bytes([0xFF, code]) + struct.pack(">H", len(content) + 2) + content + data[2:]


def png(width: int, height: int, bits: int, colour: int, stream: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", stream), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


def seen_from(orientation: int, upright: Rgb) -> Rgb:
    """What is stored where row 0 and column 0 lie as ``orientation`` says."""
    if orientation in (2, 3, 6, 7):
        upright = upright[:, ::-1]
    if orientation in (3, 4, 7, 8):
        upright = upright[::-1]
    if orientation >= 5:
        upright = upright.transpose(1, 0, 2)
    return np.ascontiguousarray(upright)


# TIFF


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "layout",
    [{}, {"tile": (32, 16)}, {"rowsperstrip": 7}, {"compression": "zlib", "predictor": True}, {"compression": "lzma"}],
    ids=["one", "tiles", "strips", "zlib", "lzma"],
)
@pytest.mark.parametrize("planar", [False, True])
def test_tiff_layouts_give_the_same_pixels(picture: Rgb, bits: int, order: str, layout: dict[str, Any], planar: bool) -> None:
    stored = picture if bits == 8 else picture.astype(np.uint16) * 257
    stored = stored.transpose(2, 0, 1) if planar else stored
    data = tif(stored, photometric="rgb", planarconfig="separate" if planar else "contig", byteorder=order, **layout)
    np.testing.assert_array_equal(decode_image(data), picture)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("layout", [{}, {"tile": (16, 32)}, {"planarconfig": "separate"}], ids=["strip", "tiles", "planes"])
def test_tiff_is_turned_upright(picture: Rgb, orientation: int, layout: dict[str, Any]) -> None:
    stored = seen_from(orientation, picture)
    if "planarconfig" in layout:
        stored = np.ascontiguousarray(stored.transpose(2, 0, 1))
    data = tif(stored, photometric="rgb", extratags=[(274, "H", 1, orientation, True)], **layout)
    np.testing.assert_array_equal(decode_image(data), picture)


def test_tiff_lzw_of_opencv_and_of_any_grid(picture: Rgb) -> None:
    for pixels in (picture, picture.astype(np.uint16) * 257):
        written = cv2.imencode(".tiff", pixels[..., ::-1], [cv2.IMWRITE_TIFF_ROWSPERSTRIP, 5])[1].tobytes()
        np.testing.assert_array_equal(decode_image(written), picture)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_tiff_floats(dtype: str) -> None:
    assert decode_image(tif(np.array([[0.0, 0.5, 1.0]], dtype)))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(("bits", "stored", "grey"), [(2, 0b00011011, [0, 85, 170, 255]), (4, 0x0F, [0, 255])])
def test_tiff_of_few_bits(bits: int, stored: int, grey: list[int]) -> None:
    data = bytearray(tif(np.array([[stored]], np.uint8), photometric="minisblack"))
    with tifffile.TiffFile(BytesIO(bytes(data))) as file:
        tags = file.pages[0].tags
    for tag, value in ((256, 8 // bits), (258, bits)):
        struct.pack_into("<I" if tags[tag].dtype == 4 else "<H", data, tags[tag].valueoffset, value)
    assert decode_image(bytes(data))[0, :, 0].tolist() == grey


def test_tiff_white_is_zero(picture: Rgb) -> None:
    grey = picture[..., 1]
    for dtype, white in ((np.uint8, 255), (np.uint16, 65535)):
        stored = white - grey.astype(dtype) * (white // 255)
        read = decode_image(tif(stored.astype(dtype), photometric="miniswhite"))
        np.testing.assert_array_equal(read[..., 0], grey)


def test_tiff_palette(picture: Rgb) -> None:
    indices = picture[..., 0] // 16
    table = np.zeros((3, 256), np.uint16)
    table[:, :16] = np.random.default_rng(1).integers(0, 256, (3, 16)) * 257
    read = decode_image(tif(indices, photometric="palette", colormap=table))
    np.testing.assert_array_equal(read, (table // 257).astype(np.uint8).T[indices])


@pytest.mark.parametrize("bits", [8, 16])
def test_tiff_alpha_is_laid_over_white_once(bits: int) -> None:
    scale = 1 if bits == 8 else 257
    straight = np.array([[[200, 100, 50, 128], [200, 100, 50, 0]]], np.uint16) * scale
    multiplied = np.array([[[100, 50, 25, 128], [0, 0, 0, 0]]], np.uint16) * scale
    for stored, kind in ((straight, "unassalpha"), (multiplied, "assocalpha")):
        data = tif(stored.astype(f"uint{bits}"), photometric="rgb", extrasamples=[kind])
        np.testing.assert_allclose(decode_image(data), [[[227, 177, 152], [255, 255, 255]]], atol=1)
    grey = np.array([[[200, 128]]], np.uint16) * scale
    data = tif(grey.astype(f"uint{bits}"), photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"])
    np.testing.assert_allclose(decode_image(data), [[[227, 227, 227]]], atol=1)


@pytest.mark.parametrize("more", [1, 2])
def test_tiff_samples_that_are_not_alpha_are_passed_over_with_a_note(picture: Rgb, more: int) -> None:
    stored = np.concatenate([picture, *[255 - picture[..., :1]] * more], axis=2)
    notes: list[str] = []
    data = tif(stored, photometric="rgb", planarconfig="contig", extrasamples=["unspecified"] * more)
    np.testing.assert_array_equal(decode_image(data, note=notes.append), picture)
    assert len(notes) == 1 and str(3 + more) in notes[0]


def test_tiff_pages_are_pictures_and_thumbnails_are_not(picture: Rgb, tmp_path: Path) -> None:
    path = tmp_path / "scan.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(picture[::4, ::4], photometric="rgb", subfiletype=1, metadata=None)
        file.write(picture, photometric="rgb", metadata=None)
        file.write(picture[..., 0] > 99, photometric=4, subfiletype=4, metadata=None)  # a mask of the page before
        file.write(255 - picture, photometric="rgb", metadata=None)
    assert count_pages(path) == 2
    np.testing.assert_array_equal(read_image(path, page=1), 255 - picture)
    notes: list[str] = []
    np.testing.assert_array_equal(read_image(path, note=notes.append), picture)
    assert len(notes) == 1 and "2 pages" in notes[0] and "--pages" in notes[0]
    with pytest.raises(ImageError, match=r"page 2 .* has 2"):
        read_image(path, page=2)
    with FileSource([path], pages=True) as source:
        frames = list(source)
        assert source.total == 2
    assert [frame.name for frame in frames] == [f"{path}#000000", f"{path}#000001"]
    np.testing.assert_array_equal(frames[1].image, 255 - picture)
    with FileSource([path]) as source:
        assert [frame.name for frame in source] == [str(path)]
        assert any("2 pages" in note for note in source.notes)


def test_tiff_compression_that_is_missing_is_named() -> None:
    data = bytearray(tif(np.zeros((8, 8), np.uint8), photometric="minisblack"))
    with tifffile.TiffFile(BytesIO(bytes(data))) as file:
        struct.pack_into("<H", data, file.pages[0].tags[259].valueoffset, 34887)
    with pytest.raises(ImageError, match=r"LERC.*agvas\[images\]|LERC"):
        decode_image(bytes(data))


@pytest.mark.parametrize("tag", [258, 262, 274, 277])
def test_tiff_with_a_broken_tag_is_refused_and_not_guessed_at(picture: Rgb, tag: int) -> None:
    data = bytearray(tif(picture, photometric="rgb", extratags=[(274, "H", 1, 3, True)]))
    with tifffile.TiffFile(BytesIO(bytes(data))) as file:
        struct.pack_into("<H", data, file.pages[0].tags[tag].offset + 2, 77)  # a type that there is not
    with pytest.raises(ImageError):
        decode_image(bytes(data))


@pytest.mark.parametrize("layout", [{}, {"tile": (16, 16)}, {"compression": "zlib"}], ids=["strip", "tiles", "zlib"])
def test_tiff_that_lost_bytes_is_refused_or_reads_the_same_each_time(picture: Rgb, layout: dict[str, Any]) -> None:
    data = tif(picture, photometric="rgb", **layout)
    whole = decode_image(data)
    for kept in range(len(data) // 3, len(data), 97):
        try:
            read = decode_image(data[:kept])
        except ImageError:
            continue
        np.testing.assert_array_equal(read, whole)


@pytest.mark.parametrize("make", [
    lambda rgb: tif(np.ascontiguousarray(rgb.transpose(2, 0, 1)).astype(np.uint16) * 257, photometric="rgb", planarconfig="separate"),
    lambda rgb: tif(rgb, photometric="rgb", tile=(32, 32)),
    lambda rgb: cv2.imencode(".tiff", rgb)[1].tobytes(),
], ids=["planes", "tiles", "lzw"])  # fmt: skip
def test_a_file_gives_the_same_pixels_a_hundred_times(picture: Rgb, make: Callable[[Rgb], bytes]) -> None:
    data = make(picture)
    first = decode_image(data)
    assert all(np.array_equal(decode_image(data), first) for _ in range(100))


def test_a_changed_lzw_stream_never_gives_chance_pixels(picture: Rgb) -> None:
    rng = np.random.default_rng(3)
    data = cv2.imencode(".tiff", picture, [cv2.IMWRITE_TIFF_ROWSPERSTRIP, 6])[1].tobytes()
    for _ in range(40):
        changed = bytearray(data)
        at = int(rng.integers(200, len(data)))
        changed[at : at + 8] = rng.bytes(8)
        results = set()
        for _ in range(3):
            np.full(picture.size * 4, int(rng.integers(256)), np.uint8)  # other bytes where the next picture may be put
            try:
                results.add(decode_image(bytes(changed)).tobytes())
            except ImageError:
                results.add(b"refused")
        assert len(results) == 1


# Which way up, what is white, which colours


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [1, 3, 4, 6, 8, 9, 2, 5])
def test_orientation_of_any_type_and_byte_order(picture: Rgb, order: str, kind: int) -> None:
    value = {1: "B3x", 3: "H2x", 4: "I", 6: "b3x", 8: "h2x", 9: "i"}.get(kind)
    content = struct.pack(order + value, 6) if value else b"6\0\0\0" if kind == 2 else struct.pack(order + "I", 26)
    count = 2 if kind == 2 else 1
    block = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IHHHI", 8, 1, 274, kind, count) + content + bytes(4)
    block += struct.pack(order + "II", 6, 1)
    stored = np.ascontiguousarray(np.rot90(picture))  # 6: turn clockwise
    read = decode_image(with_segment(jpeg(stored, cv2.IMWRITE_JPEG_QUALITY, 100), 0xE1, b"Exif\0\0" + block))
    assert read.shape == picture.shape and np.abs(read.astype(int) - picture).mean() < 4


def test_orientation_in_the_text_that_old_tools_write_into_png(picture: Rgb) -> None:
    block = b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 274, 3, 1, 6, 0, 0)
    text = b"\nexif\n%8d\n%s\n" % (len(block), block.hex().encode())
    stored = np.ascontiguousarray(np.rot90(picture))
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in stored))
    chunk = (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))
    np.testing.assert_array_equal(decode_image(png(48, 80, 8, 2, rows, chunk)), picture)


@pytest.mark.parametrize(("bits", "row", "clear"), [(2, b"\0\x1b", 1), (8, b"\0\0\1\2\3", 1), (16, b"\0\0\0\0\1\0\2\0\3", 1)])
def test_a_transparent_grey_value_is_white(bits: int, row: bytes, clear: int) -> None:
    read = decode_image(png(4, 1, bits, 0, zlib.compress(row), (b"tRNS", struct.pack(">H", clear))))[0, :, 0]
    plain = decode_image(png(4, 1, bits, 0, zlib.compress(row)))[0, :, 0]
    assert read[1] == 255 and read[[0, 2, 3]].tolist() == plain[[0, 2, 3]].tolist()


def profile(swap: bool) -> bytes:
    """sRGB, or the same with its red and green columns exchanged, which no reader can miss."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    if swap:
        count = struct.unpack(">I", data[128:132])[0]
        tags = {bytes(data[at : at + 4]): at for at in range(132, 132 + 12 * count, 12)}
        red, green = tags[b"rXYZ"], tags[b"gXYZ"]
        data[red + 4 : red + 12], data[green + 4 : green + 12] = data[green + 4 : green + 12], data[red + 4 : red + 12]
        data = bytearray(bytes(data).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be")).replace(b"sRGB", b"swap"))
        data[16:20] = b"RGB "
    return bytes(data)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_colour_profiles_are_converted_to_srgb_with_a_note(kind: str) -> None:
    file, notes = BytesIO(), list[str]()
    rgb = np.full((16, 16, 3), (200, 40, 90), np.uint8)
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    Image.fromarray(rgb).save(file, kind, icc_profile=profile(True), **options)
    read = decode_image(file.getvalue(), note=notes.append)
    np.testing.assert_allclose(read[8, 8], (40, 200, 90), atol=4)
    assert len(notes) == 1 and "sRGB" in notes[0]
    file = BytesIO()
    Image.fromarray(rgb).save(file, kind, icc_profile=profile(False), **options)
    np.testing.assert_allclose(decode_image(file.getvalue(), note=notes.append)[8, 8], (200, 40, 90), atol=2)
    assert len(notes) == 1


def test_a_profile_that_is_broken_leaves_the_colours_and_is_noted() -> None:
    file, notes = BytesIO(), list[str]()
    Image.new("RGB", (8, 8), (200, 40, 90)).save(file, "PNG", icc_profile=b"nothing of the kind" * 20)
    assert decode_image(file.getvalue(), note=notes.append)[0, 0].tolist() == [200, 40, 90]
    assert len(notes) == 1 and "as they are stored" in notes[0]


# Silence


def test_decoders_write_nothing_to_stderr(picture: Rgb, capfd: pytest.CaptureFixture[str]) -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in picture)
    stream = zlib.compress(rows)
    icc = (b"iCCP", b"x\0\0" + zlib.compress(b"abc"))
    whole = jpeg(picture)
    for data in (
        png(80, 48, 8, 2, stream, icc, (b"gAMA", b"x")),
        png(80, 48, 8, 3, zlib.compress(b"\0" * 81 * 48)),
        whole[: len(whole) // 2] + b"\xff\xd9",
        whole[:300] + bytes(50) + whole[350:],
    ):
        try:
            decode_image(data)
        except ImageError:
            continue
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("colour", "samples"), [(0, 1), (2, 3), (3, 1), (4, 2), (6, 4)])
def test_a_png_whose_stream_lacks_rows_is_refused(colour: int, samples: int) -> None:
    palette = [(b"PLTE", bytes(range(48)))] if colour == 3 else []
    row = b"\0" + bytes(10 * samples)
    assert decode_image(png(10, 10, 8, colour, zlib.compress(row * 10), *palette)).shape == (10, 10, 3)
    for rows in (0, 1, 9):
        with pytest.raises(ImageError, match="cut short"):
            decode_image(png(10, 10, 8, colour, zlib.compress(row * rows), *palette))


def test_a_png_whose_stream_is_broken_is_refused(picture: Rgb) -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in picture)
    stream = zlib.compress(rows)
    for broken in (stream[:-9], stream[:-1] + b"x", b"\0\0" + stream[2:], zlib.compress(b"\x09" + rows[1:])):
        with pytest.raises(ImageError, match="broken"):
            decode_image(png(80, 48, 8, 2, broken))
    with pytest.raises(ImageError, match="broken"):
        decode_image(png(80, 48, 16, 2, stream))


# Damaged JPEGs


def damaged() -> Any:
    """The measurement of ``benchmarks/damaged_jpegs.py``."""
    spec = importlib.util.spec_from_file_location("damaged_jpegs", ROOT / "benchmarks" / "damaged_jpegs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_hardly_a_damaged_jpeg_is_read_wrongly() -> None:
    seen = list(damaged().outcomes(ROOT / "examples" / "parts", 120, 7))
    wrong = [one for one in seen if not one.kept]
    assert sum(one.refused for one in seen) > 80
    assert not [one for one in wrong if one.kind == "cut"]
    assert len(wrong) <= 6, wrong  # a changed byte may leave a valid file; see docs/reliability.md


def test_a_jpeg_with_stray_bytes_or_padding_is_read(picture: Rgb) -> None:
    data = jpeg(picture)
    first = 2 + 2 + int.from_bytes(data[4:6], "big")
    expected = decode_image(data)
    for odd in (data[:first] + b"\0\0\0" + data[first:], data[:-2] + bytes(200) + data[-2:], data + b"trailer"):
        np.testing.assert_array_equal(decode_image(odd), expected)


def test_a_progressive_jpeg_that_ends_between_two_scans_is_refused(picture: Rgb) -> None:
    data = jpeg(picture, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    scans = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    assert len(scans) > 3
    for at in scans[1:]:
        tables = data.rfind(b"\xff\xc4", 0, at)  # of this scan
        end = tables if tables > scans[scans.index(at) - 1] else at
        with pytest.raises(ImageError, match="scans"):
            decode_image(data[:end] + b"\xff\xd9")


@pytest.mark.parametrize("unit", [(8, 8), (16, 16), (8, 16)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_that_is_shifted_from_one_block_on_is_noticed(unit: tuple[int, int], channels: int) -> None:
    rng = np.random.default_rng(4)
    scene = cv2.GaussianBlur(rng.integers(0, 256, (320, 480, 3), dtype=np.uint8), (0, 0), 6)
    scene = np.clip(scene.astype(np.int16) + rng.integers(-4, 5, scene.shape), 0, 255).astype(np.uint8)[..., :channels]
    assert shifted_from(scene, unit) is None
    shifted = scene.astype(np.int16)
    row, column = 10 * unit[0], 14 * unit[1]
    shifted[row : row + unit[0], column:] += 12
    shifted[row + unit[0] :] += 12
    assert shifted_from(np.clip(shifted, 0, 255).astype(np.uint8), unit) == (row, column)
    straight = scene.astype(np.int16)
    straight[row:] += 40  # the edge of a part
    assert shifted_from(np.clip(straight, 0, 255).astype(np.uint8), unit) is None


# Formats beyond the usual


@pytest.mark.parametrize(("kind", "atol"), [("GIF", 60), ("JPEG2000", 12), ("AVIF", 20)])
def test_first_picture_of_rarer_formats(picture: Rgb, kind: str, atol: int) -> None:
    file = BytesIO()
    options = {"GIF": {"save_all": True, "append_images": [Image.fromarray(255 - picture)]}}.get(kind, {})
    Image.fromarray(picture).save(file, kind, **options)
    read = decode_image(file.getvalue())
    assert read.shape == picture.shape and np.abs(read.astype(int) - picture).mean() < atol
    for kept in (30, len(file.getvalue()) // 2):
        with pytest.raises(ImageError):
            decode_image(file.getvalue()[:kept])


def test_formats_that_are_not_read_are_named_and_counted(picture: Rgb, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="HEIC"):
        decode_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40))
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    for name in ("b.heic", "c.HEIC", "d.jxl"):
        (tmp_path / name).write_bytes(b"x")
    with FileSource([tmp_path]) as source:
        assert len(list(source)) == 1
        (note,) = source.notes
    assert "3 pictures" in note and "2 .heic" in note and "1 .jxl" in note
    with FolderWatch(tmp_path, look_s=0.01) as watch:
        assert next(iter(watch)).name.endswith("a.png")
        assert sum("HEIC" in note for note in watch.notes) == 1 and any("JPEG XL" in note for note in watch.notes)


# The cases from the field


@pytest.mark.skipif(not CASES.is_dir(), reason="no shared/cases")
@pytest.mark.parametrize("name", ["planar16.tif", "rgb_nir_unspecified.tif", "tiled_orientation6.tif", "three_pages.tif"])
def test_case_reads_as_its_reference(name: str) -> None:
    np.testing.assert_array_equal(read_image(CASES / name), read_image(CASES / "reference.png"))


@pytest.mark.skipif(not CASES.is_dir(), reason="no shared/cases")
@pytest.mark.parametrize("name", ["jpeg_gap_restart.jpg", "jpeg_block_overwritten.jpg", "flip_plate-crack.jpg"])
def test_case_of_damage_is_refused(name: str) -> None:
    assert read_image(CASES / "jpeg_whole.jpg").shape == (384, 576, 3)
    with pytest.raises(ImageError, match="damaged"):
        read_image(CASES / name)


@pytest.mark.skipif(not CASES.is_dir(), reason="no shared/cases")
def test_other_cases() -> None:
    assert read_image(CASES / "exif_long_big_endian.jpg").shape == (64, 96, 3)
    assert (read_image(CASES / "grey_trns.png")[5, 5] == 255).all()
    notes: list[str] = []
    read_image(CASES / "mono12_in_16.png", note=notes.append)
    assert "--bits 12" in notes[0]
    try:
        np.testing.assert_array_equal(read_image(CASES / "zstd.tif"), read_image(CASES / "reference.png"))
    except ImageError as error:
        assert "ZSTD" in str(error) and "agvas[images]" in str(error)

"""What the cases of fuzz_line.py are made of: values of every kind, edits of bytes, small pictures in every format."""

from collections.abc import Callable

import cv2
import numpy as np
from hypothesis import strategies as st

MAX_PIXELS = 100_000

Case = tuple[bytes, Callable[[], None]]

WORDS = st.sampled_from(
    [
        "product",
        "model",
        "prompt",
        "mode",
        "kinds",
        "frame",
        "width_px",
        "height_px",
        "mm_per_px",
        "rois",
        "ignore",
        "rules",
        "roi",
        "kind",
        "min_area_px",
        "min_length_mm",
        "max_count",
        "min_score",
        "thresholds",
        "threshold",
        "seed_threshold",
        "deadline_ms",
        "keep",
        "rejects",
        "sample_every",
        "max_gb",
        "image",
        "focus",
        "calibration",
        "score_quantiles",
        "bundle",
        "note",
    ]
)
NUMBERS = st.one_of(st.integers(-5, 5000), st.integers(), st.floats(allow_nan=True), st.floats(0, 1))
LEAVES = st.one_of(
    st.none(), st.booleans(), NUMBERS, st.text(max_size=12), st.dates(), st.sampled_from(["*", "nano", "direct", ".nan", "1e400"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(WORDS | st.text(max_size=5), inner, max_size=4)),
    max_leaves=12,
)
POINTS = st.lists(st.lists(NUMBERS, min_size=1, max_size=3), max_size=6)
EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=6)), min_size=0, max_size=6)


def edited(data: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    """Bytes put in and taken out at places."""
    for place, removed, added in edits:
        at = int(place * len(data))
        data = data[:at] + added + data[at + removed :]
    return data


def seeds() -> list[bytes]:
    """A small picture in every format that is read."""
    rng = np.random.default_rng(0)
    colour, grey = rng.integers(0, 256, (17, 23, 3), dtype=np.uint8), rng.integers(0, 256, (17, 23), dtype=np.uint8)
    deep, alpha = rng.integers(0, 4096, (17, 23), dtype=np.uint16), rng.integers(0, 256, (17, 23, 4), dtype=np.uint8)
    smooth = cv2.GaussianBlur(cv2.resize(colour, (96, 80)), (0, 0), 5)
    real = rng.random((17, 23, 3), np.float32)
    made = [(".png", colour), (".png", grey), (".png", deep), (".png", alpha), (".jpg", smooth), (".jpg", grey), (".bmp", colour), (".bmp", alpha),
            (".tiff", colour), (".tiff", deep), (".tiff", real), (".webp", smooth), (".webp", alpha), (".ppm", colour), (".pgm", grey),
            (".pam", colour), (".pfm", real)]  # fmt: skip
    found = [cv2.imencode(suffix, image)[1].tobytes() for suffix, image in made]
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    jpeg = found[4]
    return [*found, jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]]


SEEDS = seeds()

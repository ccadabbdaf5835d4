"""How many damaged JPEGs still get a verdict: 240 files by default, made from given photographs.

    python benchmarks/damaged_jpegs.py examples/parts            # one line a kind, exit code 1 where the promise is broken
    python benchmarks/damaged_jpegs.py FOLDER --files 2400 --seed 1 -v

Four kinds of damage, as storage and networks make them: a ``hole`` (512 bytes of zeros, a lost sector), ``noise`` (64 random
bytes), one changed ``byte``, and a ``cut`` (a file with restart markers that lost some bytes inside, or a progressive one that was
cut to a quarter and closed with an end marker). Each damaged file is either refused, or at most ``MOST_CHANGED`` of its pixels
differ from the whole file's by more than ``LEVELS`` grey levels.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError
from agvas_runtime.images.read import decode_image, read_image

KINDS = ("hole", "noise", "byte", "cut")
MOST_CHANGED = 0.01
LEVELS = 2
HOLE_BYTES = 512
NOISE_BYTES = 64
ENCODINGS = (
    (),
    (cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    (cv2.IMWRITE_JPEG_RST_INTERVAL, 8),
    (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
)


class Outcome(NamedTuple):
    """One damaged file."""

    name: str
    kind: str
    refused: bool
    changed: float
    """Share of pixels that differ, of those that were read."""

    @property
    def kept(self) -> bool:
        """Whether the promise holds."""
        return self.refused or self.changed <= MOST_CHANGED


def damage(data: bytes, kind: str, chance: np.random.Generator) -> bytes:
    """A copy of the JPEG ``data`` with one damage in its entropy-coded part."""
    start = pixels_at(data)
    if kind == "cut" and is_progressive(data):
        return data[: len(data) // 4].rstrip(b"\xff") + b"\xff\xd9"
    size = {"hole": HOLE_BYTES, "noise": NOISE_BYTES, "byte": 1, "cut": HOLE_BYTES}[kind]
    at = int(chance.integers(start, max(start + 1, len(data) - 2 - size)))
    end = min(at + size, len(data) - 2)
    if kind == "cut":
        return data[:at] + data[end:]
    if kind == "hole":
        return data[:at] + bytes(end - at) + data[end:]
    if kind == "noise":
        return data[:at] + chance.bytes(end - at) + data[end:]
    return data[:at] + bytes([data[at] ^ int(chance.integers(1, 256))]) + data[end:]


def pixels_at(data: bytes) -> int:
    """Where the entropy-coded data of the first scan begin."""
    at = 2
    while data[at + 1] != 0xDA:
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def is_progressive(data: bytes) -> bool:
    return b"\xff\xc2" in data[: pixels_at(data)]


def outcomes(folder: Path, files: int, seed: int) -> Iterator[Outcome]:
    """Damages ``files`` encodings of the photographs below ``folder`` and reads each."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    chance = np.random.default_rng(seed)
    for index in range(files):
        kind = KINDS[index % len(KINDS)]
        path = paths[int(chance.integers(len(paths)))]
        options = ENCODINGS[index // len(KINDS) % len(ENCODINGS)]
        if kind == "cut" and options not in (ENCODINGS[1], ENCODINGS[2]):
            options = ENCODINGS[1 + index // len(KINDS) % 2]
        done, encoded = cv2.imencode(".jpg", read_image(path)[..., ::-1], list(options))
        assert done
        data = encoded.tobytes()
        yield outcome(f"{path.name} {options}", kind, data, damage(data, kind, chance))


def outcome(name: str, kind: str, data: bytes, damaged: bytes) -> Outcome:
    whole = decode_image(data)
    try:
        read = decode_image(damaged)
    except ImageError:
        return Outcome(name, kind, True, 0.0)
    return Outcome(name, kind, False, changed(whole, read))


def changed(whole: NDArray[np.uint8], read: NDArray[np.uint8]) -> float:
    """Share of pixels that differ; 1 where the sizes do."""
    if whole.shape != read.shape:
        return 1.0
    return float((np.abs(whole.astype(np.int16) - read).max(axis=2) > LEVELS).mean())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="photographs")
    parser.add_argument("--files", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-v", "--verbose", action="store_true", help="name each file that was read")
    given = parser.parse_args()
    seen = list(outcomes(given.folder, given.files, given.seed))
    print(f"{'damage':8}{'files':>7}{'refused':>9}{'read':>6}{'read, and wrong':>17}")
    for kind in KINDS:
        of_kind = [one for one in seen if one.kind == kind]
        refused = sum(one.refused for one in of_kind)
        wrong = sum(not one.kept for one in of_kind)
        print(f"{kind:8}{len(of_kind):>7}{refused:>9}{len(of_kind) - refused:>6}{wrong:>17}")
    for one in seen:
        if not one.kept or (given.verbose and not one.refused):
            print(f"{one.kind:6}{one.changed:8.2%} changed  {one.name}")
    return int(not all(one.kept for one in seen))


if __name__ == "__main__":
    sys.exit(main())

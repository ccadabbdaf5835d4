"""The native core against OpenCV and NumPy, on the same frames and in the same process: `make native-bench`.

Before: one frame to the views of both encoders of nano, at both scales. After: the decoder's logits to score map, mask and regions. The two
take turns, call by call, so that whatever else the machine does meets both. Compared is the CPU time of all threads, the least of each, for
that hardly depends on what else runs; the median time by the clock stands beside it. Prints Markdown.
"""

import argparse
import os
import platform
import statistics
from collections.abc import Callable
from functools import partial
from time import perf_counter, process_time

import cv2
import numpy as np

from agvas_core.contract.preprocess import ViewSpec, make_view, scaled_views
from agvas_core.contract.prompts import Anchor
from agvas_runtime import native
from agvas_runtime.bundle import load_bundle
from agvas_runtime.images import views
from agvas_runtime.images.tiling import plan_scales
from agvas_runtime.pipeline.frame_logits import FrameLogits

SIZES = ((600, 800), (1080, 1920), (2160, 3840))
FORMATS = ("RGB8", "BayerRG8", "NV12")


def race(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """Least CPU time and median time by the clock of each, in ms."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(rounds + 2):
        for name, way in ways.items():
            began, worked = perf_counter(), process_time()
            way()
            if turn >= 2:  # warm
                times[name].append(((process_time() - worked) * 1000, (perf_counter() - began) * 1000))
    return {name: (min(taken)[0], statistics.median(wall for _, wall in taken)) for name, taken in times.items()}


def without_core(way: Callable[[], object]) -> Callable[[], object]:
    """The same with NumPy and OpenCV."""

    def run() -> object:
        core, native.core = native.core, None
        try:
            return way()
        finally:
            native.core = core

    return run


def raw_frame(pixel_format: str, image: np.ndarray) -> np.ndarray:
    height, width, _ = image.shape
    if pixel_format == "RGB8":
        return image
    rows = height * 3 // 2 if pixel_format == "NV12" else height
    return np.ascontiguousarray(np.resize(image[..., 0], (rows, width)))


def to_views(raw: np.ndarray, pixel_format: str, size: tuple[int, int], specs: list[ViewSpec]) -> object:
    return views.make_views(raw, specs) if pixel_format == "RGB8" else views.camera_views(raw, pixel_format, size, specs)


def filled(size: tuple[int, int], defect: bool) -> FrameLogits:
    """Logits as nano gives them: two scales, smooth, with one blob or none."""
    manifest = load_bundle("nano").manifest
    height, width = size
    logits, image = FrameLogits(height, width), np.zeros((height, width, 3), np.uint8)
    looks = plan_scales(
        height, width, scaled_views(manifest.pixel_view, manifest.scales, height, width), manifest.tiling, enabled=False
    )
    for look in looks:
        view = make_view(look.view, image)
        high, wide = (side // 2 for side in view.pixels.shape[:2])
        rng = np.random.default_rng(high)
        layers = np.stack([cv2.GaussianBlur(rng.normal(0, 1, (high, wide)).astype(np.float32), (0, 0), 3) for _ in range(3)])
        layers[Anchor.SEG] -= 4
        layers[Anchor.NOR] += 4
        if defect:
            cv2.circle(layers[Anchor.SEG], (wide // 2, high // 2), high // 20, 6.0, -1)
            cv2.circle(layers[Anchor.ANO], (wide // 2, high // 2), high // 20, 9.0, -1)
        logits.add(next(iter(look.tiles)), view, layers, size, look.share)
    return logits


def row(what: str, size: tuple[int, int], found: dict[str, tuple[float, float]]) -> str:
    cells = [f"{best:.2f} ({middle:.2f})" for best, middle in found.values()]
    names = list(found)
    return f"| {what} | {size[1]}x{size[0]} | " + " | ".join(cells) + f" | {found[names[0]][0] / found[names[1]][0]:.1f}x |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    if native.core is None:
        raise SystemExit(native.describe())
    manifest = load_bundle("nano").manifest
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, OpenCV {cv2.__version__}, NumPy {np.__version__}; {native.describe()}\n"
    )
    print("| what | frame, px | OpenCV + NumPy: CPU ms (clock) | native: CPU ms (clock) | ratio of CPU |\n|---|---|---|---|---|")
    for size in SIZES:
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
        specs = [manifest.semantic_view, *scaled_views(manifest.pixel_view, manifest.scales, *size)]
        for pixel_format in FORMATS:
            raw = raw_frame(pixel_format, image)
            before = partial(to_views, raw, pixel_format, size, specs)
            ways = {"opencv": without_core(before), "native": before}
            print(row(f"{pixel_format} to {len(specs)} views", size, race(ways, arguments.rounds)))
    point = manifest.decision.point()
    for size in SIZES:
        for defect in (False, True):
            after = partial(filled(size, defect).judge, manifest.decision.alpha, point)
            assert bool(after().regions) == defect
            what = f"logits to verdict, {'a defect' if defect else 'a good part'}"
            print(row(what, size, race({"opencv": without_core(after), "native": after}, arguments.rounds)))


if __name__ == "__main__":
    main()

"""Does int8 pay on a CPU? Nano's pixel encoder in int8 against fp32: time on one core, masks, verdicts.

    python benchmarks/int8_nano.py --data ../shared/data/neu --limit 60

The scales come from generated images, not from --data. Prints a Markdown table; the two models take turns on each image. With no --data, times alone.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.manifest import sha256_of, write_manifest
from agvas_core.data.synthetic.synthesis import synthesize
from agvas_core.files import read_rgb
from agvas_export.trt.quantise import quantise_pixel_encoder
from agvas_runtime import Segmenter
from agvas_runtime.bundle import load_bundle
from agvas_runtime.sources.listing import list_files

SEED = 20261130
CALIBRATION_IMAGES = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument(
        "--data", type=Path, nargs="*", default=[], help="folders of images, whose masks and verdicts are compared"
    )
    parser.add_argument("--limit", type=int, default=60, help="images of each folder, evenly spaced")
    parser.add_argument("--repeats", type=int, default=30, help="times that the 512 px image is judged")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = {"fp32": options.model, "int8 pixel encoder": str(in_int8(options.model, Path(folder) / "int8"))}
        segmenters = {name: Segmenter.load(model, threads=1) for name, model in models.items()}
        bytes_of = {name: vision_bytes(model) for name, model in models.items()}
        image = synthesize(SEED, 0, (512, 512)).image
        times: dict[str, list[dict[str, float]]] = {name: [] for name in models}
        for _ in range(options.repeats + 3):
            for name, segmenter in segmenters.items():
                times[name].append(next(iter(segmenter.predict(image, stream=True))).timing)
        print(
            "| 512 px, one thread | total, ms | vision, ms | lmm, ms | decoder, ms | vision graph, MB |\n|---|---:|---:|---:|---:|---:|"
        )
        for name, found in times.items():
            median = {
                stage: statistics.median(one[stage] for one in found[3:]) for stage in ("total", "vision", "lmm", "decoder")
            }
            print(f"| {name} | " + " | ".join(f"{value:.1f}" for value in median.values()) + f" | {bytes_of[name] / 1e6:.1f} |")
        for data in options.data:
            compare(data, segmenters, options.limit)


def in_int8(model: str, out: Path) -> Path:
    """A copy of the bundle with an int8 pixel encoder."""
    bundle = load_bundle(model)
    shutil.copytree(bundle.folder, out)
    images = [synthesize(SEED, 1 + index, (320, 320)).image for index in range(CALIBRATION_IMAGES)]
    file = bundle.manifest.vision.file
    quantise_pixel_encoder("int8", bundle.folder / file, bundle.manifest, images, out / file)
    files = dict(bundle.manifest.files) | {file: sha256_of(out / file)}
    write_manifest(out, bundle.manifest.model_copy(update={"files": files}))
    return out


def vision_bytes(model: str) -> int:
    bundle = load_bundle(model)
    return (bundle.folder / bundle.manifest.vision.file).stat().st_size


def compare(data: Path, segmenters: dict[str, Segmenter], limit: int) -> None:
    """Masks and verdicts of the second model against the first."""
    paths = list_files([data], [])
    paths = [paths[at] for at in np.unique(np.linspace(0, len(paths) - 1, min(limit, len(paths))).astype(int))]
    flips, overlaps, spent = 0, [], {name: 0.0 for name in segmenters}
    for path in paths:
        image, results = read_rgb(path, path.name), []
        for name, segmenter in segmenters.items():
            begun = time.perf_counter()
            results.append(next(iter(segmenter.predict(image, stream=True))))
            spent[name] += time.perf_counter() - begun
        flips += results[0].verdict != results[1].verdict
        overlaps.append(overlap(results[0].mask, results[1].mask))
    each = ", ".join(f"{name} {1000 * seconds / len(paths):.0f} ms" for name, seconds in spent.items())
    print(
        f"{data.name}: {flips} of {len(paths)} verdicts flipped; mask IoU {np.mean(overlaps):.3f} on average, {min(overlaps):.3f} at least; {each}"
    )


def overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    either = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / either if either else 1.0


if __name__ == "__main__":
    main()

"""What references cost: the same frames with a product and with its base bundle, in turns, and fitting beside the encoder alone.

python benchmarks/reference_cost.py --side 800 --frames 20 --threads 1 --model nano
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from agvas import Segmenter, fit
from agvas_core.data.synthetic.products import SyntheticProduct
from agvas_runtime.bundle import load_bundle
from agvas_runtime.images.frame import Frame
from agvas_runtime.pipeline.references import ReferenceCells
from agvas_runtime.stages.open import StageSettings, open_references, open_stages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=800, help="side of the pictures in pixels")
    parser.add_argument("--good", type=int, default=20, help="good pictures to fit on")
    parser.add_argument("--frames", type=int, default=20, help="frames of each kind, in turns")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the frames")
    parser.add_argument("--fit-threads", type=int, default=2, help="CPU threads of fitting")
    parser.add_argument("--model", default="nano", help="bundle that is fitted")
    given = parser.parse_args()
    product = SyntheticProduct(3, "object", (given.side, given.side))
    good = [product.good(index).image for index in range(given.good)]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        fitted = fit(good, Path(folder) / "product", model=given.model, threads=given.fit_threads)
        print(
            f"fit of {given.good} pictures of {given.side} px, {given.fit_threads} threads: {time.perf_counter() - start:.1f} s"
        )
        print("  " + ", ".join(f"{step} {seconds:.1f} s" for step, seconds in fitted.product.seconds.items()))
        _time_encoder(given.model, good, given.fit_threads)
        segmenters = {
            "without": Segmenter.load(given.model, threads=given.threads),
            "with": Segmenter.load(Path(folder) / "product", threads=given.threads),
        }
        spent: dict[str, list[float]] = {name: [] for name in segmenters}
        computed: dict[str, list[float]] = {name: [] for name in segmenters}
        for index in range(given.frames + 2):
            frame = Frame(f"frame {index}", index, image=product.good(100 + index).image)
            for name, segmenter in segmenters.items():
                start, cpu = time.perf_counter(), time.process_time()
                segmenter.segment(frame)
                spent[name].append((time.perf_counter() - start) * 1000)
                computed[name].append((time.process_time() - cpu) * 1000)
        for what, values in (("time", spent), ("CPU time", computed)):
            without, beside = values["without"][2:], values["with"][2:]
            ratios = [b / a for a, b in zip(without, beside, strict=True)]
            print(
                f"{what}: {statistics.median(without):.1f} ms without, {statistics.median(beside):.1f} ms with references (medians of "
                f"{len(ratios)} frames); ratio {statistics.median(ratios):.2f} in the median of pairs, "
                f"{min(beside) / min(without):.2f} of the fastest"
            )


def _time_encoder(model: str, good: list[np.ndarray], threads: int) -> None:
    """The encoder alone on the same pictures, for comparison with fitting; the vision graph where it has the references' encoder."""
    bundle, settings = load_bundle(model), StageSettings(threads=threads)
    references = bundle.manifest.references
    assert references is not None, "a bundle that was fitted has a references graph"
    vision, stage = open_stages(bundle, settings=settings).vision, open_references(bundle, settings=settings)
    cells = ReferenceCells(bundle, references.view or bundle.manifest.pixel_view, stage, vision)
    start = time.perf_counter()
    for image in good:
        cells.embed(cells.prepare(image))
    print(f"  the encoder alone on these pictures: {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()

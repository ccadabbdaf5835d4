"""The paper's way of running the model beside ours, in one process: latencies, ratio, throughput, memory, share of the matrix rate.

usage: python benchmarks/reference_ratio.py --preset ov-7b [--sam vit_b] [--precision bf16|fp8] [--compile] [--frames 2000] [--batch 8] [--json FILE]

Random weights, made on the device: speed does not depend on them. Ours is what the backend torch-cuda does in direct mode, from views in the
CPU's memory to logits there; resizing and the verdict are in neither. Where the native core has kernels for the GPU, the same from the RGB frame to
its score map is measured beside it (``whole_frame``). ``--device cpu --tiny`` runs all of it at tiny size, without graphs and streams, and its
figures mean nothing.
"""

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from paper_model import length, paper_config, random_model, views, words
from paper_path import PaperPath, useful_tflop

from agvas_core.contract.decision import OperatingPoint
from agvas_core.model.agvas import AgVas
from agvas_core.model.build import build_model
from agvas_core.model.config import ModelConfig
from agvas_runtime.images.tiling import Scale, Tiles
from agvas_runtime.profile.record import Quantiles
from agvas_runtime.stages.prompt_tokenizer import Words
from agvas_runtime.stages.protocol import Features, FramePlan
from agvas_runtime.stages.torch_cuda.device import open_device
from agvas_runtime.stages.torch_cuda.engine import Engine
from agvas_runtime.stages.torch_cuda.pieces import PLAIN, compiled
from agvas_runtime.stages.whole_frame import kernels, packed_rule

FRAME = (1536, 2048)  # px, of the whole frames
FIRST_WORDS = (7, 8)  # stand for the first words of answer and refusal


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="ov-7b")
    parser.add_argument("--sam", default="", choices=["", "vit_b"], help="in place of the preset's pixel encoder")
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16", "fp8"])
    parser.add_argument("--compile", action="store_true", help="norms, rotations and gates by torch.compile")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--reference-frames", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=150.0, help="no more frames after so long; what was measured counts")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def measured(work: Callable[[], object], count: int, until_s: float, warmup: int = 3) -> list[float]:
    """Milliseconds of each call, which returns when its result is on the CPU."""
    for _ in range(warmup):
        work()
    found: list[float] = []
    end = time.perf_counter() + until_s
    while len(found) < count and (len(found) < 3 or time.perf_counter() < end):
        began = time.perf_counter()
        work()
        found.append((time.perf_counter() - began) * 1000)
    return found


def matrix_tflops(device: torch.device, side: int) -> float:
    """Of a bfloat16 product of two matrices of random numbers; best of ten."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))

    def product() -> None:
        torch.mm(a, b)
        _wait(device)

    return 2e-9 * side**3 / min(measured(product, 10, 30.0))


class ByPaper(NamedTuple):
    """Figures of the paper's way; the masks' logits of the first picture, and what its vision gives."""

    figures: dict[str, Any]
    expected: torch.Tensor
    features: Features


def paper_figures(
    model: AgVas,
    config: ModelConfig,
    pictures: list[tuple[torch.Tensor, torch.Tensor]],
    given: argparse.Namespace,
    device: torch.device,
) -> ByPaper:
    """Runs it; all that it holds on the device is free again when it returns."""
    paper, turn = PaperPath(model, config), cycle(pictures)
    _reset_peak(device)
    times = measured(lambda: paper(*next(turn)), given.reference_frames, given.seconds / 3)
    with torch.inference_mode():
        f_s, f_align, _ = paper.see(*(view.to(device) for view in pictures[0]))
        count = max(3, given.reference_frames // 2)
        generated = measured(lambda: paper.generate(f_s, f_align).cpu(), count, given.seconds / 6)
    figures = {
        "reference": Quantiles.of(times).model_dump() | {"peak_gb": _peak_gb(device)},
        "generate_ms": statistics.median(generated),
    }
    features = Features(f_s.float().cpu().numpy(), f_align.float().cpu().numpy(), {})
    return ByPaper(figures, paper(*pictures[0]), features)


def whole_frame_figures(
    engine: Engine, config: ModelConfig, given_words: Words, count: int, until_s: float
) -> dict[str, Any] | None:
    """From an RGB frame in the CPU's memory to P and the verdict there, one launch a frame; None where there are no kernels."""
    if (core := kernels()) is None:
        return None
    look = Scale(config.pixel_view, Tiles(*FRAME, FRAME, (0,), (0,)), 1.0)
    plan = FramePlan(FRAME, config.semantic_view, (look,), config.decision.alpha, tiles_at_once=1)
    rule = packed_rule(OperatingPoint(threshold=0.5, seed_threshold=0.5), FRAME[0] * FRAME[1])
    noise = np.random.default_rng(0)
    frames = cycle([noise.integers(0, 256, (*FRAME, 3), np.uint8) for _ in range(4)])

    def one() -> None:
        pending = engine.launch_frame(core, next(frames), plan, given_words, rule)
        if pending is not None:  # the first of its size
            pending.result()

    return Quantiles.of(measured(one, count, until_s, warmup=4)).model_dump() | {"size": FRAME}


def main() -> None:
    given = options()
    device = torch.device("cpu") if given.device == "cpu" else open_device(given.precision)
    config = paper_config(given.preset, tiny=given.tiny, sam=given.sam)
    found: dict[str, Any] = {
        "name": config.name,
        "precision": given.precision,
        "compiled": given.compile,
        "device": platform.processor() or "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "tiny": given.tiny,
        "positions": length(config),
        "tflop": useful_tflop(build_model(config, device="meta"), config, length(config)),
        "matrix_tflops": matrix_tflops(device, 256 if device.type == "cpu" else 8192),
    }
    model = random_model(config, str(device), torch.float32 if given.precision == "fp32" else torch.bfloat16)
    pictures = [views(config, 1, seed) for seed in range(4)]
    given_words = Words(*(np.array([each if isinstance(each, list) else [each]]) for each in words(config)))

    found |= (by_paper := paper_figures(model, config, pictures, given, device)).figures
    expected, features = by_paper.expected, by_paper.features
    engine = Engine(model, FIRST_WORDS, device=device, precision=given.precision, pieces=compiled() if given.compile else PLAIN)
    del model  # the engine has laid the language model's weights together, and shares the others
    gc.collect()
    turn = cycle(range(len(pictures)))
    shown = [(semantic.numpy(), pixel.numpy()) for semantic, pixel in pictures]
    logits = torch.from_numpy(engine.launch(shown[0], given_words).result().logits)
    found["off_by"] = float((logits - expected).abs().max() / max(1.0, float(expected.abs().max())))
    found["masks_differ"] = float(((logits > 0) != (expected > 0)).float().mean())
    found["prefill_ms"] = statistics.median(measured(lambda: engine.ask(features, given_words), 20, given.seconds / 6))
    _empty(device)
    _reset_peak(device)
    ours = measured(lambda: engine.launch(shown[next(turn)], given_words).result(), given.frames, given.seconds)
    found["ours"] = Quantiles.of(ours).model_dump() | {"peak_gb": _peak_gb(device)}
    found |= {
        "ratio": found["reference"]["p50"] / found["ours"]["p50"],
        "share": found["tflop"] / (found["ours"]["p50"] / 1000) / found["matrix_tflops"],
        "tail": found["ours"]["p99"] / found["ours"]["p50"],
    }
    batch = tuple(view.numpy() for view in views(config, given.batch))
    together = measured(lambda: engine.launch(batch, given_words).result(), max(3, given.frames // 40), given.seconds / 3)  # type: ignore[arg-type]
    found["batch"] = {
        "size": given.batch,
        "p50": statistics.median(together),
        "times": given.batch * found["ours"]["p50"] / statistics.median(together),
        "peak_gb": _peak_gb(device),
    }
    found["whole_frame"] = whole_frame_figures(engine, config, given_words, max(3, given.frames // 10), given.seconds / 6)
    found["graphs"] = len(engine.graphs)
    text = json.dumps(found, indent=1)
    if given.json is not None:
        given.json.write_text(text + "\n", encoding="utf-8")
    print(text)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _empty(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_gb(device: torch.device) -> float | None:
    """What torch held at most; None on a CPU."""
    return torch.cuda.max_memory_reserved(device) / 1e9 if device.type == "cuda" else None


if __name__ == "__main__":
    main()

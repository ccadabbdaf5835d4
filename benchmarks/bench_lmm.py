"""Figures of the language model's backends for docs/benchmarks.md: time per stage, parity, one prefill against generation. One run, one machine.

usage: python benchmarks/bench_lmm.py --bundle DIR [--backend onnx --backend torch ...] [--images N] [--rounds N]

DIR is what ``agvas-export bundle nano -o DIR --lmm onnx,vllm,torch`` wrote; with the bundled one vLLM is left out. Torch is what the others are
compared with. Run it in the environment of ``make test-vllm``.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from agvas_core.contract.manifest import IN_BUNDLE
from agvas_core.contract.prompts import ANCHORS, ANCHORS_SHOWN, INSTRUCTIONS, Mode
from agvas_runtime.bundle import load_bundle
from agvas_runtime.images.read import read_image
from agvas_runtime.pipeline.scorer import Clock, Scorer
from agvas_runtime.stages.open import StageSettings, open_stages
from agvas_runtime.stages.protocol import Features, LmmStage, Reply

PARTS = Path(__file__).parents[1] / "examples/parts"
STAGES = ("preprocess", "vision", "lmm", "decoder", "postprocess")


class Recorded:
    """A language model that remembers what it was asked and what it said."""

    def __init__(self, lmm: LmmStage) -> None:
        self.lmm, self.seen = lmm, list[tuple[Features, Reply]]()

    def __call__(self, features: Features, instruction: str, mode: Mode = Mode.DIRECT, history: object = ()) -> Reply:
        reply = self.lmm(features, instruction, mode)
        self.seen.append((features, reply))
        return reply


def median_ms(run: Callable[[], object], rounds: int) -> float:
    run()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--bundle", default="nano")
    options.add_argument("--backend", action="append")
    options.add_argument("--images", type=int, default=6)
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    bundle = load_bundle(given.bundle)
    settings = StageSettings(threads=1)
    names = given.backend or ["torch", "onnx", *(["vllm"] if (bundle.folder / IN_BUNDLE).is_dir() else [])]
    tokenizer = Tokenizer.from_file(str(bundle.folder / bundle.manifest.prompt.tokenizer))
    images = [read_image(path) for path in sorted(PARTS.glob("*.jpg"))[: given.images]]
    ask = INSTRUCTIONS[Mode.DIRECT]
    rows, replies, speech, said = {}, {}, {}, {}
    for name in names:
        heavy = "torch" if name == "torch" else "onnx"
        stages = open_stages(bundle, vision=heavy, lmm=name, decoder=heavy, settings=settings)
        lmm = Recorded(stages.lmm)
        scorer = Scorer(bundle.manifest, stages.vision, lmm, stages.decoder)
        scorer.score(images[0], ask, Clock())  # warm-up
        clocks = []
        for _ in range(given.rounds):
            lmm.seen.clear()
            for image in images:
                clocks.append(Clock())
                scorer.score(image, ask, clocks[-1])
        rows[name] = {stage: statistics.median(clock.ms[stage] for clock in clocks) for stage in STAGES}
        replies[name] = list(lmm.seen)
        one = Features(lmm.seen[0][0].f_s[:1], lmm.seen[0][0].f_align[:1], {})
        spoken = {mode: stages.lmm(one, INSTRUCTIONS[mode], mode) for mode in (Mode.DESCRIBE, Mode.EXPLAIN)}
        speech[name] = {
            Mode.DIRECT: median_ms(lambda: stages.lmm(one, ask), given.rounds),  # noqa: B023
            **{mode: median_ms(lambda: stages.lmm(one, INSTRUCTIONS[mode], mode), given.rounds) for mode in spoken},  # noqa: B023
        }
        words = {mode: (reply.answers or [""])[0] for mode, reply in spoken.items()}
        # [mask] stands for the three anchors, and the end token is said, too.
        said[name] = {mode: len(tokenizer.encode(text.replace(ANCHORS_SHOWN, ANCHORS)).ids) + 1 for mode, text in words.items()}
        print(f"{name}: {words}", flush=True)
    print(
        f"\n{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {len(images)} images, {given.rounds} rounds, medians"
    )
    print(f"\n| language model on | {' | '.join(f'{stage}, ms' for stage in STAGES)} | anchors off by | acceptance off by |")
    print("|---" * (len(STAGES) + 3) + "|")
    for name in names:
        pairs = [(mine, theirs) for (_, mine), (_, theirs) in zip(replies[name], replies[names[0]], strict=True)]
        anchors = max(float(np.abs(mine.anchor_states - theirs.anchor_states).max()) for mine, theirs in pairs)
        accept = max(float(np.abs(mine.accept - theirs.accept).max()) for mine, theirs in pairs)
        print(f"| {name} | {' | '.join(f'{rows[name][stage]:.1f}' for stage in STAGES)} | {anchors:.1e} | {accept:.1e} |")
    spoken_modes = (Mode.DESCRIBE, Mode.EXPLAIN)
    print(
        "\n| language model alone, one image | direct: one prefill, ms |"
        + "".join(f" {mode}: tokens generated | ms | ms a token |" for mode in spoken_modes)
    )
    print("|---" * (2 + 3 * len(spoken_modes)) + "|")
    for name in names:
        cells = [f"{speech[name][Mode.DIRECT]:.1f}"]
        for mode in spoken_modes:
            ms, tokens = speech[name][mode], said[name][mode]
            cells += [str(tokens), f"{ms:.1f}", f"{ms / tokens:.1f}"]
        print(f"| {name} | {' | '.join(cells)} |")
    print("\n| of the bundle | MB |\n|---|---|")
    sizes = dict[str, float]()
    for file in bundle.folder.rglob("*"):
        if file.is_file():
            part = file.relative_to(bundle.folder).parts[0]
            sizes[part] = sizes.get(part, 0.0) + file.stat().st_size / 1e6
    for part, size in sorted(sizes.items(), key=lambda item: -item[1]):
        print(f"| {part} | {size:.2f} |")


if __name__ == "__main__":
    main()

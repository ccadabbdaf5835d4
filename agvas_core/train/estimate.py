"""``--dry-run``: what a run takes of memory and time on which GPU, from shapes alone. Nothing is loaded.

An estimate, by the formulas below; none of it was measured on a GPU. Letters as in ``agvas_core/model/__init__.py``; F is the width within the
language model's MLP, T the layers.
"""

from dataclasses import dataclass
from typing import Any, Final

from agvas_core.model.build import build_model, visual_tokens
from agvas_core.model.config import ModelConfig
from agvas_core.model.inventory import inventory
from agvas_core.model.weights.trained import make_trainable
from agvas_core.train.config import TrainConfig

__all__ = ["GPUS", "Work", "estimate", "work_of"]

GPUS: Final = (  # name, GB, dense bf16 TFLOP/s: NVIDIA's data sheets
    ("RTX 4090", 24, 165),
    ("RTX 5090", 32, 209),
    ("A100 40 GB", 40, 312),
    ("L40S", 48, 362),
    ("A100 80 GB", 80, 312),
    ("H100 SXM", 80, 989),
    ("H200", 141, 989),
)
UTILISATION: Final = 0.4  # of those TFLOP/s; an assumption, usual for models of this size
TEXT_TOKENS: Final = 150  # of an exchange; an assumption, long for direct and short for conversation
RESERVED_GB: Final = 1.5  # CUDA's context and libraries
FRAGMENTED: Final = 1.1  # what the allocator takes for what is asked
MICRO_BATCHES: Final = (1, 2, 4, 8)
PROCESSES: Final = (1, 4, 8)
_GB: Final = 1e9


@dataclass(frozen=True)
class Work:
    """Of one example: TFLOP of a training pass, and bytes that wait for the way back. Of the model: bytes by what they are."""

    tflop: float
    waiting_bytes: float
    frozen_bytes: float
    trained: int
    """Parameters."""

    def memory_gb(self, micro_batch: int, processes: int, deepspeed: str | None) -> float:
        """Of one GPU."""
        stage = {None: 0, "zero2": 2, "zero3": 3}.get(deepspeed, 2)
        shared = processes if stage >= 2 else 1
        # fp32 weights; gradients and AdamW's two moments, which ZeRO shares out. ZeRO-2 holds bf16 weights whole besides.
        state = self.trained * (4 + 4 + 8) if not stage else self.trained * (2 + (4 + 4 + 8) / shared)
        frozen = self.frozen_bytes / (processes if stage == 3 else 1)
        return (frozen + state + micro_batch * self.waiting_bytes) * FRAGMENTED / _GB + RESERVED_GB


def work_of(model: ModelConfig, train: TrainConfig) -> Work:
    """From the shapes of the model."""
    built = build_model(model, device="meta")
    make_trainable(built, model)
    rows = {row.part.strip(): row for row in inventory(built)}
    text: Any = built.lmm.language_model.config
    width, layers, inner, vocabulary = text.hidden_size, text.num_hidden_layers, text.intermediate_size, model.lmm.vocab_size
    length = visual_tokens(model) + TEXT_TOKENS
    layer_parameters = rows["language model"].parameters
    recomputed = train.gradient_checkpointing
    learns = any(rows[part].trained for part in ("language model", "embeddings", "head", "Linear_p", "SPAM") if part in rows)

    attention = 2 * layers * length**2 * width  # causal: half of the square
    # Forward, the way back to what is before each layer, and forward once more where it was not kept; LoRA's own share is small.
    passes = 1 + (1 + recomputed if learns else 0)
    flop = passes * (2 * layer_parameters * length + attention) + 3 * 2 * length * width * vocabulary
    cells = _cells(model)
    flop += 2 * rows["semantic encoder"].parameters * visual_tokens(model) / (1 if model.spam is None else 2)
    flop += 2 * rows["pixel encoder"].parameters * cells + _global_attention(model, cells)
    flop += 3 * 2 * sum(rows[part].parameters for part in ("Linear_p", "SPAM") if part in rows) * cells

    byte = 2 if train.precision == "bf16" else 4
    layer = length * (10 * width + 3 * inner) * byte
    waiting = (layers * length * width * byte + 2 * layer if recomputed else layers * layer) if learns else 2 * layer
    waiting += 2 * length * vocabulary * byte  # logits and their gradient
    waiting += 4 * 40 * _pixels(model)  # three maps, their terms, in float32
    waiting += _widest_attention(model, cells) * byte
    trained = rows["all"].trained
    frozen = (rows["all"].parameters - trained) * byte
    return Work(flop / 1e12, waiting, frozen, trained)


def estimate(model: ModelConfig, train: TrainConfig) -> str:
    """The table for the terminal."""
    work = work_of(model, train)
    batches = {phase.batch for phase in train.plan_phases}
    lines = [
        f"{model.name}: {sum(train.phase_steps):,} steps of {' and '.join(map(str, sorted(batches)))} images, {train.precision}, "
        f"gradient checkpointing {'on' if train.gradient_checkpointing else 'off'}, {train.deepspeed or 'no DeepSpeed'}",
        f"weights: {work.frozen_bytes / _GB:.1f} GB frozen, {work.trained / 1e6:,.1f} M parameters trained",
        f"work: {work.tflop:.1f} TFLOP an image, {work.tflop * train.total_images / 1e6:,.3g} EFLOP in all",
        "",
        "memory in GB of each GPU, and days at " + f"{UTILISATION:.0%} of its peak; - where it does not fit",
        f"{'':14}" + "".join(f"{f'{count} GPU' + ('s' if count > 1 else ''):>34}" for count in PROCESSES),
        f"{'micro-batch':14}" + "".join("".join(f"{size:>8}" for size in MICRO_BATCHES) + "  " for _ in PROCESSES),
        f"{'needs, GB':14}"
        + "".join(
            "".join(f"{work.memory_gb(size, n, train.deepspeed):>8.1f}" for size in MICRO_BATCHES) + "  " for n in PROCESSES
        ),
    ]
    for name, gigabytes, tflops in GPUS:
        cells = ""
        for count in PROCESSES:
            days = work.tflop * train.total_images / (tflops * UTILISATION * count) / 86_400
            for size in MICRO_BATCHES:
                fits = work.memory_gb(size, count, train.deepspeed) <= gigabytes and all(
                    batch % (size * count) == 0 for batch in batches
                )
                cells += f"{days:>8.2g}" if fits else f"{'-':>8}"
            cells += "  "
        lines.append(f"{name:14}{cells}".rstrip())
    lines += ["", "An estimate from shapes: nothing was loaded, and none of it was measured on a GPU."]
    return "\n".join(lines)


def _cells(model: ModelConfig) -> int:
    """h w of f_p, at the view's nominal size."""
    arguments = model.pixel.arguments
    patch = arguments.get("patch_px") or arguments.get("patch_size") or 8
    return int((model.pixel_view.size_px // patch) ** 2)


def _pixels(model: ModelConfig) -> int:
    return int(model.pixel_view.size_px**2)


def _global_attention(model: ModelConfig, cells: int) -> float:
    """FLOP of attention over all cells; SAM has it in a few layers only."""
    arguments = model.pixel.arguments
    if model.pixel.kind == "lite":
        return 0.0
    layers = len(arguments["global_blocks"]) if "global_blocks" in arguments else arguments["num_hidden_layers"]
    return float(4 * layers * cells**2 * (arguments.get("dim") or arguments["hidden_size"]))


def _widest_attention(model: ModelConfig, cells: int) -> float:
    """Numbers in the scores and position terms of one layer of SAM over all cells, which are there at once; the others need none."""
    return 2.0 * model.pixel.arguments.get("heads", 16) * cells**2 if model.pixel.kind == "sam" else 0.0

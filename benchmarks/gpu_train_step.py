"""One training step of a preset with random weights: memory and examples a second at several micro-batches, against the work's floor.

usage: python benchmarks/gpu_train_step.py --preset ov-7b [--micro-batch 1 2 4 8] [--steps 4] [--json FILE]

bfloat16 under autocast, LoRA and the paper's other trained parts in float32, gradient checkpointing, AdamW: the loss and the settings of ``agvas
train``, without its data. ``--device cpu --tiny`` runs it at tiny size.
"""

import argparse
import gc
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from paper_model import paper_config, random_model, views, words
from reference_ratio import matrix_tflops

from agvas_core.model.build import visual_tokens
from agvas_core.model.config import ModelConfig
from agvas_core.model.losses import IGNORED_TARGET
from agvas_core.model.weights.trained import make_trainable, train_mode
from agvas_core.train.batches import Batch
from agvas_core.train.config import TrainConfig
from agvas_core.train.estimate import work_of
from agvas_core.train.objective import Objective, prepare_language_model
from agvas_runtime.stages.torch_cuda.device import open_device

STEPS, BATCH = 20_000, 80  # what a whole training is reckoned for


def batch_of(config: ModelConfig, size: int, device: torch.device) -> Batch:
    """Noise with a square that is asked for."""
    before, after, _, asked = words(config)
    ids = torch.tensor([[*before, *[config.lmm.image_token_id] * visual_tokens(config), *after]] * size)
    start = ids.shape[1] - len(after) + asked + 1
    labels = ids.clone()
    labels[:, :start] = IGNORED_TARGET
    semantic, pixel = views(config, size)
    mask = torch.zeros(pixel.shape[:3], dtype=torch.bool)
    mask[:, 10:30, 10:30] = True
    return Batch(
        semantic=semantic,
        pixel=pixel,
        anomalous=torch.ones(size, dtype=torch.int8),
        image_of=torch.arange(size),
        mask=mask,
        valid=torch.ones_like(mask),
        supervise=torch.ones(size, 3, dtype=torch.bool),
        input_ids=ids,
        attention=torch.ones_like(ids),
        labels=labels,
        answer_start=torch.full((size,), start),
        names=("noise",) * size,
    ).to(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="ov-7b")
    parser.add_argument("--micro-batch", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    device = torch.device("cpu") if given.device == "cpu" else open_device()
    config, train = paper_config(given.preset, tiny=given.tiny), TrainConfig()
    rate, work = matrix_tflops(device, 256 if given.device == "cpu" else 8192), work_of(config, train)
    model = random_model(config, str(device), torch.bfloat16)
    make_trainable(model, config, torch.float32)
    prepare_language_model(model, train)
    train_mode(model)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=train.learning_rate, betas=train.betas)
    objective = Objective(model, train)
    rows: list[dict[str, Any]] = []
    for size in given.micro_batch:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        row: dict[str, Any] = {"micro_batch": size}
        try:
            batch = batch_of(config, size, device)
            times = [_step(objective, optimizer, batch, device) for _ in range(given.steps)][1:]
        except torch.OutOfMemoryError:
            row["error"] = "does not fit"
        else:
            per_s = size / statistics.median(times)
            row |= {
                "examples_per_s": per_s,
                "share": per_s * work.tflop / rate,
                "days": STEPS * BATCH / per_s / 86_400,
                "peak_gb": torch.cuda.max_memory_reserved(device) / 1e9 if device.type == "cuda" else None,
            }
        optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        rows.append(row)
        print(row, flush=True)
    found = {
        "name": config.name,
        "tiny": given.tiny,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "tflop": work.tflop,
        "matrix_tflops": rate,
        "trained": sum(parameter.numel() for parameter in learned),
        "rows": rows,
    }
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _step(objective: Objective, optimizer: Any, batch: Batch, device: torch.device) -> float:
    """Seconds of one."""
    began = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16):
        loss, _ = objective(batch, objective.counts(batch))
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in objective.parameters() if p.grad is not None], objective.train_config.clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    assert bool(loss.isfinite()), "the loss is not finite"  # also waits for the device
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

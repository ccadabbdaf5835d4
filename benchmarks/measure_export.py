"""Peak memory of an export, with the language model's weights in memory and streamed from file to file; figures of docs/export.md.

usage: python benchmarks/measure_export.py [--dim 1024] [--layers 16] [--precision bf16] [--lmm onnx,vllm] [--work DIR] [--form=--stream]

The model is nano's make with random weights and a language model of that size. Each export is a process of its own, whose peak the kernel counts.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from agvas_core.contract.manifest import sha256_of


def make_checkpoint(folder: Path, dim: int, layers: int) -> None:
    """Random weights, written in a process of its own so that this one stays small."""
    script = f"""
import pathlib, torch
from agvas_core.model.build import build_model
from agvas_core.model.weights.checkpoint import load_checkpoint, save_checkpoint
from agvas_core.model.config import load_preset, parse_config
table = load_preset("nano")["model"]
text = table["lmm"]["text"] | {{"hidden_size": {dim}, "intermediate_size": {4 * dim}, "num_hidden_layers": {layers}}}
text |= {{"num_attention_heads": {max(1, dim // 64)}, "num_key_value_heads": {max(1, dim // 256)}}}
config = parse_config(table | {{"name": "random", "lmm": table["lmm"] | {{"text": text}}}})
torch.manual_seed(0)
save_checkpoint(pathlib.Path({str(folder)!r}), build_model(config).state_dict(), config, load_checkpoint("nano").tokenizer, {{}})
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def peak_mb(command: list[str]) -> tuple[float, float, int]:
    """Peak resident memory in MB, seconds, exit code."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    return usage.ru_maxrss / 1024, time.perf_counter() - began, os.waitstatus_to_exitcode(status)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--dim", type=int, default=1024)
    options.add_argument("--layers", type=int, default=16)
    options.add_argument("--precision", default="bf16")
    options.add_argument("--lmm", default="onnx,vllm")
    options.add_argument("--form", action="append", metavar="--stream", help="--stream or --no-stream; both by default.")
    options.add_argument("--work", type=Path, default=None, help="A folder with room; a temporary one by default.")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(dir=given.work) as name:
        work = Path(name)
        make_checkpoint(work / "checkpoint", given.dim, given.layers)
        weights = (work / "checkpoint/model.safetensors").stat().st_size / 1e6
        imports = "import agvas_export.bundle"
        bare, *_ = peak_mb([sys.executable, "-c", imports])
        print(
            f"weights {weights:.0f} MB in float32, {given.precision}, --lmm {given.lmm}; Python with all imports {bare:.0f} MB",
            flush=True,
        )
        print("\n| export | peak, MB | beyond the imports, in weights | s |\n|---|---|---|---|", flush=True)
        hashes = []
        for form in given.form or ("--no-stream", "--stream"):
            out = work / form.strip("-")
            command = ["-m", "agvas.cli", "export", "bundle", str(work / "checkpoint"), "-o", str(out), form]
            command += ["--precision", given.precision, "--lmm", given.lmm]
            peak, seconds, code = peak_mb([sys.executable, *command])
            assert code == 0, f"agvas-export {' '.join(command[1:])} ended with {code}"
            print(f"| {form} | {peak:.0f} | {(peak - bare) / weights:.2f} | {seconds:.0f} |", flush=True)
            hashes.append({file.name: sha256_of(file) for file in sorted((out / "vllm").glob("*.safetensors"))})
        if hashes[0] and len(hashes) > 1:
            print(f"\nthe folders for vLLM are {'the same' if hashes[0] == hashes[1] else 'NOT the same'} to the bit")


if __name__ == "__main__":
    main()

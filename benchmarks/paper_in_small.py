"""A proof that the whole paper trains: every part of it at small size, on a CPU, in two processes.

    python benchmarks/paper_in_small.py --out runs/small                      # half an hour on two cores
    python benchmarks/paper_in_small.py --out runs/try --steps 4 --images 2   # whether it runs at all

LLaVA-OneVision, LLaVA-1.5, SAM and the encoders of table 6 with tiny random weights in their published formats; the 17 sets of table 5 and the six
test sets in their published layouts, filled by the generator; the preset ``paper`` and every ablation, trained with ZeRO-2 where DeepSpeed can be
imported; then tables 1 to 4 and 6 in the paper's format. What is learned is that every source improves; the figures mean nothing else.

What is done already is not done again: a run that was stopped goes on. ``summary.json`` says whether losses fell and masks improved; the
exit code is 1 where they did not.
"""

import argparse
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from small_sets import MVTEC_CATEGORIES, SIDE_PX, make_test_sets, make_training_sets
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

from agvas_core.contract.errors import UsageError
from agvas_core.data.datasets.catalog import find_training_sets
from agvas_core.data.datasets.layouts import find_test_sets
from agvas_core.data.mixture.config import Source
from agvas_core.data.mixture.mixture import Mixture
from agvas_core.evaluation.checkpoint import open_predictor
from agvas_core.evaluation.evaluate import Job, evaluate
from agvas_core.evaluation.metrics import mean_of
from agvas_core.evaluation.predictor import Model
from agvas_core.evaluation.protocol import find_protocol
from agvas_core.evaluation.result import SetResult
from agvas_core.model.agvas import AgVas
from agvas_core.model.build import build_pixel_backbone
from agvas_core.model.config import ModelConfig, PixelConfig
from agvas_core.model.encoders.sam import SamImageEncoder
from agvas_core.model.encoders.vit import VitEncoder
from agvas_core.model.fusion import anomaly_probability, seg_probability
from agvas_core.model.losses import text_loss
from agvas_core.model.preset import ablation_names, load_preset
from agvas_core.model.sam_decoder import SamMaskDecoder
from agvas_core.model.weights.checkpoint import load_checkpoint, start_model, start_tokenizer
from agvas_core.model.weights.pretrained_config import resolve_config
from agvas_core.train.batches import collate
from agvas_core.train.config import parse_mixture_config, parse_train_config
from agvas_core.train.loop import train_model

CHANNELS = 32
TOWER = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4, "image_size": 56, "patch_size": 14}
TEXT = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
SAM = {"image_px": SIDE_PX, "patch_px": 8, "dim": 64, "depth": 2, "heads": 4, "window": 6, "global_blocks": (1,)}
VIT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
DECODER = {"heads": 4, "mlp_dim": 64}
SPECIAL = {
    "llava-onevision": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"],
    "llava-1.5": ["<unk>", "<s>", "</s>", "<image>", "<pad>"],
}
PROBES = 12
"""Examples of each source that a model is measured on, before and after."""
FULL = 100
"""Steps from which on a run is asked to have learned something."""


# Weights: tiny, random, in the formats that are published.


def write_tokenizer(folder: Path, family: str, words: Iterable[str]) -> Tokenizer:
    """Byte pairs of the words that are trained on, and the family's own tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [AddedToken(word, special=True, normalized=False) for word in SPECIAL[family]]
    tokenizer.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=800, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    if family == "llava-1.5":  # LLaMA's has a first token of its own
        first = [("<s>", tokenizer.token_to_id("<s>"))]
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=first)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def written(folder: Path) -> Iterable[str]:
    """Everything that is said in templates and training sets, near enough for a vocabulary."""
    import agvas_core.data.templates as templates

    for path in Path(templates.__path__[0]).glob("*.toml"):
        yield path.read_text(encoding="utf-8")
    for path in (*folder.glob("*/*.jsonl"), *folder.glob("*/llava_instruct_150k.json")):
        yield path.read_text(encoding="utf-8")


def lmm_weights(root: Path, family: str, sets: Path) -> Path:
    """LLaVA-OneVision or LLaVA-1.5; made once."""
    folder = root / family
    if (folder / "config.json").is_file():
        return folder
    torch.manual_seed(3)
    tokenizer = write_tokenizer(folder, family, written(sets))
    rows = 64 * (tokenizer.get_vocab_size() // 64 + 1)
    ids = {
        name: tokenizer.token_to_id(word)
        for name, word in zip(("bos_token_id", "eos_token_id"), SPECIAL[family][1:3], strict=True)
    }
    image = tokenizer.token_to_id("<image>")
    if family == "llava-onevision":
        vision = SiglipVisionConfig(**TOWER, num_hidden_layers=2, vision_use_head=False)
        text = Qwen2Config(**TEXT, **ids, num_key_value_heads=2, vocab_size=rows, tie_word_embeddings=False)
        config = LlavaOnevisionConfig(vision_config=vision, text_config=text, image_token_index=image, tie_word_embeddings=False)
        model: Any = LlavaOnevisionForConditionalGeneration(config)
    else:
        clip = CLIPVisionConfig(**TOWER, num_hidden_layers=3)
        llama = LlamaConfig(**TEXT, **ids, num_key_value_heads=4, vocab_size=rows)
        model = LlavaForConditionalGeneration(LlavaConfig(vision_config=clip, text_config=llama, image_token_index=image))
    model.save_pretrained(folder)
    return folder


def sam_weights(root: Path) -> Path:
    """Encoder and decoder under segment-anything's names; made once."""
    path = root / "sam.safetensors"
    if not path.is_file():
        torch.manual_seed(4)
        prompt = {
            "no_mask_embed.weight": "prompt_encoder.no_mask_embed.weight",
            "position.frequencies": "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        }
        encoder, decoder = SamImageEncoder(**SAM, out_dim=CHANNELS), SamMaskDecoder(CHANNELS, **DECODER)  # type: ignore[arg-type]
        state = {f"image_encoder.{key}": value for key, value in encoder.state_dict().items()}
        state |= {prompt.get(key, f"mask_decoder.{key}"): value for key, value in decoder.state_dict().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


def vit_weights(root: Path, preset: str, pixel: dict[str, Any]) -> Path:
    """An encoder of table 6: the preset's architecture at small size; made once."""
    folder = root / Path(preset).name
    if not (folder / "config.json").is_file():
        torch.manual_seed(5)
        arguments = pixel["arguments"] | VIT | {"patch_size": 8}
        arguments |= {key: size for key, size in (("intermediate_size", 128), ("image_size", SIDE_PX)) if key in arguments}
        arguments |= {"mlp_ratio": 2} if "mlp_ratio" in arguments else {}
        backbone = build_pixel_backbone(PixelConfig(kind=pixel["kind"], channels=CHANNELS, arguments=arguments))
        assert isinstance(backbone, VitEncoder)
        backbone.model.save_pretrained(folder)
    return folder


# Runs.


def small_tables(preset: str, out: Path, steps: int, deepspeed: bool) -> dict[str, Any]:
    """The tables of a preset, with its architecture and mixture at small size."""
    tables = load_preset(preset)
    model, weights, sets = tables["model"], out / "weights", out / "sets"
    pixel = model["pixel"]
    model["semantic_view"]["size_px"] = TOWER["image_size"]
    model["pixel_view"]["size_px"] = SIDE_PX
    model["lmm"] = {"pretrained": str(lmm_weights(weights, model["lmm"]["family"], sets))}
    path = sam_weights(weights) if pixel["kind"] == "sam" else vit_weights(weights, preset, pixel)
    model["pixel"] = {"pretrained": str(path), "channels": CHANNELS, "linear": pixel.get("linear", False)}
    if model["spam"]:
        model["spam"]["heads"] = 4
    model["agmd"] = model.get("agmd", {}) | DECODER
    found = [{"name": one.adapter.name, "path": str(one.root)} for one in find_training_sets(sets)]
    seen = tables.get("mixture", {})
    tables["mixture"] = seen | {
        "sets": found,
        "composition": "table-5",
        "test_data": [str(out / "tests")],
        "held_out": 0.1,
        "seg": seen.get("seg", {}) | {"choice": "random"},
    }
    tables["train"] = {
        "steps": steps,
        "batch": 8,
        "micro_batch": 2,
        "warmup_steps": min(20, steps // 2),
        "learning_rate": 2e-3,
        "workers": 0,
        "log_every": max(1, steps // 30),
        "save_every": max(1, steps // 3),
        "validation": {"every_steps": max(1, steps // 2), "best": "ap"},
    } | ({"deepspeed": "zero2"} if deepspeed else {"precision": "fp32"})
    return {name: tables[name] for name in ("model", "mixture", "train")}


def folder_of(preset: str, out: Path) -> Path:
    """Where the run of a preset lies."""
    return out / "runs" / Path(preset).name


def train(preset: str, out: Path, steps: int, deepspeed: bool) -> Path:
    """One preset in two processes; goes on where it was stopped."""
    folder = folder_of(preset, out)
    done = folder / "training.json"
    if done.is_file() and json.loads(done.read_text(encoding="utf-8"))["step"] == steps:
        return folder
    tables = folder.with_suffix(".json")
    tables.parent.mkdir(parents=True, exist_ok=True)
    tables.write_text(json.dumps(small_tables(preset, out, steps, deepspeed)), encoding="utf-8")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"} | os.environ
    subprocess.run([*launcher, __file__, "--worker", str(tables), "--out", str(folder)], check=True, env=environment)
    return folder


def work(tables: Path, folder: Path) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    table = json.loads(tables.read_text(encoding="utf-8"))
    train_model(
        resolve_config(table["model"]),
        parse_train_config(table["train"]),
        folder,
        mixture=parse_mixture_config(table["mixture"]),
        resume=(folder / "state.safetensors").exists(),
    )


# What was learned.


@torch.no_grad()
def probed(model: AgVas, config: ModelConfig, tokenizer: Tokenizer, mixture: Mixture) -> dict[str, dict[str, float]]:
    """By source: the text's loss, and the average precision of the pixels of its masks, on examples that were never drawn."""
    examples: dict[Source, list[Any]] = {source: [] for source in mixture.shares}
    index = 0
    while any(len(found) < PROBES for found in examples.values()):
        example = mixture[index]
        index += 1
        anomalous = example.mask is not None and example.mask.any()
        if len(examples[example.source]) < PROBES and (anomalous or example.source is Source.VQA):
            examples[example.source].append(example)
    found: dict[str, dict[str, float]] = {}
    for source, chosen in examples.items():
        texts, scores, truths = [], [], []
        for example in chosen:
            batch = collate([example], config, tokenizer, 1024)
            output = model(
                batch.semantic, batch.pixel, batch.input_ids, batch.attention, batch.answer_start, carried=batch.carried
            )
            texts.append(float(text_loss(output.text_logits, batch.labels)))
            logits = F.interpolate(output.mask_logits.float(), size=batch.mask.shape[-2:], mode="bilinear")
            general = source is Source.GENERAL and "SEG" in config.anchors
            scores.append(
                (seg_probability(logits) if general else anomaly_probability(logits, config.decision.alpha))[batch.valid]
            )
            truths.append(batch.mask[batch.valid])
        found[str(source)] = {"text": float(np.mean(texts))}
        if source is not Source.VQA:
            found[str(source)]["ap"] = average_precision(torch.cat(scores), torch.cat(truths))
    return found


def average_precision(scores: Tensor, truth: Tensor) -> float:
    """Over pixels."""
    hits = truth[scores.argsort(descending=True, stable=True)].double()
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    return float((precision * hits).sum() / hits.sum().clamp(min=1))


def learned(preset: str, out: Path) -> dict[str, Any]:
    """Losses at both ends of a run's log, and each source before and after."""
    folder = folder_of(preset, out)
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    few = max(1, len(rows) // 6)
    losses = {
        key: [float(np.mean([row[key] for row in part])) for part in (rows[:few], rows[-few:])] for key in ("text", "masks")
    }
    table = json.loads(folder.with_suffix(".json").read_text(encoding="utf-8"))
    sets = [one | {"path": one["path"].replace(str(out / "sets"), str(out / "unseen"))} for one in table["mixture"]["sets"]]
    mixture = Mixture.load(parse_mixture_config(table["mixture"] | {"sets": sets, "held_out": 0.0, "test_data": []}))
    config = resolve_config(table["model"])
    tokenizer = start_tokenizer(config)
    assert tokenizer is not None
    torch.manual_seed(0)
    before = probed(start_model(config).eval(), config, tokenizer, mixture)
    after = probed(load_checkpoint(folder).model.eval(), config, tokenizer, mixture)
    sources = {source: {key: [before[source][key], after[source][key]] for key in before[source]} for source in before}
    return {"preset": preset, "losses": losses, "sources": sources}


def failures(found: dict[str, Any]) -> list[str]:
    """What did not get better in a run."""
    worse = [f"loss of {key}" for key, (first, last) in found["losses"].items() if last >= first]
    for source, pairs in found["sources"].items():
        worse += [f"text of {source}"] if pairs["text"][1] >= pairs["text"][0] else []
        worse += [f"masks of {source}"] if "ap" in pairs and pairs["ap"][1] <= pairs["ap"][0] else []
    return worse


# Tables.


def scored(preset: str, out: Path, only: str | None = None, **options: Any) -> list[SetResult]:
    """The test sets, as ``agvas eval --predictor checkpoint`` scores them."""
    sets = [one for one in find_test_sets(out / "tests") if only in (None, one.name)]
    looks = dict.fromkeys(MVTEC_CATEGORIES, "A good part has an even surface.") if options.get("mode") == "describe-plus" else {}
    model = Model(open_predictor, str(folder_of(preset, out)), {"threads": 1, **options}, looks)
    name = "-".join([Path(preset).name, *map(str, options.values())])
    found = evaluate(sets, {one.name: model for one in sets}, Job(find_protocol("paper"), out / "eval" / name))
    model.close()
    return list(found)


def cells(found: Sequence[SetResult], keys: Sequence[str]) -> list[str]:
    """Means over the sets, in percent."""
    means = [mean_of(one.mean[key] for one in found) for key in keys]
    return ["-" if value is None else f"{100 * value:.1f}" for value in means]


def table_text(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join([f"**{title}**", "", *lines, ""])


PIXELS = ("ap", "f1_max", "iou_ano")
TABLE_3 = {
    "AG-VAS": "paper", "w/o [SEG]": "no-seg", "w/o [NOR], [ANO]": "no-nor-ano", "w/o SPAM": "no-spam", "w/o Anomaly-Instruct20K": "no-instruct",
    "w/o Anomaly-Seg20K": "no-anomaly-seg", "w/o General Segmentation": "no-general",
}  # fmt: skip
TABLE_6 = {
    "SAM": "paper", "SAM-FT": "encoder-sam-ft", "DINOv2-L": "encoder-dinov2-l", "DINOv2-G": "encoder-dinov2-g", "DINOv3-H": "encoder-dinov3-h",
    "CLIP-L": "encoder-clip-l", "SigLIP": "encoder-siglip",
}  # fmt: skip
OWN = {"AGMD from SAM's weights": "agmd-from-sam", "eq. 6 and 7 as written": "eq-6-literal"}


def tables(presets: Sequence[str], out: Path) -> str:
    """Tables 1, 2, 3, 4 and 6 of the runs that there are, and one of our own variants."""
    runs = {Path(preset).name: preset for preset in presets}
    whole = {name: scored(preset, out) for name, preset in runs.items()}
    there = [one.name for one in whole["paper"]]
    methods = {"AG-VAS": "paper", "LISA, LLaVA-OneVision": "lisa", "LISA, LLaVA": "lisa-llava-13b"}
    shown = {title: whole[name] for title, name in methods.items() if name in whole}
    triple = "AP / F1-Max / IoU_ano"
    first = [
        [title, *(" / ".join(cells([one], PIXELS)) for one in found), " / ".join(cells(found, PIXELS))]
        for title, found in shown.items()
    ]
    text = [table_text(f"Table 1 ({triple})", ["method", *there, "mean"], first)]
    rejecting = ("iou_nor", "iou_ano")
    forced = {title: [one for one in found if one.name == "mvtec"] for title, found in shown.items()}
    said = scored(runs["paper"], out, "mvtec", generate=True)
    second = [[title, *cells(found, rejecting)] for title, found in forced.items()] + [
        ["AG-VAS, generated", *cells(said, rejecting)]
    ]
    text.append(table_text("Table 2, MVTec-AD", ["method", "IoU_nor", "IoU_ano"], second))
    head = ["variant", "AP", "F1-Max", "IoU_ano"]
    third = [[title, *cells(whole[name], PIXELS)] for title, name in TABLE_3.items() if name in whole]
    text.append(table_text("Table 3, mean of the sets", head, third))
    fourth = []
    for mode in ("direct", "describe", "describe-plus", "explain"):
        found = scored(runs["paper"], out, "mvtec", mode=mode)
        answered = mean_of(category.answered for one in found for category in one.categories)
        fourth.append([mode, *cells(found, (*PIXELS, "iou_nor")), "-" if answered is None else f"{100 * answered:.0f}"])
    text.append(table_text("Table 4, MVTec-AD", ["mode", *head[1:], "IoU_nor", "answers with anchors, %"], fourth))
    sixth = [[title, *cells(whole[name], PIXELS)] for title, name in TABLE_6.items() if name in whole]
    text.append(table_text("Table 6, mean of the sets", ["encoder", *head[1:]], sixth))
    own = [[title, *cells(whole[name], PIXELS)] for title, name in OWN.items() if name in whole]
    return "\n".join([*text, *([table_text("Variants that the paper leaves open", head, own)] if own else [])])


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ablations", nargs="*", help="of ablations/, by name; all by default")
    parser.add_argument("--out", type=Path, default=Path("runs/paper-in-small"))
    parser.add_argument("--steps", type=int, default=300, help="of the whole model; an ablation trains a fifth of it")
    parser.add_argument("--images", type=int, default=16, help="of each set")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        work(options.worker, options.out)
        return 0
    torch.set_num_threads(1)
    out: Path = options.out.absolute()
    deepspeed = find_spec("deepspeed") is not None
    presets = ["paper", *(f"ablations/{name}" for name in options.ablations or [Path(one).name for one in ablation_names()])]
    steps = [options.steps, *[max(4, options.steps // 5)] * (len(presets) - 1)]
    processes = (
        "two processes with ZeRO-2" if deepspeed else "two plain processes: DeepSpeed is not installed, so ZeRO-2 was not run"
    )
    print(f"{len(presets)} runs, {processes}", flush=True)
    for name, seed in (("sets", 1), ("unseen", 2)):
        if not (out / name / "webad/webad_processed.json").is_file():  # what is written last
            make_training_sets(out / name, seed, options.images if name == "sets" else max(4, options.images // 2))
    if not (out / "tests/meta_ClinicDB.json").is_file():
        make_test_sets(out / "tests", 3, max(2, options.images // 2))
    results = []
    for number, (preset, length) in enumerate(zip(presets, steps, strict=True), 1):
        print(f"{number}/{len(presets)} {preset}: {length} steps", flush=True)
        train(preset, out, length, deepspeed)
        results.append(learned(preset, out))
        first, last = zip(*results[-1]["losses"].values(), strict=True)
        aps = {source: pairs["ap"] for source, pairs in results[-1]["sources"].items() if "ap" in pairs}
        shown = ", ".join(f"{source} {before:.2f} -> {after:.2f}" for source, (before, after) in aps.items())
        print(
            f"    text {first[0]:.2f} -> {last[0]:.2f}, masks {first[1]:.2f} -> {last[1]:.2f}; AP of masks: {shown}", flush=True
        )
    text = tables(presets, out)
    (out / "tables.md").write_text(text, encoding="utf-8")
    worse = {"paper": failures(results[0]), **{one["preset"]: [] for one in results[1:]}}
    for one in results[1:]:
        worse[one["preset"]] = [what for what in failures(one) if what.startswith("loss")]
    summary = {"processes": processes, "runs": results, "not better": {name: what for name, what in worse.items() if what}}
    (out / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    print(f"\n{text}\n{out / 'tables.md'}, {out / 'summary.json'}; not better: {summary['not better'] or 'nothing'}")
    return int(options.steps >= FULL and bool(summary["not better"]))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (UsageError, tomllib.TOMLDecodeError) as error:
        sys.exit(f"paper_in_small: {error}")

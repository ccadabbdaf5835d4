"""Checkpoint -> bundle folder: three graphs and that of the references, tokenizer, manifest with the hash of every file.

The folder appears whole or not at all: everything is written into a sibling and verified there, then renamed.
"""

import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

import onnx

from agvas_core import __version__
from agvas_core.contract.errors import BundleError, OutputError, SetupError, UsageError
from agvas_core.contract.lmm_folder import IN_BUNDLE
from agvas_core.contract.manifest import GraphSpec, Manifest, Precision, PromptSpec, read_version, sha256_of, write_manifest
from agvas_core.contract.prompts import ANCHOR_TOKENS, ANCHORS, FIXED_ANSWER
from agvas_core.model.build import chat_format, named_anchors, visual_tokens
from agvas_core.model.config import ModelConfig
from agvas_core.model.weights.checkpoint import BASE, WEIGHTS, Checkpoint, find_checkpoint
from agvas_core.model.weights.trained import merge
from agvas_export.graphs import export_stage
from agvas_export.parity import Parity, compare
from agvas_export.precision import in_precision
from agvas_export.reference import encode, words
from agvas_export.references import export_references, shares_trunk
from agvas_export.source import TORCH_FOLDER, checkpoint_files, read_checkpoint
from agvas_export.stages import make_stages
from agvas_export.streaming import STREAMED_BYTES, LmmWeights, can_stream, read_without_lmm
from agvas_export.vllm_folder import write_vllm_folder

__all__ = ["LMM_FORMS", "Exported", "Form", "export_bundle", "provenance_of"]


# Where a bundle's weights come from, what made its graphs, and under which licences they stand.


VERSIONED = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "tokenizers", "numpy")


def provenance_of(source: Checkpoint, sha256: str) -> dict[str, Any]:
    """Where the weights come from and what made the graphs: base models, digest, training, versions, licences."""
    training = source.training
    recipe = training.get("train", {})
    from_scratch = "all" in source.config.trained
    return {
        "checkpoint": {"name": source.folder.resolve().name, "sha256": sha256},
        "base": base_of(source),
        "model": source.config.model_dump(mode="json"),
        "training": {key: training[key] for key in ("agvas", "torch", "step", "steps", "images") if key in training}
        | {"seed": recipe.get("seed"), "config": recipe},
        "versions": {"agvas": __version__, "python": platform.python_version()} | {name: version(name) for name in VERSIONED},
        "licence": {
            "software": "Apache-2.0",
            # Procedural images only: no one else's rights are in the weights.
            "weights": training.get("licence")
            or ("Apache-2.0" if from_scratch else "those of the base model and of the training data; see training"),
        },
    }


def label_graphs(folder: Path, manifest: Manifest) -> None:
    """Writes into each graph's metadata what it is part of, for whoever meets the file outside of its bundle.

    The properties are appended: a repeated field of a protobuf message may go on at the end of its file, so that graphs of
    gigabytes need not be read. Nothing of the day or the machine is in it: one checkpoint gives one set of graphs.
    """
    facts = {
        "agvas": __version__,
        "model": manifest.name,
        "precision": manifest.precision,
        "semantic_view": manifest.semantic_view.model_dump_json(),
        "pixel_view": manifest.pixel_view.model_dump_json(),
        "scales": json.dumps(manifest.scales),
        "decision": manifest.decision.model_dump_json(),  # thresholds of each operating point, as exported
        "classes": json.dumps(["anomaly"]),
        "anchors": json.dumps(ANCHOR_TOKENS),
        "licence": json.dumps(manifest.provenance["licence"]),
    }
    graphs: dict[str, GraphSpec] = dict(manifest.graphs)
    if manifest.references is not None:
        graphs["references"] = manifest.references
    for name, spec in graphs.items():
        properties = onnx.ModelProto()
        onnx.helper.set_model_props(properties, {**facts, "graph": name})
        with (folder / spec.file).open("ab") as file:
            file.write(properties.SerializeToString())


def base_of(source: Checkpoint) -> dict[str, dict[str, str]]:
    """What training started from, by part: its name (of a folder only the last part: paths are private) and its digest."""
    path = source.folder / BASE
    told: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not told:
        parts = {"lmm": source.config.lmm.pretrained, "pixel": source.config.pixel.pretrained, "checkpoint": source.config.base}
        told = {part: {"name": name} for part, name in parts.items() if name is not None}
    return {part: facts | {"name": public_name(facts["name"])} for part, facts in told.items()}


def public_name(name: str) -> str:
    """A hub id as it is; of a path its last part."""
    return Path(name).name if Path(name).exists() or Path(name).is_absolute() else name


LMM_FORMS: Final = ("onnx", "vllm", "torch")
DTYPE_NAMES: Final[dict[Precision, Literal["float32", "float16", "bfloat16"]]] = {
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
}
MAX_PROMPT_TOKENS = 256
MAX_NEW_TOKENS = 256
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Form:
    """What a bundle is to be like."""

    precision: Precision = "fp32"
    lmm: tuple[str, ...] = ("onnx",)
    """``onnx``, a graph; ``vllm``, the folder that vLLM serves; ``torch``, the checkpoint itself, and so the reference for a certificate."""
    max_batch: int | None = None
    """Views that the graphs take together at most; 1 makes the batch a constant."""
    stream: bool | None = None
    """Whether the language model's weights go from file to file, one tensor at a time; where None, above ``STREAMED_BYTES`` of weights."""
    references: bool = True
    """Whether there is a graph that compares an image with good ones (``agvas fit`` needs it)."""

    def check(self) -> None:
        """Raises UsageError if it is invalid."""
        for form in self.lmm:
            if form not in LMM_FORMS:
                raise UsageError(f"--lmm has {form!r}; forms are {', '.join(LMM_FORMS)}, several with commas between")
        if not self.lmm:
            raise UsageError(f"--lmm is empty; give one or more of {', '.join(LMM_FORMS)}")


DEFAULT_FORM = Form()


@dataclass(frozen=True)
class Exported:
    """A bundle that was written, and verified where it was not streamed."""

    folder: Path
    manifest: Manifest
    parity: Parity | None


def export_bundle(
    checkpoint: str | Path,
    out: str | Path,
    *,
    name: str | None = None,
    form: Form = DEFAULT_FORM,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> Exported:
    """Exports a checkpoint folder to the bundle folder ``out``.

    Args:
        name: of the bundle; the model's own by default.
        form: precision, batch, and what the language model is written as.
        overwrite: replace the bundle in ``out``.
        progress: called with each step before it begins.

    Raises:
        UsageError: not a checkpoint, a name that cannot be one, or an ``out`` that must not be replaced.
        SetupError: a damaged checkpoint.
        OutputError: ``out`` cannot be written.
        ParityError: the graphs do not give the model's own answer; nothing is left behind.
    """
    out = Path(out)
    form.check()
    refuse_if_taken(out, overwrite)
    progress("reading the checkpoint")
    source, sha256, weights = read_source(find_checkpoint(checkpoint), form)
    name = name or source.config.name
    if not NAME.fullmatch(name):
        raise UsageError(f"the name {name!r} is not 1 to 64 letters, digits, dots, dashes and underscores: choose another --name")
    prompt = prompt_of(source.config)
    check_tokenizer(source, prompt)
    with written_whole(out, overwrite) as folder:
        write_lmm_forms(form, source, sha256, prompt, weights, folder, progress)
        merge(source.model)  # whose adapters are beside their layers where vLLM has them apart
        specs, references = {}, None
        # The references compute in float32 whatever the model does; a trunk in half precision would give them other distances.
        trunk = form.references and form.precision == "fp32" and shares_trunk(source.model)
        for stage in make_stages(source.model, source.config, form.max_batch, trunk=trunk):
            if stage.name == "vision" and form.references:
                progress("exporting the references graph")
                references = export_references(source.config, stage, folder)
            if stage.name != "lmm" or "onnx" in form.lmm:
                progress(f"exporting the {stage.name} graph")
                fill = weights.fill if weights is not None and stage.name == "lmm" else None
                specs[stage.name] = export_stage(in_precision(stage, form.precision), folder, fill=fill)
        source.tokenizer.save(str(folder / prompt.tokenizer), pretty=False)
        manifest = Manifest(
            name=name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            anchor_ids=source.model.lmm.anchor_ids,
            semantic_view=source.config.semantic_view,
            pixel_view=source.config.pixel_view,
            scales=source.config.scales,
            prompt=prompt,
            **specs,
            references=None if references is None else references.spec,
            decision=source.config.decision,
            tiling=source.config.tiling,
            precision=form.precision,
            max_batch=form.max_batch,
            provenance=provenance_of(source, sha256) | ({} if references is None else {"references": references.provenance}),
            files={},
        )
        parity = None
        if weights is None:
            progress("comparing the graphs with the model")
            parity = compare(folder, manifest, source)
        label_graphs(folder, manifest)
        files = {path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()}
        comparison = (
            parity.as_dict() if parity else "none: streamed, the model was never whole in memory; agvas-export check compares it"
        )
        provenance = manifest.provenance | {"comparison": comparison}
        manifest = manifest.model_copy(update={"files": files, "provenance": provenance})
        write_manifest(folder, manifest)
    return Exported(out, manifest, parity)


def read_source(folder: Path, form: Form) -> tuple[Checkpoint, str, LmmWeights | None]:
    """The checkpoint with the digest of its weights; of a large one, the language model's weights are left where they are. Adapters are
    merged, except for a form that has them apart.

    Raises:
        UsageError: streaming is asked for, and the checkpoint is a part of a model.
    """
    file = folder / WEIGHTS
    large = file.is_file() and file.stat().st_size > STREAMED_BYTES
    if not (form.stream or (form.stream is None and large and can_stream(folder))):
        return *read_checkpoint(folder, merged="vllm" not in form.lmm), None
    if not can_stream(folder):
        raise UsageError(f"{folder} refers to published weights, which must be merged in memory: leave --stream out")
    source, weights = read_without_lmm(folder)
    return source, sha256_of(file), weights


def prompt_of(config: ModelConfig) -> PromptSpec:
    """Prompts and answers no longer than the language model has positions for."""
    positions = int(config.lmm.text.get("max_position_embeddings", 4096))
    room = positions - visual_tokens(config)
    new = max(1, min(MAX_NEW_TOKENS, room // 2))
    return PromptSpec(
        chat=chat_format(config.lmm),
        answer=FIXED_ANSWER.replace(ANCHORS, named_anchors(config)),
        end_id=config.lmm.end_token_id,
        image_id=config.lmm.image_token_id,
        max_tokens=max(16, min(MAX_PROMPT_TOKENS, room - new)),
        max_new_tokens=new,
        follows_words=config.lmm.follows_words,
    )


def write_lmm_forms(
    form: Form,
    source: Checkpoint,
    sha256: str,
    prompt: PromptSpec,
    weights: LmmWeights | None,
    folder: Path,
    progress: Callable[[str], None],
) -> None:
    """The language model's forms that are no graphs."""
    if "vllm" in form.lmm:
        (folder / IN_BUNDLE).mkdir()
        write_vllm_folder(
            source, sha256, prompt, folder / IN_BUNDLE, dtype=DTYPE_NAMES[form.precision], weights=weights, progress=progress
        )
    if "torch" in form.lmm:
        progress("copying the checkpoint")
        (folder / TORCH_FOLDER).mkdir()
        for path in checkpoint_files(source.folder):
            shutil.copy(path, folder / TORCH_FOLDER / path.name)


def check_tokenizer(source: Checkpoint, prompt: PromptSpec) -> None:
    """Before the minutes of work: is the tokenizer the model's, and can it tell an answer from a refusal?

    Raises:
        SetupError: it is not, or it cannot.
        ParityError: it reads prompt and answer as other tokens than training did.
    """
    ids = tuple(source.tokenizer.token_to_id(token) for token in ANCHOR_TOKENS)
    if ids != source.config.lmm.anchor_ids:
        raise SetupError(
            f"the tokenizer of {source.folder} gives {', '.join(ANCHOR_TOKENS)} the ids {ids}, its configuration says "
            f"{source.config.lmm.anchor_ids}: use the tokenizer that the model was trained with"
        )
    words(source.tokenizer, prompt, source.model.lmm.anchor_ids)
    if encode(source.tokenizer, prompt.answer)[:1] == encode(source.tokenizer, prompt.refusal)[:1]:
        raise SetupError(
            f"the tokenizer of {source.folder} begins {prompt.answer!r} and {prompt.refusal!r} with the same token, so a refusal cannot "
            "be read without decoding: choose an answer with another first word"
        )


def refuse_if_taken(out: Path, overwrite: bool, recognise: Callable[[Path], object] = read_version) -> None:
    """Before the minutes of work: raises UsageError where ``out`` is taken and must not be replaced.

    Args:
        recognise: raises BundleError where the folder is not of the kind that is being written.
    """
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise UsageError(f"{out} exists and is not a folder: choose another folder for -o")
    if not any(out.iterdir()):
        return
    if not overwrite:
        raise UsageError(f"{out} exists and is not empty: choose another folder, or add --overwrite to replace the bundle in it")
    try:
        recognise(out)  # of any age: an old bundle is what one exports again
    except BundleError as error:  # --overwrite must never delete a user's pictures
        raise UsageError(
            f"{out} is not empty and holds no bundle ({error}): choose another folder, or empty it yourself"
        ) from error


@contextmanager
def written_whole(out: Path, overwrite: bool, recognise: Callable[[Path], object] = read_version) -> Iterator[Path]:
    """A folder beside ``out`` that takes its place if the block ends well, and goes away if not."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise OutputError(f"{out.parent} cannot be written ({error.strerror}): choose another folder for -o") from error
    new, old = aside / "new", aside / "old"
    try:
        new.mkdir()  # not the temporary folder itself, which only its owner may read
        yield new
        refuse_if_taken(out, overwrite, recognise)  # it may have been filled meanwhile
        if out.exists():
            out.rename(old)
        os.replace(new, out)
    except OSError as error:
        raise OutputError(f"{out} cannot be written ({error}): free space, or choose another folder for -o") from error
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(aside, ignore_errors=True)

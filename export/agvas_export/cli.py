"""``agvas export``: checkpoint to bundle."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from agvas_core import __version__
from agvas_core.contract.command_line import INPUT, MODEL, OUTPUT
from agvas_core.contract.errors import UsageError

__all__ = ["adapter", "app", "bundle", "check", "trt", "vllm"]


class Precision(StrEnum):
    """Of ``agvas_core.contract.manifest.Precision``, for the command line."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


app = typer.Typer(
    help="Turn trained models into bundles, which are all that agvas run needs.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)


class Dtype(StrEnum):
    """What weights are written in."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False
) -> None:
    if version:
        print(f"{context.command_path} {__version__}")
        raise typer.Exit


# Examples of each subcommand, at the end of its help.
def _examples(*lines: str) -> str:
    return "\n\n".join(("Examples:", *lines))


@app.command(
    epilog=_examples(
        "agvas export bundle runs/nano -o runs/bundle", "agvas export bundle nano -o out --precision fp16 --lmm onnx,vllm"
    )
)
def bundle(
    checkpoint: Annotated[
        Path, typer.Argument(help="Folder that agvas train wrote, or nano, the bundled one.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the bundle.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="Name of the bundle; the model's own by default.", show_default=False)] = None,
    precision: Annotated[
        Precision, typer.Option(help="fp32, fp16 or bf16: matrix products and convolutions; norms stay in fp32.")
    ] = Precision.fp32,
    lmm: Annotated[
        str, typer.Option(metavar="FORMS", help="Comma list of onnx, vllm, torch: what the language model is written as.")
    ] = "onnx",
    max_batch: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Views taken together at most; 1 makes the batch a constant; any by default."),
    ] = None,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream", help="The language model's weights from file to file, never whole in memory; by size."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the bundle in --out.")] = False,
) -> None:
    """Export a checkpoint to a bundle.

    Three ONNX graphs, tokenizer and manifest; they are compared with the model before the folder appears. With the form vllm also the folder
    that agvas serve-lmm serves, with adapters apart.
    """
    from rich.console import Console

    from agvas_export.bundle import Form, export_bundle

    forms = tuple(dict.fromkeys(form.strip() for form in lmm.split(",") if form.strip()))
    console = Console(stderr=True, highlight=False)
    with console.status("starting") as status:

        def show(step: str) -> None:
            status.update(step)
            if not console.is_terminal:  # a log has no spinner
                console.print(step)

        form = Form(cast(Any, precision.value), forms, max_batch, stream)
        done = export_bundle(checkpoint, out, name=name, form=form, overwrite=overwrite, progress=show)
    if done.parity is not None:
        for each in done.parity.comparisons:
            typer.echo(f"{each.tensor:<18} off by {each.error:.1e}, {each.tolerance:.0e} allowed")
        changed, pixels = done.parity.mask_pixels_changed, done.parity.mask_pixels
        typer.echo(f"{'mask':<18} {changed} of {pixels} pixels changed sides, over {done.parity.frames} images")
    megabytes = sum((done.folder / file).stat().st_size for file in done.manifest.files) / 1e6
    typer.echo(
        f"bundle: {done.folder} ({megabytes:.1f} MB)\nnext:   agvas-export check {done.folder} --data YOUR_PICTURES\n"
        f"        agvas-run SOURCE --model {done.folder}"
    )


@app.command(
    epilog=_examples("agvas export check runs/bundle --data parts/", "agvas export check nano --data parts/ --backend ort-cuda")
)
def check(
    bundle: Annotated[str, typer.Argument(help="Folder of a bundle, or nano, the bundled one.", show_default=False)],
    data: Annotated[Path, typer.Option(help="Pictures of your parts: a folder, searched through, or one.", show_default=False)],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="Folder of the model that the bundle came from, where the bundle has no torch form.", show_default=False
        ),
    ] = None,
    backend: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="An engine; may be given again. All that run here by default.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What to look for, in words; the bundle's own by default.")] = None,
    max_verdict_flips: Annotated[int, typer.Option(min=0, help="Verdicts that may differ from the model's.")] = 0,
    min_mask_iou: Annotated[float, typer.Option(min=0.0, max=1.0, help="What each pair of masks must have in common.")] = 0.99,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="So many images at most, evenly over all.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The certificate; BUNDLE/parity.json by default.")] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the page, where images differ; runs/check/NAME by default.")
    ] = None,
) -> None:
    """Does a bundle give its model's verdicts on your images? Writes a parity certificate into it.

    Each engine of the runtime against the model in torch, stage by stage and along the whole path. Exit code 4 where they differ.
    """
    from agvas_export.check import Limits
    from agvas_export.check_command import CheckJob, run_check

    job = CheckJob(
        bundle=bundle,
        data=data,
        checkpoint=checkpoint,
        backends=tuple(backend or ()),
        prompt=prompt,
        limits=Limits(max_verdict_flips, min_mask_iou),
        limit=limit,
        out=out,
        report=report,
    )
    run_check(job)


@app.command(
    epilog=_examples(
        "agvas export trt nano", "agvas export trt runs/bundle --precision int8 --images parts/", "agvas export trt nano --check"
    )
)
def trt(
    bundle: Annotated[str, typer.Argument(help="Folder of a bundle, or nano, the bundled one.", show_default=False)],
    check_only: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Parse and build every graph with TensorRT-RTX, ahead of time: needs no GPU, keeps nothing.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    parse_only: Annotated[
        bool, typer.Option("--parse-only", help="With --check: parse, and do not build.", rich_help_panel=OUTPUT)
    ] = False,
    paper_width: Annotated[
        bool,
        typer.Option(
            "--paper-width",
            help="With --check: SAM ViT-B, SPAM and AGMD at the paper's width too, random weights.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be built.", rich_help_panel=OUTPUT)] = False,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A recipe of trt_engines/: orin, thor, a100, h100, rtx; by the GPU here by default.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    target_from: Annotated[
        str | None,
        typer.Option(
            metavar="nvidia-smi",
            help="Choose the recipe by the GPU that nvidia-smi names; of several kinds the one that CUDA puts first. The default.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp32, tf32, fp16, bf16, int8, fp8, or auto: the fastest whose certificate holds on --images. As exported by default.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Pictures of your parts, for the ranges of int8 and fp8 and the certificate of auto.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    joint: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="vision, lmm or decoder; may be given again. All by default.", rich_help_panel=MODEL),
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(min=1, max=64, metavar="N", help="Tiles at once; the recipe's by default.", rich_help_panel=MODEL),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Where engines are kept; ~/.cache/agvas/engines by default.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
) -> None:
    """Build TensorRT engines from a bundle, on the GPU that will run them; or check, without one, that TensorRT takes its graphs."""
    if (parse_only or paper_width) and not check_only:
        raise UsageError("--parse-only and --paper-width belong to --check: add it, or leave them out")
    if check_only and dry_run:
        raise UsageError("--check builds, and --dry-run builds nothing: leave one out")
    if target_from is not None and (target_from != "nvidia-smi" or target is not None):
        raise UsageError(f"--target-from is {target_from!r}: it takes nvidia-smi, and no --target beside it")

    from agvas_export.trt.command import PRECISIONS, TrtJob, run_trt
    from agvas_export.trt.quantise import QUANTISED_PRECISIONS

    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"--precision is {precision!r}: it can be {', '.join(PRECISIONS)}")
    if precision in QUANTISED_PRECISIONS and images is None and not dry_run:
        raise UsageError(f"--precision {precision} takes its ranges from your pictures: give them with --images DIR")
    run_trt(
        TrtJob(
            bundle=bundle,
            target=target,
            precision=precision,
            stages=tuple(joint) if joint else None,
            max_batch=max_batch,
            images=images,
            store=store,
            dry_run=dry_run,
            check=check_only,
            parse_only=parse_only,
            paper_width=paper_width,
        )
    )


@app.command(epilog=_examples("agvas export vllm runs/ov-7b -o runs/lmm --dtype bfloat16"))
def vllm(
    checkpoint: Annotated[
        Path, typer.Argument(help="Folder that agvas train wrote, or nano, the bundled one.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for vLLM.", show_default=False)],
    dtype: Annotated[Dtype, typer.Option(help="Of the weights, and what vLLM computes in.")] = Dtype.float32,
    max_lora_rank: Annotated[
        int, typer.Option(min=1, max=512, help="The highest rank of adapters that may be loaded later.")
    ] = 16,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace such a folder in --out.")] = False,
) -> None:
    """Export a checkpoint's language model to the folder that agvas serve-lmm serves with vLLM.

    The trained tables go into the base; LoRA, where there is any, stays apart in adapters/.
    """
    from agvas_core.contract.lmm_folder import find_lmm_folder
    from agvas_core.model.weights.checkpoint import find_checkpoint
    from agvas_export.bundle import Form, check_tokenizer, prompt_of, read_source, refuse_if_taken, written_whole
    from agvas_export.vllm_folder import write_vllm_folder

    refuse_if_taken(out, overwrite, find_lmm_folder)
    source, sha256, weights = read_source(find_checkpoint(checkpoint), Form(lmm=("vllm",)))
    prompt = prompt_of(source.config)
    check_tokenizer(source, prompt)
    with written_whole(out, overwrite, find_lmm_folder) as folder:
        spec = write_vllm_folder(
            source, sha256, prompt, folder, dtype=dtype.value, max_lora_rank=max_lora_rank, weights=weights, progress=typer.echo
        )
    megabytes = sum((out / file).stat().st_size for file in spec.files) / 1e6
    typer.echo(
        f"folder: {out} ({megabytes:.1f} MB, {dtype.value}, adapter: {spec.adapter or 'none'})\nnext:   agvas serve-lmm {out}"
    )


@app.command(epilog=_examples("agvas export adapter runs/bolt --into runs/lmm --name bolt"))
def adapter(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a checkpoint with LoRA.", show_default=False)],
    into: Annotated[Path, typer.Option(help="Folder of agvas-export vllm whose tables it was trained with.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="Name of the adapter; the model's own by default.", show_default=False)] = None,
) -> None:
    """Add a checkpoint's LoRA to a folder that agvas serve-lmm serves; a running server loads it by name."""
    from agvas_core.contract.lmm_folder import find_lmm_folder
    from agvas_export.source import read_checkpoint
    from agvas_export.vllm_folder import write_adapter

    folder = find_lmm_folder(into)
    source, sha256 = read_checkpoint(checkpoint, merged=False)
    spec = write_adapter(source, sha256, folder, name or source.config.name)
    typer.echo(f"adapter: {spec.name} of rank {spec.rank} in {folder}")

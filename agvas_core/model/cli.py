"""``agvas model``: the parts of a model and which of them are trained, before anything is loaded."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["model"]


def model(
    name: Annotated[
        str,
        typer.Argument(help="A preset (ov-7b, ablations/lisa), a .toml file, or the folder of a checkpoint.", show_default=False),
    ],
    memory: Annotated[
        bool,
        typer.Option("--memory", help="Count what evaluation of one image takes in bf16; a minute for 7 billion parameters."),
    ] = False,
) -> None:
    """Show the parts of a model: parameters, which of them are trained, views, tokens. Weights are not loaded."""
    from agvas_core.model.build import build_model, visual_tokens
    from agvas_core.model.config import load_preset
    from agvas_core.model.inventory import evaluation_memory, inventory
    from agvas_core.model.weights.checkpoint import read_config
    from agvas_core.model.weights.pretrained_config import resolve_config
    from agvas_core.model.weights.trained import make_trainable

    config = read_config(Path(name)) if Path(name).is_dir() else resolve_config(load_preset(name)["model"])
    built = build_model(config, device="meta")
    make_trainable(built, config)
    rows = inventory(built)
    typer.echo(f"{config.name}{f', without {config.ablation}' if config.ablation else ''}\n")
    typer.echo(f"{'part':<26}{'parameters':>16}{'trained':>16}")
    for row in rows:
        typer.echo(f"{row.part:<26}{row.parameters:>16,}{row.trained or '-':>16{',' if row.trained else ''}}")
    semantic, pixel = config.semantic_view, config.pixel_view
    lora = config.lora
    facts = {
        "LMM": f"{config.lmm.family}, {config.lmm.pretrained or 'own weights'}",
        "pixel features": f"{config.pixel.kind}, {config.pixel.pretrained or 'own weights'}",
        "starts from": config.base,
        "semantic view": f"{semantic.size_px} px, {semantic.fit}"
        + (f", {config.lmm.tiles} tiles per side" if config.lmm.tiles > 1 else ""),
        "pixel view": f"{pixel.size_px} px, {pixel.fit}",
        "image tokens": f"{visual_tokens(config)}",
        "LoRA": lora and f"rank {lora.rank}, alpha {lora.alpha:g}, dropout {lora.dropout:g}, on {', '.join(lora.targets)}",
        "trained": ", ".join(config.trained),
    }
    typer.echo()
    for what, fact in facts.items():
        if fact is not None:
            typer.echo(f"{what:<16}{fact}")
    if memory:
        counted = evaluation_memory(config)
        typer.echo(
            f"{'one image, bf16':<16}{(counted.weights + counted.peak) / 1e9:.1f} GB: weights {counted.weights / 1e9:.1f}, the most beside them "
            f"{counted.peak / 1e9:.1f}; counted on the meta device, without CUDA's own"
        )

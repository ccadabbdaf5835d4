"""What a model is made of, counted."""

from typing import NamedTuple

from torch import nn

from agvas_core.model.agvas import AgVas

__all__ = ["Row", "inventory"]


class Row(NamedTuple):
    """One part: its parameters, and those that get gradients."""

    part: str
    parameters: int
    trained: int


def inventory(model: AgVas) -> list[Row]:
    """The parts in the order of the data path, and their sum. A table that two parts share (tied embeddings) counts once."""
    parts: list[tuple[str, nn.Module | None]] = [
        ("semantic encoder", model.semantic_encoder.tower),
        ("  projector", model.semantic_encoder.projector),
        ("pixel encoder", model.pixel_encoder.backbone),
        ("  adapter", model.pixel_encoder.adapter),
        ("Linear_p", model.linear_p),
        ("SPAM", model.spam),
        ("language model", model.lmm.language_model),
        ("  embeddings", model.lmm.language_model.get_input_embeddings()),  # type: ignore[operator]
        ("  head", model.lmm.head),
        ("token refiner", model.refiner),
        ("mask decoder", model.agmd),
    ]
    seen: set[int] = set()
    counted: dict[str, Row] = {}
    # Inner parts first: what remains of the language model is its layers.
    for part, module in sorted(parts, key=lambda each: not each[0].startswith(" ")):
        own = [] if module is None else [p for p in module.parameters() if id(p) not in seen]
        seen |= {id(p) for p in own}
        counted[part] = Row(part, sum(p.numel() for p in own), sum(p.numel() for p in own if p.requires_grad))
    rest = [p for p in model.parameters() if id(p) not in seen]  # the end of line of tiles
    if rest:
        counted["semantic encoder"] = _plus(counted["semantic encoder"], rest)
    rows = [counted[part] for part, module in parts if module is not None]
    return [*rows, Row("all", sum(row.parameters for row in rows), sum(row.trained for row in rows))]


def _plus(row: Row, parameters: list[nn.Parameter]) -> Row:
    return Row(
        row.part,
        row.parameters + sum(p.numel() for p in parameters),
        row.trained + sum(p.numel() for p in parameters if p.requires_grad),
    )

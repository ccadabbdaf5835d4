"""Which parameters get gradients (paper 4.1, B.2), the form of the model in which they do, and the way back to the plain one.

In training form LoRA stands beside layers of the language model, and three rows may stand beside its two tables. ``merge`` makes the
plain model again, which exports, generates and is saved like any other.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from agvas_core.contract.errors import UsageError
from agvas_core.contract.validation import did_you_mean
from agvas_core.model.agvas import AgVas
from agvas_core.model.config import ModelConfig
from agvas_core.model.weights.vocabulary import AnchorEmbedding, AnchorHead

__all__ = ["kept_state", "load_kept_state", "make_trainable", "merge", "merge_tables", "train_mode"]

ROWS, EMBEDDINGS, HEAD = "lmm.anchor_rows", "lmm.embeddings", "lmm.head"


def make_trainable(model: AgVas, config: ModelConfig, dtype: torch.dtype | None = None) -> None:
    """Brings a plain model into training form: adapters in place, gradients where ``config.trained`` and ``config.lora`` ask for them.

    Args:
        dtype: of all trained parameters; float32 beside frozen ones of half the size is what training under autocast wants. None leaves
            them as they are.

    Raises:
        UsageError: a part or a LoRA target that does not exist; names the nearest.
    """
    if ROWS in config.trained and {"all", EMBEDDINGS, HEAD} & set(config.trained):
        raise UsageError(f"trained has {ROWS} and a whole table that it is part of: name one of the two")
    parts = {name: _part(model, name) for name in config.trained if name != ROWS}
    model.requires_grad_(False)
    if config.lora is not None:
        from agvas_core.model.weights.lora import add_lora, lora_parameters

        add_lora(_language_model(model), config.lora)
        for parameter in lora_parameters(_language_model(model)):
            parameter.requires_grad_(True)
    if ROWS in config.trained:
        _separate_rows(model, config.lmm.anchor_ids)
    for name, part in parts.items():
        # Under "all" what LoRA stands beside stays as it is; that is what it is for.
        for path, parameter in part.named_parameters():
            parameter.requires_grad_(not (name == "all" and config.lora is not None and _is_adapted(path)))
    if dtype is not None:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)


def train_mode(model: AgVas) -> None:
    """Training mode for what is trained; frozen parts stay in evaluation mode, so that no dropout and no running statistics disturb them."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def merge(model: AgVas) -> None:
    """Training form -> plain form, in place. A plain model stays as it is."""
    merge_tables(model)
    if any(".lora_" in name for name, _ in _language_model(model).named_parameters()):
        from agvas_core.model.weights.lora import merge_lora

        merge_lora(_language_model(model))


def merge_tables(model: AgVas) -> None:
    """Rows that were trained beside embeddings and head go into them, in place; adapters stay where they are."""
    embeddings, head = _tables(model)
    if isinstance(head, AnchorHead):
        model.lmm.head = head.merged()
    if isinstance(embeddings, AnchorEmbedding):
        _language_model(model).set_input_embeddings(embeddings.merged())  # type: ignore[operator]


def kept_state(model: AgVas, config: ModelConfig) -> dict[str, Tensor]:
    """What a checkpoint must hold of a model in training form: everything but frozen weights that can be had again.

    Those are, with ``config.base``, all that is not trained; without, what the published models gave and training left alone.
    """
    state = model.state_dict(keep_vars=True)
    again = [""] if config.base is not None else []
    if config.lmm.pretrained is not None:
        again += ["semantic_encoder.tower.", "semantic_encoder.projector.", "semantic_encoder.newline", "lmm."]
    if config.pixel.pretrained is not None:
        again += ["pixel_encoder.backbone."]
    trained = tuple(
        f"{name}." if name else ""
        for name, module in model.named_modules()
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False))
    )
    kept = {}
    for name, tensor in state.items():
        # Running statistics belong to the layer whose weights are trained.
        learned = tensor.requires_grad or (not isinstance(tensor, nn.Parameter) and f"{name.rpartition('.')[0]}." in trained)
        if learned or not name.startswith(tuple(again)):
            kept[name] = tensor.detach()
    return kept


def load_kept_state(model: AgVas, state: Mapping[str, Tensor]) -> None:
    """Puts a state of ``kept_state`` back; the names have been checked."""
    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)


def _part(model: AgVas, name: str) -> nn.Module:
    if name == "all":
        return model
    if name in (EMBEDDINGS, HEAD):
        return _tables(model)[name == HEAD]
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if name in modules:
        return modules[name]
    known = [*(path for path in modules if path.count(".") < 2), "all", EMBEDDINGS, HEAD, ROWS]
    raise UsageError(
        f"trained: {name!r} is no part of this model{did_you_mean(name, known)}; parts are {', '.join(_parts(model))}"
    )


def _parts(model: AgVas) -> list[str]:
    return ["all", EMBEDDINGS, HEAD, ROWS, *(name for name, _ in model.named_children())]


def _tables(model: AgVas) -> tuple[nn.Module, nn.Module]:
    embeddings: nn.Module = _language_model(model).get_input_embeddings()  # type: ignore[operator]
    return embeddings, model.lmm.head


def _separate_rows(model: AgVas, ids: tuple[int, int, int]) -> None:
    embeddings, head = _tables(model)
    assert isinstance(embeddings, nn.Embedding) and isinstance(head, nn.Linear), "the model is in training form already"
    tied = head.weight is embeddings.weight
    own = AnchorEmbedding(embeddings, ids)
    _language_model(model).set_input_embeddings(own)  # type: ignore[operator]
    model.lmm.head = AnchorHead(head, ids, own.rows if tied else None)


def _is_adapted(path: str) -> bool:
    return ".base_layer." in path


def _language_model(model: AgVas) -> nn.Module:
    return model.lmm.language_model

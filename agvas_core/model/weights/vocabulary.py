"""The anchors' tokens: in the tokenizer, in the embeddings and in the output head (paper 3.1)."""

from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor, nn

from agvas_core.contract.errors import UsageError
from agvas_core.contract.prompts import ANCHOR_TOKENS, IMAGE_TOKEN
from agvas_core.contract.validation import did_you_mean
from agvas_core.model.config import LmmConfig
from agvas_core.model.weights.published import read_published_tokenizer

__all__ = ["AnchorEmbedding", "AnchorHead", "add_anchors", "fit_rows", "id_of", "pretrained_tokenizer"]

ROWS_MULTIPLE = 64  # a table that grows gets this many rows, or a multiple: matrix products like it


def add_anchors(tokenizer: Tokenizer) -> tuple[int, int, int]:
    """The ids of the anchors in ``tokenizer``, which gets those that it lacks, after its last word.

    Nothing else is added when it encodes, neither a first token nor padding: the chat format says every token itself.
    """
    tokenizer.post_processor = None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    # A token that is there already keeps its id, and becomes one that text is split at.
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ANCHOR_TOKENS])
    nor, ano, seg = (id_of(tokenizer, token, "the model") for token in ANCHOR_TOKENS)
    return nor, ano, seg


def pretrained_tokenizer(config: LmmConfig) -> tuple[Tokenizer, bool]:
    """The published model's own tokenizer with the anchors in it, and whether it had all of them before.

    Raises:
        UsageError: its ids are not those of the configuration.
    """
    assert config.pretrained is not None, "only a published model has a tokenizer of its own"
    tokenizer = read_published_tokenizer(config.pretrained)
    had = all(tokenizer.token_to_id(token) is not None for token in ANCHOR_TOKENS)
    found = {"anchor_ids": add_anchors(tokenizer), "image_token_id": id_of(tokenizer, IMAGE_TOKEN, config.pretrained)}
    for key, ids in found.items():
        if ids != getattr(config, key):
            raise UsageError(
                f"lmm.{key} is {getattr(config, key)}, the tokenizer of {config.pretrained} {'has' if had else 'gives'} {ids}: write that, "
                "or leave the ids out of [model.lmm]"
            )
    return tokenizer, had


def id_of(tokenizer: Tokenizer, token: str, whose: str) -> int:
    """The id of a token that must be there.

    Raises:
        UsageError: it is not; names the nearest.
    """
    number = tokenizer.token_to_id(token)
    if number is None:
        raise UsageError(
            f"the tokenizer of {whose} has no {token}{did_you_mean(token, tokenizer.get_vocab())}: it is of another family"
        )
    return int(number)


def rows_for(ids: tuple[int, ...], rows: int) -> int:
    """Rows that a table of ``rows`` needs for ``ids``: as many as it has, or more by a multiple of 64."""
    last = max(ids)
    return rows if last < rows else -(-(last + 1) // ROWS_MULTIPLE) * ROWS_MULTIPLE


@torch.no_grad()
def fit_rows(llava: Any, config: LmmConfig, had_anchors: bool) -> None:
    """Embeddings and head get ``vocab_size`` rows; those of new anchors start near the mean of the words that come before them.

    The published rows that no word uses were never trained, so an anchor that takes one starts from the mean as well. The same
    published model gives the same rows each time: a checkpoint that did not train them need not hold them.

    Raises:
        UsageError: the published table is longer than ``vocab_size``.
    """
    rows = llava.get_input_embeddings().weight.shape[0]
    if rows > config.vocab_size:
        raise UsageError(f"lmm.vocab_size is {config.vocab_size}, {config.pretrained} has {rows} rows: set vocab_size = {rows}")
    if rows < config.vocab_size:
        llava.resize_token_embeddings(config.vocab_size, mean_resizing=False)
    new = set(range(rows, config.vocab_size)) | (set() if had_anchors else set(config.anchor_ids))
    if not new:
        return
    index = torch.tensor(sorted(new))
    words = min(rows, *config.anchor_ids)
    for table in {id(table): table for table in (llava.get_input_embeddings().weight, llava.lm_head.weight)}.values():
        known = table[:words].float()
        noise = torch.randn(len(index), table.shape[1], generator=torch.Generator().manual_seed(0))
        spread = noise * known.std(0) / 10  # the three must not be one and the same
        table[index] = (known.mean(0) + spread).to(table.dtype)


class AnchorEmbedding(nn.Module):
    """An embedding whose rows of the anchors are trained, and no others: gradient and optimizer state are three rows, not the table."""

    ids: Tensor

    def __init__(self, table: nn.Embedding, ids: tuple[int, int, int]) -> None:
        super().__init__()
        self.table = table.requires_grad_(False)
        self.register_buffer("ids", torch.tensor(ids, device=table.weight.device), persistent=False)
        self.rows = nn.Parameter(table.weight.detach()[list(ids)].clone())  # [3, D]

    def forward(self, input_ids: Tensor) -> Tensor:
        """ids [..., L] -> [..., L, D]."""
        embedded: Tensor = self.table(input_ids)
        is_anchor = input_ids[..., None] == self.ids  # [..., L, 3]
        return embedded.where(~is_anchor.any(-1, keepdim=True), (is_anchor.to(self.rows.dtype) @ self.rows).to(embedded.dtype))

    def merged(self) -> nn.Embedding:
        """The plain embedding with the trained rows in it."""
        with torch.no_grad():
            self.table.weight[self.ids] = self.rows.to(self.table.weight.dtype)
        return self.table


class AnchorHead(nn.Module):
    """An output head whose rows of the anchors are trained, and no others.

    Args:
        rows: those of the embedding, where the two tables are one; else new ones.
    """

    ids: Tensor

    def __init__(self, head: nn.Linear, ids: tuple[int, int, int], rows: nn.Parameter | None = None) -> None:
        super().__init__()
        self.head = head.requires_grad_(False)
        self.register_buffer("ids", torch.tensor(ids, device=head.weight.device), persistent=False)
        self.rows = nn.Parameter(head.weight.detach()[list(ids)].clone()) if rows is None else rows  # [3, D]

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V]."""
        logits: Tensor = self.head(hidden)
        own = hidden @ self.rows.to(hidden.dtype).T  # [..., 3]
        return logits.index_copy_(-1, self.ids, own.to(logits.dtype))  # in place: logits are the largest tensor of all

    def merged(self) -> nn.Linear:
        """The plain head with the trained rows in it."""
        with torch.no_grad():
            self.head.weight[self.ids] = self.rows.to(self.head.weight.dtype)
        return self.head

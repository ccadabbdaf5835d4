"""Request and response of the language model on vLLM, in process and, as bytes, over HTTP.

A message is one line of JSON and then raw float32, little-endian: nothing in it can be run when it is read, and an image of 1,460 tokens is
21 MB where base64 in JSON would be 28.
"""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import UsageError

__all__ = [
    "ADAPTERS_PATH",
    "ASK_PATH",
    "IDENTITY_PATH",
    "Engine",
    "Identity",
    "LmmRequest",
    "LmmResponse",
    "pack_request",
    "pack_responses",
    "unpack_request",
    "unpack_responses",
]

IDENTITY_PATH: Final = "/agvas/v1/identity"
ADAPTERS_PATH: Final = "/agvas/v1/adapters"
ASK_PATH: Final = "/agvas/v1/ask"
MAX_HEAD_BYTES: Final = 1 << 20
MAX_ROWS: Final = 64  # images in one request

Float = NDArray[np.float32]


@dataclass(frozen=True)
class LmmRequest:
    """One question about one or more images. ``visual`` [B, 2N, D] is Concat(f_s, f_align); the image stands between ``before`` and
    ``after``."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    rows: tuple[int, ...]
    """Positions within ``after`` whose states are wanted, ascending; the first is the last before the answer."""
    new_tokens: int
    """0: one prefill, nothing is generated."""
    adapter: str | None
    visual: Float


@dataclass(frozen=True)
class LmmResponse:
    """What came back for one image."""

    ids: tuple[int, ...]
    """Generated, the end token included."""
    positions: tuple[int, ...]
    """Of ``states``, counted from the beginning of ``after``; generated words follow it."""
    lean: float
    """Logit of answering against refusing, at the first row; 0 where none was asked for."""
    states: Float
    """[K, D], post-norm: the rows asked for, then those of generated anchors."""


@dataclass(frozen=True)
class Identity:
    """Who answers: compared with the bundle before the first question, and with every reply."""

    name: str
    checkpoint_sha256: str
    tables_sha256: str
    vllm: str
    all_modes: bool
    """False: direct mode alone."""
    adapter: str | None
    """The one that answers where none is asked for."""


class Engine(Protocol):
    """A running vLLM, in process or elsewhere."""

    def identity(self) -> Identity:
        """Raises StageError if there is no answer."""
        ...

    def ask(self, asked: LmmRequest) -> list[LmmResponse]:
        """One ``LmmResponse`` for each image.

        Raises:
            UsageError: an adapter that is not there, or a mode that this engine has not.
            StageError: the engine is down.
        """
        ...


def pack_request(asked: LmmRequest) -> bytes:
    """As bytes."""
    return _pack(asdict(replace(asked, visual=asked.visual[:0])) | {"visual": asked.visual.shape}, asked.visual)


def unpack_request(data: bytes) -> LmmRequest:
    """Raises UsageError where the bytes are no question."""
    head, floats = _unpack(data)
    try:
        shape = tuple(int(size) for size in head["visual"])
        ids = {key: tuple(int(id) for id in head[key]) for key in ("before", "after", "rows")}
        new_tokens, adapter = int(head["new_tokens"]), head["adapter"]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"the question lacks a field, or has one of another kind ({error}): use the same agvas on both sides"
        ) from error
    if len(shape) != 3 or not 1 <= shape[0] <= MAX_ROWS or min(shape) < 1 or int(np.prod(shape)) != floats.size:
        raise UsageError(
            f"the embeddings have the shape {list(shape)} and {floats.size} numbers; [1 to {MAX_ROWS}, 2N, D] is needed"
        )
    if not np.isfinite(floats).all():
        raise UsageError("the embeddings have numbers that are NaN or infinite: try another image, or report image and bundle")
    if any(not 0 <= row < len(ids["after"]) for row in ids["rows"]) or list(ids["rows"]) != sorted(set(ids["rows"])):
        raise UsageError(
            f"rows are {list(ids['rows'])}; they ascend, and lie within the {len(ids['after'])} tokens after the image"
        )
    if not (adapter is None or isinstance(adapter, str)) or new_tokens < 0 or min((*ids["before"], *ids["after"]), default=0) < 0:
        raise UsageError("the question has an invalid adapter, length or id: use the same agvas on both sides")
    return LmmRequest(ids["before"], ids["after"], ids["rows"], new_tokens, adapter, floats.reshape(shape))


def pack_responses(identity: Identity, said: list[LmmResponse]) -> bytes:
    """Who answers, and what."""
    rows = [asdict(replace(each, states=each.states[:0])) | {"states": each.states.shape} for each in said]
    floats = [each.states.ravel() for each in said]
    return _pack({"identity": asdict(identity), "said": rows}, np.concatenate(floats))


def unpack_responses(data: bytes) -> tuple[Identity, list[LmmResponse]]:
    """Raises ValueError, KeyError or TypeError where the bytes are no reply."""
    head, floats = _unpack(data)
    said, at = [], 0
    for row in head["said"]:
        count, dim = (int(size) for size in row["states"])
        states = floats[at : at + count * dim].reshape(count, dim)
        at += count * dim
        said.append(LmmResponse(tuple(row["ids"]), tuple(row["positions"]), float(row["lean"]), states))
    return Identity(**head["identity"]), said


def _pack(head: dict[str, Any], floats: Float) -> bytes:
    return json.dumps(head).encode() + b"\n" + np.ascontiguousarray(floats, "<f4").tobytes()


def _unpack(data: bytes) -> tuple[dict[str, Any], Float]:
    end = data.find(b"\n", 0, MAX_HEAD_BYTES)
    try:
        head = json.loads(data[: max(end, 0)])
        floats = np.frombuffer(data, "<f4", offset=end + 1)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"a message that is not one line of JSON and float32 ({error}): use the same agvas on both sides"
        ) from error
    if not isinstance(head, dict):
        raise UsageError("a message whose first line is no JSON object: use the same agvas on both sides")
    return head, floats.astype(np.float32)

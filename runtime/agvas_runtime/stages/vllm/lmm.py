"""Stage 2 on vLLM, in process or behind HTTP: makes a request of features and words, reads the response."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import BundleError, ImageError
from agvas_core.contract.lmm_folder import find_lmm_folder
from agvas_core.contract.prompts import Mode
from agvas_runtime.bundle import Bundle
from agvas_runtime.stages.open import StageSettings
from agvas_runtime.stages.prompt_tokenizer import PromptTokenizer, Words
from agvas_runtime.stages.protocol import Features, Reply, Turn
from agvas_runtime.stages.vllm.protocol import Engine, Identity, LmmRequest, LmmResponse

__all__ = ["AskingLmm", "open_vllm", "open_vllm_direct", "refuse_foreign"]


Float = NDArray[np.float32]


class AskingLmm:
    """A bundle's language model, asked of an engine that has the same one.

    Args:
        adapter: that answers; the model's own where None.

    Raises:
        BundleError: the engine has another model than the bundle.
        StageError: it does not answer.
    """

    def __init__(self, bundle: Bundle, engine: Engine, adapter: str | None = None) -> None:
        refuse_foreign(bundle, engine.identity())
        self.engine, self._adapter = engine, adapter
        self._prompt, self._anchor_ids = bundle.manifest.prompt, bundle.manifest.anchor_ids
        self._tokenizer = PromptTokenizer(bundle)

    def __call__(self, features: Features, instruction: str, mode: Mode = Mode.DIRECT, history: Sequence[Turn] = ()) -> Reply:
        """Direct mode: one prefill with the fixed answer appended. The others: the most likely word again and again.

        Raises:
            UsageError: the instruction is longer than the bundle takes, or has control tokens in it; no such adapter.
            StageError: the engine is down.
        """
        words = self._tokenizer.words(instruction, mode, tuple(history))
        asked = self._question(features, words, mode)
        said = self.engine.ask(asked)
        if not all(np.isfinite(each.states).all() for each in said):
            raise ImageError(
                "the language model gave states that are NaN or infinite on this image: try another prompt, or report image and bundle"
            )
        if mode is Mode.DIRECT:
            return self._read(words, said)
        rows = [self._read_generated(each, len(asked.after)) for each in said]
        states, found, answers = zip(*rows, strict=True)
        there = np.array(found, bool)
        return Reply(np.stack(states), there.astype(np.float32), there, list(answers))

    def _question(self, features: Features, words: Words, mode: Mode) -> LmmRequest:
        before, after = (tuple(ids[0].tolist()) for ids in (words.ids_before, words.ids_after))
        visual = np.concatenate([features.f_s, features.f_align], 1).astype(np.float32)  # [B, 2N, D]
        if mode is not Mode.DIRECT:
            # One more than may be said: an anchor that comes last is read, too.
            return LmmRequest(before, after, (), self._prompt.max_new_tokens + 1, self._adapter, visual)
        rows = sorted({*words.logit_positions[0].tolist(), *words.anchor_positions[0].tolist()})
        return LmmRequest(before, after, tuple(rows), 0, self._adapter, visual)

    def _read(self, words: Words, said: list[LmmResponse]) -> Reply:
        """Direct mode: the anchors are where they were put."""
        at = words.anchor_positions[0].tolist()
        anchors = np.stack(
            [np.stack([each.states[each.positions.index(position)] for position in at]) for each in said]
        )  # [B, 3, D]
        lean = np.clip(np.array([each.lean for each in said]), -80.0, 80.0)
        return Reply(anchors, (1.0 / (1.0 + np.exp(-lean))).astype(np.float32), np.ones(len(said), bool))

    def _read_generated(self, said: LmmResponse, length: int) -> tuple[Float, bool, str]:
        """States [3, D] of the last of each anchor that was said, whether there are all three, and the words."""
        ids = said.ids[: self._prompt.max_new_tokens]
        last = {id: length + at for at, id in enumerate(ids) if id in self._anchor_ids}
        found = last.keys() == set(self._anchor_ids)
        blank = np.zeros(said.states.shape[1], np.float32)
        anchors = [said.states[said.positions.index(last[id])] if found else blank for id in self._anchor_ids]
        return np.stack(anchors), found, self._tokenizer.text(ids)


def refuse_foreign(bundle: Bundle, identity: Identity) -> None:
    """Raises BundleError where the engine's model and the bundle come from different checkpoints."""
    mine = bundle.manifest.provenance.get("checkpoint", {}).get("sha256")
    if identity.checkpoint_sha256 != mine:
        raise BundleError(
            f"the engine serves {identity.name}, exported from weights with sha256 {identity.checkpoint_sha256[:12]}..., and "
            f"{bundle.identity} was exported from {str(mine)[:12]}...: export both from one checkpoint"
        )


# Stage 2 on vLLM in this process.


def open_vllm(bundle: Bundle, settings: StageSettings, *, all_modes: bool = True) -> AskingLmm:
    """Starts vLLM on the folder of ``settings``, or on the one inside the bundle.

    Raises:
        BundleError: there is none, or it belongs to another checkpoint.
        SetupError: another vLLM than the plugin was written for.
        UsageError: vLLM runs in this process already, with another folder or other modes.
        StageError: vLLM does not start.
    """
    from agvas_runtime.stages.vllm.local import open_local  # draws vLLM in

    folder = find_lmm_folder(settings.lmm_folder or bundle.folder)
    return AskingLmm(bundle, open_local(folder, all_modes=all_modes), settings.adapter)


# Stage 2 on vLLM in this process, for direct mode alone: no output head, no cache of states.


def open_vllm_direct(bundle: Bundle, settings: StageSettings) -> AskingLmm:
    """As ``open_vllm``; other modes are refused with a UsageError."""
    return open_vllm(bundle, settings, all_modes=False)

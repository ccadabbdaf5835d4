"""vLLM in process says what torch says: every mode, dialogues, batches, prefix cache, chunked prefill, adapters per request."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from agvas_core.contract.errors import BundleError, UsageError
from agvas_core.contract.prompts import Mode
from agvas_core.model.weights.checkpoint import Checkpoint
from agvas_runtime.bundle import Bundle
from agvas_runtime.stages.open import Stages
from agvas_runtime.stages.protocol import Features, LmmStage, Reply, Turn
from agvas_runtime.stages.torch_reference import TorchLmm
from agvas_runtime.stages.vllm.lmm import AskingLmm
from agvas_runtime.stages.vllm.local import LocalEngine

pytestmark = pytest.mark.vllm

ASK = "Please segment the anomalies in this image."
HISTORY = (Turn("What is this?", "A round metal part."), Turn(ASK, "Sure, it is [mask]."))
TOLERANCE = 1e-4


@pytest.fixture(scope="session")
def engine(adapted_folder: Path) -> Iterator[LocalEngine]:
    """All modes."""
    engine = LocalEngine(adapted_folder)
    yield engine
    engine.close()


def same(mine: Reply, theirs: Reply) -> None:
    assert mine.answers == theirs.answers and np.array_equal(mine.found, theirs.found)
    assert mine.anchor_states.dtype == np.float32
    assert np.abs(mine.anchor_states - theirs.anchor_states).max() < TOLERANCE
    assert np.abs(mine.accept - theirs.accept).max() < TOLERANCE


@pytest.mark.parametrize("history", [(), HISTORY], ids=["alone", "dialogue"])
@pytest.mark.parametrize("mode", list(Mode))
def test_every_mode_says_what_torch_says_also_from_the_prefix_cache(
    nano: Bundle, reference: Stages, engine: LocalEngine, features: Features, mode: Mode, history: Sequence[Turn]
) -> None:
    lmm, expected = AskingLmm(nano, engine), reference.lmm(features, ASK, mode, history)
    for _ in range(2):
        same(lmm(features, ASK, mode, history), expected)


def test_adapters_change_from_one_request_to_the_next(
    nano: Bundle, engine: LocalEngine, features: Features, few_shot: dict[str, Checkpoint], reference: Stages
) -> None:
    plain = reference.lmm(features, ASK)
    models: dict[str | None, LmmStage] = {name: TorchLmm(nano, checkpoint.model) for name, checkpoint in few_shot.items()}
    models[None] = reference.lmm
    for name in ("left", "right", None, "left"):
        for mode in (Mode.DIRECT, Mode.DESCRIBE):
            same(AskingLmm(nano, engine, name)(features, ASK, mode), models[name](features, ASK, mode))
    assert np.abs(models["left"](features, ASK).anchor_states - plain.anchor_states).max() > 0.01
    assert engine.answering.adapters() == ["left", "right"]


def test_an_adapter_that_is_not_there_or_was_changed_is_refused(
    nano: Bundle, engine: LocalEngine, features: Features, adapted_folder: Path
) -> None:
    with pytest.raises(UsageError, match="there is no adapter 'none'; there are left, right"):
        AskingLmm(nano, engine, "none")(features, ASK)
    with pytest.raises(UsageError, match="no adapter"):
        AskingLmm(nano, engine, "../nano")(features, ASK)
    spec = adapted_folder / "adapters/right/agvas.json"
    kept = spec.read_text()
    try:
        spec.write_text(kept.replace('"tables_sha256": "', '"tables_sha256": "0'))
        with pytest.raises(BundleError, match="was trained with tables"):
            AskingLmm(nano, engine, "right")(features, ASK)
    finally:
        spec.write_text(kept)


def test_an_answer_that_is_cut_off_at_an_anchor_still_has_its_state(
    nano: Bundle, reference: Stages, engine: LocalEngine, features: Features
) -> None:
    """The last word that may be said is read, too, as on ONNX Runtime."""
    lmm = AskingLmm(nano, engine)
    full = lmm._read_generated  # how many words there are until the last anchor
    words = lmm._tokenizer.words(ASK, Mode.EXPLAIN)
    (said, *_) = engine.ask(lmm._question(features, words, Mode.EXPLAIN))
    ends = [at + 1 for at, id in enumerate(said.ids) if id in nano.manifest.anchor_ids]
    assert ends and full(said, words.ids_after.shape[1])[1]
    prompt = nano.manifest.prompt.model_copy(update={"max_new_tokens": ends[2]})
    short = Bundle(nano.folder, nano.manifest.model_copy(update={"prompt": prompt}), nano.identity)
    reply = AskingLmm(short, engine)(features, ASK, Mode.EXPLAIN)
    assert reply.found[0]
    assert np.abs(reply.anchor_states[0] - lmm(features, ASK, Mode.EXPLAIN).anchor_states[0]).max() < TOLERANCE


def test_what_does_not_fit_is_refused_before_vllm_sees_it(nano: Bundle, engine: LocalEngine, features: Features) -> None:
    lmm = AskingLmm(nano, engine)
    with pytest.raises(UsageError, match="embeddings of 128"):
        lmm(features._replace(f_align=features.f_align[:, :-1]), ASK)

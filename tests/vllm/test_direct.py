"""Direct mode alone: vLLM's pooling runner and our pooler."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from agvas_core.contract.errors import SetupError, UsageError
from agvas_core.contract.prompts import Mode
from agvas_core.model.weights.checkpoint import Checkpoint
from agvas_runtime.bundle import Bundle
from agvas_runtime.stages.open import Stages, StageSettings, open_stages
from agvas_runtime.stages.protocol import Features, LmmStage, Turn
from agvas_runtime.stages.torch_reference import TorchLmm
from agvas_runtime.stages.vllm import arguments
from agvas_runtime.stages.vllm.lmm import AskingLmm
from agvas_runtime.stages.vllm.local import LocalEngine

pytestmark = pytest.mark.vllm

ASK = "Please segment the anomalies in this image."
HISTORY = (Turn("What is this?", "A round metal part."), Turn(ASK, "Sure, it is [mask]."))
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def engine(adapted_folder: Path) -> Iterator[LocalEngine]:
    """A prefill of three images takes several steps: they are cut where 192 tokens are full."""
    engine = LocalEngine(adapted_folder, all_modes=False, max_num_batched_tokens=192, enable_chunked_prefill=True)
    yield engine
    engine.close()


def same(mine: LmmStage, theirs: LmmStage, features: Features, history: tuple[Turn, ...] = ()) -> None:
    one, other = (lmm(features, ASK, Mode.DIRECT, history) for lmm in (mine, theirs))
    assert np.abs(one.anchor_states - other.anchor_states).max() < TOLERANCE
    assert np.abs(one.accept - other.accept).max() < TOLERANCE


@pytest.mark.parametrize("history", [(), HISTORY], ids=["alone", "dialogue"])
def test_a_prefill_in_chunks_says_what_torch_says(
    nano: Bundle, reference: Stages, engine: LocalEngine, features: Features, history: tuple[Turn, ...]
) -> None:
    same(AskingLmm(nano, engine), reference.lmm, features, history)


def test_adapters_change_from_one_request_to_the_next(
    nano: Bundle, reference: Stages, engine: LocalEngine, features: Features, few_shot: dict[str, Checkpoint]
) -> None:
    for name in ("right", None, "left", "right"):
        theirs = reference.lmm if name is None else TorchLmm(nano, few_shot[name].model)
        same(AskingLmm(nano, engine, name), theirs, features)


def test_other_modes_are_refused_with_the_remedy(nano: Bundle, engine: LocalEngine, features: Features) -> None:
    with pytest.raises(UsageError, match="direct mode alone"):
        AskingLmm(nano, engine)(features, ASK, Mode.EXPLAIN)


def test_there_is_one_engine_in_a_process(nano: Bundle, engine: LocalEngine, adapted_folder: Path) -> None:
    settings = StageSettings(threads=1, lmm_folder=adapted_folder)
    shared = open_stages(nano, lmm="vllm-direct", settings=settings).lmm
    assert isinstance(shared, AskingLmm) and shared.engine is engine
    with pytest.raises(UsageError, match="there is room for one"):
        open_stages(nano, lmm="vllm", settings=settings)


def test_another_vllm_is_refused_by_the_name_of_the_pin(
    engine: LocalEngine, adapted_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arguments, "version", lambda package: "0.33.0+cu130")
    monkeypatch.setattr(LocalEngine, "running", None)
    with pytest.raises(SetupError, match=r"vLLM is 0\.33\.0; this agvas works with 0\.32\.0 alone"):
        LocalEngine(adapted_folder)

"""Words on ONNX Runtime are torch's, token by token, and so are the anchors that stand in them."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from agvas_core.contract.certificate import TOLERANCES
from agvas_core.contract.prompts import EMPTY_LOGITS, INSTRUCTIONS, NO_ANOMALY_ANSWER, Mode
from agvas_core.data.synthetic.synthesis import synthesize
from agvas_core.model.agvas import Vision
from agvas_core.model.config import parse_config
from agvas_core.model.encoders.encoders import PixelFeatures
from agvas_core.model.weights.checkpoint import Checkpoint, load_checkpoint
from agvas_export.bundle import prompt_of
from agvas_export.reference import encode
from agvas_runtime.bundle import BUNDLED, Bundle, load_bundle
from agvas_runtime.stages.onnx import OnnxDecoder, OnnxLmm, OnnxVision
from agvas_runtime.stages.prompt_tokenizer import PromptTokenizer
from agvas_runtime.stages.protocol import Features

sys.path.insert(0, str(Path(__file__).parents[1] / "equations"))
from generation_reference import segment_by_generation

FP32 = TOLERANCES["fp32"]
CHECKPOINT = Path(__file__).parents[2] / "agvas_core" / "checkpoints" / "nano"
INSTRUCTIONS_TRIED = (
    INSTRUCTIONS[Mode.DIRECT],
    INSTRUCTIONS[Mode.DESCRIBE],
    "Segment the hole.",
    "Segment the scratch at the top left, ünïcode!",
)


class Both:
    """A checkpoint in torch and its bundle on ONNX Runtime."""

    def __init__(self, checkpoint: Checkpoint, bundle: Bundle) -> None:
        self.checkpoint, self.bundle = checkpoint, bundle
        self.vision, self.lmm = OnnxVision(bundle, threads=1), OnnxLmm(bundle, threads=1)
        self.decoder = OnnxDecoder(bundle, threads=1)

    def features(self, index: int) -> Features:
        """Of one generated image; both sides start from these."""
        semantic, pixel = self.bundle.manifest.semantic_view, self.bundle.manifest.pixel_view
        sides = semantic.size_px, pixel.multiple_px * 4
        whole = synthesize(14, index, (max(96, *sides), max(96, *sides))).image
        return self.vision(*(np.ascontiguousarray(whole[None, :side, :side]) for side in sides))

    def torch_said(self, features: Features, instruction: str, steps: int) -> tuple[list[int], NDArray[np.float32]]:
        """Ids of the answer and logits of its mask."""
        config, tokenizer = self.checkpoint.config, self.checkpoint.tokenizer
        before, after = self.bundle.manifest.prompt.chat.prompt(instruction)
        visual = features.f_s.shape[1] + features.f_align.shape[1]
        ids = encode(tokenizer, before) + [config.lmm.image_token_id] * visual + encode(tokenizer, after)
        f_s, f_align = torch.from_numpy(features.f_s), torch.from_numpy(features.f_align)
        pixel = PixelFeatures(*(torch.from_numpy(features.decoder[name]) for name in ("f_p", "f_detail")))
        said = segment_by_generation(
            self.checkpoint.model, Vision(f_s, f_align, pixel), torch.tensor([ids]), config.lmm.end_token_id, steps
        )
        return said.answer, said.mask_logits.numpy()

    def compare(self, features: Features, instruction: str) -> str:
        """Asserts that both say the same; returns it."""
        ids, logits = self.torch_said(features, instruction, self.bundle.manifest.prompt.max_new_tokens)
        reply = self.lmm(features, instruction, Mode.DESCRIBE)
        assert reply.answers == [PromptTokenizer(self.bundle).text(ids)]
        found = set(self.bundle.manifest.anchor_ids) <= set(ids)
        assert reply.found.tolist() == [found] and reply.accept.tolist() == [float(found)]
        if found:
            actual = self.decoder(reply.anchor_states, features)
            np.testing.assert_allclose(actual, logits, rtol=0, atol=FP32.logits * max(1.0, np.abs(logits).max()))
        else:
            assert not reply.anchor_states.any()
            assert (logits == np.array(EMPTY_LOGITS, np.float32)[:, None, None]).all()
        return reply.answers[0]


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Checkpoint, exported_folder: Path) -> Both:
    return Both(tiny_checkpoint, load_bundle(exported_folder))


@pytest.fixture(scope="module")
def nano() -> Both:
    return Both(load_checkpoint(CHECKPOINT), load_bundle(BUNDLED / "nano"))


@pytest.mark.parametrize("instruction", INSTRUCTIONS_TRIED)
@pytest.mark.parametrize("index", range(2))
def test_the_runtime_says_what_torch_says(tiny: Both, instruction: str, index: int) -> None:
    tiny.compare(tiny.features(index), instruction)


def test_what_was_learned_by_heart_is_said(tiny: Both) -> None:
    features = tiny.features(0)
    assert tiny.compare(features, INSTRUCTIONS[Mode.DIRECT]) == "Sure, it is [mask]."
    assert tiny.compare(features, INSTRUCTIONS[Mode.DESCRIBE]) == "There is a dent, it is [mask]."
    assert tiny.compare(features, "Segment the hole.") == NO_ANOMALY_ANSWER


def test_acceptance_in_direct_mode_is_that_of_the_first_word(tiny: Both) -> None:
    features = tiny.features(0)
    asked = [INSTRUCTIONS[Mode.DIRECT], "Segment the hole."]
    direct = [float(tiny.lmm(features, instruction).accept[0]) for instruction in asked]
    spoken = [float(tiny.lmm(features, instruction, Mode.DESCRIBE).accept[0]) for instruction in asked]
    assert [round(value) for value in direct] == spoken == [1, 0]


def test_an_answer_that_is_cut_off_is_cut_off_alike(tiny: Both) -> None:
    features, instruction = tiny.features(1), INSTRUCTIONS[Mode.DESCRIBE]
    whole, _ = tiny.torch_said(features, instruction, 256)
    seg = whole.index(tiny.bundle.manifest.anchor_ids[-1])
    for steps in (1, seg, seg + 1):
        prompt = tiny.bundle.manifest.prompt.model_copy(update={"max_new_tokens": steps})
        bundle = Bundle(tiny.bundle.folder, tiny.bundle.manifest.model_copy(update={"prompt": prompt}), "cut")
        Both(tiny.checkpoint, bundle).compare(features, instruction)


@pytest.mark.parametrize("instruction", INSTRUCTIONS_TRIED)
def test_nano_on_the_runtime_says_what_it_says_in_torch(nano: Both, instruction: str) -> None:
    for index in range(2):
        nano.compare(nano.features(index), instruction)


def test_prompt_and_answer_fit_into_the_positions_of_the_model(tiny_checkpoint: Checkpoint) -> None:
    table = tiny_checkpoint.config.model_dump(mode="json")
    for positions, most, new in ((1024, 256, 256), (300, 134, 134), (64, 16, 16)):
        table["lmm"]["text"]["max_position_embeddings"] = positions
        prompt = prompt_of(parse_config(table))
        assert (prompt.max_tokens, prompt.max_new_tokens) == (most, new)

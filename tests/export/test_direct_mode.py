"""The whole path: the runtime on an exported bundle against the model in torch, with the same pre- and post-processing.

The torch side takes the runtime's own scorer and puts the model behind its three protocols, tokenizing as training does.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from agvas_core.contract.certificate import TOLERANCES
from agvas_core.contract.manifest import sha256_of
from agvas_core.contract.prompts import ANCHOR_TOKENS, DEFAULT_INSTRUCTION, FIXED_ANSWER, Mode
from agvas_core.data.synthetic.dialogue import Dialogue
from agvas_core.data.synthetic.synthesis import synthesize
from agvas_core.model.encoders.encoders import PixelFeatures
from agvas_core.model.fusion import anomaly_probability
from agvas_core.model.lmm import find_anchors
from agvas_core.model.weights.checkpoint import Checkpoint, load_checkpoint
from agvas_core.train.batches import encode_dialogues
from agvas_runtime.bundle import BUNDLED, Bundle, load_bundle
from agvas_runtime.pipeline.scorer import Clock, Scorer
from agvas_runtime.pipeline.segmenter import Segmenter
from agvas_runtime.stages.onnx import OnnxDecoder, OnnxLmm, OnnxVision
from agvas_runtime.stages.protocol import Features, Reply

sys.path.insert(0, str(Path(__file__).parents[1] / "equations"))
from generation_reference import segment_by_generation

FP32 = TOLERANCES["fp32"]
ROOT = Path(__file__).parents[2]
Rgb = NDArray[np.uint8]
Float = NDArray[np.float32]


class TorchModel:
    """The checkpoint behind the runtime's three protocols."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.model, self.config, self.tokenizer = checkpoint.model, checkpoint.config, checkpoint.tokenizer

    @torch.no_grad()
    def vision(self, semantic_image: Rgb, pixel_image: Rgb) -> Features:
        f_s, f_align, pixel = self.model.see(torch.from_numpy(semantic_image), torch.from_numpy(pixel_image))
        assert pixel.f_detail is not None
        return Features(f_s.numpy(), f_align.numpy(), {"f_p": pixel.f_p.numpy(), "f_detail": pixel.f_detail.numpy()})

    @torch.no_grad()
    def lmm(self, features: Features, instruction: str, mode: Mode = Mode.DIRECT) -> Reply:
        """Direct mode, without the acceptance."""
        dialogue = Dialogue(instruction, FIXED_ANSWER, None)
        ids, attention, _, start = encode_dialogues([dialogue] * len(features.f_s), self.tokenizer, self.config)
        f_in = self.model.lmm.embed(ids, torch.from_numpy(features.f_s), torch.from_numpy(features.f_align))
        hidden, _ = self.model.lmm(f_in, attention, with_logits=False)
        positions, found = find_anchors(ids, self.model.lmm.anchor_ids, start)
        states: Float = self.model.lmm.anchor_states(hidden, positions).numpy()
        return Reply(states, np.ones(len(ids), np.float32), found.numpy())

    @torch.no_grad()
    def decoder(self, anchor_states: Float, features: Features) -> Float:
        pixel = PixelFeatures(*(torch.from_numpy(features.decoder[name]) for name in ("f_p", "f_detail")))
        logits: Float = self.model.decode(torch.from_numpy(anchor_states), pixel).numpy()
        return logits


def torch_scorer(checkpoint: Checkpoint, bundle: Bundle) -> Scorer:
    model = TorchModel(checkpoint)
    return Scorer(bundle.manifest, model.vision, model.lmm, model.decoder)


def stages(bundle: Bundle) -> tuple[OnnxVision, OnnxLmm, OnnxDecoder]:
    return OnnxVision(bundle, threads=1), OnnxLmm(bundle, threads=1), OnnxDecoder(bundle, threads=1)


@pytest.fixture(scope="module")
def bundle(exported_folder: Path) -> Bundle:
    return load_bundle(exported_folder)


FRAMES = {
    "square": synthesize(11, 0, (256, 256)).image,
    "wide": synthesize(11, 1, (120, 400)).image,
    "tall": synthesize(11, 2, (500, 130)).image,
    "small": synthesize(11, 3, (96, 96)).image[:40, :30],
    "tiled": synthesize(11, 4, (1100, 700)).image,
}


@pytest.mark.parametrize("name", FRAMES)
def test_the_runtime_gives_the_models_own_score_map_and_mask(bundle: Bundle, tiny_checkpoint: Checkpoint, name: str) -> None:
    segmenter = Segmenter.load(bundle.folder, threads=1)
    (result,) = segmenter.predict(FRAMES[name])
    expected = (
        torch_scorer(tiny_checkpoint, bundle)
        .score(FRAMES[name], segmenter.prompt, Clock())
        .logits.score_map(bundle.manifest.decision.alpha)
    )
    assert result.score_map is not None and result.score_map.shape == expected.shape == FRAMES[name].shape[:2]
    np.testing.assert_allclose(result.score_map, expected, rtol=0, atol=FP32.probability)
    clear = np.abs(expected - segmenter.point.threshold) > FP32.probability
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(
        (result.score_map > segmenter.point.threshold)[clear], (expected > segmenter.point.threshold)[clear]
    )


@pytest.mark.parametrize(
    "instruction", ["Please segment the anomalies in this image.", "Find the scratch at the top left, ünïcode!"]
)
def test_the_runtime_tokenizes_as_training_did(bundle: Bundle, tiny_checkpoint: Checkpoint, instruction: str) -> None:
    said = OnnxLmm(bundle, threads=1).words(instruction)
    ids, _, _, _ = encode_dialogues(
        [Dialogue(instruction, FIXED_ANSWER, None)], tiny_checkpoint.tokenizer, tiny_checkpoint.config
    )
    text = ids[0][ids[0] != tiny_checkpoint.config.lmm.image_token_id].tolist()
    runtime = [*said.ids_before[0].tolist(), *said.ids_after[0].tolist()]
    assert runtime == text[: len(runtime)]
    assert [said.ids_after[0][at] for at in said.anchor_positions[0]] == list(tiny_checkpoint.config.lmm.anchor_ids)


def generated(checkpoint: Checkpoint, features: Features, frame: tuple[Rgb, Rgb]) -> tuple[str, Float]:
    """What greedy decoding says about one frame, and the logits of its mask."""
    config, model = checkpoint.config, checkpoint.model
    ids, _, _, start = encode_dialogues([Dialogue(DEFAULT_INSTRUCTION, FIXED_ANSWER, None)], checkpoint.tokenizer, config)
    with torch.no_grad():
        vision = model.see(*(torch.from_numpy(view) for view in frame))
    said = segment_by_generation(model, vision, ids[:, : int(start)], config.lmm.end_token_id, max_new_tokens=40)
    return checkpoint.tokenizer.decode(said.answer, skip_special_tokens=False), said.mask_logits.numpy()


def test_one_prefill_equals_greedy_generation_where_it_says_the_fixed_answer(bundle: Bundle, tiny_checkpoint: Checkpoint) -> None:
    vision, lmm, decoder = stages(bundle)
    agreed = 0
    for index in range(4):
        pixel = synthesize(12, index, (96, 128)).image[None]
        semantic = synthesize(12, index, (96, 96)).image[None, :64, :64].copy()
        features = vision(semantic, pixel)
        direct = decoder(lmm(features, DEFAULT_INSTRUCTION).anchor_states, features)
        answer, logits = generated(tiny_checkpoint, features, (semantic, pixel))
        if answer != FIXED_ANSWER + bundle.manifest.prompt.chat.after_answer:
            continue
        agreed += 1
        np.testing.assert_allclose(direct, logits, rtol=0, atol=FP32.logits * max(1.0, np.abs(logits).max()))
    assert agreed, "the tiny model was taught the fixed answer and never says it"
    assert all(token in FIXED_ANSWER for token in ANCHOR_TOKENS)


# The bundle that ships, made from the checkpoint that ships.

CHECKPOINT = ROOT / "agvas_core" / "checkpoints" / "nano"
PHOTOGRAPHS = sorted((ROOT / "examples" / "parts").glob("*.jpg"))


@pytest.fixture(scope="module")
def nano() -> Checkpoint:
    return load_checkpoint(CHECKPOINT)


@pytest.fixture(scope="module")
def nano_bundle() -> Bundle:
    return load_bundle(BUNDLED / "nano")


def test_the_bundle_that_ships_is_of_the_checkpoint_that_ships(nano: Checkpoint, nano_bundle: Bundle) -> None:
    assert nano_bundle.manifest.provenance["checkpoint"]["sha256"] == sha256_of(CHECKPOINT / "model.safetensors")


def test_masks_of_the_demo_images_are_identical_in_torch_and_in_the_runtime(nano: Checkpoint, nano_bundle: Bundle) -> None:
    assert PHOTOGRAPHS, "examples/parts has no pictures"
    segmenter, scorer = Segmenter.load("nano", threads=1), torch_scorer(nano, nano_bundle)
    found = 0
    for result in segmenter.predict(PHOTOGRAPHS, stream=True):
        assert result.image is not None and result.score_map is not None and result.mask is not None, result.error
        expected = scorer.score(result.image, segmenter.prompt, Clock()).logits.score_map(nano_bundle.manifest.decision.alpha)
        np.testing.assert_array_equal(
            result.score_map > segmenter.point.threshold, expected > segmenter.point.threshold, err_msg=result.name
        )
        found += int(result.mask.any())
    assert found, "the bundled model finds nothing on any demo image"


def test_nano_says_the_fixed_answer_and_its_one_prefill_gives_the_same_mask(nano: Checkpoint, nano_bundle: Bundle) -> None:
    vision, lmm, decoder = stages(nano_bundle)
    agreed = 0
    for index in range(3):
        pixel = synthesize(13, index, (256, 256)).image[None]
        semantic = synthesize(13, index, (256, 256)).image[None, :128, :128].copy()
        features = vision(semantic, pixel)
        direct = torch.from_numpy(decoder(lmm(features, DEFAULT_INSTRUCTION).anchor_states, features))
        answer, logits = generated(nano, features, (semantic, pixel))
        if answer == FIXED_ANSWER + nano_bundle.manifest.prompt.chat.after_answer:
            agreed += 1
            masks = [anomaly_probability(each) > 0.5 for each in (direct, torch.from_numpy(logits))]
            assert torch.equal(*masks)
    assert agreed, "nano never says the fixed answer"

"""Greedy text, its anchors, and direct mode: one prefill with the fixed answer equals generation that says it."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agvas_core.contract.errors import UsageError
from agvas_core.model.agvas import AgVas
from agvas_core.model.build import build_model
from agvas_core.model.config import ModelConfig
from agvas_core.model.fusion import anomaly_probability, binary_mask
from agvas_core.model.generation import greedy_generate
from agvas_core.model.losses import text_loss

sys.path.insert(0, str(Path(__file__).parent))
from generation_reference import segment_by_generation

END, IMAGE = 2, 3
PROMPT = torch.tensor([[10, *[IMAGE] * 8, 11, 12]])
OTHER_PROMPT = torch.tensor([[10, *[IMAGE] * 8, 30, 31, 12]])
SENTENCE = [20, 21, 22, 4, 5, 6, 23, END]  # as "Sure, it is [NOR][ANO][SEG]." and the end
REFUSAL = [24, 25, 23, END]


@pytest.fixture(scope="module")
def taught_model(tiny_config: ModelConfig) -> AgVas:
    """Trained on the text loss until it answers PROMPT with SENTENCE and OTHER_PROMPT with REFUSAL, whatever the image."""
    torch.manual_seed(0)
    model = build_model(tiny_config).eval()
    optimizer = torch.optim.Adam(model.lmm.parameters(), lr=5e-3)
    lessons = [(PROMPT, SENTENCE), (OTHER_PROMPT, REFUSAL)]
    for _ in range(300):
        with torch.no_grad():
            vision = model.see(random_image(32), random_image(64))
        losses = []
        for prompt, answer in lessons:
            ids = torch.cat([prompt, torch.tensor([answer])], 1)
            labels = ids.clone()
            labels[:, : prompt.shape[1]] = -100
            logits = model.lmm(model.lmm.embed(ids, vision.f_s, vision.f_align)).logits
            losses.append(text_loss(logits, labels))
        loss = torch.stack(losses).sum()
        if loss.item() < 0.02:
            break
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    # Masks that are neither empty nor full.
    with torch.no_grad():
        for parameter in (*model.agmd.parameters(), *model.refiner.parameters()):
            nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(False)


def random_image(side: int) -> Tensor:
    return torch.randint(0, 256, (1, side, side, 3), dtype=torch.uint8)


def step_by_step(model: AgVas, images: Any, prompt: Tensor, steps: int) -> list[int]:
    """The whole model again for each token, without a cache."""
    said: list[int] = []
    while len(said) < steps and END not in said:
        ids = torch.cat([prompt, torch.tensor([said], dtype=torch.long)], 1)
        scores = model(images.semantic[:1], images.pixel[:1], ids).text_logits[0, -1].tolist()
        scores[IMAGE] = -float("inf")
        said.append(max(range(len(scores)), key=scores.__getitem__))
    return said


@pytest.mark.parametrize("prompt", [PROMPT, OTHER_PROMPT])
def test_greedy_text_is_the_argmax_of_every_step(tiny_model: AgVas, images: Any, prompt: Tensor) -> None:
    vision = tiny_model.see(images.semantic[:1], images.pixel[:1])
    assert greedy_generate(tiny_model, vision, prompt, END, 12) == step_by_step(tiny_model, images, prompt, 12)


def test_it_ends_with_the_end_token_or_after_max_new_tokens(taught_model: AgVas, images: Any) -> None:
    vision = taught_model.see(images.semantic[:1], images.pixel[:1])
    assert greedy_generate(taught_model, vision, PROMPT, END, 50) == SENTENCE
    assert greedy_generate(taught_model, vision, PROMPT, END, 3) == SENTENCE[:3]
    assert greedy_generate(taught_model, vision, PROMPT, END, 0) == []
    assert step_by_step(taught_model, images, PROMPT, 50) == SENTENCE


def test_the_image_token_is_never_said(taught_model: AgVas, images: Any) -> None:
    vision = taught_model.see(images.semantic[:1], images.pixel[:1])
    favourite = nn.Linear(32, 40)
    nn.init.zeros_(favourite.weight)
    favourite.bias.data = torch.arange(40.0).roll(IMAGE + 1)  # likes IMAGE best, then the token before it
    head, taught_model.lmm.head = taught_model.lmm.head, favourite
    try:
        assert greedy_generate(taught_model, vision, PROMPT, -1, 2) == [IMAGE - 1] * 2
    finally:
        taught_model.lmm.head = head


def test_direct_mode_has_the_masks_of_generation_that_says_the_sentence(taught_model: AgVas, images: Any) -> None:
    for b in range(2):
        semantic, pixel = images.semantic[b : b + 1], images.pixel[b : b + 1]
        generated = segment_by_generation(taught_model, taught_model.see(semantic, pixel), PROMPT, END)
        assert generated.answer == SENTENCE
        assert generated.found
        start = torch.tensor([PROMPT.shape[1]])
        for answer in (SENTENCE, SENTENCE[:-1]):  # with and without the end, which comes after the anchors
            direct = taught_model(semantic, pixel, torch.cat([PROMPT, torch.tensor([answer])], 1), answer_start=start)
            torch.testing.assert_close(direct.mask_logits, generated.mask_logits, rtol=0, atol=1e-5)
            mask = binary_mask(anomaly_probability(direct.mask_logits))
            assert torch.equal(mask, binary_mask(anomaly_probability(generated.mask_logits)))
            assert 0 < mask.sum() < mask.numel()  # the comparison is of something


def test_a_reply_without_anchors_gives_an_empty_mask(taught_model: AgVas, images: Any) -> None:
    vision = taught_model.see(images.semantic[:1], images.pixel[:1])
    generated = segment_by_generation(taught_model, vision, OTHER_PROMPT, END)
    assert generated.answer == REFUSAL
    assert not generated.found
    assert not binary_mask(anomaly_probability(generated.mask_logits), 1e-6).any()


def test_anchors_in_the_prompt_are_no_reply(taught_model: AgVas, images: Any) -> None:
    vision = taught_model.see(images.semantic[:1], images.pixel[:1])
    prompt = torch.cat([torch.tensor([[4, 5, 6]]), OTHER_PROMPT], 1)
    generated = segment_by_generation(taught_model, vision, prompt, END, max_new_tokens=0)
    assert generated.answer == []
    assert not generated.found


def test_one_row_at_a_time(tiny_model: AgVas, images: Any) -> None:
    with pytest.raises(UsageError, match="2 rows"):
        greedy_generate(tiny_model, tiny_model.see(*images), PROMPT.expand(2, -1), END, 1)

"""A model in torch as a predictor: ``agvas eval`` scores checkpoints with it, training validates and calibrates with it.

    agvas eval --predictor checkpoint --model runs/mine --data DIR
    agvas eval --predictor checkpoint --model runs/mine --data DIR --jobs 4      # four processes, one GPU each

It takes the runtime's path (contract/preprocess.py, contract/decision.py), with one difference: it never cuts
a very large frame into tiles.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from agvas_core.contract.decision import BALANCED, OperatingPoint, anomaly_mask
from agvas_core.contract.errors import ImageError, UsageError
from agvas_core.contract.images.decode import decode_image
from agvas_core.contract.manifest import sha256_of
from agvas_core.contract.preprocess import View, back_to_frame, make_view, scaled_views
from agvas_core.contract.prompts import (
    ANCHORS,
    ANCHORS_SHOWN,
    FIXED_ANSWER,
    INSTRUCTIONS,
    NO_ANOMALY_ANSWER,
    Anchor,
    Mode,
    strip_control_tokens,
    with_normal_look,
)
from agvas_core.evaluation.workers import worker_number
from agvas_core.model.agvas import AgVas, Vision
from agvas_core.model.build import chat_format, named_anchors, visual_tokens
from agvas_core.model.config import ModelConfig
from agvas_core.model.fusion import anomaly_probability
from agvas_core.model.generation import greedy_generate
from agvas_core.model.lmm import acceptance, find_anchors
from agvas_core.model.weights.checkpoint import WEIGHTS, load_checkpoint

__all__ = ["CheckpointOptions", "CheckpointPredictor", "as_logits", "open_predictor"]

Float = NDArray[np.float32]

MAX_ANSWER_TOKENS: Final = 256  # of a generated answer; the longest of Anomaly-Instruct20K are about 150


@dataclass(frozen=True)
class CheckpointOptions:
    """What a checkpoint is asked and how its maps are judged; None keeps its own default."""

    prompt: str | None = None
    mode: Mode = Mode.DIRECT
    generate: bool = False
    """Whether it answers by itself in direct mode too; else the fixed answer is appended, and it cannot refuse."""
    operating_point: str = BALANCED
    threshold: float | None = None
    alpha: float | None = None
    bits: int | None = None

    def point(self, config: ModelConfig) -> OperatingPoint:
        """The rule that makes masks."""
        point = config.decision.point(self.operating_point)
        return point if self.threshold is None else point.at(self.threshold)


class CheckpointPredictor:
    """A model in evaluation mode, on its device.

    Args:
        identity: name and hash of the weights, kept with results.
        bf16: compute under bfloat16 autocast.
    """

    def __init__(
        self,
        model: AgVas,
        config: ModelConfig,
        tokenizer: Tokenizer,
        identity: str = "",
        options: CheckpointOptions | None = None,
        *,
        bf16: bool = False,
    ) -> None:
        self.model, self.config, self.tokenizer, self.bf16 = model, config, tokenizer, bf16
        self.name, self.identity, self.options = config.name, identity, options or CheckpointOptions()
        self._point = self.options.point(config)
        self._alpha = config.decision.alpha if self.options.alpha is None else self.options.alpha
        self._openings = tuple(tokenizer.encode(answer).ids[0] for answer in (FIXED_ANSWER, NO_ANOMALY_ANSWER))

    @property
    def operating_point(self) -> str:
        """What makes the masks, in words."""
        name = self.options.operating_point if self.options.threshold is None else "threshold"
        return f"{name}: P > {self._point.threshold:g}" + (
            "" if self._point.plain else f", a region counts from {self._point.seed_threshold:g}"
        )

    def predict(
        self, path: Path, normal_look: str | None = None
    ) -> tuple[Float, NDArray[np.bool_], str, float | None, str | None]:
        """Score map float32 [H, W] in 0..1 and mask bool [H, W] at the image's own resolution, PASS or FAIL, no score of its own, and the
        answer where one is generated.

        Args:
            normal_look: how a good part looks, for describe-plus.

        Raises:
            ImageError: the image cannot be read.
        """
        try:
            image = decode_image(path.read_bytes(), bits=self.options.bits)
        except OSError as error:
            raise ImageError(f"{path} is missing or cannot be read ({error.strerror}): copy it again") from error
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from error
        score_map, mask, answer, _ = self.reply(image, self.options.prompt, self.options.mode, normal_look=normal_look)
        return score_map, mask, "FAIL" if mask.any() else "PASS", None, answer

    @torch.no_grad()
    def reply(
        self,
        image: NDArray[np.uint8],
        instruction: str | None = None,
        mode: str = "direct",
        zero_anchors: bool = False,
        normal_look: str | None = None,
    ) -> tuple[Float, NDArray[np.bool_], str | None, float]:
        """See ``evaluation.predictor.Listener.reply``; ``normal_look`` is for describe-plus."""
        words = self._instruction(instruction, Mode(mode), normal_look)
        size = (image.shape[0], image.shape[1])
        semantic, views, device = self._views(image)
        maps, accepts = np.zeros((2, *size), np.float32), []
        answer: str | None = None
        said: tuple[Tensor, Tensor] | None = None
        speaks = self.options.generate or Mode(mode) is not Mode.DIRECT
        for view in views:
            with self._autocast(device):
                vision = self.model.see(semantic, torch.from_numpy(view.pixels)[None].to(device))
                if not speaks or said is None:  # where it speaks, one answer is for every scale, as in the runtime
                    anchors, found, accept, answer = self._read(vision, words, speaks)
                    said = (torch.zeros_like(anchors) if zero_anchors else anchors), found
                    accepts.append(accept)
                logits = self.model.decode(said[0], vision.pixel, said[1])[0].float().cpu()  # [3, h', w']
            self._add(maps, logits.numpy(), view, size, len(views))
        accept = float(np.mean(accepts))
        score_map = self._score_map(maps)
        return score_map, anomaly_mask(score_map, self._point, accept), answer, accept

    def score(self, image: NDArray[np.uint8]) -> tuple[Float, float]:
        """P (eq. 8) float32 [H, W] of an RGB frame uint8 [H, W, 3] in direct mode, and the acceptance 0..1."""
        maps, accept = self.logits(image, (image.shape[0], image.shape[1]))
        return self._score_map(maps), accept

    @torch.no_grad()
    def logits(self, image: NDArray[np.uint8], size: tuple[int, int]) -> tuple[Float, float]:
        """Direct mode before the rule, for calibration, by the same forward pass as in training.

        Returns:
            l_seg and l_ano - l_nor of an RGB frame, float32 [2, h, w] at ``size`` = (h, w), the mean over scales;
            and the acceptance 0..1.
        """
        semantic, views, device = self._views(image)
        ids, start = (each.to(device) for each in self.direct_row())
        maps, accepts = np.zeros((2, *size), np.float32), []
        for view in views:
            with self._autocast(device):
                pixel = torch.from_numpy(view.pixels)[None].to(device)
                output = self.model(semantic, pixel, ids, torch.ones_like(ids), start)
            self._add(maps, output.mask_logits[0].float().cpu().numpy(), view, size, len(views))
            accepts.append(float(acceptance(output.text_logits, start, *self._openings)))
        return maps, float(np.mean(accepts))

    def direct_row(self) -> tuple[Tensor, Tensor]:
        """Direct mode in tokens, as training encodes it: ids [1, L] of prompt and fixed answer, the answer's start [1]."""
        prompt = self._prompt(INSTRUCTIONS[Mode.DIRECT])
        fixed = FIXED_ANSWER.replace(ANCHORS, named_anchors(self.config))
        answer = self._ids(fixed + chat_format(self.config.lmm).after_answer)
        return torch.tensor([prompt + answer]), torch.tensor([len(prompt)])

    def _views(self, image: NDArray[np.uint8]) -> tuple[Tensor, list[View], torch.device]:
        """The semantic view uint8 [1, Hs, Ws, 3] on the model's device, a pixel view for each scale, and that device."""
        device = next(self.model.parameters()).device  # read each time: training moves its model
        semantic = torch.from_numpy(make_view(self.config.semantic_view, image).pixels)[None].to(device)
        specs = scaled_views(self.config.pixel_view, self.config.scales, image.shape[0], image.shape[1])
        return semantic, [make_view(spec, image) for spec in specs], device

    def _score_map(self, maps: Float) -> Float:
        score_map: Float = anomaly_probability(as_logits(torch.from_numpy(maps))[None], self._alpha)[0].numpy()
        return score_map

    def _prompt(self, instruction: str) -> list[int]:
        """Token ids up to the answer, image tokens included."""
        before, after = chat_format(self.config.lmm).prompt(instruction)
        visual = [self.config.lmm.image_token_id] * visual_tokens(self.config)
        return self._ids(before) + visual + self._ids(after)

    def _read(self, vision: Vision, instruction: str, speaks: bool) -> tuple[Tensor, Tensor, float, str | None]:
        """States of the anchors [1, 3, D], whether there are any [1], acceptance 0..1, and the answer where it was generated."""
        model, lmm = self.model, self.config.lmm
        prompt = self._prompt(instruction)
        device = vision.f_s.device
        if speaks:
            answer = greedy_generate(model, vision, torch.tensor([prompt], device=device), lmm.end_token_id, MAX_ANSWER_TOKENS)
        else:
            answer = self._ids(FIXED_ANSWER.replace(ANCHORS, named_anchors(self.config)))
        ids = torch.tensor([prompt + answer], device=device)
        embeddings = model.lmm.embed(ids, vision.f_s, vision.f_align)
        hidden = model.lmm(embeddings, with_logits=False).hidden  # [1, L, D]; logits of all words at every place would be 1 GB
        start = torch.tensor([len(prompt)], device=device)
        positions, found = find_anchors(ids, model.lmm.anchor_ids, start)
        states = model.lmm.anchor_states(hidden, positions)
        if speaks:  # an answer in words says itself whether there is anything
            return states, found, float(bool(found)), self._shown(answer, bool(found))
        scores = model.lmm.head(hidden[0, len(prompt) - 1]).float()  # [V], of the answer's first token
        return states, found, float((scores[self._openings[0]] - scores[self._openings[1]]).sigmoid()), None

    def _instruction(self, words: str | None, mode: Mode, normal_look: str | None) -> str:
        cleaned = INSTRUCTIONS[mode] if words is None else strip_control_tokens(words)[0]
        if not cleaned:
            raise UsageError(f"the prompt {words!r} says nothing: say what to look for, or leave it out")
        if mode is not Mode.DESCRIBE_PLUS:
            return cleaned
        if normal_look is None:
            raise UsageError(
                f"mode {mode} needs a sentence on how a good part looks: give one for each category (--normal-looks)"
            )
        return with_normal_look(strip_control_tokens(normal_look)[0], cleaned)

    def _add(self, maps: Float, layers: Float, view: View, size: tuple[int, int], views: int) -> None:
        """l_seg and l_ano - l_nor of one view, at frame size, into their means [2, H, W]."""
        for whole, layer in zip(maps, (layers[Anchor.SEG], layers[Anchor.ANO] - layers[Anchor.NOR]), strict=True):
            whole += back_to_frame(layer, view, size) / views

    def _shown(self, answer: list[int], found: bool) -> str:
        """The answer as people read it: ``ANCHORS_SHOWN`` for its anchors where it has all of them."""
        text = self.tokenizer.decode(answer, skip_special_tokens=False)
        clean = strip_control_tokens(text.replace(named_anchors(self.config), ANCHORS_SHOWN))[0]
        if found and ANCHORS_SHOWN not in clean:  # apart from each other
            return f"{clean} {ANCHORS_SHOWN}"
        return clean if found else clean.replace(ANCHORS_SHOWN, "").strip()

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        return torch.autocast(device.type, torch.bfloat16) if self.bf16 else nullcontext()


def open_predictor(
    model: str | Path = "nano",
    threads: int | None = None,
    *,
    prompt: str | None = None,
    mode: str = "direct",
    generate: bool = False,
    operating_point: str = BALANCED,
    threshold: float | None = None,
    alpha: float | None = None,
    bits: int | None = None,
    precision: str | None = None,
) -> CheckpointPredictor:
    """Opens a checkpoint, on a GPU where there is one; the entry point ``checkpoint`` of group ``agvas.predictors``.

    Args:
        model: a folder, or a bundled checkpoint by its name.
        threads: of the CPU.
        prompt, mode, generate, operating_point, threshold, alpha, bits: see ``CheckpointOptions``.
        precision: ``bf16`` keeps published weights in 2 bytes and computes under autocast, as training does; the default on a GPU.

    Raises:
        UsageError, SetupError: see ``load_checkpoint``; unknown operating point, mode or precision.
    """
    if precision not in (None, "bf16", "fp32"):
        raise UsageError(f"--precision is {precision!r}; it can be bf16 or fp32")
    if threshold is not None and not 0 < threshold < 1:
        raise UsageError(f"--threshold is {threshold:g}; it lies between 0 and 1")
    if threads is not None:
        torch.set_num_threads(threads)
    count = torch.cuda.device_count()
    device = torch.device(f"cuda:{worker_number() % count}" if count else "cpu")
    bf16 = precision == "bf16" or (precision is None and device.type == "cuda")
    found = load_checkpoint(model, dtype=torch.bfloat16 if bf16 else torch.float32)
    options = CheckpointOptions(prompt, Mode(mode), generate, operating_point, threshold, alpha, bits)
    digest = sha256_of(found.folder / WEIGHTS)[:12]
    identity = f"{found.config.name} {digest} {'bf16' if bf16 else 'fp32'}"
    return CheckpointPredictor(found.model.to(device), found.config, found.tokenizer, identity, options, bf16=bf16)


def as_logits(maps: Tensor) -> Tensor:
    """l_seg and l_ano - l_nor [2, h, w] -> logits [3, h, w] of the same probabilities, with l_nor for zero."""
    l_seg, l_ano_nor = maps
    return torch.stack([torch.zeros_like(l_seg), l_ano_nor, l_seg])

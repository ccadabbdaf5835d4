"""A model on its device: the three stages one by one, and in direct mode all of them at once, without waiting."""

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from types import ModuleType
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agvas_core.model.agvas import AgVas
from agvas_core.model.encoders.encoders import PixelFeatures
from agvas_runtime.stages.graph_cache import GraphCache
from agvas_runtime.stages.prompt_tokenizer import Words
from agvas_runtime.stages.protocol import Features, FramePlan, FrameReferences, FrameSeen, Segmented
from agvas_runtime.stages.torch_cuda.device import Precision, cuda_errors
from agvas_runtime.stages.torch_cuda.pieces import PLAIN, Pieces
from agvas_runtime.stages.torch_cuda.reading import Prompt, Reader, Wanted
from agvas_runtime.stages.torch_cuda.seeing import Eyes, placed
from agvas_runtime.stages.torch_reference import TorchReferences
from agvas_runtime.stages.whole_frame import (
    MOST_REGIONS,
    REGION_BYTES,
    SUMMARY,
    FrameJudged,
    FrameKernels,
    TileMade,
    read_summary,
)

__all__ = ["Captured", "Direct", "Engine", "Flight", "FrameFlight", "Graphs", "TorchFrame", "Views"]


# One frame in direct mode: its views to the masks' logits, with nothing between that leaves the device.


class Direct:
    """The model as one function of its views.

    Args:
        model: as ``placed`` gives it; its language model's layers are laid together in place.
        side: the stream of the pixel encoder on a GPU; it begins when the current stream has come so far, and SPAM waits for it. None computes
            one after the other.
    """

    def __init__(
        self, model: AgVas, *, side: torch.cuda.Stream | None = None, float8: bool = False, pieces: Pieces = PLAIN
    ) -> None:
        self.eyes, self.reader = Eyes(model), Reader(model.lmm, float8=float8, pieces=pieces)
        self._side = side

    def __call__(self, prompt: Prompt, semantic: Tensor, *pixels: Tensor) -> tuple[Tensor, ...]:
        """uint8 [B, Hs, Ws, 3] and, for each look, [B, H, W, 3] -> for each look logits float32 [B, 3, H', W'], then, of all looks one after
        the other, how far the model leans to answering, float32 [looks * B]. Of many looks the language model is asked once."""
        side = self._side
        if side is not None:
            side.wait_stream(torch.cuda.current_stream(side.device))
        with torch.cuda.stream(side) if side is not None else nullcontext():
            features = [self.eyes.pixel(pixel) for pixel in pixels]  # beside the semantic encoder
        f_s = self.eyes.semantic(semantic)  # [B, N, D]
        if side is not None:
            torch.cuda.current_stream(side.device).wait_stream(side)
        f_align = torch.cat([self.eyes.align(f_s, each.f_p) for each in features])  # eq. 2: [looks * B, N, D]
        anchors, lean = self.reader(prompt, f_s.repeat(len(pixels), 1, 1), f_align)  # eq. 3: [looks * B, 3, D], [looks * B]
        of_look = anchors.view(len(pixels), -1, *anchors.shape[1:])  # [looks, B, 3, D]
        logits = [
            self.eyes.masks(states, each) for states, each in zip(of_look, features, strict=True)
        ]  # eq. 4-7: [B, 3, H', W']
        # ``features`` lives until here, so its memory is not given to the side stream again before it was read.
        return *logits, lean


# CUDA graphs by shape: a function of tensors, captured once and launched with one call from then on.


Function = Callable[..., tuple[Tensor, ...]]


class Captured:
    """``function`` at the shapes of ``inputs``, as a graph with buffers of its own.

    Args:
        stream: that it was warmed up on and is captured on; nothing else may use the GPU through this process meanwhile.
    """

    def __init__(self, function: Function, inputs: Sequence[Tensor], stream: torch.cuda.Stream) -> None:
        self._inputs = [given.clone() for given in inputs]
        with torch.cuda.stream(stream):
            function(*self._inputs)  # libraries choose and load their kernels, which cannot be captured
        stream.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            self._outputs = function(*self._inputs)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Copies and launches on the current stream; what comes back is overwritten by the next call."""
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._outputs


class Graphs:
    """Captured functions by key and shapes.

    Args:
        stream: on which all of them run. None, on a CPU, runs every function as it is.
    """

    def __init__(self, stream: torch.cuda.Stream | None) -> None:
        self._stream = stream
        self._captured: GraphCache[Captured] = GraphCache()  # each holds the memory of one run

    def run(self, key: Hashable, function: Function, *inputs: Tensor) -> tuple[Tensor, ...]:
        """``function(*inputs)``; the results are good until the next run."""
        stream = self._stream
        if stream is None:
            return function(*inputs)
        at = key, tuple(given.shape for given in inputs)
        captured = self._captured.get(at, lambda: Captured(function, [given.to(stream.device) for given in inputs], stream))
        if captured is None:
            return function(*(given.to(stream.device, non_blocking=True) for given in inputs))
        return captured(*inputs)

    def __len__(self) -> int:
        return len(self._captured)


# Frames of one size from pixels to P: the native core's kernels around the model, all of it on the engine's stream.


class TorchFrame:
    """Tables, and memory that stays where it is, because a captured graph writes there again and again.

    Args:
        core: the native core, with CUDA.
    """

    def __init__(self, core: ModuleType, plan: FramePlan, device: torch.device) -> None:
        self._kernels, self._device = FrameKernels(core, plan), device
        self._views = [
            tuple(torch.empty(shape, dtype=torch.uint8, device=device) for shape in shapes) for shapes in self._kernels.shapes
        ]
        self._tiles_seen = [
            (semantic.data_ptr(), pixel.data_ptr()) for look in self._views for semantic, pixel in zip(*look, strict=True)
        ]
        self._score_map = torch.empty(plan.size, dtype=torch.float32, device=device)
        self._mask = torch.empty(plan.size, dtype=torch.uint8, device=device)
        self._summary = torch.empty(SUMMARY.itemsize, dtype=torch.uint8, device=device)
        self._regions = torch.empty(MOST_REGIONS * REGION_BYTES, dtype=torch.uint8, device=device)
        self._made: list[Tensor] = []
        # Looks at the whole frame have the same semantic view, so the language model is asked once of all of them; tiles a few at a time.
        whole = tuple(number for number, look in enumerate(plan.looks) if len(look.tiles) == 1)
        most = plan.tiles_at_once
        self._runs: list[tuple[tuple[int, ...], slice]] = [
            ((number,), slice(first, min(first + most, len(look.tiles))))
            for number, look in enumerate(plan.looks)
            if number not in whole
            for first in range(0, len(look.tiles), most)
        ]
        if whole:
            self._runs.append((whole, slice(0, 1)))
        self._compare = None if plan.references is None else self._with_bank(plan.references)

    def _with_bank(self, references: FrameReferences) -> Callable[[int, int], tuple[Tensor, Tensor]]:
        """Measures the frame at a pointer, on a stream: deep and joint distances, [1, h, w] each, good until the next call."""
        stage, shape = references.stage, self._kernels.reference_shape
        assert isinstance(stage, TorchReferences) and shape is not None, "can_see_references() says so"
        view = torch.empty(shape, dtype=torch.uint8, device=self._device)
        bank = torch.from_numpy(references.bank).to(self._device)
        weight = torch.tensor(references.colour_weight, device=self._device)
        own: list[Tensor] = []

        def compare(frame: int, stream: int) -> tuple[Tensor, Tensor]:
            self._kernels.see_reference(frame, view.data_ptr(), stream)
            found = stage.module(view, bank, weight)
            if not own:  # the first run, which is not captured
                own.extend(torch.empty_like(each) for each in (found.deep, found.joint))
            deep, joint = own
            deep.copy_(found.deep)
            joint.copy_(found.joint)
            return deep, joint

        return compare

    def __call__(self, direct: Direct, prompt: Prompt, image: Tensor, rule: Tensor) -> tuple[Tensor, ...]:
        """RGB uint8 [H, W, 3] and RULE as bytes -> P float32 [H, W], SUMMARY as bytes and, where the plan has references, deep and joint
        distances, all good until the next call."""
        stream = torch.cuda.current_stream(self._device).cuda_stream if self._device.type == "cuda" else 0
        self._kernels.see(image.data_ptr(), self._tiles_seen, stream)
        made: list[Tensor] = []  # of each run the logits of its looks, then the leanings
        for looks, tiles in self._runs:
            made += direct(prompt, self._views[looks[0]][0][tiles], *(self._views[number][1][tiles] for number in looks))
        if not self._kernels.follows:  # the first run, which is not captured, tells their shapes
            self._made = [torch.empty(each.shape, dtype=torch.float32, device=self._device) for each in made]
            self._kernels.follow(self._tiles_made())
        for own, each in zip(self._made, made, strict=True):
            own.copy_(each)
        results = self._score_map, self._mask, self._summary, self._regions
        self._kernels.judge(rule.data_ptr(), FrameJudged(*(each.data_ptr() for each in results)), stream)
        distances = () if self._compare is None else self._compare(image.data_ptr(), stream)
        return self._score_map, self._summary, *distances

    def _tiles_made(self) -> list[TileMade]:
        """Of all looks in their order."""
        found: dict[int, list[TileMade]] = {}
        made = iter(self._made)
        for looks, _ in self._runs:
            logits = [next(made) for _ in looks]
            lean = next(made).data_ptr()
            for number, maps in zip(looks, logits, strict=True):
                for tile in maps:  # [3, rows, columns]
                    found.setdefault(number, []).append(TileMade(tile.data_ptr(), (tile.shape[1], tile.shape[2]), lean))
                    lean += 4
        return [tile for number in sorted(found) for tile in found[number]]


Float = NDArray[np.float32]
Views = tuple[NDArray[np.uint8], NDArray[np.uint8]]

KEPT_PROMPTS: Final = 16


class Engine:
    """Several threads may call it; they take turns.

    Args:
        model: in evaluation mode; stays as it is.
        first_words: of the answer and of the refusal.
        device: a GPU of ``open_device``. On a CPU everything is computed in the same way, without streams and graphs: for tests.
    """

    def __init__(
        self,
        model: AgVas,
        first_words: tuple[int, int],
        *,
        device: torch.device,
        precision: Precision = "bf16",
        pieces: Pieces = PLAIN,
    ) -> None:
        on_gpu = device.type == "cuda"
        self.device, self.precision, self.first_words = device, precision, first_words
        with cuda_errors("loading"), torch.inference_mode(False), torch.no_grad():
            self.model = placed(model, device, torch.float32 if precision == "fp32" else torch.bfloat16)
            self.stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
            side = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
            self.direct = Direct(self.model, side=side, float8=precision == "fp8", pieces=pieces)
        self.graphs = Graphs(self.stream)
        self._frames: GraphCache[TorchFrame] = GraphCache()
        self._lock, self._slots = threading.RLock(), list[dict[str, Tensor]]()
        self._prompts = lru_cache(maxsize=KEPT_PROMPTS)(self._prepare)

    @contextmanager
    def turn(self, what: str) -> Iterator[None]:
        """One thread at a time, on the engine's stream; errors of CUDA as ``cuda_errors`` has them."""
        with (
            self._lock,
            cuda_errors(what),
            torch.inference_mode(),
            torch.cuda.stream(self.stream) if self.stream else nullcontext(),
        ):
            yield

    def prompt(self, words: Words) -> Prompt:
        """What is known of ``words`` beforehand; kept. Call it within a turn."""
        return self._prompts(*(tuple(ids[0].tolist()) for ids in words))

    def launch(self, views: Views, words: Words) -> "Flight":
        """Direct mode: begins a batch of views [B, H, W, 3] and returns at once."""
        with self.turn("a frame"):
            prompt = self.prompt(words)
            slot = self._slots.pop() if self._slots else {}
            given = [self._pinned(slot, name, view) for name, view in zip(("semantic", "pixel"), views, strict=True)]

            def whole(semantic: Tensor, pixel: Tensor) -> tuple[Tensor, ...]:
                logits, lean = self.direct(prompt, semantic, pixel)
                return logits, lean.sigmoid()

            found = self.graphs.run(("direct", prompt), whole, *given)
            return Flight(*self._begun(slot, ("logits", "accept"), found))

    def launch_frame(
        self, core: ModuleType, image: NDArray[np.uint8], plan: FramePlan, words: Words, rule: NDArray[np.uint8]
    ) -> "FrameFlight | None":
        """Direct mode from pixels to P: begins, and returns at once. None where a size comes for the first time.

        Args:
            core: what ``kernels`` found.
        """
        with self.turn("a frame"):
            frame = self._frames.get(plan, lambda: TorchFrame(core, plan, self.device))
            if frame is None:
                return None
            prompt = self.prompt(words)
            slot = self._slots.pop() if self._slots else {}
            given = [self._pinned(slot, name, array) for name, array in (("frame", image), ("rule", rule))]

            def whole(pixels: Tensor, rule: Tensor) -> tuple[Tensor, ...]:
                return frame(self.direct, prompt, pixels, rule)

            found = self.graphs.run(("frame", frame, prompt), whole, *given)
            names = ("score_map", "summary", "deep", "joint")[: len(found)]
            return FrameFlight(*self._begun(slot, names, found), names=names)

    def see(self, semantic_image: NDArray[np.uint8], pixel_image: NDArray[np.uint8]) -> Features:
        """Stage 1."""

        def vision(semantic: Tensor, pixel: Tensor) -> tuple[Tensor, ...]:
            f_s, features = self.direct.eyes.semantic(semantic), self.direct.eyes.pixel(pixel)
            maps = (each for each in features if each is not None)
            return f_s, self.direct.eyes.align(f_s, features.f_p), *maps

        with self.turn("vision"):
            given = (torch.from_numpy(view) for view in (semantic_image, pixel_image))
            f_s, f_align, *rest = (_host(tensor) for tensor in self.graphs.run("vision", vision, *given))
            return Features(f_s, f_align, dict(zip(PixelFeatures._fields, rest, strict=False)))

    def ask(self, features: Features, words: Words) -> tuple[Float, Float]:
        """Stage 2 in direct mode: anchor states [B, 3, D] and acceptance [B]."""
        with self.turn("the language model"):
            prompt = self.prompt(words)

            def read(f_s: Tensor, f_align: Tensor) -> tuple[Tensor, ...]:
                anchors, lean = self.direct.reader(prompt, f_s, f_align)
                return anchors, lean.sigmoid()

            given = (
                torch.from_numpy(np.asarray(part)) for part in (features.f_s, features.f_align)
            )  # of another engine, on a GPU
            anchors, accept = (_host(tensor) for tensor in self.graphs.run(("lmm", prompt), read, *given))
            return anchors, accept

    def decode(self, anchor_states: Float, decoder: Mapping[str, Float]) -> Float:
        """Stage 3: logits [B, 3, H', W']."""

        def masks(anchors: Tensor, f_p: Tensor, f_detail: Tensor | None = None) -> tuple[Tensor, ...]:
            return (self.direct.eyes.masks(anchors, PixelFeatures(f_p, f_detail)),)

        with self.turn("the decoder"):
            given = [anchor_states, *(decoder[name] for name in ("f_p", "f_detail") if name in decoder)]
            return _host(self.graphs.run("decoder", masks, *(torch.from_numpy(np.asarray(each)) for each in given))[0])

    def _prepare(self, *words: tuple[int, ...]) -> Prompt:
        before, after, anchors, asked = words
        wanted = Wanted(
            *(
                torch.tensor(ids, dtype=torch.long, device=self.device)
                for ids in (before, after, (*asked, *anchors), self.first_words)
            )
        )
        return self.direct.reader.prepare(wanted)

    def _pinned(self, slot: dict[str, Tensor], name: str, view: NDArray[np.uint8]) -> Tensor:
        """The view in memory that the GPU copies from while we go on."""
        given = torch.from_numpy(np.ascontiguousarray(view))
        if self.stream is None:
            return given
        if name not in slot or slot[name].shape != given.shape:
            slot[name] = torch.empty(given.shape, dtype=given.dtype, pin_memory=True)
        return slot[name].copy_(given)

    def _fetched(self, slot: dict[str, Tensor], name: str, tensor: Tensor) -> Tensor:
        if self.stream is None:
            return tensor
        kept = slot.get(name)
        if kept is None or kept.shape != tensor.shape:
            kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return kept.copy_(tensor, non_blocking=True)

    def _begun(
        self, slot: dict[str, Tensor], names: tuple[str, ...], found: tuple[Tensor, ...]
    ) -> tuple["Engine", dict[str, Tensor], Any]:
        """What was ``found`` on its way to the host: a flight's arguments."""
        slot |= {name: self._fetched(slot, name, tensor) for name, tensor in zip(names, found, strict=True)}
        done = None
        if self.stream is not None:
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self.stream)
        return self, slot, done

    def _give_back(self, slot: dict[str, Tensor]) -> None:
        with self._lock:
            self._slots.append(slot)


class _Flight:
    """A slot whose results are on their way; it is given back once they were copied out."""

    def __init__(self, engine: Engine, slot: dict[str, Tensor], done: Any) -> None:
        self._engine, self._slot, self._done = engine, slot, done

    def _landed(self, *names: str) -> list[NDArray[Any]]:
        with cuda_errors("a frame"):
            if self._done is not None:
                self._done.synchronize()
            found = [self._slot[name].numpy().copy() for name in names]
        self._engine._give_back(self._slot)
        return found


class Flight(_Flight):
    """A batch on its way; ``result`` waits for it."""

    def result(self) -> Segmented:
        """Logits and acceptance, as ``Segmented`` says. Once only.

        Raises:
            StageError: the GPU failed on the way.
        """
        return Segmented(*self._landed("logits", "accept"))


class FrameFlight(_Flight):
    """A whole frame on its way."""

    def __init__(self, engine: Engine, slot: dict[str, Tensor], done: Any, *, names: tuple[str, ...]) -> None:
        super().__init__(engine, slot, done)
        self._names = names

    def result(self) -> FrameSeen:
        """See ``PendingFrame``."""
        score_map, summary, *distances = self._landed(*self._names)
        return read_summary(summary, score_map, *distances)


def _host(tensor: Tensor) -> Float:
    array: Float = tensor.float().cpu().numpy()
    return array

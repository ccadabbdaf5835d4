"""A whole frame on the three engines: kernels, engines and kernels again, one after the other on one stream, from the second run on one graph.

It has contexts and memory of its own, so nothing is copied from engine to engine: where one writes, the next one reads. It shares the
engines' scratch memory, and so waits for them, and they for it.
"""

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from math import prod
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.decision import OperatingPoint
from agvas_core.contract.errors import StageError
from agvas_runtime.stages.graph_cache import GraphCache
from agvas_runtime.stages.prompt_tokenizer import PromptTokenizer, Words
from agvas_runtime.stages.protocol import FramePlan, FrameReferences, FrameSeen
from agvas_runtime.stages.trt.cuda import Cuda, DeviceMemory, PinnedMemory, Repeated
from agvas_runtime.stages.trt.engine import Sized, TrtEngine, tensor_bytes
from agvas_runtime.stages.trt.references import TrtReferences
from agvas_runtime.stages.whole_frame import (
    MOST_REGIONS,
    REGION_BYTES,
    RULE,
    SUMMARY,
    FrameJudged,
    FrameKernels,
    TileMade,
    can_see_references,
    packed_rule,
    read_summary,
)

__all__ = ["Engines", "TrtFrames"]

Shape = tuple[int, ...]
Tensor = tuple[Shape, np.dtype[Any]]
Past = Callable[[int], Shape]
"""Shape of an empty cache for so many tiles."""


class Engines(NamedTuple):
    """Of one bundle, in the order of the data path."""

    vision: TrtEngine
    lmm: TrtEngine
    decoder: TrtEngine

    @property
    def fit(self) -> bool:
        """Whether what the kernels read is float32."""
        return self.lmm.kinds["text_logits"] == self.decoder.kinds["logits"] == np.float32


class TrtFrames:
    """``FrameStage`` on TensorRT."""

    def __init__(self, core: ModuleType, engines: Engines, tokenizer: PromptTokenizer, empty_past: Past) -> None:
        self._core, self._engines, self._tokenizer, self._past = core, engines, tokenizer, empty_past
        self._frames: GraphCache[_Frame] = GraphCache()

    def __call__(self, image: NDArray[np.uint8], plan: FramePlan, instruction: str, point: OperatingPoint) -> "_Flight | None":
        """See ``FrameStage``.

        Raises:
            ImageError: a view that an engine was not built for; out of GPU memory.
            StageError: TensorRT or the GPU fails.
            UsageError: an instruction that the bundle does not take.
        """
        if not can_see_references(plan, TrtReferences):
            return None
        words = self._tokenizer.words(instruction)
        with ExitStack() as turn:
            for engine in _engines_of(self._engines, plan):
                turn.enter_context(engine.turn())
            key = plan, *(ids.shape for ids in words)
            frame = self._frames.get(key, lambda: _Frame(self._core, self._engines, self._tokenizer, plan, words, self._past))
            return None if frame is None else frame.launch(image, words, packed_rule(point, image.shape[0] * image.shape[1]))


def _engines_of(engines: Engines, plan: FramePlan) -> tuple[TrtEngine, ...]:
    """All that a plan needs, that of the references last."""
    stage = plan.references.stage if plan.references is not None else None
    return (*engines, stage.engine) if isinstance(stage, TrtReferences) else engines


class _Slot:
    """Page-locked memory of one frame under way: what goes up, and what comes down."""

    def __init__(self, cuda: Cuda, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._memory = {name: PinnedMemory(cuda, tensor_bytes(*tensor), f"{name} of a frame") for name, tensor in tensors.items()}
        self.done = cuda.event()

    def pointer(self, name: str) -> int:
        return self._memory[name].pointer

    def array(self, name: str) -> NDArray[Any]:
        return self._memory[name].view(*self._tensors[name])


class _Frame:
    """One size of frame and one length of instruction. One thread at a time."""

    def __init__(
        self, core: ModuleType, engines: Engines, tokenizer: PromptTokenizer, plan: FramePlan, words: Words, past: Past
    ) -> None:
        self._engines = _engines_of(engines, plan)
        self._cuda = cuda = engines.vision.cuda
        self._stream = cuda.stream()
        self._kernels = FrameKernels(core, plan)
        self._slots: deque[_Slot] = deque()
        self._said: Words | None = None
        most = min(plan.tiles_at_once, *(engine.max_batch for engine in engines))
        at_once = max(min(len(look.tiles), most) for look in plan.looks)
        byte = np.dtype(np.uint8)
        self._tensors: dict[str, Tensor] = {
            "frame": ((*plan.size, 3), byte),
            "rule": ((RULE.itemsize,), byte),
            "score_map": (plan.size, np.dtype(np.float32)),
            "summary": ((SUMMARY.itemsize,), byte),
            **{name: ((at_once, *ids.shape[1:]), ids.dtype) for name, ids in words._asdict().items()},
        }
        here: dict[str, Tensor] = {"mask": (plan.size, byte), "regions": ((MOST_REGIONS * REGION_BYTES,), byte)}
        self._memory = {
            name: cuda.allocate(tensor_bytes(*tensor), f"{name} of a frame") for name, tensor in (self._tensors | here).items()
        }
        self._views: list[tuple[int, int]] = []  # of each tile, pointers to both
        self._steps: list[tuple[TrtEngine, Sized]] = []
        self._held: list[DeviceMemory] = []
        made = [
            tile
            for number, look in enumerate(plan.looks)
            for first in range(0, len(look.tiles), most)
            for tile in self._part(number, min(most, len(look.tiles) - first), words, past, tokenizer)
        ]
        self._kernels.follow(made)
        self._reference_view = 0
        self._distances: dict[str, int] = {}
        if plan.references is not None:
            self._compare(plan.references)
        self._again = Repeated(cuda, self._stream, "a frame")
        self._capturable = all(engine.capturable for engine in self._engines)

    def launch(self, image: NDArray[np.uint8], words: Words, rule: NDArray[np.uint8]) -> "_Flight":
        """Begins a frame, and returns at once; within the turns of all engines."""
        cuda, stream = self._cuda, self._stream
        slot = self._slots.pop() if self._slots else _Slot(cuda, self._tensors)
        given: dict[str, NDArray[Any]] = {"frame": image, "rule": rule}
        if self._said is not words:
            given |= words._asdict()  # once for each tile that goes with others
        for name, array in given.items():
            np.copyto(slot.array(name), array)
            cuda.copy(self._memory[name].pointer, slot.pointer(name), slot.array(name).nbytes, "HostToDevice", stream, "a frame")
        self._said = words
        if not self._again.run(self._enqueue, capture=self._capturable):
            cuda.wait(stream, "a frame")  # of a GPU that is gone, CUDA knows more than TensorRT
            raise StageError(
                "an engine failed on a frame: start the run again; if it stays, build the engines again (agvas-export trt)"
            )
        down = {name: self._memory[name].pointer for name in ("score_map", "summary")} | self._distances
        for name, pointer in down.items():
            cuda.copy(slot.pointer(name), pointer, slot.array(name).nbytes, "DeviceToHost", stream, "a frame")
        cuda.record(slot.done, stream, "a frame")
        for engine in self._engines:
            engine.lend_to(stream)
        return _Flight(cuda, slot, self._slots, ("summary", "score_map", *self._distances))

    def _part(self, number: int, tiles: int, words: Words, past: Past, tokenizer: PromptTokenizer) -> list[TileMade]:
        """Contexts of some tiles of a look, each given what the one before it makes."""
        vision, lmm, decoder, *_ = self._engines
        of_look = self._kernels.shapes[number]
        shapes = [(tiles, *whole[1:]) for whole in of_look]
        # Memory of their own: TensorRT wants addresses at multiples of 256.
        at = [self._allocate(prod(shape), "views") for shape in shapes]
        views = dict(zip(("semantic_image", "pixel_image"), zip(shapes, at, strict=True), strict=True))
        sizes = [prod(whole[1:]) for whole in of_look]
        self._views += [(at[0] + tile * sizes[0], at[1] + tile * sizes[1]) for tile in range(tiles)]
        seen = self._step(vision, views)
        said = {name: ((tiles, *ids.shape[1:]), self._memory[name].pointer) for name, ids in words._asdict().items()}
        nothing = {"past_key_values": (past(tiles), lmm.memory["past_key_values"].pointer)}
        read = self._step(
            lmm, {**{name: seen[name] for name in ("f_s", "f_align")}, **said, **nothing}, unread=("present_key_values",)
        )
        given = {**seen, "anchor_states": read["anchor_states"]}
        judged = self._step(decoder, {name: given[name] for name in decoder.input_names})
        (*_, rows, columns), logits = judged["logits"]
        (*_, vocabulary), text = read["text_logits"]  # [tiles, 1, V]
        found = []
        for tile in range(tiles):
            of_tile = text + 4 * tile * vocabulary
            first_words = (of_tile + 4 * tokenizer.first_of_answer, of_tile + 4 * tokenizer.first_of_refusal)
            found.append(TileMade(logits + 4 * tile * 3 * rows * columns, (rows, columns), *first_words))
        return found

    def _compare(self, references: FrameReferences) -> None:
        """The step that measures the frame's distances; bank and weight go up once."""
        stage, shape = references.stage, self._kernels.reference_shape
        assert isinstance(stage, TrtReferences) and shape is not None, "can_see_references() says so"
        view = np.broadcast_to(np.uint8(0), shape)
        given = stage.inputs(view, references.bank, None, references.colour_weight)
        at: dict[str, tuple[Shape, int]] = {}
        for name, array in given.items():
            at[name] = array.shape, self._allocate(max(1, array.nbytes), name)
            if name == "reference_image":
                self._reference_view = at[name][1]
                continue
            pinned = PinnedMemory(self._cuda, array.nbytes, f"{name} of a frame")
            np.copyto(pinned.view(array.shape, array.dtype), array)
            self._cuda.copy(at[name][1], pinned.pointer, array.nbytes, "HostToDevice", self._stream, name)
            self._cuda.wait(self._stream, name)  # then the page-locked memory may go
        found = self._step(stage.engine, at, unread=("embedding",))
        for name in ("deep", "joint"):
            size, self._distances[name] = found[name]
            self._tensors[name] = size, np.dtype(np.float32)

    def _step(
        self, engine: TrtEngine, given: Mapping[str, tuple[Shape, int]], unread: tuple[str, ...] = ()
    ) -> dict[str, tuple[Shape, int]]:
        """A run of an engine on inputs (shape, pointer); where its outputs will be. What is ``unread`` goes to the engine's own memory."""
        sized = engine.prepared({name: shape for name, (shape, _) in given.items()})
        made = {}
        for name, shape in sized.outputs.items():
            if name not in unread:
                made[name] = shape, self._allocate(tensor_bytes(shape, engine.kinds[name]), name)
        for name, (_, pointer) in {**given, **made}.items():
            sized.context.set_tensor_address(name, pointer)
        self._steps.append((engine, sized))
        return made

    def _allocate(self, size: int, what: str) -> int:
        """Pointer to memory that lives as long as this."""
        self._held.append(self._cuda.allocate(size, f"{what} of a frame"))
        return self._held[-1].pointer

    def _enqueue(self) -> bool:
        """All of a frame on the stream."""
        at = {name: memory.pointer for name, memory in self._memory.items()}
        self._kernels.see(at["frame"], self._views, self._stream)
        if self._reference_view:
            self._kernels.see_reference(at["frame"], self._reference_view, self._stream)
        if not all(sized.context.execute_async_v3(self._stream) for _, sized in self._steps):
            return False
        self._kernels.judge(at["rule"], FrameJudged(at["score_map"], at["mask"], at["summary"], at["regions"]), self._stream)
        return True


class _Flight:
    """A frame on its way."""

    def __init__(self, cuda: Cuda, slot: _Slot, slots: deque[_Slot], names: tuple[str, ...]) -> None:
        self._cuda, self._slot, self._slots, self._names = cuda, slot, slots, names

    def result(self) -> FrameSeen:
        """See ``PendingFrame``."""
        self._cuda.enter()
        self._cuda.wait_for(self._slot.done, "a frame")
        summary, score_map, *distances = (self._slot.array(name).copy() for name in self._names)
        self._slots.append(self._slot)
        return read_summary(summary, score_map, *distances)

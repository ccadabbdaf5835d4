"""One ONNX graph from the pixels of a frame to its score map, mask and verdict, for users of other runtimes.

    model = build_graph(load_bundle("runs/lid"), (300, 400))
    onnx.save(model, "lid.onnx")

It joins the three stages of a bundle, and the references of a product, with everything that the package does around them: views,
tiles, fusion of the scales, the comparison with good images, limits and the rule that makes a mask. The size of the frame, the
instruction and the operating point are fixed; the answer is always that of direct mode. Resizing is written as products with
matrices, whose weights are OpenCV's, so the graph needs no image library beside it.

Input and outputs:

========= ================= ==================================================================
image     uint8 [H, W, 3]   RGB
score_map float32 [H, W]    P of eq. 8, or the product's, 0..1
mask      uint8 [H, W]      255 in a region that counts, else 0
score     float32 []        what the operating point compares with its seed threshold
verdict   int64 []          0 PASS, 1 FAIL, 2 NO_VERDICT: the frame is unlike the product, or the numbers are broken; mask is then empty
========= ================= ==================================================================
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from agvas_core import __version__
from agvas_core.contract.decision import OperatingPoint
from agvas_core.contract.errors import BundleError, UsageError
from agvas_core.contract.manifest import BANK, Manifest
from agvas_core.contract.preprocess import View, ViewSpec, frame_cells, scaled_views, view_size
from agvas_core.contract.product import MapScale, Product, load_array
from agvas_core.contract.prompts import Anchor, Mode
from agvas_runtime.bundle import Bundle
from agvas_runtime.images.tiling import Scale, plan_scales
from agvas_runtime.pipeline.instruction import ask
from agvas_runtime.pipeline.references import (
    BLUR_CELLS,
    FAR_SHARE,
    FEW_FAR,
    GRID_PX,
    LOOK_PX,
    LOWEST_P,
    SOME_FAR,
    WHITE,
)
from agvas_runtime.stages.prompt_tokenizer import PromptTokenizer

__all__ = ["MAX_SIDE_PX", "OPSET", "VERDICTS", "build_graph"]

Array = NDArray[Any]

OPSET: Final = 20
MAX_BYTES: Final = 1_900_000_000  # a protobuf file ends at 2 GiB
MAX_SIDE_PX: Final = 8192
VERDICTS: Final = ("PASS", "FAIL", "NO_VERDICT")
"""By the number that the graph gives."""


class _Graph:
    """Nodes and constants under construction; names of values are strings."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._count = 0

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """One node with one output, whose name it returns."""
        self._count += 1
        name = f"{kind.lower()}_{self._count}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def const(self, value: Any, dtype: Any = np.float32) -> str:
        """A constant."""
        array = np.asarray(value, dtype)
        name = f"constant_{len(self.constants)}"
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def ints(self, *values: int) -> str:
        """A constant int64 vector."""
        return self.const(values, np.int64)

    def embed(self, model: onnx.ModelProto, stage: str, given: Mapping[str, str]) -> dict[str, str]:
        """Copies a stage in; its weights once however often it is called. Returns the names of its outputs."""
        self._count += 1
        prefix = f"{stage}_{self._count}/"
        names = dict(given)
        for weight in model.graph.initializer:
            names[weight.name] = name = f"{stage}/{weight.name}"
            if name not in self.constants:
                self.constants[name] = kept = onnx.TensorProto()
                kept.CopyFrom(weight)
                kept.name = name
        self.nodes += [_renamed(node, names, prefix) for node in model.graph.node]
        return {output.name: names.get(output.name, prefix + output.name) for output in model.graph.output}


def _renamed(node: onnx.NodeProto, names: Mapping[str, str], prefix: str) -> onnx.NodeProto:
    made = onnx.NodeProto()
    made.CopyFrom(node)
    made.name = prefix + (node.name or f"node_{node.output[0]}")
    made.ClearField("doc_string")
    for field in (made.input, made.output):
        field[:] = [name and names.get(name, prefix + name) for name in field]
    if any(attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for attribute in node.attribute):
        raise BundleError(f"node {node.name} of the graph has a graph in it ({node.op_type}): export the bundle again")
    return made


def build_graph(
    bundle: Bundle, size: tuple[int, int], *, operating_point: str = "balanced", prompt: str | None = None
) -> onnx.ModelProto:
    """The graph of a bundle or product for frames of ``size`` = (H, W) px.

    Raises:
        UsageError: a size, an operating point or words that are not possible; least areas, a fitted head or a part to be
            located, which it does not hold.
        BundleError: the bundle has no graph of its language model, or is too large for one file.
    """
    height, width = size
    if min(size) < 8 or max(size) > MAX_SIDE_PX:
        raise UsageError(
            f"the frame is to be {width}x{height} px; sides of 8 to {MAX_SIDE_PX} px are possible: choose another --size"
        )
    manifest, product = bundle.manifest, bundle.product
    point = manifest.decision.point(operating_point)
    if point.min_area_fraction:
        raise UsageError(
            f"operating point {operating_point} leaves out regions below {point.min_area_fraction:g} of the frame, and a graph "
            "measures no regions: choose another point, or use the bundle"
        )
    if product is not None and product.head is not None:
        raise UsageError(
            f"{bundle.identity} has a fitted head, which one graph does not hold: fit it again without --head, or use the product"
        )
    if product is not None and product.locate is not None:
        raise UsageError(
            f"{bundle.identity} locates its part, which one graph does not: fit it again with --locate off, or use the product"
        )
    question = ask(manifest.prompt, prompt=prompt, mode=Mode.DIRECT, normal_look=None)
    build = _Builder(bundle, question.instruction)
    zero_shot, accept, sound = build.zero_shot(size)
    unlike = None
    score_map = zero_shot
    if product is not None:
        score_map, unlike = build.compared(product, zero_shot, size)
    g = build.g
    score = build.mean_of_highest(score_map, point.image_share, height * width)
    mask = build.mask(score_map, score, accept if point.gate else None, point)
    broken = g.op("Not", sound)
    no_verdict = broken if unlike is None else g.op("Or", broken, unlike)
    mask = g.op("And", mask, g.op("Not", no_verdict))
    found = g.op("Cast", g.op("ReduceMax", g.op("Cast", mask, to=TensorProto.INT32), keepdims=0), to=TensorProto.INT64)
    verdict = g.op("Where", no_verdict, g.const(2, np.int64), found)
    pixels = g.op("Mul", g.op("Cast", mask, to=TensorProto.UINT8), g.const(255, np.uint8))
    for name, value in (("score_map", score_map), ("mask", pixels), ("score", score), ("verdict", verdict)):
        g.nodes.append(helper.make_node("Identity", [value], [name], name=f"output_{name}"))
    return _model(g, bundle, size, operating_point, point, question.instruction)


class _Builder:
    """The parts of the graph, in the order of the data path; ``image`` is the frame."""

    def __init__(self, bundle: Bundle, instruction: str) -> None:
        self.g, self.bundle, self.manifest = _Graph(), bundle, bundle.manifest
        if self.manifest.lmm is None:
            raise BundleError(
                f"{bundle.identity} has no ONNX graph of its language model: export it with --lmm onnx among its forms"
            )
        graphs = dict(self.manifest.graphs)
        if bundle.product is not None and self.manifest.references is not None:
            graphs["references"] = self.manifest.references
        weights = sum(path.stat().st_size for graph in graphs.values() for path in bundle.folder.glob(f"{graph.file}*"))
        if weights > MAX_BYTES:
            raise BundleError(
                f"{bundle.identity} has {weights} bytes of weights; one file holds {MAX_BYTES}: use the bundle's graphs"
            )
        self.stages = {name: _read(bundle, graph.file) for name, graph in graphs.items()}
        tokenizer = PromptTokenizer(bundle)
        self.words = tokenizer.words(instruction)
        self.first_words = tokenizer.first_of_answer, tokenizer.first_of_refusal
        (past,) = (spec.shape for spec in self.manifest.lmm.inputs if spec.name == "past_key_values")
        self.past = past
        self.seen: dict[ViewSpec, tuple[str, dict[str, str]]] = {}
        """Of whole frames: the pixel view and the features of it."""
        self.image = self.g.op("Cast", "image", to=TensorProto.FLOAT)  # [H, W, 3]

    # Pixels

    def resized(self, frame: str, size: tuple[int, int], content: tuple[int, int]) -> str:
        """A frame of float pixels [H, W, 3] as OpenCV resizes it to ``content`` = (h, w): whole numbers, float [h, w, 3]."""
        g = self.g
        (height, width), high = size, content[0]
        if content == size:
            return frame
        rows, columns = _weights(size, content)
        flat = g.op("Reshape", frame, g.ints(height, width * 3))
        flat = g.op("MatMul", g.const(rows), flat)  # [h, W * 3]
        planes = g.op("Transpose", g.op("Reshape", flat, g.ints(high, width, 3)), perm=[0, 2, 1])  # [h, 3, W]
        planes = g.op("MatMul", planes, g.const(columns.T))  # [h, 3, w]
        whole = g.op("Round", g.op("Transpose", planes, perm=[0, 2, 1]))
        return g.op("Clip", whole, g.const(0), g.const(255))

    def view(self, frame: str, size: tuple[int, int], spec: ViewSpec) -> str:
        """What one encoder sees of a frame, uint8 [1, h, w, 3]."""
        if spec.resample != "opencv":
            raise UsageError(
                f'a view is resized by Pillow\'s {spec.resample} kernel, which has no form as a graph: train with resample = "opencv" '
                "for one file, or take the bundle itself"
            )
        g = self.g
        content = view_size(spec, *size)
        pixels = self.resized(frame, size, content)
        if spec.fit == "letterbox" and content != (spec.size_px, spec.size_px):
            square = np.broadcast_to(np.round(np.asarray(spec.mean) * 255), (spec.size_px, spec.size_px, 3)).copy()
            below = square[content[0] :]
            right = square[: content[0], content[1] :]
            if right.size:
                pixels = g.op("Concat", pixels, g.const(right), axis=1)
            if below.size:
                pixels = g.op("Concat", pixels, g.const(below), axis=0)
        return g.op("Unsqueeze", g.op("Cast", pixels, to=TensorProto.UINT8), g.ints(0))

    # The model's own score map

    def zero_shot(self, size: tuple[int, int]) -> tuple[str, str, str]:
        """(P float [H, W], acceptance float [], whether all numbers are finite bool []) of the frame."""
        g, manifest = self.g, self.manifest
        views = scaled_views(manifest.pixel_view, manifest.scales, *size)
        looks = plan_scales(*size, views, manifest.tiling)
        maps: list[list[str]] = [[], []]
        accepts = []
        for look in looks:
            logits, accept = self.logits(look)
            accepts.append(g.op("Mul", accept, g.const(look.share)))
            for channel, found in enumerate(self.blended(look, logits, size)):
                maps[channel].append(found)
        l_seg, l_ano_nor = (g.op("Sum", *each) for each in maps)
        everything = g.op("Add", l_seg, l_ano_nor)
        difference = g.op("ReduceSum", g.op("Sub", everything, everything), keepdims=0)  # NaN where a value is NaN or infinite
        sound = g.op("Equal", difference, g.const(0))
        alpha = manifest.decision.alpha
        seg = g.op("Mul", g.op("Sigmoid", l_seg), g.const(alpha))
        ano = g.op("Mul", g.op("Sigmoid", l_ano_nor), g.const(1.0 - alpha))
        return g.op("Min", g.op("Add", seg, ano), g.const(1)), g.op("Sum", *accepts), sound

    def logits(self, look: Scale) -> tuple[str, str]:
        """Decoder's logits [tiles, 3, h, w] of a look, and the highest acceptance of its tiles []."""
        g, tiles = self.g, list(look.tiles)
        semantic, pixel = [], []
        for tile in tiles:
            frame = self.image
            if not tile.whole:
                starts, ends = g.ints(tile.rows.start, tile.columns.start), g.ints(tile.rows.stop, tile.columns.stop)
                frame = g.op("Slice", frame, starts, ends, g.ints(0, 1))
            semantic.append(self.view(frame, look.tiles.size, self.manifest.semantic_view))
            pixel.append(self.view(frame, look.tiles.size, look.view))
        batch = len(tiles)
        features = self.vision(_joined(g, semantic), _joined(g, pixel))
        if batch == 1:
            self.seen[look.view] = pixel[0], features
        words = {name: g.const(np.repeat(ids, batch, axis=0), np.int64) for name, ids in self.words._asdict().items()}
        layers, _, _, heads, _, head_dim = self.past
        words["past_key_values"] = g.const(np.zeros((layers, 2, batch, heads, 0, head_dim)))
        said = g.embed(self.stages["lmm"], "lmm", {"f_s": features["f_s"], "f_align": features["f_align"], **words})
        first = g.op("Squeeze", said["text_logits"], g.ints(1))  # [B, V]
        answer, refusal = (g.op("Gather", first, g.const(word, np.int64), axis=1) for word in self.first_words)
        accept = g.op("ReduceMax", g.op("Sigmoid", g.op("Sub", answer, refusal)), keepdims=0)
        given = {"anchor_states": said["anchor_states"], **features}
        wanted = [tensor.name for tensor in self.stages["decoder"].graph.input]
        decoded = g.embed(self.stages["decoder"], "decoder", {name: given[name] for name in wanted})
        return decoded["logits"], accept

    def vision(self, semantic: str, pixel: str) -> dict[str, str]:
        """Features of views."""
        return self.g.embed(self.stages["vision"], "vision", {"semantic_image": semantic, "pixel_image": pixel})

    def blended(self, look: Scale, logits: str, size: tuple[int, int]) -> list[str]:
        """l_seg and l_ano - l_nor of a look at frame size, times its share, float [H, W] each."""
        g = self.g
        channel = {anchor: g.op("Gather", logits, g.ints(anchor), axis=1) for anchor in Anchor}  # [B, 1, h, w]
        both = g.op("Concat", channel[Anchor.SEG], g.op("Sub", channel[Anchor.ANO], channel[Anchor.NOR]), axis=1)
        cells = self._cells(look)
        if cells is not None:
            (high, wide), enlarged = cells
            both = g.op("Slice", both, g.ints(0, 0), g.ints(high, wide), g.ints(2, 3))
        else:
            enlarged = look.tiles.size
        both = self.linear(both, enlarged)
        tall, broad = look.tiles.size
        if enlarged != look.tiles.size:
            both = g.op("Slice", both, g.ints(0, 0), g.ints(tall, broad), g.ints(2, 3))
        placed = []
        for number, tile in enumerate(look.tiles):
            part = g.op("Gather", both, g.const(number, np.int64), axis=0)  # [2, h, w]
            weight = np.full((tall, broad), look.share, np.float32)
            if not tile.whole:
                weight = weight * tile.row_weight[:, None] * tile.column_weight
                rest = (size[0] - tile.rows.stop, size[1] - tile.columns.stop)
                part = g.op("Mul", part, g.const(weight))
                part = g.op("Pad", part, g.ints(0, tile.rows.start, tile.columns.start, 0, *rest))
            else:
                part = g.op("Mul", part, g.const(look.share))
            placed.append(part)
        whole = g.op("Sum", *placed)
        return [g.op("Gather", whole, g.const(index, np.int64), axis=0) for index in range(2)]

    def _cells(self, look: Scale) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """Cells of the logits that show a tile, and the size they are enlarged to; None where the view has no padding."""
        content = view_size(look.view, *look.tiles.size)
        if look.view.fit != "letterbox":
            return None
        side = look.view.size_px
        (shape,) = (spec.shape for spec in self.manifest.decoder.outputs if spec.name == "logits")
        cells = shape[2:]
        if not all(isinstance(length, int) for length in cells):
            raise BundleError(f"the decoder's logits have the shape {list(shape)}; numbers are needed beside a letterbox")
        view = View(np.empty((side, side, 3), np.uint8), content)
        return frame_cells(view, tuple(int(length) for length in cells), look.tiles.size)

    def linear(self, maps: str, size: tuple[int, int]) -> str:
        """Maps [N, C, h, w] resized to ``size`` = (H, W) as OpenCV's INTER_LINEAR does."""
        sizes = self.g.op("Concat", self.g.op("Shape", maps, start=0, end=2), self.g.ints(*size), axis=0)
        return self.g.op("Resize", maps, "", "", sizes, mode="linear", coordinate_transformation_mode="half_pixel")

    # Good images

    def compared(self, product: Product, zero_shot: str, size: tuple[int, int]) -> tuple[str, str]:
        """(score map [H, W], whether the frame is unlike the product bool []) by the product's good images."""
        g, references = self.g, self.manifest.references
        if references is None:
            raise BundleError(f"{self.bundle.identity} has a product and no references graph: run agvas fit again")
        bank = load_array(self.bundle.folder / BANK, (product.rows, product.channels))
        given = {"bank": g.const(bank), "colour_weight": g.const(product.colour_weight)}
        if references.view is not None:
            given["reference_image"] = self.view(self.image, size, product.view)
        elif product.view in self.seen:  # the model has seen the whole frame in this view already
            given["pixel_image"], features = self.seen[product.view]
            given |= {name: features[name] for name in references.features}
        else:
            semantic, view = (self.view(self.image, size, spec) for spec in (self.manifest.semantic_view, product.view))
            features = self.vision(semantic, view)
            given |= {"pixel_image": view, **{name: features[name] for name in references.features}}
        wanted = {tensor.name for tensor in self.stages["references"].graph.input}
        found = g.embed(self.stages["references"], "references", {name: given[name] for name in wanted})
        joint, deep = self.distances(found["joint"]), self.distances(found["deep"])
        own = self.rarity(product.zero_shot, self.own_grid(zero_shot, size))
        pixel = g.op("Add", self.rarity(product.joint, joint), g.op("Mul", own, g.const(product.zero_shot_weight)))
        image = g.op("Add", self.rarity(product.deep, deep), own)
        share = self.manifest.decision.point().image_share
        tops = [g.op("Max", self.mean_of_highest(each, share, GRID_PX**2), g.const(1e-6)) for each in (pixel, image)]
        fused = g.op("Mul", pixel, g.op("Sqrt", g.op("Div", tops[1], tops[0])))
        fused = g.op("Max", fused, g.const(0))
        squashed = g.op("Div", fused, g.op("Add", fused, g.const(product.half)))
        whole = self.linear(g.op("Unsqueeze", squashed, g.ints(0, 1)), size)
        return g.op("Squeeze", whole, g.ints(0, 1)), self.unlike(product, found["deep"], size)

    def distances(self, cells: str) -> str:
        """Distances of cells [1, h, w], blurred, on the grid [GRID_PX, GRID_PX]."""
        g = self.g
        reach = (round(BLUR_CELLS * 8 + 1) | 1) // 2  # as OpenCV chooses it for float32
        kernel = cv2.getGaussianKernel(2 * reach + 1, BLUR_CELLS, cv2.CV_64F)[:, 0]
        maps = g.op("Unsqueeze", cells, g.ints(1))  # [1, 1, h, w]
        for axis, shape in ((2, (1, 1, -1, 1)), (3, (1, 1, 1, -1))):
            pads = [0] * 8
            pads[axis] = pads[axis + 4] = reach
            maps = g.op("Pad", maps, g.ints(*pads), mode="reflect")
            maps = g.op("Conv", maps, g.const(kernel.reshape(shape)))
        return g.op("Squeeze", self.linear(maps, (GRID_PX, GRID_PX)), g.ints(0, 1))

    def own_grid(self, zero_shot: str, size: tuple[int, int]) -> str:
        """The model's own score map on the grid, as logits."""
        g = self.g
        if size == (GRID_PX, GRID_PX):
            small = zero_shot
        elif min(size) >= GRID_PX:
            rows, columns = (_axis(length, GRID_PX, cv2.INTER_AREA) for length in size)
            small = g.op("MatMul", g.op("MatMul", g.const(rows), zero_shot), g.const(columns.T))
        else:
            small = g.op("Squeeze", self.linear(g.op("Unsqueeze", zero_shot, g.ints(0, 1)), (GRID_PX, GRID_PX)), g.ints(0, 1))
        small = g.op("Clip", small, g.const(LOWEST_P), g.const(1 - LOWEST_P))
        return g.op("Log", g.op("Div", small, g.op("Sub", g.const(1), small)))

    def rarity(self, scale: MapScale, values: str) -> str:
        """How rare each value [GRID_PX, GRID_PX] is on good images: linear between knots, ``slope`` beyond the last."""
        g = self.g
        knots, rarity = np.array(scale.values), np.array(scale.rarity)
        rise = np.concatenate([[0.0], np.diff(rarity) / np.diff(knots), [scale.slope]])  # of the piece after each knot count
        start = np.concatenate([knots[:1], knots])
        base = np.concatenate([rarity[:1], rarity])
        passed = g.op("Greater", g.op("Unsqueeze", values, g.ints(2)), g.const(knots))  # [GRID_PX, GRID_PX, knots]
        piece = g.op("ReduceSum", g.op("Cast", passed, to=TensorProto.INT64), g.ints(2), keepdims=0)
        begin, value, slope = (g.op("Gather", g.const(table), piece) for table in (start, base, rise))
        return g.op("Add", value, g.op("Mul", slope, g.op("Sub", values, begin)))

    def unlike(self, product: Product, deep: str, size: tuple[int, int]) -> str:
        """Whether a fact of the frame is out of the product's limits, bool []."""
        g = self.g
        facts = {**self.facts(size), "distance": self.distance_fact(product, deep)}
        faults = []
        for limit in product.limits:
            if limit.fact not in facts:
                continue
            if limit.low is not None:
                faults.append(g.op("Less", facts[limit.fact], g.const(limit.low)))
            if limit.high is not None:
                faults.append(g.op("Greater", facts[limit.fact], g.const(limit.high)))
        unlike = g.const(False, np.bool_)
        for fault in faults:
            unlike = g.op("Or", unlike, fault)
        return unlike

    def facts(self, size: tuple[int, int]) -> dict[str, str]:
        """``pipeline.references.frame_facts``, float [] each."""
        g = self.g
        height, width = size
        scale = LOOK_PX / max(size)
        shown = (max(8, round(height * scale)), max(8, round(width * scale)))
        if scale < 1:
            small = self.resized(self.image, size, shown)
        else:
            channels_first = g.op("Unsqueeze", g.op("Transpose", self.image, perm=[2, 0, 1]), g.ints(0))
            small = g.op("Round", self.linear(channels_first, shown))
            small = g.op("Transpose", g.op("Squeeze", small, g.ints(0)), perm=[1, 2, 0])
        grey = g.op("MatMul", small, g.const([[0.299], [0.587], [0.114]]))
        grey = g.op("Unsqueeze", g.op("Transpose", g.op("Round", grey), perm=[2, 0, 1]), g.ints(0))  # [1, 1, h, w]
        edges = g.op("Pad", grey, g.ints(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect")
        edges = g.op("Conv", edges, g.const([[[[0, 1, 0], [1, -4, 1], [0, 1, 0]]]]))
        spread = g.op("Sub", edges, g.op("ReduceMean", edges, keepdims=1))
        white = g.op("GreaterOrEqual", g.op("ReduceMin", small, g.ints(2), keepdims=0), g.const(WHITE))
        return {
            "brightness": g.op("Div", g.op("ReduceMean", grey, keepdims=0), g.const(255)),
            "clipped": g.op("ReduceMean", g.op("Cast", white, to=TensorProto.FLOAT), keepdims=0),
            "focus": g.op("ReduceMean", g.op("Mul", spread, spread), keepdims=0),
            "aspect": g.const(width / height),
        }

    def distance_fact(self, product: Product, deep: str) -> str:
        """``pipeline.references.map_facts`` of deep distances [1, h, w], float []."""
        g = self.g
        ratio = g.op("Div", g.op("ReduceMean", deep, keepdims=0), g.const(max(product.mean_distance, 1e-6)))
        far = g.op("Cast", g.op("Greater", deep, g.const(product.far_cell)), to=TensorProto.FLOAT)
        share = g.op("ReduceMean", far, keepdims=0)
        few = g.op("Mul", ratio, g.const(FEW_FAR))
        some = g.op("Where", g.op("Greater", share, g.const(SOME_FAR)), few, g.op("Min", few, g.const(1)))
        return g.op("Where", g.op("Greater", share, g.const(FAR_SHARE)), ratio, some)

    # The decision

    def mean_of_highest(self, values: str, share: float, count: int) -> str:
        """Mean of the highest ``share`` of ``count`` values, of one at least."""
        g = self.g
        highest = max(1, round(share * count))
        if highest == 1:
            return g.op("ReduceMax", values, keepdims=0)
        flat = g.op("Reshape", values, g.ints(-1))
        top = f"top_{len(g.nodes)}"
        g.nodes.append(helper.make_node("TopK", [flat, g.ints(highest)], [top, f"{top}_indices"], name=top, sorted=0))
        return g.op("ReduceMean", top, keepdims=0)

    def mask(self, score_map: str, score: str, accept: str | None, point: OperatingPoint) -> str:
        """The rule of ``contract.decision``, bool [H, W]."""
        g = self.g
        threshold = g.const(point.threshold)
        counts = g.op("Greater", score, g.const(point.seed_threshold)) if point.image_share else None
        if point.image_share:
            threshold = g.op("Min", threshold, g.op("Mul", score, g.const(1 - 1e-5)))
        mask = g.op("Greater", score_map, threshold)
        if point.seed_threshold > point.threshold:
            mask = self.with_seeds(mask, g.op("Greater", score_map, g.const(point.seed_threshold)))
        if accept is not None:
            answers = g.op("GreaterOrEqual", accept, g.const(point.gate))
            counts = answers if counts is None else g.op("And", counts, answers)
        return mask if counts is None else g.op("And", mask, counts)

    def with_seeds(self, mask: str, seeds: str) -> str:
        """The regions of a mask [H, W] that hold a seed: seeds grow by a pixel each way, within the mask, until nothing changes."""
        g = self.g
        as_float = [g.op("Unsqueeze", g.op("Cast", each, to=TensorProto.FLOAT), g.ints(0, 1)) for each in (mask, seeds)]
        body = helper.make_graph(
            [
                helper.make_node("MaxPool", ["grown"], ["spread"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
                helper.make_node("Min", ["spread", as_float[0]], ["next"]),
                helper.make_node("Sub", ["next", "grown"], ["difference"]),
                helper.make_node("ReduceMax", ["difference"], ["largest"], keepdims=0),
                helper.make_node("Greater", ["largest", "grow_zero"], ["goes_on"]),
            ],
            "grow",
            [
                helper.make_tensor_value_info("turn", TensorProto.INT64, []),
                helper.make_tensor_value_info("before", TensorProto.BOOL, []),
                helper.make_tensor_value_info("grown", TensorProto.FLOAT, [1, 1, None, None]),
            ],
            [
                helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
                helper.make_tensor_value_info("next", TensorProto.FLOAT, [1, 1, None, None]),
            ],
            initializer=[numpy_helper.from_array(np.array(0, np.float32), "grow_zero")],
        )
        grown = g.op("Loop", "", g.const(True, np.bool_), as_float[1], body=body)
        return g.op("Cast", g.op("Squeeze", grown, g.ints(0, 1)), to=TensorProto.BOOL)


def _joined(g: _Graph, views: Sequence[str]) -> str:
    return views[0] if len(views) == 1 else g.op("Concat", *views, axis=0)


def _weights(size: tuple[int, int], content: tuple[int, int]) -> tuple[Array, Array]:
    """Matrices [h, H] and [w, W] that resize as ``contract.preprocess.make_view`` does."""
    pairs = tuple(zip(size, content, strict=True))
    if content[0] * content[1] >= size[0] * size[1]:
        rows, columns = (_axis(*pair, cv2.INTER_CUBIC) for pair in pairs)
    elif all(after <= before for before, after in pairs):
        rows, columns = (_axis(*pair, cv2.INTER_AREA) for pair in pairs)
    else:  # OpenCV's INTER_AREA where one side grows
        rows, columns = (_linear_area(*pair) for pair in pairs)
    return rows, columns


def _axis(before: int, after: int, way: int) -> Array:
    """Weights [after, before] of one axis, read off OpenCV."""
    if before == after:
        return np.eye(before, dtype=np.float32)
    return np.ascontiguousarray(cv2.resize(np.eye(before, dtype=np.float32), (after, before), interpolation=way).T)


def _linear_area(before: int, after: int) -> Array:
    """Weights [after, before] of INTER_AREA where the other side grows: linear between the two pixels that a cell touches."""
    weights = np.zeros((after, before), np.float32)
    for index in range(after):
        first = int(np.floor(index * before / after))
        part = (index + 1) - (first + 1) * after / before
        part = 0.0 if part <= 0 else part - np.floor(part)
        weights[index, min(first, before - 1)] += 1 - part
        weights[index, min(first + 1, before - 1)] += part
    return weights


def _read(bundle: Bundle, file: str) -> onnx.ModelProto:
    model = onnx.load(bundle.folder / file)
    version = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    others = [entry.domain for entry in model.opset_import if entry.domain not in ("", "ai.onnx")]
    if version > OPSET or others:
        raise BundleError(f"{bundle.folder / file} uses opset {version} {others}; up to {OPSET} can be joined: export it again")
    return model if version == OPSET else onnx.version_converter.convert_version(model, OPSET)


def _model(
    g: _Graph, bundle: Bundle, size: tuple[int, int], name: str, point: OperatingPoint, instruction: str
) -> onnx.ModelProto:
    """The checked model with its metadata."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        g.nodes,
        "agvas",
        [value("image", TensorProto.UINT8, [*size, 3])],
        [
            value("score_map", TensorProto.FLOAT, list(size)),
            value("mask", TensorProto.UINT8, list(size)),
            value("score", TensorProto.FLOAT, []),
            value("verdict", TensorProto.INT64, []),
        ],
        initializer=list(g.constants.values()),
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="agvas",
        producer_version=__version__,
        ir_version=9,  # what ONNX Runtime 1.20 reads
        doc_string="RGB image to score map, mask, score and verdict. The metadata says for which model, size and operating point.",
    )
    helper.set_model_props(model, _metadata(bundle, size, name, point, instruction))
    onnx.checker.check_model(model, full_check=True)
    return model


def _metadata(bundle: Bundle, size: tuple[int, int], name: str, point: OperatingPoint, instruction: str) -> dict[str, str]:
    manifest: Manifest = bundle.manifest
    product = bundle.product
    return {
        "agvas": __version__,
        "model": bundle.identity,
        "product": product.name if product is not None else "",
        "image_size": f"{size[1]}x{size[0]}",
        "input": "RGB uint8 [height, width, 3]",
        "instruction": instruction,
        "operating_point": name,
        "threshold": repr(point.threshold),
        "seed_threshold": repr(point.seed_threshold),
        "image_share": repr(point.image_share),
        "gate": repr(point.gate),
        "alpha": repr(manifest.decision.alpha),
        "classes": json.dumps(["anomaly"]),
        "verdicts": json.dumps(list(VERDICTS)),
        "promise": product.promise.model_dump_json() if product is not None else "",
        "licence": json.dumps(manifest.provenance.get("licence", {})),
        "created": manifest.created if product is None else product.created,
    }

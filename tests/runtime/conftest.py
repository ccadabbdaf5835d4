"""A bundle of three real ONNX graphs, small enough to write down, whose masks can be told beforehand.

It finds what is *dark*: brightness below the middle is anomalous, above it is normal. The word ``bright`` in the instruction turns
that round, so the words demonstrably reach the mask; the word ``broken`` makes the logits NaN. If the anchors' positions or ids are
wrong the logits are zero and nothing is found. One view holds 64 x 64 px, so frames beyond 192 px per side are tiled.

It speaks, too: one word follows from the one before, and the fixed answer comes out; where ``hole`` is asked for, the refusal. Its
cache holds the ids of all it has read, so an instruction that is lost on the way to a later word shows. Its favourite word is the
image token, which must never be said.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace

from agvas_core.contract.manifest import (
    GraphSpec,
    Manifest,
    PromptSpec,
    ReferencesSpec,
    TensorSpec,
    TilingSpec,
    read_manifest,
    sha256_of,
    write_manifest,
)
from agvas_core.contract.preprocess import ViewSpec
from agvas_core.contract.prompts import ANCHOR_TOKENS, QWEN_CHAT

WORDS = ["please", "segment", "find", "the", "dark", "bright", "broken", "spots", "anomalies", "in", "this", "image", "user",
         "assistant", "sure", "it", "is", ".", ",", "there", "are", "no", "hole"]  # fmt: skip
SPECIAL = (*ANCHOR_TOKENS, "<|im_start|>", "<|im_end|>", "<image>")
IDS = {token: index for index, token in enumerate(("[UNK]", *SPECIAL, *WORDS))}
HEADER = '<ir_version: 9, opset_import: ["": 17]>\n'

VISION = """
vision (uint8[batch,32,32,3] semantic_image, uint8[batch,pixel_height,pixel_width,3] pixel_image)
    => (float[batch,4,3] f_s, float[batch,4,3] f_align, float[batch,1,coarse_height,coarse_width] f_p,
        float[batch,1,fine_height,fine_width] f_detail)
<float[1] white = {255.0}, float[1] one = {1.0}, int64[3] tokens = {0, 3, -1}> {
    semantic_float = Cast<to: int = 1>(semantic_image)
    semantic_chw = Transpose<perm: ints = [0, 3, 1, 2]>(semantic_float)
    semantic_grid = AveragePool<kernel_shape: ints = [16, 16], strides: ints = [16, 16]>(semantic_chw)
    semantic_flat = Reshape(semantic_grid, tokens)
    semantic_tokens = Transpose<perm: ints = [0, 2, 1]>(semantic_flat)
    f_s = Div(semantic_tokens, white)
    f_align = Sub(one, f_s)
    pixel_float = Cast<to: int = 1>(pixel_image)
    grey = ReduceMean<axes: ints = [3], keepdims: int = 1>(pixel_float)
    grey_chw = Transpose<perm: ints = [0, 3, 1, 2]>(grey)
    brightness = Div(grey_chw, white)
    darkness = Sub(one, brightness)
    f_detail = AveragePool<kernel_shape: ints = [2, 2], strides: ints = [2, 2]>(darkness)
    f_p = AveragePool<kernel_shape: ints = [4, 4], strides: ints = [4, 4]>(darkness)
}
"""


def next_words(*sentences: str) -> str:
    """[V, V] as ONNX text: after each word of the sentences the next one is likely, and the image token likelier still."""
    table = np.zeros((len(IDS), len(IDS)), np.float32)
    table[:, IDS["<image>"]] = 9.0
    for sentence in sentences:
        words = sentence.split()
        for word, following in pairwise(words):
            table[IDS[word], IDS[following]] = 5.0
    return ", ".join(str(value) for value in table.ravel())


ANSWER = "assistant sure it is [NOR] [ANO] [SEG] . <|im_end|>"
REFUSAL = "assistant there are no anomalies in this image . <|im_end|>"
V = len(IDS)

# Anchor states are the anchors' names, one-hot, times a polarity: -1 where "bright" was said, NaN where "broken" was.
LMM = f"""
lmm (float[batch,semantic,3] f_s, float[batch,aligned,3] f_align, int64[batch,length_before] ids_before,
     int64[batch,length_after] ids_after, int64[batch,3] anchor_positions, int64[batch,asked] logit_positions,
     float[1,2,batch,1,past,1] past_key_values)
    => (float[batch,3,3] anchor_states, float[batch,asked,{V}] text_logits, float[1,2,batch,1,total,1] present_key_values)
<int64[1,1,3] anchors = {{{IDS["[NOR]"]}, {IDS["[ANO]"]}, {IDS["[SEG]"]}}}, float[1] bright = {{{IDS["bright"]}.0}},
 float[1] broken = {{{IDS["broken"]}.0}}, float[1] start = {{{IDS["<|im_start|>"]}.0}}, float[1] hole = {{{IDS["hole"]}.0}},
 float[1] one = {{1.0}}, float[1] two = {{2.0}}, float[1] zero = {{0.0}}, int64[1] last = {{2}}, int64[1] visual_axis = {{2}},
 int64[4] cache_axes = {{0, 1, 3, 5}}, int64[1] from = {{0}}, int64[1] to = {{1}}, int64[1] kind_axis = {{1}},
 float[{V},{V}] answer = {{{next_words(ANSWER)}}}, float[{V},{V}] refusal = {{{next_words(REFUSAL)}}}> {{
    before = Cast<to: int = 1>(ids_before)
    after = Cast<to: int = 1>(ids_after)
    visual = Concat<axis: int = 1>(f_s, f_align)
    visual_sum = ReduceSum<keepdims: int = 0>(visual, visual_axis)
    visual_nothing = Mul(visual_sum, zero)
    visual_ids = Sub(visual_nothing, one)
    new = Concat<axis: int = 1>(before, visual_ids, after)
    new_keys = Unsqueeze(new, cache_axes)
    new_both = Concat<axis: int = 1>(new_keys, new_keys)
    present_key_values = Concat<axis: int = 4>(past_key_values, new_both)
    all_keys = Slice(present_key_values, from, to, kind_axis)
    read = Squeeze(all_keys, cache_axes)

    is_bright = Equal(read, bright)
    is_bright_float = Cast<to: int = 1>(is_bright)
    flipped = ReduceMax<axes: ints = [1], keepdims: int = 1>(is_bright_float)
    twice = Mul(flipped, two)
    sign = Sub(one, twice)
    is_broken = Equal(read, broken)
    is_broken_float = Cast<to: int = 1>(is_broken)
    poisoned = ReduceMax<axes: ints = [1], keepdims: int = 1>(is_broken_float)
    sound = Sub(one, poisoned)
    poison = Div(sound, sound)
    is_start = Equal(read, start)
    is_start_float = Cast<to: int = 1>(is_start)
    started = ReduceMax<axes: ints = [1], keepdims: int = 1>(is_start_float)
    begun = Mul(sign, started)
    polarity = Mul(begun, poison)
    polarity_column = Unsqueeze(polarity, last)

    said = GatherElements<axis: int = 1>(ids_after, anchor_positions)
    said_column = Unsqueeze(said, last)
    named = Equal(said_column, anchors)
    named_float = Cast<to: int = 1>(named)
    anchor_states = Mul(named_float, polarity_column)

    asked_ids = GatherElements<axis: int = 1>(ids_after, logit_positions)
    answering = Gather(answer, asked_ids)
    refusing = Gather(refusal, asked_ids)
    is_hole = Equal(read, hole)
    is_hole_float = Cast<to: int = 1>(is_hole)
    absent = ReduceMax<axes: ints = [1], keepdims: int = 1>(is_hole_float)
    absent_column = Unsqueeze(absent, last)
    present_column = Sub(one, absent_column)
    answering_if = Mul(answering, present_column)
    refusing_if = Mul(refusing, absent_column)
    text_logits = Add(answering_if, refusing_if)
}}
"""

# logits = polarity * 40 * (-1, 1, 1) * (darkness - 1/2), darkness being the mean of the coarse and the fine feature; the polarity of an
# anchor counts where its state bears its own name.
DECODER = """
decoder (float[batch,3,3] anchor_states, float[batch,1,coarse_height,coarse_width] f_p,
         float[batch,1,fine_height,fine_width] f_detail) => (float[batch,3,fine_height,fine_width] logits)
<float[1,3,1,1] slope = {-40.0, 40.0, 40.0}, float[1] half = {0.5}, float[4] enlarge = {1.0, 1.0, 2.0, 2.0}, int64[1] last = {3}, int64[1] names = {2},
 float[1,3,3] own = {1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0}> {
    own_states = Mul(anchor_states, own)
    polarity = ReduceSum<keepdims: int = 1>(own_states, names)
    polarity_map = Unsqueeze(polarity, last)
    coarse = Resize<mode: string = "nearest">(f_p, , enlarge)
    sum = Add(coarse, f_detail)
    darkness = Mul(sum, half)
    centred = Sub(darkness, half)
    scaled = Mul(polarity_map, slope)
    logits = Mul(scaled, centred)
}
"""


def make_tiny_bundle(folder: Path) -> Path:
    """Writes the bundle into ``folder`` (made if need be) and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    specs = {name: _write_graph(folder, name, text) for name, text in (("vision", VISION), ("lmm", LMM), ("decoder", DECODER))}
    tokenizer = Tokenizer(WordLevel(IDS, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    numbers = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    manifest = Manifest(
        name="tiny",
        created=datetime(2026, 1, 1, tzinfo=UTC).isoformat(),
        anchor_ids=(IDS["[NOR]"], IDS["[ANO]"], IDS["[SEG]"]),
        semantic_view=ViewSpec.model_validate({"fit": "stretch", "size_px": 32, **numbers}),
        pixel_view=ViewSpec.model_validate({"fit": "area", "size_px": 64, "multiple_px": 16, **numbers}),
        prompt=PromptSpec(chat=QWEN_CHAT, end_id=IDS["<|im_end|>"], image_id=IDS["<image>"], max_tokens=64, max_new_tokens=24),
        tiling=TilingSpec(max_downscale=3.0, overlap=0.25),
        files={path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path.name != "manifest.json"},
        **specs,
    )
    write_manifest(folder, manifest)
    return folder


# Brute force: the square of each cell's difference to each row of the bank. One deep channel, f_p, and three of colour.
REFERENCES = """
references (uint8[batch,height,width,3] pixel_image, float[batch,1,rows_of_cells,columns_of_cells] f_p, float[rows,4] bank, float colour_weight)
    => (float[batch,rows_of_cells,columns_of_cells,4] embedding, float[batch,rows_of_cells,columns_of_cells] deep,
        float[batch,rows_of_cells,columns_of_cells] joint)
<float[1] white = {255.0}, int64[1] before_bank = {3}, int64[1] channels = {4}, int64[1] zero = {0}, int64[1] one = {1}, int64[1] four = {4}> {
    pixels = Cast<to: int = 1>(pixel_image)
    pixels_chw = Transpose<perm: ints = [0, 3, 1, 2]>(pixels)
    means = AveragePool<kernel_shape: ints = [4, 4], strides: ints = [4, 4]>(pixels_chw)
    colour = Div(means, white)
    both = Concat<axis: int = 1>(f_p, colour)
    embedding = Transpose<perm: ints = [0, 2, 3, 1]>(both)
    cells = Unsqueeze(embedding, before_bank)
    difference = Sub(cells, bank)
    square = Mul(difference, difference)
    deep_part = Slice(square, zero, one, channels)
    colour_part = Slice(square, one, four, channels)
    deep_square = ReduceSum<keepdims: int = 0>(deep_part, channels)
    colour_square = ReduceSum<keepdims: int = 0>(colour_part, channels)
    weighted = Mul(colour_square, colour_weight)
    joint_square = Add(deep_square, weighted)
    nearest_deep = ReduceMin<axes: ints = [3], keepdims: int = 0>(deep_square)
    nearest_joint = ReduceMin<axes: ints = [3], keepdims: int = 0>(joint_square)
    deep = Sqrt(nearest_deep)
    joint = Sqrt(nearest_joint)
}
"""


OWN_ENCODER = (
    REFERENCES.replace(
        "uint8[batch,height,width,3] pixel_image, float[batch,1,rows_of_cells,columns_of_cells] f_p,",
        "uint8[batch,height,width,3] reference_image,",
    )
    .replace("(pixel_image)", "(reference_image)")
    .replace("    both =", "    f_p = ReduceMean<axes: ints = [1], keepdims: int = 1>(colour)\n    both =")
)
REFERENCE_VIEW = ViewSpec(fit="area", size_px=48, multiple_px=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def add_references(folder: Path, max_rows: int = 64, *, own_encoder: bool = False) -> Path:
    """Gives a tiny bundle a references graph that measures f_p, or the brightness of a view of its own."""
    raw = _write_graph(folder, "references", OWN_ENCODER if own_encoder else REFERENCES).model_dump()
    names = {"rows_of_cells": "height/4", "columns_of_cells": "width/4"}
    for tensor in (*raw["inputs"], *raw["outputs"]):
        tensor["shape"] = tuple(names.get(axis, axis) for axis in tensor["shape"])
    manifest = read_manifest(folder)
    files = dict(manifest.files) | {"references.onnx": sha256_of(folder / "references.onnx")}
    spec = ReferencesSpec.model_validate(
        raw | {"stride": 4, "max_rows": max_rows, "view": REFERENCE_VIEW if own_encoder else None}
    )
    write_manifest(folder, manifest.model_copy(update={"references": spec, "files": files}))
    return folder


def _write_graph(folder: Path, name: str, text: str) -> GraphSpec:
    model = onnx.parser.parse_model(HEADER + text)
    onnx.checker.check_model(model)
    onnx.save(model, folder / f"{name}.onnx")
    return GraphSpec(
        file=f"{name}.onnx",
        inputs=tuple(_tensor(value) for value in model.graph.input),
        outputs=tuple(_tensor(value) for value in model.graph.output),
    )


def _tensor(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
    shape = tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim)
    return TensorSpec.model_validate({"name": value.name, "dtype": dtype, "shape": shape})


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny bundle; read it only, copy it to change it."""
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="session")
def tiny_references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny bundle with a references graph; read it only."""
    return add_references(make_tiny_bundle(tmp_path_factory.mktemp("references") / "tiny"))


@pytest.fixture(scope="session")
def make_part() -> Callable[..., NDArray[np.uint8]]:
    """``make_part(height, width, spots=[(x, y, radius), ...])``: a light part, RGB uint8, with dark discs."""

    def part(height: int = 96, width: int = 128, spots: list[tuple[int, int, int]] | None = None) -> NDArray[np.uint8]:
        image = np.full((height, width, 3), 210, np.uint8)
        rows, columns = np.ogrid[:height, :width]
        for x, y, radius in spots or []:
            image[(columns - x) ** 2 + (rows - y) ** 2 <= radius**2] = 20
        return image

    return part

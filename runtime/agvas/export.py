"""``agvas export``: the verbs of ``agvas_export``, and those that need the runtime beside it: one whole graph for other runtimes."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray

from agvas_core.contract.command_line import needs_packages
from agvas_core.contract.defaults import BALANCED, STRICT
from agvas_core.contract.errors import OutputError, ParityError, UsageError
from agvas_export.cli import app

__all__ = ["Answer", "app", "compare", "export_graph", "onnx", "openvino"]

Run = Callable[[NDArray[np.uint8]], "Answer"]

SCORE_ERROR = 5e-3
"""Of score and score map: a pixel of a view may round to the other side, by 1 of 255."""
MASK_IOU = 0.99
SYNTHETIC_IMAGES = 3
SEED = 20


class Answer(NamedTuple):
    """What a whole graph gives."""

    score_map: NDArray[np.float32]
    mask: NDArray[np.uint8]
    score: float
    verdict: int


class Compared(NamedTuple):
    """A whole graph beside the package."""

    images: int
    score_error: float
    mask_iou: float


Model = Annotated[str, typer.Argument(help="A product, a bundle, or nano, the bundled one.", show_default=False)]
Size = Annotated[
    str | None,
    typer.Option(
        metavar="WxH", help="Of the frames, in px. A product knows its own; 512x512 where nothing is known.", show_default=False
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="The strict operating point in place of the balanced one.")]
Prompt = Annotated[str | None, typer.Option(help="The instruction, which is fixed in the graph; the bundle's own by default.")]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Pictures to compare the graph with the package on, resized; generated ones by default.",
        show_default=False,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file.")]


@app.command(
    epilog="Examples:\n\nagvas export onnx runs/lid -o lid.onnx --data examples/lid/judge\n\nagvas export onnx nano -o nano.onnx --size 640x480"
)
def onnx(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The file, NAME.onnx.", show_default=False)],
    size: Size = None,
    strict: Strict = False,
    prompt: Prompt = None,
    data: Data = None,
    overwrite: Overwrite = False,
) -> None:
    """Export one self-contained ONNX file: RGB image to score map, mask, score and verdict, for other runtimes.

    Size, instruction and operating point are fixed; it is compared with the package's own answer before the file appears.
    """
    _check_suffix(out, ".onnx")
    _say(out, *export_graph(model, out, size=_size(size), strict=strict, prompt=prompt, data=data, overwrite=overwrite))


@app.command(epilog="Examples:\n\nagvas export openvino runs/lid -o lid.xml --data examples/lid/judge")
def openvino(
    model: Model,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="NAME.xml; its weights go to NAME.bin.", show_default=False)
    ],
    size: Size = None,
    strict: Strict = False,
    prompt: Prompt = None,
    data: Data = None,
    overwrite: Overwrite = False,
) -> None:
    """Export the same for OpenVINO: NAME.xml and NAME.bin, in float32. Needs the extra openvino."""
    _check_suffix(out, ".xml")
    _say(out, *export_graph(model, out, size=_size(size), strict=strict, prompt=prompt, data=data, overwrite=overwrite))


def _check_suffix(out: Path, *suffixes: str) -> None:
    if out.suffix not in suffixes:
        raise UsageError(f"-o is {out}: a name that ends in {' or '.join(suffixes)} is needed")


def _say(out: Path, size: tuple[int, int], compared: Compared) -> None:
    typer.echo(
        f"file:     {out} ({sum(path.stat().st_size for path in _files(out)) / 1e6:.1f} MB, frames of {size[1]}x{size[0]} px)"
    )
    typer.echo(
        f"compared: {compared.images} images, score off by at most {compared.score_error:.0e}, least IoU of masks {compared.mask_iou:.4f}"
    )


def _size(text: str | None) -> tuple[int, int] | None:
    """(H, W) of ``640x480``."""
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise UsageError(f"--size is {text!r}: width and height in px are needed, as in 640x480")
    return int(height), int(width)


def export_graph(
    model: str | Path,
    out: Path,
    *,
    size: tuple[int, int] | None = None,
    strict: bool = False,
    prompt: str | None = None,
    data: Path | None = None,
    overwrite: bool = False,
) -> tuple[tuple[int, int], Compared]:
    """Writes a model as one graph; ``agvas.whole_graph`` says what is in it.

    Args:
        out: ``NAME.onnx``, or ``NAME.xml`` for OpenVINO, whose weights go to ``NAME.bin``.
        size: (H, W) px of the frames.
        data: pictures to compare on, a folder or one.

    Returns:
        The frame's (H, W), and how the graph compared with the package.

    Raises:
        UsageError: a size, file or operating point that is not possible.
        ParityError: the graph does not give the package's answer.
        OutputError: the file cannot be written.
        SetupError: openvino is not installed.
    """
    _check_suffix(out, ".onnx", ".xml")
    write = _write_onnx
    if out.suffix == ".xml":
        write = _write_openvino
        with needs_packages():  # before the model is loaded
            import_module("openvino")
    with _written(out, overwrite) as part:
        segmenter, size, graph = _graph(model, size, strict, prompt)
        compared = compare(segmenter, write(graph, part), size, data)
    return size, compared


def _write_onnx(graph: Any, path: Path) -> Run:
    """Writes the graph and returns it running on ONNX Runtime."""
    import onnx
    import onnxruntime as ort

    onnx.save(graph, path)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda image: _answer(session.run(list(Answer._fields), {"image": image}))


def _write_openvino(graph: Any, path: Path) -> Run:
    """Writes the graph and returns it running on OpenVINO, both in float32."""
    import onnx
    import openvino as ov

    passing = path.with_suffix(".onnx")
    try:
        onnx.save(graph, passing)
        converted = ov.convert_model(passing)
    finally:
        passing.unlink(missing_ok=True)
    for entry in graph.metadata_props:
        converted.set_rt_info(entry.value, ["agvas", entry.key])
    ov.save_model(converted, path, compress_to_fp16=False)
    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(image: NDArray[np.uint8]) -> Answer:
        found = compiled(image)
        return _answer([found[name] for name in Answer._fields])

    return run


def _graph(model: str | Path, size: tuple[int, int] | None, strict: bool, prompt: str | None) -> tuple[Any, tuple[int, int], Any]:
    """(segmenter, (H, W), graph) of a model."""
    from agvas.whole_graph import build_graph
    from agvas_runtime.pipeline.segmenter import Segmenter

    name = STRICT if strict else BALANCED
    segmenter = Segmenter.load(model, operating_point=name, prompt=prompt)
    product = segmenter.bundle.product
    if size is None:
        known = product.frame_px if product is not None else (512, 512)
        if known is None:
            raise UsageError(f"the good images of {segmenter.bundle.identity} have several sizes: say which one with --size WxH")
        size = known[1], known[0]
    return segmenter, size, build_graph(segmenter.bundle, size, operating_point=name, prompt=prompt)


def _answer(found: list[Any]) -> Answer:
    score_map, mask, score, verdict = found
    return Answer(score_map, mask, float(score), int(verdict))


def compare(segmenter: Any, run: Run, size: tuple[int, int], data: Path | None = None) -> Compared:
    """A whole graph beside the package, on pictures resized to ``size`` = (H, W), or on generated ones.

    Raises:
        ParityError: a verdict, a score or a mask differs by more than rounding can.
    """
    from agvas.whole_graph import VERDICTS

    worst, least, count = 0.0, 1.0, 0
    for name, image in _pictures(size, data):
        found, (own,) = run(image), segmenter.predict(image)
        count += 1
        margin = min(abs(found.score - edge) for edge in (own.threshold, own.seed_threshold))
        if VERDICTS[found.verdict] != own.verdict and (own.score is None or margin > SCORE_ERROR):
            raise ParityError(
                f"{name}: the graph says {VERDICTS[found.verdict]}, the package {own.verdict}: please report the model"
            )
        if own.score_map is None or own.mask is None or VERDICTS[found.verdict] != own.verdict:
            continue
        worst = max(worst, abs(found.score - own.score), float(np.abs(found.score_map - own.score_map).max()))
        either = np.count_nonzero((found.mask > 0) | own.mask)
        least = min(least, np.count_nonzero((found.mask > 0) & own.mask) / either if either else 1.0)
        if worst > SCORE_ERROR or least < MASK_IOU:
            raise ParityError(
                f"{name}: the graph's score is off by {worst:.1e} ({SCORE_ERROR:.0e} is allowed), the IoU of its mask is {least:.4f} "
                f"({MASK_IOU} is needed): please report the model"
            )
    return Compared(count, worst, least)


def _pictures(size: tuple[int, int], data: Path | None) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    import cv2

    from agvas_runtime.sources import open_source

    if data is None:
        from agvas_core.data.synthetic.synthesis import synthesize

        for index in range(SYNTHETIC_IMAGES):
            image = synthesize(SEED, index, (256, 256)).image
            yield f"generated image {index}", np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)
        return
    for frame in open_source(data):
        if frame.image is None:
            raise UsageError(f"--data {data}: {frame.error}")
        way = cv2.INTER_AREA if frame.image.size > 3 * size[0] * size[1] else cv2.INTER_LINEAR
        yield frame.name, np.asarray(cv2.resize(frame.image, size[::-1], interpolation=way), np.uint8)


def _files(out: Path) -> list[Path]:
    return [out, out.with_suffix(".bin")] if out.suffix == ".xml" else [out]


@contextmanager
def _written(out: Path, overwrite: bool) -> Iterator[Path]:
    """A path beside ``out`` to write to; what is there gets the name ``out`` at the end, and is removed where something failed."""
    taken = [path for path in _files(out) if path.exists()]
    if taken and (not overwrite or any(path.is_dir() for path in taken)):
        raise UsageError(f"{taken[0]} is there already: choose another name with -o, or say --overwrite")
    part = out.with_name(f"{out.stem}.part-{os.getpid()}{out.suffix}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield part
        for made, final in reversed(list(zip(_files(part), _files(out), strict=True))):
            made.replace(final)  # the weights first: the .xml names them by its own name
    except OSError as error:
        raise OutputError(f"{out} cannot be written ({error.strerror or error}): choose another place with -o") from error
    finally:
        for path in _files(part):
            with suppress(OSError):
                path.unlink(missing_ok=True)

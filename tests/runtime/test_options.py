"""One options object from the command line to the segmenter."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from agvas_core.contract.errors import UsageError
from agvas_runtime import Segmenter
from agvas_runtime.batch.job import BatchJob
from agvas_runtime.pipeline.options import SegmentKeywords, SegmentOptions
from agvas_runtime.stages.open import StageSettings

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


def test_options_are_light() -> None:
    code = "import sys, agvas_runtime.pipeline.options; print(sorted({'cv2', 'numpy', 'onnxruntime', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

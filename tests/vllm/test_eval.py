"""``agvas eval --lmm``: every mode scored with the language model on vLLM, in process, and beside it on ONNX Runtime."""

import json
from pathlib import Path
from typing import Any

import cv2
import pytest

from agvas.cli import build
from agvas_core.contract.command_line import exit_code_of
from agvas_core.contract.prompts import Mode
from agvas_core.data.synthetic.synthesis import SynthesisSpec, synthesize

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A category in MVTec's layout: two good images, two with defects."""
    root = tmp_path_factory.mktemp("parts")
    for number, kind in enumerate(("good", "good", "flaw", "flaw")):
        spec = SynthesisSpec(normal_fraction=float(kind == "good"))
        sample = synthesize(5, number, (160, 192), spec)
        for folder, pixels in ((f"test/{kind}", sample.image[..., ::-1]), (f"ground_truth/{kind}", sample.mask * 255)):
            if folder != "ground_truth/good":
                (root / "bolt" / folder).mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(root / "bolt" / folder / f"{number}.png"), pixels)
    (root / "looks.toml").write_text('bolt = "A good part has an even surface."', encoding="utf-8")
    return root


def scored(bundle: Path, parts: Path, out: Path, lmm: str, *options: str) -> dict[str, Any]:
    """The category's entry in ``result.json``."""
    arguments = ["eval", "--model", str(bundle), "--data", str(parts), "--lmm", lmm, "--out", str(out), "-q", *options]
    assert exit_code_of(build, name="agvas", arguments=arguments) == 0
    (data,) = json.loads((out / "result.json").read_text(encoding="utf-8"))["sets"]
    (category,) = data["categories"]
    found: dict[str, Any] = category
    return found


# The engines of all modes are one process's: vLLM starts once and is found again.
@pytest.mark.parametrize("options", [*([f"--mode={mode}"] for mode in Mode), ["--generate"]], ids=" ".join)
def test_a_mode_is_scored_on_vllm_as_on_onnx_runtime(whole_bundle: Path, parts: Path, tmp_path: Path, options: list[str]) -> None:
    looks = [f"--normal-looks={parts / 'looks.toml'}"] if "--mode=describe-plus" in options else []
    mine, theirs = (scored(whole_bundle, parts, tmp_path / lmm, lmm, *options, *looks) for lmm in ("vllm", "onnx"))
    assert mine["metrics"] == pytest.approx(theirs["metrics"], abs=1e-3)
    assert mine["answers_with_anchors"] == theirs["answers_with_anchors"]
    answers = [[image.get("answer") for image in one["per_image"]] for one in (mine, theirs)]
    assert answers[0] == answers[1]
    assert all(answers[0]) == (options != ["--mode=direct"])

"""Malformed recipes, images, HTTP messages and triggers by the thousand: is each refused, and never a crash or a hang?

    python tests/soak/fuzz_line.py --cases 100000

Hypothesis makes the cases, in blocks with a seed each, so that a run can be repeated. Every target runs in a process of its own: one that
dies without a word (a fault in a decoder) is told with the case that it died of, and so is one that takes longer than HANG_S at a case.
A case is well done where what is called returns, or raises an AgvasError, and an HTTP answer is no 500.
"""

import argparse
import faulthandler
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from fuzz_fieldbus import MODBUS_ANSWERS, MQTT_MESSAGES, ModbusTriggers, MqttTriggers
from fuzz_http import REQUESTS, Http
from fuzz_triggers import HTTP_TRIGGERS, HttpTriggers
from fuzz_values import EDITS, MAX_PIXELS, POINTS, SEEDS, VALUES, WORDS, Case, edited
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from stub_stages import stub_segmenter

from agvas_core.contract.decision import OperatingPoint
from agvas_core.contract.errors import AgvasError
from agvas_runtime.images.frame import Frame
from agvas_runtime.images.read import decode_image
from agvas_runtime.line.recipe.cli import recipe_template
from agvas_runtime.line.recipe.file import parse_recipe
from agvas_runtime.line.recipe.rules import Judge, Looked
from agvas_runtime.line.station.inspector import frame_fault

HANG_S = 60.0
BLOCK = 500

FULL = """product: part
kinds: {scratch: {prompt: Please segment the scratches.}, stain: {prompt: Please segment the stains.}}
frame: {width_px: 64, height_px: 48}
mm_per_px: 0.05
rois: {face: [[4, 4], [60, 4], [60, 44], [4, 44]]}
ignore: [[[0, 0], [30, 0], [30, 30]]]
thresholds: {threshold: 0.4, seed_threshold: 0.6}
rules: [{roi: face, kind: scratch, min_length_mm: 0.5, max_count: 2}, {min_area_px: 30, min_score: 0.8}]
deadline_ms: 800
"""
FULL_TABLE = yaml.safe_load(FULL)


# recipes


RECIPES = st.one_of(
    st.builds(
        edited,
        st.sampled_from(
            [FULL.encode(), recipe_template("part", model="nano", identity="nano@0123456789ab", frame_px=(64, 48)).encode()]
        ),
        EDITS,
    ),
    st.dictionaries(WORDS, VALUES | st.dictionaries(st.sampled_from(["face", "*"]), POINTS, max_size=2), max_size=8).map(
        lambda table: yaml.safe_dump({"product": "part", **table}, allow_unicode=True).encode("utf-8", "replace")
    ),
    st.builds(  # one key of a recipe that is right
        lambda key, value: yaml.safe_dump({**FULL_TABLE, key: value}, allow_unicode=True).encode("utf-8", "replace"),
        WORDS,
        VALUES,
    ),
    st.binary(max_size=60),
)


def recipe_cases(data: bytes) -> Case:
    """Parsed, and where it is right, used on a score map."""

    def call() -> None:
        recipe = parse_recipe(data.decode("utf-8", "replace"), "the recipe").recipe
        height, width = (recipe.frame.height_px, recipe.frame.width_px) if recipe.frame else (48, 64)
        if height * width > MAX_PIXELS:
            return
        rng = np.random.default_rng(len(data))
        point = recipe.thresholds or OperatingPoint(threshold=0.4, seed_threshold=0.7)
        looked = {kind: Looked(rng.random((height, width), np.float32) ** 8, 1.0) for kind in recipe.prompts}
        judgement = Judge(recipe, point, height, width).judge(looked)
        json.dumps([finding.to_dict(recipe.mm_per_px) for finding in judgement.findings], allow_nan=False)

    return data, call


# images


IMAGES = st.one_of(
    st.builds(edited, st.sampled_from(SEEDS), EDITS),
    st.builds(edited, st.sampled_from(SEEDS), EDITS.map(lambda e: e[:1])),
    st.binary(max_size=200),
)
CHECKED = parse_recipe("product: x\nimage: {min_focus: 0.001, max_clipped: 0.5}\n", "x")


def image_cases(data: bytes) -> Case:
    """Decoded, checked, and looked at."""
    segmenter = SEGMENTER[0]

    def call() -> None:
        image = decode_image(data, max_pixels=MAX_PIXELS)
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size > 0, (image.dtype, image.shape)
        frame = Frame("fuzz", 0, image=image)
        frame_fault(frame, CHECKED)
        if len(data) % 4 == 0:  # the other three are as much as can be had in the time
            json.dumps(segmenter.segment(frame).to_dict(), allow_nan=False)

    return data, call


SEGMENTER: list[Any] = []


def targets() -> dict[str, tuple[Any, Callable[[Path], Callable[[Any], Case]]]]:
    """Name -> strategy, and what makes a call of what it draws, given a folder for its files."""
    return {
        "recipes": (RECIPES, lambda _: recipe_cases),
        "images": (IMAGES, lambda _: image_cases),
        "http": (REQUESTS, lambda _: Http(SEGMENTER[0]).case),
        "http-trigger": (HTTP_TRIGGERS, lambda folder: HttpTriggers(folder).case),
        "mqtt-trigger": (MQTT_MESSAGES, lambda folder: MqttTriggers(folder).case),
        "modbus-trigger": (MODBUS_ANSWERS, lambda folder: ModbusTriggers(folder).case),
    }


def run_target(name: str, cases: int, first_seed: int, note: Path) -> int:
    """In the child: all cases of one target; how many were refused is the last line of ``note``."""
    SEGMENTER.append(stub_segmenter())
    strategy, open_target = targets()[name]
    case_of, done, refused = open_target(note.parent / f"{name}-state"), 0, 0
    current = os.open(note, os.O_RDWR | os.O_CREAT | os.O_TRUNC)

    def one(drawn: Any) -> None:
        nonlocal done, refused
        data, call = case_of(drawn)
        os.ftruncate(current, 0)
        os.pwrite(current, data, 0)
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        try:
            call()
        except AgvasError:
            refused += 1
        finally:
            faulthandler.cancel_dump_traceback_later()
        done += 1

    block = 0
    while done < cases:
        left = min(BLOCK, cases - done)
        options = settings(
            max_examples=left, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
        )
        try:
            seed(first_seed + block)(options(given(strategy)(one)))()
        except BaseException:
            traceback.print_exc()
            print(f"{name}: case {done} of seed {first_seed + block}, block of {left}", file=sys.stderr)
            return 1
        block += 1
    os.ftruncate(current, 0)
    os.pwrite(current, json.dumps({"cases": done, "refused": refused}).encode(), 0)
    return 0


def in_child(name: str, cases: int, first_seed: int, folder: Path) -> dict[str, Any]:
    """Runs a target, and says how it ended."""
    note, began = folder / name, time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = run_target(name, cases, first_seed, note)
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    last = note.read_bytes()
    if code == 0:
        return {"target": name, **json.loads(last), "faults": 0, "seconds": round(time.monotonic() - began)}
    kept = Path(f"fuzz-{name}.case")
    kept.write_bytes(last)
    return {"target": name, "faults": 1, "ended_with": code, "case": str(kept)}


def main() -> int:
    """Prints a line for each target; 1 where one crashed, hung or failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[*targets()], default=None)
    arguments = parser.parse_args()
    names = [arguments.only] if arguments.only else [*targets()]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            found.append(in_child(name, -(-arguments.cases // len(names)), arguments.seed, Path(folder)))
            print(json.dumps(found[-1]), flush=True)
    return 1 if any(one["faults"] for one in found) else 0


if __name__ == "__main__":
    sys.exit(main())

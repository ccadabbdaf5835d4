"""A recipe over HTTP: the verdict that the line gives, from text or by a name; no path is opened."""

import base64
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agvas_core.contract.errors import RecipeError, UsageError
from agvas_runtime.images.frame import Frame
from agvas_runtime.line.recipe.file import parse_recipe
from agvas_runtime.line.recipe.store import RecipeStore
from agvas_runtime.line.station.inspector import SegmenterInspector
from agvas_runtime.pipeline.options import SegmentOptions
from agvas_runtime.pipeline.segmenter import Segmenter
from agvas_runtime.web.recipes import Recipes

RECIPE = """\
product: bracket-42
frame: {width_px: 128, height_px: 96}
mm_per_px: 0.5
rois:
  spot: [[40, 20], [90, 20], [90, 70], [40, 70]]
  free: [[0, 0], [30, 0], [30, 90], [0, 90]]
rules:
  - {name: large, roi: spot, min_area_mm2: MM2}
  - {name: free, roi: free}
"""
LARGE, SMALL = RECIPE.replace("MM2", "10"), RECIPE.replace("MM2", "1000")


def test_a_recipe_that_is_sent_decides_as_on_the_line(
    client: Any, segmenter: Segmenter, tiny_bundle: Path, image: NDArray[np.uint8], part: bytes
) -> None:
    version = parse_recipe(LARGE.replace("frame:", f"model: {tiny_bundle}\nframe:"), "recipe")
    inspector = SegmenterInspector(SegmentOptions(threads=1))
    inspector.prepare(version)
    line = inspector.inspect(Frame("part", 0, image), version).judgement
    (entry,) = client.upload(part, recipe=LARGE, include="polygons,rle").json["results"]
    assert entry["verdict"] == line.verdict == "FAIL" and entry["broken_rules"] == list(line.broken) == ["large"]
    assert entry["findings"] == [finding.to_dict(0.5) for finding in line.findings]
    assert entry["reject_score"] == round(line.reject_score, 5) and entry["recipe"].startswith("bracket-42@")
    assert len(entry["regions"]) == len(line.findings) and entry["operating_point"] == "recipe"
    (small,) = client.post("/v1/segment", {"images": [base64.b64encode(part).decode()], "recipe": SMALL}).json["results"]
    assert small["verdict"] == "PASS" and not small["regions"] and not small["broken_rules"]


def test_a_recipe_may_be_a_file_of_the_form(client: Any, part: bytes) -> None:
    fields = (("image", "part.png", part), ("recipe", "bracket.yaml", LARGE.encode()))
    body = b"".join(
        f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="{file}"\r\n\r\n'.encode() + data + b"\r\n"
        for name, file, data in fields
    )
    answer = client.call("POST", "/v1/segment", body + b"--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.json["results"][0]["broken_rules"] == ["large"]


def test_a_frame_of_another_size_has_no_verdict(client: Any, part: bytes, png: Any, make_part: Any) -> None:
    wrong = png(make_part()[:90])
    entries = client.upload(part, wrong, recipe=LARGE).json["results"]
    assert [entry["verdict"] for entry in entries] == ["FAIL", "NO_VERDICT"] and "128x96" in entries[1]["error"]
    assert client.upload(wrong, recipe=LARGE).status == 422


def test_a_recipe_is_named_by_its_product_where_the_server_was_started_with_it(
    serving: Callable[..., AbstractContextManager[Any]], segmenter: Segmenter, part: bytes, tmp_path: Path
) -> None:
    (tmp_path / "other.yaml").write_text(SMALL.replace("bracket-42", "other"))
    RecipeStore(tmp_path / "store").activate(parse_recipe(LARGE, "recipe"))
    recipes = Recipes.read(segmenter.bundle, [tmp_path / "store", tmp_path / "other.yaml"])
    with serving(segmenter, recipes) as client:
        verdicts = [client.upload(part, recipe=name).json["results"][0]["verdict"] for name in ("bracket-42", "other")]
        assert verdicts == ["FAIL", "PASS"]
        assert "there are bracket-42, other" in client.upload(part, recipe="third").error
    with pytest.raises(UsageError, match="two recipes are for bracket-42"):
        Recipes(segmenter.bundle, [parse_recipe(text, "recipe") for text in (LARGE, SMALL)])
    with pytest.raises(RecipeError, match="the model here is"):
        Recipes(segmenter.bundle, [parse_recipe(f"bundle: other@0123456789ab\n{LARGE}", "recipe")])


@pytest.mark.parametrize(
    ("status", "words", "fields"),
    [
        (400, "there are none", {"recipe": "/etc/hostname"}),
        (400, "there are none", {"recipe": "../recipes/active"}),
        (400, "product", {"recipe": "product:"}),
        (400, "made for other@0123456789ab", {"recipe": f"bundle: other@0123456789ab\n{LARGE}"}),
        (400, "ROIs", {"recipe": LARGE + "".join(f"  - {{roi: r{n}}}\n" for n in range(17))}),
        (400, "65536", {"recipe": LARGE + "#" * (1 << 16)}),
        (422, "prompt", {"recipe": LARGE, "prompt": "find the bright"}),
        (422, "threshold", {"recipe": LARGE, "threshold": 0.5}),
        (422, "1 to 8", {"recipe": "product: a\nkinds:\n" + "".join(f"  k{n}: {{prompt: find {n}}}\n" for n in range(9))}),
    ],
)
def test_what_is_no_recipe_for_this_server_is_refused(
    client: Any, part: bytes, status: int, words: str, fields: dict[str, Any]
) -> None:
    if words == "ROIs":
        more = "".join(f"  r{n}: [[0, 0], [9, 0], [9, 9]]\n" for n in range(17))
        fields = {"recipe": fields["recipe"].replace("  free:", more + "  free:")}
    answer = client.post("/v1/segment", {"images": [base64.b64encode(part).decode()], **fields})
    assert answer.status == status and words in answer.error, answer.body

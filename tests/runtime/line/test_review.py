"""A person's word on stored parts: by keys in a real browser, into the folder that training reads, and on to other tools."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from agvas.review import review
from agvas.run import run as app
from agvas_core.contract.command_line import exit_code_of
from agvas_core.contract.errors import UsageError
from agvas_core.contract.review_folder import read_lines
from agvas_core.data.datasets.anomalies import REVIEWED
from agvas_runtime.web.line.page_server import PageServer
from agvas_runtime.web.line.review_export import brush_run_lengths
from agvas_runtime.web.line.review_page import review_routes
from agvas_runtime.web.line.review_session import Session, Shown
from agvas_runtime.web.settings import Settings

from .conftest import write_part

MakePart = Callable[..., np.ndarray]
WORD = "document.querySelector('#word').innerText"


@pytest.fixture
def state(tmp_path: Path, tiny_bundle: Path, make_part: MakePart) -> Path:
    """Two parts that pass, two that do not, and one out of size: all their images are kept."""
    parts = [
        make_part(),
        make_part(),
        make_part(spots=[(60, 40, 12)]),
        make_part(spots=[(30, 30, 9), (90, 60, 9)]),
        make_part()[:64, :64],
    ]
    for number, part in enumerate(parts):
        write_part(tmp_path / "parts" / f"{number}.png", part)
    (tmp_path / "r.yaml").write_text(
        f"product: bracket\nmodel: {tiny_bundle}\ndeadline_ms: 60000\nkeep: {{sample_every: 1}}\nframe: {{width_px: 128, height_px: 96}}\n"
        "rules: [{name: spots}]\n"
    )
    arguments = [
        str(tmp_path / "parts"),
        "--recipe",
        str(tmp_path / "r.yaml"),
        "--state",
        str(tmp_path / "line"),
        "--log",
        "json",
    ]
    assert exit_code_of(lambda: app, name="agvas-run", arguments=arguments) == 0
    return tmp_path / "line"


def run(*arguments: object) -> int:
    return exit_code_of(lambda: review, name="agvas review", arguments=[str(argument) for argument in arguments])


def drag(browser: Any, *points: tuple[float, float]) -> None:
    """The mouse over the mask, in shares of its width and height."""
    left, top, width, height = browser.run(
        "(() => { const box = document.querySelector('#mask').getBoundingClientRect(); return [box.left, box.top, box.width, box.height]; })()"
    )
    for number, (x, y) in enumerate(points):
        event = {"x": left + x * width, "y": top + y * height, "button": "left", "buttons": 1, "clickCount": 1}
        browser.call("Input.dispatchMouseEvent", type="mouseMoved" if number else "mousePressed", **event)
    browser.call("Input.dispatchMouseEvent", type="mouseReleased", **event | {"buttons": 0})


@pytest.mark.slow
def test_a_person_reviews_by_keys_and_training_reads_the_folder(browser, state: Path, tmp_path: Path) -> None:
    out = tmp_path / "review"
    session = Session(state, out)
    server = PageServer("review", Settings(port=0, stop_timeout_s=1), options=("--port", "--host"))
    server.start(review_routes(session))
    try:
        browser.size(1280, 800)
        browser.call("Page.navigate", url=f"{server.address}/")

        def opened(seq: int, verdict: str) -> None:
            browser.until(f"document.querySelector('#image').alt == 'Part {seq}' && {WORD} == '{verdict}'")
            browser.until("document.querySelector('#view').ariaBusy == 'false'")

        opened(5, "NO VERDICT")
        browser.key("a")  # there is nothing to agree with
        browser.key("f")
        opened(4, "FAIL")
        browser.key("a")
        opened(3, "FAIL")
        browser.key("f")
        opened(2, "PASS")
        browser.key("e")
        browser.until("!document.querySelector('#brushes').hidden")
        browser.key("Enter")
        browser.until("document.querySelector('#banner').innerText.includes('is empty')")
        drag(browser, (0.25, 0.5), (0.5, 0.5), (0.75, 0.5))
        browser.run("document.querySelector('#kind').focus()")
        browser.call("Input.insertText", text="scratch x")  # x is a letter here, and the eraser elsewhere
        browser.key("Enter")
        opened(1, "PASS")
        for width in (1280, 390):
            browser.size(width, 844)
            browser.until(f"innerWidth == {width} && document.documentElement.scrollWidth <= {width}")
        browser.key("a")
        browser.until("document.querySelector('#banner').innerText.includes('Every part is reviewed')")
        assert "5 of 5 reviewed: 2 agreed, 1 false rejects, 1 escapes" in browser.run(
            "document.querySelector('#counts').innerText"
        )
        # A person thinks again: the mask of part 4 loses its right half, stroke by stroke.
        browser.call("Page.navigate", url="about:blank")
        browser.call("Page.navigate", url=f"{server.address}/#4")
        opened(4, "FAIL")
        browser.key("p")
        browser.key("x")
        for _ in range(6):
            browser.key("]")
        drag(browser, (0.6, 0.5), (0.7, 0.65), (0.75, 0.6), (0.68, 0.7))
        browser.key("Enter")
        browser.until("document.querySelector('#said').innerText == 'agreed' && document.querySelector('#brushes').hidden")
        assert [url for url in browser.asked if not url.startswith((f"{server.address}/", "data:", "blob:"))] == []
        assert browser.complaints == []
    finally:
        server.close()

    lines = {line.image[-7:-4]: line for line in read_lines(out)}
    assert [(lines[f"00{seq}"].good, lines[f"00{seq}"].kind) for seq in range(1, 6)] == [
        (True, ""), (False, "scratch x"), (True, ""), (False, ""), (True, ""),
    ]  # fmt: skip
    assert REVIEWED.matches(out)
    records = {record.name[-7:-4]: record for record in REVIEWED.records(out)}
    painted = records["002"].mask.read((96, 128))
    assert painted[48, 40:90].all() and not painted[:40].any() and not painted[56:].any()
    rest = records["004"].mask.read((96, 128))
    assert rest[30, 30] and not rest[60, 90]
    assert records["004"].category == "bracket"


def test_what_cannot_be_meant_is_refused_and_a_later_review_knows_the_earlier_one(state: Path, tmp_path: Path) -> None:
    session = Session(state, tmp_path / "review", shown=Shown.rejects)
    assert [part[0] for part in session.overview()["parts"]] == [4, 3]
    with pytest.raises(UsageError, match="128x96"):
        session.decide(4, good=False, mask=np.ones((4, 4), bool))
    with pytest.raises(UsageError, match="mask is empty"):
        session.decide(4, good=False, mask=np.zeros((96, 128), bool))
    with pytest.raises(UsageError, match="not among"):
        session.decide(1, good=True)
    assert not (tmp_path / "review" / "review.jsonl").exists()
    words = [session.decide(3, good=False, kind="dent"), session.decide(4, good=True), session.decide(4, good=False)]
    assert [word["said"] for word in words] == ["agree", "false-reject", "agree"]
    again = Session(state, tmp_path / "review")
    assert again.overview()["parts"][1:3] == [[4, "FAIL", "agree"], [3, "FAIL", "agree"]]
    assert again.view(3)["kind"] == "dent"
    with pytest.raises(UsageError, match="mask is empty"):
        again.decide(1, good=False)  # an escape has no mask of the model's
    kept = next(path for path in (state / "images").rglob("*3-FAIL.png"))
    kept.write_bytes(b"another")
    with pytest.raises(UsageError, match="part 3"):
        again.decide(3, good=True)


def test_what_is_sent_is_checked(state: Path, tmp_path: Path) -> None:
    server = PageServer("review", Settings(port=0, stop_timeout_s=1), options=("--port", "--host"))
    server.start(review_routes(Session(state, tmp_path / "review")))

    def post(seq: int, body: dict[str, Any], **headers: str) -> int:
        request = urllib.request.Request(
            f"{server.address}/v1/review/parts/{seq}", json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
        )
        try:
            return int(urllib.request.urlopen(request, timeout=30).status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    try:
        assert post(4, {"good": False, "mask": "data:image/png;base64,AAAA"}) == 422
        assert post(4, {"good": False, "mask": "http://127.0.0.1/mask.png"}) == 400
        assert post(4, {"good": False, "path": "../x"}) == 422
        assert post(99, {"good": True}) == 400
        assert post(4, {"good": True}, Origin="http://elsewhere.example") == 403
        assert post(4, {"good": False}) == 200
    finally:
        server.close()


def decoded(data: list[int]) -> list[int]:
    """Label Studio's run lengths, read bit by bit (``decode_rle`` of label-studio-converter)."""
    bits = "".join(f"{byte:08b}" for byte in data)
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        repeated, length = take(1), 0
        length = take(sizes[take(2)]) + 1
        values += [take(word)] * length if repeated else [take(word) for _ in range(length)]
    return values


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools and NumPy 2
def test_other_tools_read_the_masks_to_the_pixel(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "review"
    session = Session(state, out)
    mask = np.zeros((96, 128), bool)
    mask[10:30, 20:60] = mask[50:90, 100:128] = True
    mask[15:20, 30:40] = False  # a hole
    session.decide(2, good=False, mask=mask, kind="dent")
    session.decide(1, good=True)
    assert (
        run(
            state, "--out", out, "--coco", tmp_path / "c.json", "--label-studio", tmp_path / "l.json", "--image-prefix", "s3://b/"
        )
        == 0
    )
    coco = COCO(str(tmp_path / "c.json"))
    (number,) = [image["id"] for image in coco.imgs.values() if image["file_name"].endswith("002.png")]
    found = coco.loadAnns(coco.getAnnIds([number]))
    assert len(coco.imgs) == 2 and len(found) == len(coco.anns) == 2
    assert np.array_equal(sum(coco.annToMask(one) for one in found) > 0, mask)
    assert [coco.cats[one["category_id"]]["name"] for one in found] == ["dent"] * 2
    assert sorted(one["area"] for one in found) == [20 * 40 - 50, 40 * 28]
    good, bad = json.loads((tmp_path / "l.json").read_text())
    assert good["annotations"][0]["result"][0]["value"]["choices"] == ["good"] and len(good["annotations"][0]["result"]) == 1
    assert bad["data"]["image"].startswith("s3://b/images/")
    (brush,) = [one for one in bad["annotations"][0]["result"] if one["type"] == "brushlabels"]
    pixels = np.array(decoded(brush["value"]["rle"])).reshape(brush["original_height"], brush["original_width"], 4)
    assert np.array_equal(pixels[:, :, 3] > 0, mask) and brush["value"]["brushlabels"] == ["dent"]
    wide = np.ones((300, 300), bool)
    assert decoded(brush_run_lengths(wide)) == [255] * 360_000
    assert run(state, "--out", tmp_path / "none", "--coco", tmp_path / "c.json") == 2
    assert run(state, "--image-prefix", "x") == 2
    assert "review.jsonl" in capsys.readouterr().err

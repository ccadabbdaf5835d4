"""The report: one file, true to the results, safe whatever the names, and alive in a real browser."""

import html.parser
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agvas_runtime.masks.regions import find_regions
from agvas_runtime.masks.result import Result, Verdict
from agvas_runtime.report import run_report as report_module
from agvas_runtime.report.run_report import Report, headline

EVIL = "<script>alert('x')</script></script><!--<img src=x onerror=alert(1)>&amp;\"'\u2028.png"
FACTS = {"model": "tiny@0", "prompt": EVIL, "threshold": "0.5", "date": "2026-01-01", "command": "agvas-run parts"}
ROWS_AT_ONCE = 200  # report_script.js


def a_result(index: int, score: float, *, name: str | None = None, side_px: int = 40) -> Result:
    scores = np.zeros((side_px, side_px), np.float32)
    scores[4:12, 6:20] = score
    mask = scores > 0.5
    regions = find_regions(mask, scores)
    image = np.full((side_px, side_px, 3), 120, np.uint8)
    verdict = Verdict.FAIL if regions else Verdict.PASS
    timing = {"read": 1.0, "vision": float(index), "total": 1.0 + index}
    return Result(
        name or f"parts/{index}.png",
        index,
        verdict,
        score,
        "balanced",
        0.4,
        0.5,
        "find",
        "tiny@0",
        regions,
        image,
        scores,
        mask,
        timing=timing,
    )


def unreadable(index: int, name: str = "parts/broken.png") -> Result:
    return Result(
        name, index, Verdict.NO_VERDICT, None, "balanced", 0.4, 0.5, "find", "tiny@0", error=f"{name}: cut short: copy it again"
    )


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_counts_rows_and_medians_are_those_of_the_results() -> None:
    report = Report(FACTS)
    for index, score in enumerate((0.2, 0.9, 0.7)):
        report.add(a_result(index, score), {"mask": f"masks/{index}.png"})
    report.add(unreadable(3))
    data = data_of(report.render(elapsed_s=2.0))
    assert data["counts"] == {"PASS": 1, "FAIL": 2, "NO_VERDICT": 1}
    assert [row["i"] for row in data["rows"]] == [0, 1, 2, 3]
    assert data["rows"][1] | {"f": None} == {
        "i": 1, "n": "parts/1.png", "v": "FAIL", "s": 0.9, "r": 1, "a": 0.07, "w": 40, "h": 40, "ms": 2.0, "f": None,
    }  # fmt: skip
    assert data["stages"] == {"read": 1.0, "vision": 1.0, "total": 2.0}
    assert data["errors"] == [["parts/broken.png", "cut short: copy it again"]]
    assert data["rate"] == 2.0


def test_the_outline_lies_where_the_region_lies() -> None:
    report = Report(FACTS)
    result = a_result(0, 0.9, side_px=1440)  # shown at 360: a quarter
    report.add(result)
    thumbnail = data_of(report.render(elapsed_s=1.0))["thumbnails"]["0"]
    points = np.array([[float(value) for value in pair.split()] for pair in re.findall(r"[\d.]+ [\d.]+", thumbnail["d"])])
    assert (thumbnail["w"], thumbnail["h"]) == (360, 360)
    assert np.allclose(points.min(axis=0), [6.5 / 4, 4.5 / 4], atol=0.01)
    assert np.allclose(points.max(axis=0), [19.5 / 4, 11.5 / 4], atol=0.01)


def test_nothing_from_outside_becomes_markup() -> None:
    report = Report(FACTS)
    report.add(replace(a_result(0, 0.9, name=EVIL), answer=EVIL))
    report.add(unreadable(1, EVIL))
    page = report.render(elapsed_s=1.0, notes=[EVIL])
    assert "<script>alert" not in page and "onerror=alert" in page  # it is there, as text
    assert data_of(page)["rows"][0]["n"] == data_of(page)["rows"][0]["t"] == EVIL

    class Tags(html.parser.HTMLParser):
        scripts = images = 0

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.scripts += tag == "script"
            self.images += tag == "img"

    tags = Tags()
    tags.feed(page)
    assert (tags.scripts, tags.images) == (2, 0)


def test_the_page_asks_the_network_for_nothing() -> None:
    report = Report(FACTS)
    report.add(a_result(0, 0.9))
    page = report.render(elapsed_s=1.0)
    assert "default-src 'none'" in page
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//|@import|url\(""", page)
    assert set(re.findall(r"https?://[^\s\"']+", page)) <= {"http://www.w3.org/2000/svg"}


def test_the_most_suspicious_pictures_are_kept_and_the_rest_is_said_to_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "MAX_THUMBNAILS", 5)
    report = Report(FACTS)
    scores = [0.1, 0.9, 0.3, 0.8, 0.2, 0.7, 0.95, 0.4, 0.6]
    for index, score in enumerate(scores):
        report.add(a_result(index, score))
    data = data_of(report.render(elapsed_s=1.0))
    assert {scores[int(index)] for index in data["thumbnails"]} == {0.95, 0.9, 0.8, 0.7, 0.6}
    assert len(data["rows"]) == 9
    assert any("5 of 9 frames" in note for note in data["notes"])


def test_no_frame_is_held() -> None:
    report = Report(FACTS)
    result = a_result(0, 0.9)
    report.add(result)

    def arrays(thing: object) -> int:
        if isinstance(thing, np.ndarray):
            return 1
        values = thing.values() if isinstance(thing, dict) else thing if isinstance(thing, list | tuple) else vars(thing).values() if hasattr(thing, "__dict__") else ()  # fmt: skip
        return sum(arrays(value) for value in values)

    assert arrays(report) == 0


@pytest.mark.parametrize(
    ("passed", "failed", "unjudged", "words"),
    [
        (0, 0, 0, "Nothing was inspected"),
        (1, 0, 0, "No anomaly found in 1 image"),
        (0, 1, 0, "An anomaly was found"),
        (0, 0, 1, "The image could not be judged"),
        (0, 0, 3, "None of 3 images could be judged"),
        (8, 2, 0, "Anomalies found in 2 of 10 images"),
        (8, 0, 2, "No anomaly found in 8 of 10 images; 2 could not be judged"),
        (1200, 1, 2, "Anomalies found in 1 of 1,203 images; 2 could not be judged"),
    ],
)
def test_the_outcome_is_said_in_words(passed: int, failed: int, unjudged: int, words: str) -> None:
    assert headline({Verdict.PASS: passed, Verdict.FAIL: failed, Verdict.NO_VERDICT: unjudged}) == words


# --- in a browser


def chromium(page: Path, profile: Path, *, width: int = 1280) -> tuple[str, str]:
    """(DOM after the script ran, what the console said)."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("chromium is not installed: the page is not opened in a browser")
    options = ["--headless", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--no-first-run",
               "--enable-logging=stderr", "--v=0", "--virtual-time-budget=4000", f"--window-size={width},1000",
               f"--user-data-dir={profile}", "--dump-dom"]  # fmt: skip
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.append("--no-sandbox")  # its sandbox refuses root
    done = subprocess.run([program, *options, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


Browse = Callable[[Report], str]


@pytest.fixture
def browse(tmp_path: Path) -> Browse:
    def look(report: Report) -> str:
        (tmp_path / "report.html").write_text(report.render(elapsed_s=1.0), encoding="utf-8")
        page, console = chromium(tmp_path / "report.html", tmp_path / "profile")
        assert console == ""
        return page

    return look


def table_rows(page: str) -> int:
    found = re.search(r'<tbody id="rows">(.*?)</tbody>', page, re.DOTALL)
    assert found is not None
    return found[1].count("<tr")


def test_a_browser_shows_every_result(browse: Browse) -> None:
    report = Report(FACTS)
    for index, score in enumerate((0.2, 0.9, 0.7)):
        report.add(a_result(index, score))
    report.add(unreadable(3, EVIL))
    page = browse(report)
    assert table_rows(page) == 4
    assert page.count('<article class="card') == 4
    assert page.count('class="marks"') == 2
    assert "Anomalies found in 2 of 4 images; 1 could not be judged" in page
    assert "<script>alert" not in page and "<img src=x" not in page.lower()


def test_a_browser_shows_what_the_model_said_under_each_picture_as_text(browse: Browse) -> None:
    report = Report(FACTS)
    report.add(replace(a_result(0, 0.9), answer="There is a dent, as indicated by [mask]."))
    report.add(replace(a_result(1, 0.9), answer=EVIL))
    report.add(a_result(2, 0.9))
    page = browse(report)
    assert page.count("<q>") == 2 and page.count("<q>There is a dent, as indicated by [mask].</q>") == 1
    assert "<script>alert" not in page and "<img src=x" not in page.lower()


def test_a_browser_shows_a_run_without_results(browse: Browse) -> None:
    page = browse(Report(FACTS))
    assert table_rows(page) == 0 and "Nothing was inspected" in page and "There are no results." in page


def test_a_browser_bears_ten_thousand_results(browse: Browse) -> None:
    report = Report(FACTS)
    for index in range(10_000):
        report.add(unreadable(index, f"parts/{index}.png") if index else a_result(0, 0.9))
    page = browse(report)
    assert table_rows(page) == ROWS_AT_ONCE
    assert "10,000 shown" in page

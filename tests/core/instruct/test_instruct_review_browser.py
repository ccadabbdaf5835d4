"""The review page in a real browser, by keyboard alone and without a network.

Chromium is driven over a pipe with its own protocol, which needs nothing but the browser.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agvas_core.data.instruct.entry import REVIEWED, read_instruct
from agvas_core.data.instruct.prompt import load_prompt
from agvas_core.data.instruct.review import Review
from agvas_core.data.instruct.review_server import ReviewServer

CTRL = 2


@pytest.mark.slow
def test_a_person_reviews_with_keys_alone(browser: Any, make_file: Callable[..., Path], tmp_path: Path) -> None:
    path = make_file(4)
    with Review(path, load_prompt().wording) as review, ReviewServer(review) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            browser.call("Page.navigate", url=server.url)
            loaded = "[...document.images].every((one) => one.complete && one.naturalWidth > 0)"
            browser.until(f"document.getElementById('number').textContent === '1 / 4' && {loaded}")
            assert browser.run("document.querySelectorAll('#texts p').length") == 5
            browser.picture(tmp_path / "review.png")

            browser.key("a")
            browser.until("document.getElementById('number').textContent === '2 / 4'")

            browser.key("e")
            browser.until("document.activeElement.id === 'observation'")
            assert browser.run("document.querySelectorAll('#texts textarea').length") == 5
            browser.key("a")  # typed, and no command while one writes
            browser.run("document.activeElement.value = 'The mask shows a dark spot on the left.'")
            browser.key("Enter", CTRL)
            browser.until("!document.getElementById('message').hidden")
            assert '"mask" (mask)' in browser.run("document.getElementById('message').textContent")
            browser.picture(tmp_path / "refused.png")
            browser.run("document.getElementById('observation').value = 'A dark spot <b>lies</b> left of the centre.'")
            browser.key("Enter", CTRL)
            browser.until("document.getElementById('number').textContent === '3 / 4'")

            browser.key("r")
            browser.until("document.getElementById('number').textContent === '4 / 4'")
            browser.key("b")
            browser.until("document.getElementById('number').textContent === '3 / 4'")
            browser.key("ArrowLeft")
            browser.until("document.getElementById('number').textContent === '2 / 4'")
            assert (
                browser.run("document.getElementById('observation').textContent") == "A dark spot <b>lies</b> left of the centre."
            )
            assert browser.run("document.getElementById('review').textContent") == "edited"
            browser.key("e")
            browser.until("document.activeElement.id === 'observation'")
            browser.run("document.activeElement.value = 'thrown away'")
            browser.key("Escape")
            browser.until("document.querySelectorAll('#texts p').length === 5")
            browser.key("p")
            browser.until("document.getElementById('number').textContent === '4 / 4'")
            assert "3 of 4 reviewed: 1 accepted, 1 edited, 1 rejected" in browser.run(
                "document.getElementById('counts').textContent"
            )
            browser.key("a")
            browser.until("!document.getElementById('done').hidden")
            assert browser.run("document.getElementById('bar').value") == 4
            browser.picture(tmp_path / "done.png")

            for _ in range(3):  # the buttons, for those who walk with the tabulator
                browser.key("Tab")
            assert browser.run("document.activeElement.dataset.do") == "reject"
            browser.key("Enter")
            browser.until("document.getElementById('review').textContent === 'rejected'")
        finally:
            server.shutdown()
            thread.join()
    assert [complaint for complaint in browser.complaints if "422" not in complaint] == []
    assert {url.split("/")[2] for url in browser.asked if url.startswith("http")} == {server.url.split("/")[2]}
    kept = read_instruct(path, states=REVIEWED)
    assert [record.name[-7:] for record in kept] == ["000.png", "001.png"]
    assert kept[1].texts is not None and kept[1].texts.observation == "A dark spot <b>lies</b> left of the centre."

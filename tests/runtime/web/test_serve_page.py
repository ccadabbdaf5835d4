"""The page in a real browser, without internet: an image, a dialogue about it, the mask of each answer; by keyboard, wide and narrow."""

import time
from pathlib import Path

import pytest

VISIBLE = "getComputedStyle(document.querySelector('{}')).display != 'none'"


def typed(browser, text: str) -> None:
    browser.call("Input.insertText", text=text)


def answered(browser, count: int) -> None:
    browser.until(f"document.querySelectorAll('.model small').length == {count} && !document.querySelector('.waiting')")


@pytest.mark.slow
def test_a_person_talks_about_an_image(browser, client, part, tmp_path: Path) -> None:
    file = tmp_path / "<b>part.png"
    file.write_bytes(part)
    browser.size(1280, 800)
    browser.call("Page.navigate", url=f"http://127.0.0.1:{client.port}/")
    browser.until("document.querySelectorAll('#modes input').length == 4 && document.querySelector('#send').disabled")
    browser.choose("#file", file)
    browser.until("document.activeElement.id == 'words' && !document.querySelector('#send').disabled")
    typed(browser, "find the spots")
    browser.key("Enter")
    answered(browser, 1)
    assert "FAIL" in browser.run("document.querySelector('#verdict').innerText")
    assert (
        browser.run("document.querySelectorAll('#marks g').length")
        == browser.run("document.querySelectorAll('#regions li').length")
        == 1
    )
    browser.run("document.querySelector('#regions button').focus()")
    browser.key("Enter")
    browser.until("document.querySelectorAll('#marks .chosen, #marks rect').length == 2")
    # The outline lies where the spot is: x 48..72 of 128 px.
    left, right, whole = browser.run(
        "(() => { const mark = document.querySelector('#marks path').getBoundingClientRect(), image = document.querySelector('#image')"
        ".getBoundingClientRect(); return [mark.left - image.left, mark.right - image.left, image.width]; })()"
    )
    assert abs(left / whole - 48 / 128) < 0.05 and abs(right / whole - 73 / 128) < 0.05

    browser.run("document.querySelector('#modes input[value=describe]').click(); document.querySelector('#words').focus()")
    typed(browser, "<img src=x onerror=alert(1)> find the bright")
    browser.key("Enter")
    answered(browser, 2)
    assert "mask" in browser.run("document.querySelectorAll('.model')[1].innerText")
    assert browser.run("document.querySelectorAll('.turn img').length") == 0  # what a person types is text
    browser.run("document.querySelector('.model button').click()")
    browser.until("document.querySelector('.model').classList.contains('chosen')")

    browser.size(390, 844)
    browser.until("innerWidth == 390 && document.documentElement.scrollWidth <= 390")
    assert [url for url in browser.asked if not url.startswith((f"http://127.0.0.1:{client.port}/", "data:", "blob:"))] == []
    assert browser.complaints == []


@pytest.mark.slow
def test_what_goes_wrong_is_said_and_an_answer_can_be_stopped(browser, serving, held, part, tmp_path: Path) -> None:
    segmenter, lmm = held
    good, bad = tmp_path / "part.png", tmp_path / "bad.png"
    good.write_bytes(part)
    bad.write_bytes(b"no image")
    with serving(segmenter) as client:
        browser.call("Page.navigate", url=f"http://127.0.0.1:{client.port}/")
        browser.until("document.querySelectorAll('#modes input').length == 4")
        browser.choose("#file", bad)
        browser.until("document.activeElement.id == 'words' && document.querySelector('#image').alt.includes('cannot show')")
        browser.key("Enter")
        browser.until("document.querySelector('.error')?.innerText.includes('file starts with')")
        browser.choose("#file", good)
        browser.until("document.querySelector('#image').alt == 'part.png' && document.activeElement.id == 'words'")
        browser.key("Enter")
        assert lmm.came.acquire(timeout=30)
        browser.key("Escape")
        browser.until("document.querySelector('.error')?.innerText == 'Stopped.' && !document.querySelector('#send').disabled")
        lmm.go.set()
        time.sleep(0.05)
        browser.run("document.querySelector('#words').focus()")
        browser.key("Enter")
        answered(browser, 1)

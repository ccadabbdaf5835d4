"""From what a person said of parts to the next version of the product: by a button in a real browser, and by HTTP."""

import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agvas.fitting.fit import Fitted
from agvas.fitting.next_version import make_next
from agvas.run import run as app
from agvas_core.contract.command_line import exit_code_of
from agvas_core.contract.errors import SetupError
from agvas_runtime.bundle import load_bundle
from agvas_runtime.line.recipe.cli import new
from agvas_runtime.line.recipe.file import read_recipe
from agvas_runtime.line.recipe.store import RecipeStore
from agvas_runtime.web.line.next_version import Made, NextVersion
from agvas_runtime.web.line.page_server import PageServer
from agvas_runtime.web.line.review_page import review_routes
from agvas_runtime.web.line.review_session import Session
from agvas_runtime.web.settings import Settings

Rgb = NDArray[np.uint8]
WORDS = "document.querySelector('#next-words').innerText"
LABEL = (130, 30, 9)


class Hall:
    """A product, a store with its recipe, and a ledger: parts 1 to 3 are good, 4 to 7 carry a label that good parts may carry, 8 is bad."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state, self.review = folder, folder / "line", folder / "review"
        self.product, self.store = folder / "plate", RecipeStore(folder / "recipes")
        self.session = Session(self.state, self.review)
        self._closing: list[Callable[[], None]] = []

    def next_version(self, make: Any = make_next, **options: Any) -> NextVersion:
        found = NextVersion(self.session, make, threads=1, **{"recipe": self.store.folder, **options})
        self._closing.append(found.close)
        return found

    def serve(self, following: NextVersion, **options: Any) -> str:
        server = PageServer("review", Settings(port=0, stop_timeout_s=1, **options), options=("--port", "--host"))
        server.start(review_routes(self.session, following))
        self._closing.append(server.close)
        return server.address

    def say(self) -> None:
        for seq in (4, 5, 6):
            self.session.decide(seq, good=True)
        self.session.decide(8, good=False)

    def close(self) -> None:
        for each in reversed(self._closing):
            each()


@pytest.fixture
def hall(fitted: Fitted, photograph: Callable[..., Rgb], save: Callable[[Rgb, Path], None], tmp_path: Path) -> Iterator[Hall]:
    shutil.copytree(fitted.bundle.folder, tmp_path / "plate")
    parts = [photograph(100 + seed) for seed in range(3)]
    parts += [photograph(200 + seed, red=LABEL) for seed in range(4)] + [photograph(300, red=(40, 100, 14))]
    for number, image in enumerate(parts):
        save(image, tmp_path / "parts" / f"{number}.png")
    recipe = tmp_path / "plate.yaml"
    arguments = ["plate", "--product", str(tmp_path / "plate"), "-o", str(recipe)]
    assert exit_code_of(lambda: new, name="agvas recipe new", arguments=arguments) == 0
    recipe.write_text(recipe.read_text().replace("deadline_ms: 2000 ", "deadline_ms: 60000 "))
    RecipeStore(tmp_path / "recipes").activate(read_recipe(recipe))
    ran = [str(tmp_path / "parts"), "--recipe", str(tmp_path / "recipes"), "--state", str(tmp_path / "line"), "--log", "json"]
    assert exit_code_of(lambda: app, name="agvas-run", arguments=[*ran, "--threads", "1"]) == 0
    opened = Hall(tmp_path)
    yield opened
    opened.close()


def post(address: str, path: str, body: object, **headers: str) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(
        f"{address}/v1/review/{path}", json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return int(reply.status), json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def ended(following: NextVersion) -> dict[str, Any]:
    while (state := following.state())["phase"] == "working":
        time.sleep(0.02)
    return state


@pytest.mark.slow
def test_a_button_makes_it_shows_what_would_change_and_activates_it(browser: Any, hall: Hall) -> None:
    address = hall.serve(hall.next_version())
    before = hall.store.active()
    browser.size(1280, 1000)
    browser.call("Page.navigate", url=f"{address}/")
    browser.until("document.querySelector('#image').alt == 'Part 8' && document.querySelector('#view').ariaBusy == 'false'")
    browser.until(f"{WORDS}.includes('nothing goes live')")
    browser.run("document.querySelector('#make').click()")
    browser.until(f"{WORDS}.includes('no part was reviewed')")
    browser.key("a")
    for seq in (7, 6, 5):
        browser.until(
            f"document.querySelector('#image').alt == 'Part {seq}' && document.querySelector('#view').ariaBusy == 'false'"
        )
        browser.key("f")
    browser.until("document.querySelector('#image').alt == 'Part 4' && document.querySelector('#view').ariaBusy == 'false'")
    browser.run("document.querySelector('#make').click()")
    browser.until("document.querySelector('#make').disabled && !document.querySelector('#next-bar').hidden")
    browser.until("!document.querySelector('#activate').hidden", 180)
    assert "is made and not active" in browser.run(WORDS)
    found = browser.run("document.querySelector('#next-found').innerText")
    assert "4 verdicts stay, 4 change (4 FAIL -> PASS), 0 not judged again" in found
    assert "3 good parts now PASS" in found and "1 bad parts now FAIL" in found and "model:" in found
    assert hall.store.active().sha256 == before.sha256  # nothing goes live by itself
    browser.run("[...document.querySelectorAll('#next-found button')].find((one) => one.innerText == '7').click()")
    browser.until("document.querySelector('#image').alt == 'Part 7'")
    for width in (1280, 390):
        browser.size(width, 844)
        browser.until(f"innerWidth == {width} && document.documentElement.scrollWidth <= {width}")
    browser.run("document.querySelector('#activate').click()")
    browser.until(f"{WORDS}.includes('is active in')")
    assert [one for one in browser.complaints if "status of 400" not in one] == []  # the one that was asked for above
    now = hall.store.active().recipe
    assert now.model == str(hall.folder / "plate-v2") and now.bundle == load_bundle(now.model).identity
    assert now.rules == before.recipe.rules and now.product == before.recipe.product
    product = load_bundle(now.model).product
    assert product is not None and len(product.good) == 15 and len(product.bad) == 1
    old = load_bundle(hall.product).product
    assert old is not None and len(old.good) == 12  # the product of now is as it was
    assert sorted(path.name for path in hall.folder.iterdir() if path.name.startswith((".", "plate"))) == [
        "plate", "plate-v2", "plate-v2.yaml", "plate.yaml",
    ]  # fmt: skip


def test_what_was_learned_already_is_not_learned_twice(hall: Hall) -> None:
    hall.say()
    following = hall.next_version()
    following.start()
    assert ended(following)["phase"] == "ready"
    following.activate(following.state()["sha256"])
    following.start()  # on v2, which has learned all of them
    state = ended(following)
    assert state["phase"] == "failed" and "learned" in state["why"]
    assert not (hall.folder / "plate-v3").exists()


def test_what_cannot_be_meant_is_refused(hall: Hall) -> None:
    following = hall.next_version()
    address = hall.serve(following, api_key="a key that is long enough")
    key = {"Authorization": "Bearer a key that is long enough"}
    assert post(address, "next", {})[0] == 401 and post(address, "next/activate", {"sha256": "0" * 64})[0] == 401
    assert post(address, "next", {}, **key)[0] == 400
    assert post(address, "next/activate", {"sha256": "../x"}, **key)[0] == 422
    status, answer = post(address, "next/activate", {"sha256": "0" * 64}, **key)
    assert status == 400 and "0" * 12 in answer["error"]["message"]
    assert following.state()["phase"] == "idle"


def test_a_failure_leaves_nothing_and_says_why(hall: Hall) -> None:
    hall.say()

    def fails(*_: Any, **__: Any) -> Made:
        raise SetupError("the disk is away")

    following = hall.next_version(fails)
    following.start()
    assert ended(following) | {"phase": "failed", "why": "the disk is away"} == following.state()
    for path in hall.review.glob("images/*"):
        path.write_bytes(b"no image")
    following = hall.next_version()
    following.start()
    state = ended(following)
    assert state["phase"] == "failed" and "can be used" in state["why"]
    assert sorted(path.name for path in hall.folder.iterdir() if path.name.startswith((".", "plate"))) == ["plate", "plate.yaml"]


def test_without_a_store_it_is_made_and_the_command_is_named(hall: Hall) -> None:
    hall.say()
    following = hall.next_version(recipe=None)  # that of the ledger
    following.start()
    state = ended(following)
    assert state["phase"] == "ready" and state["store"] is None
    assert read_recipe(Path(state["path"])).sha256 == state["sha256"]
    status, answer = post(hall.serve(following), "next/activate", {"sha256": state["sha256"]})
    assert status == 400 and "agvas recipe activate" in answer["error"]["message"]


def test_a_server_that_ends_ends_the_work(hall: Hall) -> None:
    hall.say()

    def endless(review: Path, model: str, out: Path, progress: Callable[[str, int, int], None], **_: Any) -> Made:
        while True:
            progress("good images", 1, 2)
            time.sleep(0.01)

    following = hall.next_version(endless)
    following.start()
    following.close()
    assert following.state()["phase"] == "working"

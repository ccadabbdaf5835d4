"""Bundles from a hub: a real HTTP server that speaks the hub's protocol, the real client, and no network where none is allowed."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

OLD, NEW = "1" * 40, "2" * 40
LOAD = """
import json, sys
if sys.argv[3] == "sealed":
    def refuse(event, args):
        if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
            raise SystemExit(f"the network was touched: {event} {args}")
    sys.addaudithook(refuse)
from agvas_core.contract.errors import AgvasError
from agvas_runtime import Segmenter
try:
    segmenter = Segmenter.load(sys.argv[1], offline=sys.argv[2] == "offline", threads=1)
except AgvasError as error:
    print(json.dumps({"error": str(error), "kind": type(error).__name__}))
else:
    import numpy as np
    (result,) = segmenter.predict(np.full((64, 64, 3), 210, np.uint8))
    print(json.dumps({"bundle": segmenter.bundle.identity, "verdict": result.verdict, "folder": str(segmenter.bundle.folder)}))
"""


class Hub(ThreadingHTTPServer):
    """Repositories as folders by commit; ``main`` is movable."""

    daemon_threads = True

    def __init__(self, commits: dict[str, Path], main: str) -> None:
        self.commits, self.main, self.asked = commits, main, list[str]()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        self.server.asked.append(self.path)
        parts = self.path.partition("?")[0].strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repo, rest = ("/".join(parts[2:4]), parts[4:]) if api else ("/".join(parts[:2]), parts[2:])
        revision = rest[1] if len(rest) > 1 else "main"
        commit = self.server.main if revision in ("main", "v2") else revision
        if repo != "acme/tiny":
            return self._send(404, {"X-Error-Code": "RepoNotFound"}, b"{}", with_body)
        if commit not in self.server.commits:
            return self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"{}", with_body)
        if api:
            body = json.dumps({"id": repo, "sha": commit, "siblings": [], "private": False, "tags": []}).encode()
            return self._send(200, {"Content-Type": "application/json"}, body, with_body)
        file = self.server.commits[commit].joinpath(*rest[2:])
        if not file.is_file():
            return self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b"", with_body)
        body = file.read_bytes()
        self._send(200, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}, body, with_body)

    def _send(self, status: int, headers: dict[str, str], body: bytes, with_body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@pytest.fixture
def hub(tiny_bundle: Path, tmp_path: Path) -> Iterator[Hub]:
    """``acme/tiny`` with two commits, of which the newer has another name in its manifest."""
    commits = {commit: shutil.copytree(tiny_bundle, tmp_path / "repo" / commit) for commit in (OLD, NEW)}
    manifest = commits[NEW] / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"tiny"', '"newer"'))
    (commits[NEW] / "README.md").write_text("# tiny\n")
    with Hub(commits, NEW) as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield hub
        hub.shutdown()
        thread.join(30)


def load(hub: Hub | str, home: Path, model: str, *, offline: bool = False, sealed: bool = False) -> dict[str, str]:
    url = hub if isinstance(hub, str) else hub.url
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    arguments = [model, "offline" if offline else "online", "sealed" if sealed else "open"]
    done = subprocess.run([sys.executable, "-c", LOAD, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    told: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.slow
def test_a_bundle_is_fetched_once_and_then_needs_no_network(hub: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    first = load(hub, home, "hf:acme/tiny")
    assert first["bundle"].startswith("newer@") and first["verdict"] == "PASS" and NEW in first["folder"]
    assert not any("README" in path for path in hub.asked)  # only what the manifest names
    sealed = load(hub, home, "hf:acme/tiny", offline=True, sealed=True)
    assert sealed == first
    pinned = load(hub, home, f"hf:acme/tiny@{OLD}")
    assert pinned["bundle"].startswith("tiny@") and OLD in pinned["folder"]
    hub.asked.clear()
    assert load(hub, home, f"hf:acme/tiny@{OLD}") == pinned and hub.asked == []  # a commit never changes
    # Somebody else's tool put the repository's own files beside them.
    (Path(first["folder"]) / "README.md").write_text("# tiny\n")
    assert load(hub, home, "hf:acme/tiny", offline=True)["bundle"] == first["bundle"]
    # A damaged cache is noticed.
    decoder = Path(first["folder"]) / "decoder.onnx"
    decoder.write_bytes(decoder.read_bytes() + b"x")
    assert "sha256" in load(hub, home, "hf:acme/tiny", offline=True)["error"]


@pytest.mark.slow
def test_what_the_hub_does_not_have_is_said(hub: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert "no acme/nothing on the hub" in load(hub, home, "hf:acme/nothing")["error"]
    assert "no revision" in load(hub, home, "hf:acme/tiny@v9")["error"]
    offline = load(hub, home, "hf:acme/tiny", offline=True, sealed=True)
    assert "not whole in the cache" in offline["error"] and offline["kind"] == "SetupError"
    assert "does not answer" in load("http://127.0.0.1:9", home, "hf:acme/tiny")["error"]
    (hub.commits[NEW] / "lmm.onnx").unlink()
    assert "not uploaded whole" in load(hub, home, "hf:acme/tiny")["error"]
    assert load(hub, home, "hf:tiny")["kind"] == "UsageError"
    assert load(hub, home, "nano", offline=True, sealed=True)["bundle"].startswith("nano@")

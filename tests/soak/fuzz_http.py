"""Malformed requests to the application of ``agvas serve``, for fuzz_line.py."""

import asyncio
import base64
import json
from typing import Any

from fuzz_values import EDITS, MAX_PIXELS, NUMBERS, SEEDS, VALUES, Case, edited
from hypothesis import strategies as st

from agvas_core.contract.errors import UsageError
from agvas_runtime.pipeline.segmenter import Segmenter
from agvas_runtime.web.app import build_app
from agvas_runtime.web.settings import Settings

PICTURE = base64.b64encode(SEEDS[0]).decode()
TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from([PICTURE, f"data:image/png;base64,{PICTURE}", "data:,x", "http://127.0.0.1/x", PICTURE[:-7]]),
)
PARTS = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS}),
    st.fixed_dictionaries({"type": st.just("image_url"), "image_url": st.fixed_dictionaries({"url": TEXTS})}),
    VALUES,
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"])},
    optional={"content": st.one_of(TEXTS, st.lists(PARTS, max_size=3), VALUES)},
)
OPTIONS: dict[str, Any] = {
    "prompt": st.one_of(TEXTS, VALUES), "mode": st.sampled_from(["direct", "describe", "explain", "describe-plus", ""]) | VALUES,
    "threshold": NUMBERS | VALUES, "include": st.lists(st.sampled_from(["polygons", "rle", "png", "score", "x"])) | VALUES, "normal_look": TEXTS,
}  # fmt: skip
BODIES = st.one_of(
    st.fixed_dictionaries({"images": st.lists(TEXTS, max_size=3) | VALUES}, optional=OPTIONS),
    st.fixed_dictionaries(
        {"messages": st.lists(MESSAGES, max_size=4) | VALUES},
        optional={"stream": st.booleans() | VALUES, "mode": VALUES, "n": NUMBERS},
    ),
    VALUES,
).map(lambda body: json.dumps(body, default=str).encode("utf-8", "surrogatepass"))
FORM = (
    b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    + SEEDS[0]
    + b'\r\n--x\r\nContent-Disposition: form-data; name="mode"'
    b"\r\n\r\ndirect\r\n--x--\r\n"
)
ASKED = [{"type": "text", "text": "scratches"}, {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}]
NEARLY = st.one_of(  # right but for one thing, or right
    *(
        st.tuples(st.just("/v1/segment"), st.fixed_dictionaries({"images": st.just([PICTURE])}, optional={name: values}))
        for name, values in OPTIONS.items()
    ),
    st.tuples(
        st.just("/v1/segment"),
        st.builds(
            lambda picture: {"images": [base64.b64encode(picture).decode()]}, st.builds(edited, st.sampled_from(SEEDS), EDITS)
        ),
    ),
    *(
        st.tuples(
            st.just("/v1/chat/completions"),
            st.fixed_dictionaries({"messages": st.just([{"role": "user", "content": ASKED}])}, optional={name: values}),
        )
        for name, values in {"stream": st.booleans() | VALUES, "mode": VALUES, "n": NUMBERS, "model": TEXTS | VALUES}.items()
    ),
    st.tuples(
        st.just("/v1/chat/completions"),
        st.fixed_dictionaries(
            {"messages": st.lists(MESSAGES, max_size=2).map(lambda said: [*said, {"role": "user", "content": ASKED}])}
        ),
    ),
).map(lambda asked: (asked[0], b"application/json", json.dumps(asked[1], default=str).encode("utf-8", "surrogatepass")))
REQUESTS = NEARLY | st.tuples(
    st.sampled_from(["/v1/segment", "/v1/chat/completions"]) | st.text(max_size=10).map(lambda text: "/" + text),
    st.sampled_from([b"application/json", b"multipart/form-data; boundary=x", b"text/plain", b"multipart/form-data"])
    | st.binary(max_size=10),
    st.one_of(BODIES, st.builds(edited, BODIES, EDITS), st.builds(edited, st.just(FORM), EDITS), st.binary(max_size=60)),
)


class Http:
    """The application of ``agvas serve``, asked without a network."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.loop = asyncio.new_event_loop()
        self.app = build_app(segmenter, Settings(max_pixels=MAX_PIXELS))

    def case(self, request: tuple[str, bytes, bytes]) -> Case:
        """One POST."""
        path, kind, body = request

        def call() -> None:
            status = self.loop.run_until_complete(self._post(path, kind, body))
            assert 200 <= status < 500 or status == 503, f"HTTP {status}"
            if status >= 400:
                raise UsageError(f"HTTP {status}")

        return json.dumps([path, kind.decode("latin-1"), base64.b64encode(body).decode()]).encode(), call

    async def _post(self, path: str, kind: bytes, body: bytes) -> int:
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http", "path": path,
            "raw_path": path.encode("utf-8", "replace"), "query_string": b"", "root_path": "", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8080),
            "headers": [(b"host", b"127.0.0.1:8080"), (b"content-type", kind), (b"content-length", str(len(body)).encode())],
        }  # fmt: skip
        sent, status, ended = [{"type": "http.request", "body": body, "more_body": False}], [0], asyncio.Event()

        async def receive() -> dict[str, Any]:
            if sent:
                return sent.pop()
            await ended.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
            elif not message.get("more_body"):
                ended.set()

        await self.app(scope, receive, send)
        return status[0]

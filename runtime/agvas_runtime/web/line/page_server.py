"""One page and its routes, behind the gate of ``agvas serve``, in a thread of its own.

Everything under ``/v1/`` needs the key where there is one; the page itself has nothing to hide, and asks for it.
"""

import os
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

from fastapi import APIRouter, FastAPI

from agvas_core.contract.network import KEY_VARIABLE
from agvas_runtime.web.gate import Gate
from agvas_runtime.web.job_queue import JobQueue
from agvas_runtime.web.metrics import Metrics
from agvas_runtime.web.page import add_files
from agvas_runtime.web.refusal import answer_errors
from agvas_runtime.web.serving import address_of, listen, make_server, serve
from agvas_runtime.web.settings import Settings

__all__ = ["PageServer", "settings_for"]

PACKAGE: Final = "agvas_runtime.web.line"
OF_ALL: Final = ("colours.css", "asking.js")
LOADED: Final = {
    "live": ("live.css", "live.js", "charts.js", "areas.js"),
    "review": ("review.css", "review.js", "brush.js", "next.js"),
}
TYPES: Final = {"html": "text/html", "css": "text/css", "js": "text/javascript"}


def settings_for(host: str, port: int) -> Settings:
    """Limits of a page; the key is taken from the environment.

    Raises:
        UsageError: others can reach it and there is no key.
    """
    return Settings(host=host, port=port, api_key=os.environ.get(KEY_VARIABLE) or None, stop_timeout_s=2.0, max_connections=64)


class PageServer:
    """Listens from the moment it is made, and answers once it is started."""

    def __init__(self, name: str, settings: Settings, *, options: tuple[str, str]) -> None:
        """Args:
        name: of the page's files: ``name.html``, and what it loads.
        options: of the command, that choose port and address.

        Raises:
            SetupError: the port cannot be had.
        """
        self._name, self._settings = name, settings
        self._opened = listen(settings, options=options)
        self.address = address_of(self._opened)
        self._thread: threading.Thread | None = None

    def start(self, routes: APIRouter) -> None:
        """Answers from now on, in a thread."""
        self._server = make_server(self._app(routes), self._settings)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._opened]}, name=f"agvas-{self._name}", daemon=True
        )
        self._thread.start()

    def run(self, routes: APIRouter) -> None:
        """Answers in this thread until SIGINT or SIGTERM."""
        serve(self._app(routes), self._opened, self._settings)

    def close(self) -> None:
        """Ends it. May be called twice."""
        if self._thread is not None:
            self._server.should_exit = True
            self._thread.join()
            self._thread = None
        self._opened.close()

    def _app(self, routes: APIRouter) -> Gate:
        queue = JobQueue(workers=1, limit=64)

        @asynccontextmanager
        async def life(_: FastAPI) -> AsyncIterator[None]:
            yield
            await queue.close()

        app = FastAPI(title=f"AG-VAS {self._name}", docs_url=None, redoc_url=None, openapi_url=None, lifespan=life)
        pages = APIRouter()
        add_files(pages, PACKAGE, files_of(self._name))
        app.include_router(pages)
        app.include_router(routes)
        answer_errors(app)
        return Gate(app, settings=self._settings, queue=queue, metrics=Metrics(self._name))


def files_of(name: str) -> Mapping[str, tuple[str, str]]:
    """Path -> file and media type."""
    kinds = {f"/{file}": (file, f"{TYPES[file.rpartition('.')[2]]}; charset=utf-8") for file in (*OF_ALL, *LOADED[name])}
    return {"/": (f"{name}.html", "text/html; charset=utf-8"), **kinds}

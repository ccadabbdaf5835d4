"""The application: routes, errors and the gate around them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from agvas_core import __version__
from agvas_runtime.pipeline.segmenter import Segmenter
from agvas_runtime.web.asked import schemas
from agvas_runtime.web.chat import chat_routes
from agvas_runtime.web.gate import App, Gate
from agvas_runtime.web.job_queue import JobQueue
from agvas_runtime.web.judge import ClientLeft, Judge
from agvas_runtime.web.metrics import Metrics
from agvas_runtime.web.page import page_routes
from agvas_runtime.web.recipes import Recipes
from agvas_runtime.web.refusal import Refusal, answer_errors
from agvas_runtime.web.segment import segment_routes
from agvas_runtime.web.settings import Settings

__all__ = ["build_app"]

DESCRIPTION = "Zero-shot visual anomaly segmentation: images and words in, verdicts and masks out."


def build_app(segmenter: Segmenter, settings: Settings, recipes: Recipes | None = None) -> App:
    """The ASGI application that serves one model, and ``recipes`` by their names."""
    metrics = Metrics(segmenter.bundle.identity)
    queue = JobQueue(workers=settings.workers, limit=settings.queue, observe=metrics.job)
    metrics.waiting.set_function(lambda: queue.waiting)
    metrics.running.set_function(lambda: queue.running)
    judge = Judge(segmenter, max_pixels=settings.max_pixels, bits=settings.bits, observe=metrics.result)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        await queue.close()

    # FastAPI's own pages of documentation load scripts from elsewhere; the document itself is at /openapi.json.
    app = FastAPI(title="AG-VAS", description=DESCRIPTION, version=__version__, docs_url=None, redoc_url=None, lifespan=life)
    app.include_router(segment_routes(judge, queue, settings, recipes or Recipes(segmenter.bundle)))
    app.include_router(chat_routes(judge, queue, settings))
    app.include_router(page_routes(segmenter, settings))

    @app.get("/healthz", summary="The process runs", tags=["health"])
    async def healthz() -> Response:
        """200 as long as the server answers."""
        return JSONResponse({"status": "ok"})

    @app.get("/readyz", summary="There is room for another image", tags=["health"])
    async def readyz() -> Response:
        """200 where the next image would be taken; 503 while the queue is full."""
        try:
            queue.check()
        except Refusal as refusal:
            return JSONResponse({"status": "busy"}, 503, refusal.headers)
        return JSONResponse({"status": "ready", "bundle": segmenter.bundle.identity})

    @app.get("/metrics", summary="For Prometheus", tags=["health"])
    async def show_metrics() -> Response:
        """Prometheus' text format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.exception_handler(ClientLeft)
    async def forget(_: Request, error: ClientLeft) -> Response:
        metrics.left.inc()
        return Response(status_code=499)

    answer_errors(app)

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            FastAPI.openapi(app).setdefault("components", {}).setdefault("schemas", {}).update(schemas())
        return app.openapi_schema or {}

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's own way to add to it
    return Gate(app, settings=settings, queue=queue, metrics=metrics)

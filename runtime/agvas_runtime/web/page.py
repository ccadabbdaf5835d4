"""The page: drop an image, say what to look for, see what was found, go on talking. It loads nothing from elsewhere."""

from collections.abc import Awaitable, Callable, Mapping
from importlib import resources

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from agvas_core.contract.prompts import Mode
from agvas_runtime.pipeline.segmenter import Segmenter
from agvas_runtime.web.settings import Settings

__all__ = ["add_files", "page_routes"]

FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


def page_routes(segmenter: Segmenter, settings: Settings) -> APIRouter:
    """The page's files, and what it must know of the server."""
    router = APIRouter(include_in_schema=False)
    add_files(router, "agvas_runtime.web", FILES)

    @router.get("/page.json")
    async def facts() -> JSONResponse:
        return JSONResponse(
            {
                "bundle": segmenter.bundle.identity,
                "modes": list(Mode),
                "instructions": segmenter.bundle.manifest.prompt.instructions,
                "threshold": segmenter.point.threshold,
                "max_bytes": settings.max_body_bytes,
                "max_pixels": settings.max_pixels,
                "needs_key": settings.api_key is not None,
            }
        )

    return router


def add_files(router: APIRouter, package: str, files: Mapping[str, tuple[str, str]]) -> None:
    """Routes to the files of a page: path -> name in ``package`` and media type. They may load nothing from elsewhere."""
    for path, (name, kind) in files.items():
        content = resources.files(package).joinpath(name).read_bytes()
        router.add_api_route(path, _file(content, kind), methods=["GET"])


def _file(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def show() -> Response:
        return Response(content, media_type=kind, headers={"Content-Security-Policy": POLICY})

    return show

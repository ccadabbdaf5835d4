"""``POST /v1/segment``: images in, verdicts, regions and masks out."""

import asyncio
import json
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from agvas_runtime.web.asked import SegmentRequest, reference
from agvas_runtime.web.job_queue import JobQueue
from agvas_runtime.web.judge import ClientStream, Judge, while_connected
from agvas_runtime.web.recipes import MAX_RECIPE_BYTES, Recipes
from agvas_runtime.web.refusal import REFUSALS, Refusal, of_validation
from agvas_runtime.web.settings import Settings
from agvas_runtime.web.upload import Upload, check_upload, from_text, shown_name

__all__ = ["read_json", "segment_routes"]

MAX_FIELD_BYTES = 64 << 10
_FILES = {"type": "array", "items": {"type": "string", "format": "binary"}}
_FORM = {
    "type": "object",
    "description": "The same fields as in JSON, the images as files.",
    "properties": {"image": _FILES} | {name: {"type": "string"} for name in SegmentRequest.model_fields if name != "images"},
    "required": ["image"],
}


def segment_routes(judge: Judge, queue: JobQueue, settings: Settings, recipes: Recipes) -> APIRouter:
    """The route over one model."""
    router = APIRouter(tags=["segment"])

    @router.post(
        "/v1/segment",
        summary="Segment one or more images",
        responses=REFUSALS,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"multipart/form-data": {"schema": _FORM}, "application/json": {"schema": reference(SegmentRequest)}},
            }
        },
    )
    async def segment(request: Request) -> JSONResponse:
        """One entry in `results` for each image, in their order, each as a line of `results.jsonl`. A single image that cannot be read is an
        error (422, or 413 where it is too large); among several it is an entry with `NO_VERDICT`."""
        asked, uploads = await _read(request, settings)
        version, looks = None, 1
        if asked.recipe is None:
            judge.check(asked.prompt, asked)
        else:
            version = await asyncio.to_thread(recipes.find, asked.recipe)
            looks = len(version.recipe.prompts)
            _check_count(len(uploads) * looks, settings)  # each kind is a look of its own
        if len(uploads) == 1:
            check_upload(uploads[0], settings.max_pixels)
        client = ClientStream()

        def work() -> list[dict[str, Any]]:
            if version is None:
                return judge.entries(uploads, asked.prompt, asked, client)
            return judge.entries_by_recipe(uploads, version, asked, client)

        job = queue.run(work, weight=len(uploads) * looks)
        entries = await while_connected(request.receive, job, client)
        if len(entries) == 1 and entries[0]["error"] is not None:
            raise Refusal(422, "image", f"{uploads[0].name}: {entries[0]['error']}")
        return JSONResponse({"bundle": judge.segmenter.bundle.identity, "results": entries})

    return router


async def _read(request: Request, settings: Settings) -> tuple[SegmentRequest, list[Upload]]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _read_form(request, settings)
    if kind != "application/json":
        raise Refusal(415, "usage", f"Content-Type is {kind or 'missing'!r}; send multipart/form-data or application/json")
    asked = _asked(await read_json(request))
    _check_count(len(asked.images), settings)
    return asked, [from_text(text, f"image-{index}") for index, text in enumerate(asked.images)]


async def _read_form(request: Request, settings: Settings) -> tuple[SegmentRequest, list[Upload]]:
    fields: dict[str, Any] = {}
    uploads: list[Upload] = []
    async with request.form(max_files=settings.max_images + 2, max_fields=16, max_part_size=MAX_FIELD_BYTES) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name == "recipe":
                    fields[name] = await _text_of(value)
                    continue
                if name not in ("image", "images"):
                    raise Refusal(422, "usage", f"the form has a file named {name!r}; images are named image")
                uploads.append(Upload(shown_name(value.filename, len(uploads)), await value.read()))
            elif name in ("image", "images"):
                raise Refusal(422, "usage", f"{name} is text; an image is uploaded as a file (curl -F image=@part.png)")
            else:
                fields[name] = value
    _check_count(len(uploads), settings)
    return _asked(fields | {"images": [upload.name for upload in uploads]}), uploads


async def _text_of(upload: UploadFile) -> str:
    try:
        return (await upload.read(MAX_RECIPE_BYTES + 1)).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refusal(422, "usage", f"recipe is no UTF-8 text (byte {error.start}): save it as UTF-8") from error


async def read_json(request: Request) -> dict[str, Any]:
    """The body as a JSON object.

    Raises:
        Refusal: it is none.
    """
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "usage", f"the body is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise Refusal(400, "usage", "the body must be a JSON object")
    return body


def _asked(fields: dict[str, Any]) -> SegmentRequest:
    try:
        return SegmentRequest.model_validate(fields)
    except ValidationError as error:
        raise of_validation(error) from error


def _check_count(count: int, settings: Settings) -> None:
    most = min(settings.max_images, settings.queue)
    if not 1 <= count <= most:
        raise Refusal(422, "usage", f"there are {count} images (a recipe looks once for each kind); a request has 1 to {most}")

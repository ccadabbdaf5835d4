"""The routes of ``agvas review``.

GET  /v1/review                   every part, the newest first, and what was said of it
GET  /v1/review/parts/SEQ         one part;  /picture and /mask are its image and mask
POST /v1/review/parts/SEQ         {"good": false, "kind": "scratch", "mask": "data:image/png;base64,..."}
GET  /v1/review/next              how far the next version of the product is, and what would change
POST /v1/review/next              makes it
POST /v1/review/next/activate     {"sha256": "..."}: of the recipe that was shown
"""

from typing import Annotated, Final

import cv2
import numpy as np
from fastapi import APIRouter, Path
from fastapi.responses import JSONResponse, Response
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from agvas_core.contract.errors import UsageError
from agvas_runtime.web.line.next_version import NextVersion
from agvas_runtime.web.line.review_session import Session
from agvas_runtime.web.upload import check_upload, from_text

__all__ = ["review_routes"]

MAX_PIXELS: Final = 100_000_000
Seq = Annotated[int, Path(ge=1, le=2**62)]


class Word(BaseModel):
    """What the page sends."""

    model_config = ConfigDict(extra="forbid")

    good: bool
    kind: str = Field(default="", max_length=100)
    mask: str | None = None
    """PNG as a ``data:`` URL; what is opaque and bright is anomalous."""


class Activated(BaseModel):
    """The recipe that is to go."""

    model_config = ConfigDict(extra="forbid")

    sha256: str = Field(pattern="^[0-9a-f]{64}$")


def review_routes(session: Session, following: NextVersion | None = None) -> APIRouter:
    """Of one review; without ``following`` no next version can be made."""
    router = APIRouter(prefix="/v1/review")

    @router.get("")
    def overview() -> Response:
        return JSONResponse(session.overview())

    @router.get("/parts/{seq}")
    def view(seq: Seq) -> Response:
        return JSONResponse(session.view(seq))

    @router.get("/parts/{seq}/picture")
    def picture(seq: Seq) -> Response:
        return Response(session.picture(seq), media_type="image/jpeg")

    @router.get("/parts/{seq}/mask")
    def mask(seq: Seq) -> Response:
        return Response(session.mask(seq), media_type="image/png")

    @router.post("/parts/{seq}")
    def decide(seq: Seq, word: Word) -> Response:
        painted = None if word.mask is None or word.good else mask_of(word.mask)
        return JSONResponse(session.decide(seq, good=word.good, mask=painted, kind=word.kind))

    @router.get("/next")
    def next_version() -> Response:
        return JSONResponse({"phase": "off"} if following is None else following.state())

    if following is not None:

        @router.post("/next")
        def make_next() -> Response:
            following.start()
            return JSONResponse(following.state())

        @router.post("/next/activate")
        def activate(asked: Activated) -> Response:
            return JSONResponse(following.activate(asked.sha256))

    return router


def mask_of(text: str) -> NDArray[np.bool_]:
    """The painted pixels, bool [H, W].

    Raises:
        Refusal: it is no picture, or too large.
        UsageError: it cannot be decoded.
    """
    upload = from_text(text, "the mask")
    check_upload(upload, MAX_PIXELS)
    pixels = cv2.imdecode(np.frombuffer(upload.data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise UsageError("the mask cannot be decoded: send a PNG")
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        return np.asarray((pixels[:, :, 3] > 127) & (pixels[:, :, :3].max(axis=2) > 127))
    return np.asarray((pixels if pixels.ndim == 2 else pixels.max(axis=2)) > 127)

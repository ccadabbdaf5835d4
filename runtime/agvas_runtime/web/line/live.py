"""The live page of a line: newest part, verdicts and figures of each station.

GET /v1/line?after=N            the state once it is newer than N, or after a second
GET /v1/line/STATION/newest     the newest part's picture; its number and verdict are in the headers
GET /v1/line/STATION/parts/SEQ  a part's picture
GET /v1/line/STATION/areas      what its recipe looks at and ignores, as far as it can be drawn
POST /v1/line/STATION/areas     {"recipe": SHA256, "frame": [W, H], "roi": [[x, y], [x, y]] or null, "ignore": [[[x, y], ...], ...]}:
                                a new version of the recipe, which goes once it is activated
"""

import asyncio
import time
from typing import Annotated, Final

import numpy as np
from fastapi import APIRouter, Path, Query
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from agvas_core.contract.errors import RecipeError, UsageError
from agvas_runtime.line.app.status import LineStatus, RecipeSource
from agvas_runtime.line.recipe.areas import AREA, save_version, with_areas
from agvas_runtime.line.recipe.cli import differences
from agvas_runtime.line.recipe.thresholds import not_calibrated
from agvas_runtime.web.line.page_server import PageServer, settings_for
from agvas_runtime.web.refusal import Refusal

__all__ = ["LivePage", "live_routes", "open_live_page"]

WAIT_S: Final = 1.0  # what changes without a part is seen by then
LOOK_S: Final = 0.04
MAX_SEQ: Final = 2**62  # SQLite's integers end soon after


class LivePage:
    """Waits for a line's board, and shows it."""

    def __init__(self, server: PageServer) -> None:
        self._server = server
        self.address = server.address

    def start(self, board: LineStatus) -> None:
        """Shows a line from now on."""
        self._server.start(live_routes(board))

    def close(self) -> None:
        """Ends it."""
        self._server.close()


def open_live_page(host: str, port: int) -> LivePage:
    """The page on a port that is taken at once.

    Raises:
        UsageError: others can reach it, and there is no key.
        SetupError: the port cannot be had.
    """
    return LivePage(PageServer("live", settings_for(host, port), options=("--page", "--page-host")))


Coordinate = Annotated[float, Field(ge=0, le=100_000, allow_inf_nan=False)]
Point = tuple[Coordinate, Coordinate]


class AreasAsked(BaseModel):
    """What the page sends."""

    model_config = ConfigDict(extra="forbid")

    recipe: str = Field(pattern="^[0-9a-f]{64}$")
    """That they were drawn for."""
    frame: tuple[Annotated[int, Field(ge=1, le=100_000)], Annotated[int, Field(ge=1, le=100_000)]]
    roi: tuple[Point, Point] | None = None
    ignore: list[Annotated[list[Point], Field(min_length=3, max_length=1000)]] = Field(default=[], max_length=100)


def live_routes(board: LineStatus) -> APIRouter:
    """Of one line."""
    router = APIRouter(prefix="/v1/line")

    @router.get("")
    async def state(after: Annotated[int, Query(ge=-1)] = -1) -> Response:
        end = time.monotonic() + WAIT_S
        while board.version == after and time.monotonic() < end:
            await asyncio.sleep(LOOK_S)
        return JSONResponse(await asyncio.to_thread(board.state))

    @router.get("/{station}/newest")
    def newest(station: str, mask: bool = True, thumb: bool = False) -> Response:
        try:
            row, picture = board.newest(station, masked=mask, thumb=thumb)
        except UsageError as error:
            raise Refusal(404, "usage", str(error)) from error
        headers = {"X-Agvas-Part": str(row["seq"]), "X-Agvas-Verdict": row["verdict"]}
        if picture is None:
            return Response(status_code=204, headers=headers)
        return Response(picture, media_type="image/jpeg", headers=headers)

    @router.get("/{station}/parts/{seq}")
    def part(station: str, seq: Annotated[int, Path(ge=1, le=MAX_SEQ)], mask: bool = True, thumb: bool = False) -> Response:
        try:
            return Response(board.picture(station, seq, masked=mask, thumb=thumb), media_type="image/jpeg")
        except UsageError as error:
            raise Refusal(404, "usage", str(error)) from error

    @router.get("/{station}/areas")
    def areas(station: str) -> Response:
        source, frame = _recipe(board, station)
        version = source.current()
        recipe = version.recipe
        corners = recipe.rois.get(AREA)
        return JSONResponse(
            {
                "recipe": version.sha256,
                "recipe_name": version.identity,
                "frame": frame,
                "roi": None if corners is None else [np.min(corners, axis=0).tolist(), np.max(corners, axis=0).tolist()],
                "ignore": recipe.ignore,
            }
        )

    @router.post("/{station}/areas")
    def save_areas(station: str, asked: AreasAsked) -> Response:
        source, frame = _recipe(board, station)
        base = source.current()
        if asked.recipe != base.sha256:
            raise Refusal(
                409, "usage", f"station {station} runs {base.identity} by now: open the areas again and draw them on it"
            )
        if frame != asked.frame:
            seen = "no frame" if frame is None else f"frames of {frame[0]}x{frame[1]} px"
            raise Refusal(409, "usage", f"drawn on {asked.frame[0]}x{asked.frame[1]} px, and station {station} has {seen} now")
        try:
            version = with_areas(base, asked.frame, asked.roi, asked.ignore)
        except RecipeError as error:
            raise Refusal(422, "usage", str(error)) from error
        saved = save_version(source.path, version)
        return JSONResponse(
            {
                "version": version.identity,
                "sha256": version.sha256,
                "path": str(saved.path),
                "command": saved.command,
                "changes": differences(base.recipe, version.recipe),
                "note": not_calibrated(version.recipe),
            }
        )

    return router


def _recipe(board: LineStatus, station: str) -> tuple[RecipeSource, tuple[int, int] | None]:
    try:
        return board.recipe(station)
    except UsageError as error:
        raise Refusal(404, "usage", str(error)) from error

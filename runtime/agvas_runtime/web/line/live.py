"""The live page of a line: newest part, verdicts and figures of each station.

GET /v1/line?after=N            the state once it is newer than N, or after a second
GET /v1/line/STATION/newest     the newest part's picture; its number and verdict are in the headers
GET /v1/line/STATION/parts/SEQ  a part's picture
"""

import asyncio
import time
from typing import Annotated, Final

from fastapi import APIRouter, Path, Query
from fastapi.responses import JSONResponse, Response

from agvas_core.contract.errors import UsageError
from agvas_runtime.line.app.status import LineStatus
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

    return router

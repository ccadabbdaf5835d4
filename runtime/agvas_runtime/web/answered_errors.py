"""Errors of handlers as answers of one shape, whatever the application."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from agvas_core.contract.errors import AgvasError
from agvas_runtime.web.refusal import Refusal, error_body, of_error

__all__ = ["answer_errors"]


def answer_errors(app: FastAPI) -> None:
    """Gives ``app`` its handlers: what we refuse says why, and a bug of ours says that it is one."""

    @app.exception_handler(AgvasError)
    async def refuse(_: Request, error: AgvasError) -> Response:
        return _answer(of_error(error))

    @app.exception_handler(HTTPException)
    async def refuse_route(_: Request, error: HTTPException) -> Response:
        return _answer(Refusal(error.status_code, "usage", str(error.detail), error.headers))

    @app.exception_handler(RequestValidationError)
    async def refuse_values(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _answer(Refusal(422, "usage", f"{'.'.join(map(str, first['loc']))}: {first['msg']}"))

    @app.exception_handler(Exception)
    async def confess(_: Request, error: Exception) -> Response:
        return _answer(Refusal(500, "bug", "this is a bug in agvas; its traceback is in the server's log"))


def _answer(refusal: Refusal) -> JSONResponse:
    return JSONResponse(error_body(refusal), refusal.status, refusal.headers)

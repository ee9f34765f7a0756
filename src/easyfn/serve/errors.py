"""Errors as OpenAI's clients read them: a status, and JSON that names the parameter."""

from __future__ import annotations

import functools
import hmac
from collections.abc import Callable, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

_KINDS = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class ApiError(Exception):
    """A request that is refused, or that failed."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def __reduce__(self) -> tuple[Any, ...]:
        again = functools.partial(ApiError, param=self.param, code=self.code, headers=self.headers)
        return again, (self.status, self.message)

    def as_json(self) -> dict[str, Any]:
        kind = _KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.as_json(), self.status, self.headers)


def bad(param: str, message: str, code: str | None = "invalid_value") -> ApiError:
    """A parameter that cannot be."""
    return ApiError(400, message, param=param, code=code)


def key_of(api_key: str | None) -> Callable[[Request], None]:
    """What refuses a request without the bearer token; `None` lets everybody in."""

    def allowed(request: Request) -> None:
        given = request.headers.get("authorization", "").encode("latin-1")  # the bytes that came
        if api_key is not None and not hmac.compare_digest(given, f"Bearer {api_key}".encode()):
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")

    return allowed


async def refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def no_page(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    if error.status_code in (404, 405):
        there = [
            f"{'/'.join(sorted((r.methods or set()) - {'HEAD'}))} {r.path}"
            for r in request.app.routes
            if isinstance(r, Route)
        ]
        message += f". There are {', '.join(there)}"
    return ApiError(error.status_code, message).response()


async def failed(request: Request, error: Exception) -> Response:
    return ApiError(500, "the server failed at this request; its log says why", code="internal").response()

"""Errors as OpenAI's clients read them: a status, and JSON that names the parameter."""

from __future__ import annotations

import functools
import hmac
from collections.abc import Callable, Collection, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

_KINDS = {
    401: "authentication_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "server_error",
}
_LONGEST = 2000  # characters of a message, which quotes what was sent


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
        message = message if len(message) <= _LONGEST else f"{message[:_LONGEST]}..."
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


def shutting_down() -> ApiError:
    return ApiError(503, "the server is shutting down", code="shutting_down", headers={"Retry-After": "10"})


def full(why: str) -> ApiError:
    return ApiError(429, f"the server is full: {why}", code="overloaded", headers={"Retry-After": "1"})


def failed() -> ApiError:
    return ApiError(500, "the server failed at this request; its log says why", code="internal")


def late(seconds: float) -> ApiError:
    headers = {"X-Should-Retry": "false"}  # what OpenAI's clients look for: they would ask again at once
    message = f"the request was not done within {seconds:g} s (max_seconds)"
    return ApiError(504, message, param="max_seconds", code="deadline_exceeded", headers=headers)


def key_of(api_key: str | Collection[str] | None) -> Callable[[Request], None]:
    """What refuses a request without one of the bearer tokens; `None` lets everybody in."""
    if isinstance(api_key, str):
        api_key = [api_key]
    if api_key is not None and (not api_key or not all(api_key)):
        raise ValueError("api_key: no key, or an empty one; None lets everybody in")
    keys = None if api_key is None else [f"Bearer {key}".encode() for key in api_key]

    def allowed(request: Request) -> None:
        given = request.headers.get("authorization", "").encode("latin-1")  # the bytes that came
        if keys is not None and not sum([hmac.compare_digest(given, key) for key in keys]):  # all, whichever it is
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

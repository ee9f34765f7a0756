"""What is put around every request: its id, the origins that may ask, and what is said where it ends badly."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Sequence
from typing import Any

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from .errors import failed, shutting_down
from .replies import event

_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def layers(origins: Sequence[str]) -> list[Middleware]:
    """From the outside to the inside; pages of `origins` may ask from a browser (`"*"`: all)."""
    told = ["X-Request-Id", "Retry-After"]
    options: dict[str, Any] = {"allow_origins": list(origins), "allow_methods": ["GET", "POST"], "allow_headers": ["*"]}
    cors = [Middleware(CORSMiddleware, **options, expose_headers=told)] if origins else []
    return [Middleware(Named), *cors, Middleware(Ending)]


class Named:
    """Every answer carries an `X-Request-Id`: the client's own, if it sent one, or a new one."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        name = given if _ID.fullmatch(given) else b"req_" + uuid.uuid4().hex.encode()

        async def named(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", name)]}
            await send(message)

        try:
            await self.app(scope, receive, named)
        except Exception as error:
            error.add_note(f"while it answered request {name.decode()}")  # in the server's log
            raise


class Ending:
    """A request that the server no longer waits for (its time to shut down is over, or it was told twice) gets an error that
    says so, where a cancelled task would break the connection and log a traceback; one that fails gets an error, and the
    log the traceback."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        began = stream = False

        async def watched(message: Any) -> None:
            nonlocal began, stream
            if message["type"] == "http.response.start":
                began = True
                stream = any(value.startswith(b"text/event-stream") for name, value in message["headers"])
            await send(message)

        async def told(error: Any) -> bool:
            if not began:
                await error.response()(scope, receive, send)
            elif stream:
                await send({"type": "http.response.body", "body": event(error.as_json()), "more_body": False})
            return not began or stream

        try:
            await self.app(scope, receive, watched)
        except asyncio.CancelledError:
            if not await told(shutting_down()):
                raise
        except Exception:
            if scope["type"] == "http":
                await told(failed())
            raise

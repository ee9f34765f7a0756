"""The door of a server whose model is still on its way."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from .errors import ApiError


class Door:
    """An ASGI application that says how far it is, until there is another one to answer.

    `stage` is what `/health` says meanwhile, with status 503, as everything else does. `open` lets requests through, and
    closes the engine when the server ends.

    ```python
    import easyfn as ef
    from starlette.testclient import TestClient
    door = ef.serve.Door()
    with TestClient(door) as client:
        assert client.get("/health").json() == {"status": "loading"}
    ```
    """

    def __init__(self) -> None:
        self.stage = "loading"
        self._inside: Any = None
        self._engine: Any = None
        self._life = Starlette(lifespan=self._until_closed)

    def open(self, app: Any, engine: Any) -> None:
        self._engine, self._inside, self.stage = engine, app, "ok"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._life(scope, receive, send)
        elif self._inside is not None:
            await self._inside(scope, receive, send)
        else:
            await self._not_yet(scope["path"])(scope, receive, send)

    def _not_yet(self, path: str) -> Response:
        headers = {"Retry-After": "1"}
        if path == "/health":
            return JSONResponse({"status": self.stage}, 503, headers)
        return ApiError(503, f"the model is {self.stage}: ask again soon", code="not_ready", headers=headers).response()

    @contextlib.asynccontextmanager
    async def _until_closed(self, app: Starlette) -> AsyncIterator[None]:
        yield
        if self._engine is not None:
            await run_in_threadpool(self._engine.close)

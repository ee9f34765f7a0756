"""What every server of ours has: its models, its health, its numbers, and how it refuses, fails and ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from .errors import ApiError, failed, no_page, refused
from .replies import event


def application(
    routes: Sequence[Route],
    *,
    allowed: Callable[[Request], None],
    models: Mapping[str, Mapping[str, Any]],
    counts: Callable[[], Mapping[str, Any]],
    counters: Collection[str],
    lifespan: Any = None,
) -> Starlette:
    """`routes` beside the pages that are common.

    - `models`: what is told of each by its name: `created`, `max_model_len`, `parent`.
    - `counts`: the numbers of `/metrics`, of which `counters` only grow.
    """

    def told(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "owned_by": "easyfn", **models[name]}

    async def all_models(request: Request) -> Response:
        allowed(request)
        return JSONResponse({"object": "list", "data": [told(name) for name in models]})

    async def one_model(request: Request) -> Response:
        allowed(request)
        name = request.path_params["name"]
        if name not in models:
            raise no_model(name, models)
        return JSONResponse(told(name))

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def metrics(request: Request) -> Response:
        return _metrics(counts(), counters)

    common = [
        Route("/v1/models", all_models),
        Route("/v1/models/{name:path}", one_model),
        Route("/health", health),
        Route("/metrics", metrics),
    ]
    return Starlette(
        routes=[*routes, *common],
        exception_handlers={ApiError: refused, HTTPException: no_page, Exception: failed},
        middleware=[Middleware(Ending)],
        lifespan=lifespan,
    )


def no_model(name: str, models: Collection[str]) -> ApiError:
    message = f"the model {name!r} does not exist; there are {', '.join(models)}"
    return ApiError(404, message, param="model", code="model_not_found")


def shutting_down() -> ApiError:
    return ApiError(503, "the server is shutting down", code="shutting_down", headers={"Retry-After": "10"})


class Ending:
    """A request that the server no longer waits for (its time to shut down is over, or it was told twice) gets an error that
    says so, where a cancelled task would break the connection and log a traceback."""

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

        try:
            await self.app(scope, receive, watched)
        except asyncio.CancelledError:
            if not began:
                await shutting_down().response()(scope, receive, send)
            elif stream:
                await send({"type": "http.response.body", "body": event(shutting_down().as_json()), "more_body": False})
            else:
                raise


def _metrics(found: Mapping[str, Any], counters: Collection[str]) -> Response:
    """Numbers in Prometheus' text format: those that only grow are `counters`, the others gauges."""
    lines = []
    for name, value in found.items():
        full = f"easyfn_{name}{'_total' if name in counters else ''}"
        lines += [f"# TYPE {full} {'counter' if name in counters else 'gauge'}", f"{full} {value}"]
    return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

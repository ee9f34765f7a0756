"""What every server of ours has: its models, its health, its numbers, and how it refuses, fails and ends."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ..engine.times import Histogram
from .around import layers
from .errors import ApiError, no_page, refused


def application(
    routes: Sequence[Route],
    *,
    allowed: Callable[[Request], None],
    models: Mapping[str, Mapping[str, Any]],
    counts: Callable[[], Mapping[str, Any]],
    counters: Collection[str],
    lifespan: Any = None,
    trouble: Callable[[], str | None] = lambda: None,
    times: Mapping[str, Histogram] | None = None,
    origins: Sequence[str] = (),
) -> Starlette:
    """`routes` beside the pages that are common.

    - `models`: what is told of each by its name: `created`, `max_model_len`, `parent`.
    - `counts`: the numbers of `/metrics`, of which `counters` only grow; `times`: its histograms of seconds.
    - `trouble`: what `/health` complains of. `origins`: see `around.layers`.
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
        said = trouble()
        return JSONResponse({"status": "ok"}) if said is None else JSONResponse({"status": "failing", "why": said}, 503)

    async def metrics(request: Request) -> Response:
        return _metrics(counts(), counters, times or {})

    common = [
        Route("/v1/models", all_models),
        Route("/v1/models/{name:path}", one_model),
        Route("/health", health),
        Route("/metrics", metrics),
    ]
    return Starlette(
        routes=[*routes, *common],
        exception_handlers={ApiError: refused, HTTPException: no_page},
        middleware=layers(origins),
        lifespan=lifespan,
    )


def no_model(name: str, models: Collection[str]) -> ApiError:
    message = f"the model {name!r} does not exist; there are {', '.join(models)}"
    return ApiError(404, message, param="model", code="model_not_found")


def _metrics(found: Mapping[str, Any], counters: Collection[str], times: Mapping[str, Histogram]) -> Response:
    """Numbers in Prometheus' text format: those that only grow are `counters`, the others gauges, and histograms."""
    lines = []
    for name, value in found.items():
        full = f"easyfn_{name}{'_total' if name in counters else ''}"
        lines += [f"# TYPE {full} {'counter' if name in counters else 'gauge'}", f"{full} {value}"]
    for name, histogram in times.items():
        full, counts = f"easyfn_{name}_seconds", histogram.cumulative()
        lines += [f"# TYPE {full} histogram", *(f'{full}_bucket{{le="{bound}"}} {n}' for bound, n in counts)]
        lines += [f"{full}_sum {histogram.sum}", f"{full}_count {counts[-1][1]}"]
    return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

"""From requests of the engine to an answer over HTTP, and back when the client goes away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import jax
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from ..engine.request import EngineFull
from .asked import Asked
from .calls import called
from .errors import ApiError
from .pages import shutting_down
from .replies import Envelope, Said, Shape, event, usage
from .service import Service
from .text import Answer


def submit(service: Service, asked: Asked) -> list[Any]:
    """A request of the engine for every answer; all of them or none.

    The answers are the rows of one `ef.generate` with `key=jax.random.key(seed)`: those of the first prompt, then those of
    the second, and so on.
    """
    key = jax.random.key(asked.seed)
    requests: list[Any] = []
    try:
        for prompt in asked.prompts:
            for _ in range(asked.n):
                own = jax.random.fold_in(key, len(requests))[None]
                options = {**asked.options, **asked.inputs}
                requests.append(service.engine.submit(prompt, key=own, adapter=asked.adapter, **options))
    except EngineFull as error:
        _cancel(requests)
        service.rejected += 1
        raise ApiError(429, f"the server is full: {error}", code="overloaded", headers={"Retry-After": "1"}) from error
    except ValueError as error:
        _cancel(requests)
        raise ApiError(400, str(error), code="invalid_value") from error
    return requests


def _cancel(requests: list[Any]) -> None:
    for request in requests:
        if not request.done:
            request.cancel()


class Job:
    """The answers to one HTTP request while they come."""

    def __init__(self, service: Service, asked: Asked, requests: list[Any], shape: Shape) -> None:
        self.asked = asked
        self.shape = shape
        self._word = service.word
        self.requests = requests
        self.answers = [
            Answer(request, service.tokenizer, asked.stop, asked.ends, () if service.encodes else request.prompt)
            for request in requests
        ]
        loop = asyncio.get_running_loop()
        most = len(requests) * (asked.options["max_new_tokens"] + 1)  # the engine gives no more, so it is never full
        self._news: asyncio.Queue[tuple[int, int | None]] = asyncio.Queue(most)
        for i, request in enumerate(requests):
            request.subscribe(self._teller(loop, i))

    def _teller(self, loop: asyncio.AbstractEventLoop, i: int) -> Callable[[int | None], None]:
        def tell(token: int | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(self._news.put_nowait, (i, token))

        return tell

    async def pieces(self, whole: bool) -> AsyncIterator[tuple[int, Said, str | None]]:
        """`(index, what is new, reason of the end)` of all answers, as they come; of `whole` ones, and of calls of tools, when
        they end."""
        left, whole = len(self.answers), whole or self.asked.forced is not None
        held = [""] * left
        told = [len(self.echo(i)) for i in range(left)]  # characters
        while left:
            i, token = await self._news.get()
            answer = self.answers[i]
            if answer.reason is not None:  # it stopped at a stop string
                continue
            text = answer.take(token)
            if answer.reason is not None:
                self.requests[i].cancel()
                left -= 1
                _check(answer)
            held[i] += text
            if answer.reason is None and (whole or not held[i]):
                continue
            scored = self.shape.scores(answer.scored, self._word, told[i]) if answer.scored else None
            told[i] += sum(len(self._word(one.token)) for one in answer.scored)
            if self.asked.forced is not None:
                text, calls, reason = called(self.asked.forced, held[i], str(answer.reason))
                yield i, Said(text, scored, calls), reason
            else:
                yield i, Said(held[i], scored), answer.reason
            answer.scored, held[i] = [], ""

    def cancel(self) -> None:
        _cancel(self.requests)

    def usage(self) -> dict[str, int]:
        """Of each prompt once, as OpenAI counts them."""
        return usage(sum(map(len, self.asked.prompts)), sum(answer.tokens for answer in self.answers))

    def echo(self, i: int) -> str:
        return self.asked.echo[i // self.asked.n] if self.asked.echo else ""


def _check(answer: Answer) -> None:
    if answer.reason == "error":
        raise ApiError(500, f"the engine failed: {answer.request.error}", code="engine_failed")
    if answer.reason == "cancelled":
        raise shutting_down()


def respond(job: Job) -> Any:
    """An ASGI response. When the client is gone, or anything goes wrong, the requests are cancelled."""

    async def response(scope: Scope, receive: Receive, send: Send) -> None:
        envelope = Envelope(job.shape, job.asked.model)
        write = _stream(job, envelope, send) if job.asked.stream else _whole(job, envelope, scope, receive, send)
        answer, gone = asyncio.ensure_future(write), asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                answer.result()
        finally:
            job.cancel()
            for task in (answer, gone):
                task.cancel()
            await asyncio.gather(answer, gone, return_exceptions=True)

    return response


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _whole(job: Job, envelope: Envelope, scope: Scope, receive: Receive, send: Send) -> None:
    choices: list[Any] = [None] * len(job.answers)
    async for i, said, reason in job.pieces(whole=True):
        choices[i] = envelope.shape.whole(i, said._replace(text=job.echo(i) + said.text), reason)
    await JSONResponse(envelope.whole(choices, job.usage()))(scope, receive, send)


async def _stream(job: Job, envelope: Envelope, send: Send) -> None:
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(data: bytes, more: bool = True) -> None:
        await send({"type": "http.response.body", "body": data, "more_body": more})

    shape = envelope.shape
    for i in range(len(job.answers)):
        if (choice := shape.first(i, job.echo(i))) is not None:
            await write(envelope.piece([choice]))
    try:
        async for i, said, reason in job.pieces(whole=False):
            if said != Said():
                await write(envelope.piece([shape.piece(i, said, None)]))
            if reason is not None:
                await write(envelope.piece([shape.piece(i, Said(), reason)]))
    except ApiError as error:  # the status was sent long ago
        await write(event(error.as_json()), more=False)
        return
    if job.asked.include_usage:
        await write(envelope.piece([], job.usage()))
    await write(b"data: [DONE]\n\n", more=False)

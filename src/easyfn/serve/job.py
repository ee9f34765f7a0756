"""From requests of the engine to an answer over HTTP, and back when the client goes away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import jax
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from ..engine.request import EngineFull
from .asked import Asked
from .calls import called
from .errors import ApiError, full, late, shutting_down
from .replies import Said
from .scores import of_prompt
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
        raise full(str(error)) from error
    except ValueError as error:
        _cancel(requests)
        raise ApiError(400, str(error), code="invalid_value") from error
    return requests


def _cancel(requests: list[Any]) -> None:
    for request in requests:
        if not request.done:
            request.cancel()


class Job:
    """The answers to one HTTP request while they come, to be written in a `shape` of `replies` or `responses`."""

    def __init__(
        self, service: Service, asked: Asked, requests: list[Any], shape: Any, deadline: float | None = None
    ) -> None:
        self.asked = asked
        self.shape = shape
        self.deadline = deadline  # of the loop's clock
        self._words = service.words
        self.requests = requests
        self.answers = [
            Answer(
                request,
                service.tokenizer,
                asked.stop,
                asked.ends,
                () if service.encodes else request.prompt,
                at=len(self.echo(i)),
                ends_scored=shape.ends_scored,
            )
            for i, request in enumerate(requests)
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
        held = [self.echo(i) for i in range(left)]
        unread = set(range(left)) if self.asked.echo and self.asked.scores is not None else set()
        while left:
            i, token = await self._next()
            answer = self.answers[i]
            if answer.reason is not None:  # it stopped at a stop string
                continue
            request = self.requests[i]
            if i in unread and len(request.prompt_logprobs) == len(request.prompt):
                unread.discard(i)  # its scores are complete before its first token
                answer.scored = await run_in_threadpool(of_prompt, request, self._words.tokenizer, len(self.echo(i)))
            text = answer.take(token)
            if answer.reason is not None:
                self.requests[i].cancel()
                left -= 1
                _check(answer)
            held[i] += text
            if answer.reason is None and (whole or not held[i]):
                continue
            told = answer.scored if self.asked.scores is not None else []
            scored = self.shape.scores(told, self._words) if told else None
            if self.asked.forced is not None:
                text, calls, reason = called(self.asked.forced, held[i], str(answer.reason))
                yield i, Said(text, scored, calls), reason
            else:
                yield i, Said(held[i], scored), answer.reason
            answer.scored, held[i] = [], ""

    async def _next(self) -> tuple[int, int | None]:
        try:
            async with asyncio.timeout_at(self.deadline):
                return await self._news.get()
        except TimeoutError:
            raise late(self.asked.seconds or 0.0) from None

    def kept(self) -> list[int]:
        """The answers that are told: of `best_of` to a prompt those whose tokens were likeliest, on average."""
        found: list[int] = []
        for start in range(0, len(self.answers), self.asked.n):
            own = range(start, start + self.asked.n)
            found += sorted(own, key=self._likely, reverse=True)[: self.asked.kept] if self.asked.kept else own
        return found

    def _likely(self, i: int) -> float:
        scores = [own for own, _ in self.requests[i].logprobs[: self.answers[i].tokens]]
        return sum(scores) / max(1, len(scores))

    def cancel(self) -> None:
        _cancel(self.requests)

    def counts(self) -> tuple[int, int]:
        """Tokens of prompts, each once, as OpenAI counts them, and of all answers."""
        return sum(map(len, self.asked.prompts)), sum(answer.tokens for answer in self.answers)

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
        write = _stream(job, send) if job.asked.stream else _whole(job, scope, receive, send)
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


async def _whole(job: Job, scope: Scope, receive: Receive, send: Send) -> None:
    found: dict[int, tuple[Said, str | None]] = {}
    async for i, said, reason in job.pieces(whole=True):
        found[i] = said, reason
    await JSONResponse(job.shape.writer(job).whole(found))(scope, receive, send)


async def _stream(job: Job, send: Send) -> None:
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(pieces: Iterable[bytes]) -> None:
        for data in pieces:
            await send({"type": "http.response.body", "body": data, "more_body": True})

    writer = job.shape.writer(job)
    await write(writer.begin())
    try:
        async for i, said, reason in job.pieces(whole=False):
            await write(writer.piece(i, said, reason))
        await write(writer.end())
    except ApiError as error:  # the status was sent long ago
        await write([writer.failed(error)])
    await send({"type": "http.response.body", "body": b"", "more_body": False})

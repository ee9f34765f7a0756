"""`app`: the ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.routing import Route

from ..engine.beside import reads_images
from ..io.template import ChatTemplate
from . import asked as reading, responses, tokens
from .asked import Asked
from .body import parse, read
from .errors import key_of, late
from .images import Images
from .job import Job, respond, submit
from .pages import application
from .replies import CHAT, COMPLETION
from .service import Service

_COUNTERS = {"prefix_hits", "preemptions", "steps", "compiles", "tokens", "rejected"}


def app(
    engine: Any,
    tokenizer: Any,
    *,
    model_name: str,
    chat_template: ChatTemplate | str | None = None,
    api_key: str | Sequence[str] | None = None,
    origins: Sequence[str] = (),
    max_seconds: float | None = None,
    max_body_bytes: int = 8 * 2**20,
    processor: Any = None,
    max_images: int = 8,
    max_image_bytes: int = 8 * 2**20,
    max_image_pixels: int = 2**24,
) -> Starlette:
    """An OpenAI-compatible ASGI application on an [`easyfn.Engine`][]: run it with uvicorn, or mount it in your own.

    `GET /v1/models`, `POST /v1/completions`, `POST /v1/chat/completions`, `POST /v1/responses`, `POST /tokenize`,
    `POST /detokenize`, `GET /tokenizer_info`, `GET /health`, `GET /metrics`.

    - `engine`: its thread is started with the first request. When the application shuts down it is closed; mounted in
      another application, whose shutdown it does not hear of, close it there.
    - `tokenizer`: of transformers, or a `tokenizers.Tokenizer`.
    - `model_name`: what `model` must say. The names of the model's adapters (`ef.with_adapters`) are models too.
    - `chat_template`: of [`easyfn.serve.chat_template`][], or Jinja; by default that of a tokenizer of transformers.
      Without any, chats are refused.
    - `api_key`: what clients must give as bearer token, one of several if it is a list; `None` lets everybody in. `/health` and
      `/metrics` are open.
    - `origins`: of the web pages that may ask from a browser (CORS), such as `["https://example.org"]`; `["*"]` for all.
    - `max_seconds`: in which a request must be done, waiting and all (504); one may ask for less by the same name.
    - `max_body_bytes`: of a request.
    - `processor`: transformers' `AutoProcessor` of a model that reads images, or what is called as it is: chats may then hold
      parts of type `image_url`, with data URLs, and the template gets lists of parts. `max_images` of a request,
      `max_image_bytes` and `max_image_pixels` of each image, which are known before it is decoded. Needs the extra `images`.

    A full engine (`max_waiting`) answers 429; a client that goes away cancels what it asked for.

    ```python
    import easyfn as ef
    from starlette.testclient import TestClient
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    model = ef.testing.tiny(vocab_size=256)
    engine = ef.Engine(model, max_batch_size=2, max_model_length=32, max_waiting=8)
    with TestClient(ef.serve.app(engine, tokenizer, model_name="mine")) as client:
        asked = {"model": "mine", "prompt": "Hi", "max_tokens": 3, "temperature": 0}
        said = client.post("/v1/completions", json=asked).json()
    assert said["usage"]["completion_tokens"] == 3
    ```
    """
    images = None
    if processor is not None:
        if not reads_images(engine.model):
            raise ValueError(f"serve.app: a processor is given, and {type(engine.model).__name__} reads no images")
        images = Images(
            engine.model, processor, most=max_images, max_bytes=max_image_bytes, max_pixels=max_image_pixels
        )
    if chat_template is None:
        chat_template = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)
    if isinstance(chat_template, (str, dict)):
        chat_template = ChatTemplate(chat_template, **dict(getattr(tokenizer, "special_tokens_map", {})))
    service = Service(engine, tokenizer, model_name, chat_template, images)

    allowed = key_of(api_key)

    def answers(read_body: Callable[[Any, Service], Asked], shape: Any) -> Callable[[Request], Any]:
        def prepare(data: bytes) -> tuple[Asked, list[Any]]:
            asked = read_body(parse(data), service)
            engine.start()
            return asked, submit(service, asked)

        async def endpoint(request: Request) -> Any:
            allowed(request)
            now = asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(max_seconds):
                    data = await read(request, max_body_bytes)
            except TimeoutError:
                raise late(max_seconds or 0.0) from None
            asked, requests = await run_in_threadpool(prepare, data)
            seconds = min((s for s in (asked.seconds, max_seconds) if s is not None), default=None)
            asked.seconds = seconds
            return respond(Job(service, asked, requests, shape, None if seconds is None else now + seconds))

        return endpoint

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(engine.close)

    same = {"created": service.created, "max_model_len": service.max_length}
    return application(
        [
            Route("/v1/completions", answers(reading.completion, COMPLETION), methods=["POST"]),
            Route("/v1/chat/completions", answers(reading.chat, CHAT), methods=["POST"]),
            Route("/v1/responses", answers(responses.read, responses.SHAPE), methods=["POST"]),
            *tokens.routes(service, allowed, max_body_bytes),
        ],
        allowed=allowed,
        models={n: {**same, "parent": None if n == model_name else model_name} for n in service.models},
        counts=lambda: {**dataclasses.asdict(engine.stats()), "rejected": service.rejected},
        counters=_COUNTERS,
        lifespan=lifespan,
        trouble=engine.trouble,
        times=vars(engine.times),
        origins=origins,
    )

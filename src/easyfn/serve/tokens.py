"""`/tokenize`, `/detokenize` and `/tokenizer_info`, as vLLM has them: for clients that count tokens without a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from . import body as bodies, prompts
from .body import Body
from .errors import bad
from .service import Service

_CHAT = {"add_generation_prompt", "chat_template_kwargs", "messages", "tools"}
_TOKENIZE = {"add_special_tokens", "model", "prompt", "return_token_strs", *_CHAT}
_DETOKENIZE = {"model", "skip_special_tokens", "tokens"}


def routes(service: Service, allowed: Callable[[Request], None], most: int) -> list[Route]:
    """The pages. `model` may be left out: all models of a server have one tokenizer."""

    def page(make: Callable[[Body, Service], Any]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> JSONResponse:
            allowed(request)
            data = await bodies.read(request, most)
            return JSONResponse(await run_in_threadpool(lambda: make(bodies.parse(data), service)))

        return endpoint

    async def info(request: Request) -> JSONResponse:
        allowed(request)
        return JSONResponse(_info(service))

    return [
        Route("/tokenize", page(_tokenize), methods=["POST"]),
        Route("/detokenize", page(_detokenize), methods=["POST"]),
        Route("/tokenizer_info", info),
    ]


def _tokenize(body: Body, service: Service) -> dict[str, Any]:
    """Of a `prompt`, or of the text that the chat template makes of `messages`."""
    bodies.check_names(body, _TOKENIZE)
    if "model" in body:
        service.chosen(body)
    if ("prompt" in body) == ("messages" in body):
        raise bad("prompt", "give prompt, a text, or messages: one of them")
    if "messages" in body:
        ids = prompts.of_chat(body, service)[0]
    elif isinstance(body["prompt"], str):
        ids = service.encode(body["prompt"], bodies.flag(body, "add_special_tokens", True))
    else:
        raise bad("prompt", "prompt must be a string", "invalid_type")
    words = [service.token(i) for i in ids] if bodies.flag(body, "return_token_strs", False) else None
    return {"count": len(ids), "max_model_len": service.max_length, "tokens": ids, "token_strs": words}


def _detokenize(body: Body, service: Service) -> dict[str, Any]:
    bodies.check_names(body, _DETOKENIZE)
    if "model" in body:
        service.chosen(body)
    if "tokens" not in body:
        raise bad("tokens", "tokens must be a list of token ids", "invalid_type")
    ids = bodies.ids(body, "tokens", service.vocab_size)
    return {"prompt": service.decode(ids, skip=bodies.flag(body, "skip_special_tokens", False))}


def _info(service: Service) -> dict[str, Any]:
    """What lm_eval's tokenizer over HTTP wants to know."""
    known = service.template.variables if service.template is not None else {}
    said = {
        name: getattr(service.tokenizer, name, None) or known.get(name)
        for name in ("bos_token", "eos_token", "pad_token")
    }
    if said["eos_token"] is None and service.eos:
        said["eos_token"] = service.token(service.eos[0])
    template = None if service.template is None else service.template.sources.get("default")
    return {**said, "chat_template": template, "max_model_len": service.max_length, "vocab_size": service.vocab_size}

"""The token ids that a request begins with."""

from __future__ import annotations

from typing import Any

from . import body as bodies
from .body import Body
from .calls import Forced, tools_of
from .errors import ApiError, bad
from .messages import messages_of
from .service import Service


def of_texts(body: Body, service: Service) -> tuple[list[list[int]], tuple[str, ...]]:
    """Of each text or list of ids in `prompt`, and its text."""
    given = body.get("prompt")
    if isinstance(given, str) or (bodies.is_ids(given) and given):
        given = [given]
    if not isinstance(given, list) or not given:
        raise bad("prompt", "prompt must be a string, a list of strings, token ids, or a list of lists of token ids")
    special = bodies.flag(body, "add_special_tokens", True)
    prompts = [_ids(one, service, special) for one in given]
    return prompts, tuple(one if isinstance(one, str) else service.decode(one) for one in given)


def _ids(given: Any, service: Service, special: bool) -> list[int]:
    if isinstance(given, str):
        return service.encode(given, special)
    if not bodies.is_ids(given):
        raise bad(
            "prompt", f"prompt holds {given!r}, which is neither a string nor a list of token ids", "invalid_type"
        )
    for i in given:
        bodies.token("prompt", i, service.vocab_size)
    return given


def of_chat(body: Body, service: Service) -> tuple[list[int], dict[str, Any], Forced | None]:
    """Of the text that the template makes of `messages`; with what the model reads beside it, and the call that is forced."""
    if service.template is None:
        raise ApiError(
            400,
            f"{service.model_name} has no chat template: ask /v1/completions, or give the server one (--chat-template)",
            param="messages",
            code="no_chat_template",
        )
    more = body.get("chat_template_kwargs", {})
    if not isinstance(more, dict):
        raise bad("chat_template_kwargs", f"chat_template_kwargs must be an object, not {more!r}", "invalid_type")
    if own := set(more) & set(service.reserved):
        raise bad("chat_template_kwargs", f"chat_template_kwargs may not hold {', '.join(sorted(own))}")
    begin = bodies.flag(body, "add_generation_prompt", True)
    messages, pictures = messages_of(body, service.images)
    tools, forced = tools_of(body, service)
    try:
        text = service.template(messages, tools=tools, add_generation_prompt=begin, **more)
    except ValueError as error:
        raise bad("messages", str(error)) from error
    # The template writes the special tokens itself.
    special = bodies.flag(body, "add_special_tokens", False)
    if not pictures or service.images is None:
        return service.encode(text, special), {}, forced
    return *service.images.prompt(text, pictures, special), forced

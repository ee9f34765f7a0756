"""`/v1/responses`, as far as it needs no memory: a request becomes that of a chat, and its answer is written as OpenAI's
newer clients read it. Nothing is stored."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from . import asked as reading, body as bodies
from .asked import Asked
from .body import Body
from .errors import ApiError, bad
from .items import messages_of_input
from .replies import Said
from .scores import of_chat
from .service import Service

# What a chat and a response have under the same name.
_SAME = (reading.COMMON - {"logprobs", "max_tokens", "n", "response_format", "stream_options"}) | {
    "chat_template_kwargs"
}
_OWN = {
    "include",
    "input",
    "instructions",
    "max_output_tokens",
    "parallel_tool_calls",
    "stream_options",
    "text",
    "tool_choice",
}
KNOWN = _SAME | _OWN | {"prompt_cache_options", "tools", "top_logprobs"}
_STATELESS = "this server keeps no responses: send the whole conversation as input"
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "previous_response_id": ((), _STATELESS),
    "conversation": ((), _STATELESS),
    "background": ((False,), _STATELESS),
    "prompt": ((), "templates of prompts are kept nowhere: send their text"),
    "reasoning": (({},), "give what the chat template knows in chat_template_kwargs"),
    "truncation": (("disabled",), "what does not fit is refused"),
    "max_tool_calls": ((), "an answer holds one call at most"),
}
_LOGPROBS = "message.output_text.logprobs"
_NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text",
    "logprobs": "include",
}


def read(body: Body, service: Service) -> Asked:
    """`POST /v1/responses`."""
    bodies.check_names(body, KNOWN, _REFUSED)
    include = body.get("include", [])
    if not isinstance(include, list) or set(map(str, include)) - {_LOGPROBS}:
        raise bad("include", f"include may hold {_LOGPROBS!r}, not {include!r}")
    most = bodies.count(body, "max_output_tokens", 1)
    best = bodies.count(body, "top_logprobs", 0, reading.MOST_SCORES, default=0)
    chat: dict[str, Any] = {name: value for name, value in body.items() if name in _SAME}
    chat["messages"] = messages_of_input(body)
    chat |= {} if most is None else {"max_completion_tokens": most}
    chat |= {"logprobs": True, "top_logprobs": best} if include or best else {}
    chat |= {"tools": _tools(body)} if "tools" in body else {}
    chat |= {"tool_choice": _choice(body["tool_choice"])} if "tool_choice" in body else {}
    chat |= {"response_format": _format(body)} if "text" in body else {}
    try:
        asked = reading.chat(chat, service)
    except ApiError as error:
        error.param = _NAMES.get(str(error.param), error.param)
        raise
    repeated = ("instructions", "max_output_tokens", "metadata", "tool_choice", "tools", "text", "user")
    asked.about = {name: body[name] for name in repeated if name in body} | {"top_logprobs": best}
    return asked


def _tools(body: Body) -> Any:
    tools = body["tools"]
    if not isinstance(tools, list) or not all(isinstance(t, dict) and t.get("type") == "function" for t in tools):
        raise bad(
            "tools", 'each of tools is {"type": "function", "name": ..., "parameters": ...}; there are no others here'
        )
    return [{"type": "function", "function": {n: v for n, v in tool.items() if n != "type"}} for tool in tools]


def _choice(choice: Any) -> Any:
    if isinstance(choice, dict) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice


def _format(body: Body) -> Any:
    said = body["text"]
    form = said.get("format", {"type": "text"}) if isinstance(said, dict) else None
    if not isinstance(form, dict) or set(said) - {"format"}:
        raise bad(
            "text", 'text is {"format": {"type": "text"}}, or of type "json_object", or "json_schema" with a schema'
        )
    if form.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {n: v for n, v in form.items() if n != "type"}}
    return form


class _Shape:
    ends_scored = False

    @staticmethod
    def scores(scored: Any, words: Any) -> Any:
        return of_chat(scored, words)["content"]

    @staticmethod
    def writer(job: Any) -> Writer:
        return Writer(job)


SHAPE = _Shape()


class Writer:
    """A response whole, or as the events of its making."""

    def __init__(self, job: Any) -> None:
        self.job, self._number = job, -1
        self._text, self._scores = "", list[Any]()
        self._open = ""  # the id of the message that is being written
        asked, options = job.asked, job.asked.options
        self._response: dict[str, Any] = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "max_output_tokens": None,
            "metadata": {},
            "model": asked.model,
            "output": [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": options.get("temperature", 1.0) if options["do_sample"] else 0.0,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": options.get("top_p", 1.0),
            "truncation": "disabled",
            "usage": None,
            "user": None,
            **asked.about,
        }

    def whole(self, found: Mapping[int, tuple[Said, str | None]]) -> dict[str, Any]:
        said, reason = found[0]
        calls = [_call(call, "completed") for call in said.calls or []]
        return self._ended(calls or [_message(f"msg_{uuid.uuid4().hex}", said, reason)], reason)

    def begin(self) -> Iterator[bytes]:
        yield self._event("response.created", response=self._response)
        yield self._event("response.in_progress", response=self._response)

    def piece(self, i: int, said: Said, reason: str | None) -> Iterator[bytes]:
        if said.calls:
            yield from self._called(said.calls[0], reason)
            return
        if not self._open and (said.text or reason is not None):
            self._open = f"msg_{uuid.uuid4().hex}"
            item = {"id": self._open, "type": "message", "role": "assistant", "status": "in_progress", "content": []}
            yield self._event("response.output_item.added", output_index=0, item=item)
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            yield self._event("response.content_part.added", **self._at(), part=part)
        if said.text or said.scores:
            self._text += said.text
            self._scores += said.scores or []
            yield self._event("response.output_text.delta", **self._at(), delta=said.text, logprobs=said.scores or [])
        if reason is not None:
            item = _message(self._open, Said(self._text, self._scores), reason)
            yield self._event("response.output_text.done", **self._at(), text=self._text, logprobs=self._scores)
            yield self._event("response.content_part.done", **self._at(), part=item["content"][0])
            yield self._event("response.output_item.done", output_index=0, item=item)
            yield self._last([item], reason)

    def end(self) -> Iterator[bytes]:
        return iter(())

    def failed(self, error: ApiError) -> bytes:
        wrong = {"code": "server_error", "message": error.message}
        return self._event("response.failed", response={**self._response, "status": "failed", "error": wrong})

    def _called(self, call: Any, reason: str | None) -> Iterator[bytes]:
        item = _call(call, "completed")
        begun = {**item, "arguments": "", "status": "in_progress"}
        where = {"output_index": 0, "item_id": item["id"]}
        yield self._event("response.output_item.added", output_index=0, item=begun)
        yield self._event("response.function_call_arguments.delta", **where, delta=item["arguments"])
        yield self._event(
            "response.function_call_arguments.done", **where, arguments=item["arguments"], name=item["name"]
        )
        yield self._event("response.output_item.done", output_index=0, item=item)
        yield self._last([item], reason)

    def _last(self, output: list[Any], reason: str | None) -> bytes:
        ended = self._ended(output, reason)
        return self._event(f"response.{ended['status']}", response=ended)

    def _ended(self, output: list[Any], reason: str | None) -> dict[str, Any]:
        prompt, completion = self.job.counts()
        usage = {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + completion,
        }
        cut = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
        end = cut if reason == "length" else {"status": "completed", "completed_at": int(time.time())}
        return {**self._response, "output": output, "usage": usage, **end}

    def _at(self) -> dict[str, Any]:
        return {"item_id": self._open, "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        data = json.dumps({"type": kind, "sequence_number": self._number, **fields}, ensure_ascii=False)
        return f"event: {kind}\ndata: {data}\n\n".encode()


def _message(name: str, said: Said, reason: str | None) -> dict[str, Any]:
    part: dict[str, Any] = {"type": "output_text", "text": said.text, "annotations": [], "logprobs": said.scores or []}
    status = "incomplete" if reason == "length" else "completed"
    return {"id": name, "type": "message", "role": "assistant", "status": status, "content": [part]}


def _call(call: Any, status: str) -> dict[str, Any]:
    function = call["function"]
    return {
        "id": f"fc_{uuid.uuid4().hex}",
        "type": "function_call",
        "call_id": call["id"],
        "status": status,
        **{name: function[name] for name in ("name", "arguments")},
    }

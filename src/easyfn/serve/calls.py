"""Tools: what the template is told of them, and the call that a request forces."""

from __future__ import annotations

import dataclasses
import json
import uuid
from typing import Any

from .body import Body
from .errors import bad
from .service import Service


@dataclasses.dataclass(frozen=True)
class Forced:
    """An answer that must be a call: of the function `name`, whose arguments are the whole text; or, without a name, of any,
    and the text is an object of its name and its arguments. `schema` is what holds the text to that."""

    name: str | None
    schema: Any
    reason: str  # what OpenAI calls the end of such an answer


def tools_of(body: Body, service: Service) -> tuple[list[Any] | None, Forced | None]:
    """The tools that the template is told of, and the call that `tool_choice` asks for."""
    tools, choice = body.get("tools"), body.get("tool_choice", "auto")
    if tools is not None and (not isinstance(tools, list) or not all(isinstance(t, dict) for t in tools)):
        raise bad("tools", "tools must be a list of objects", "invalid_type")
    if choice == "none" or (choice == "auto" and not tools):
        return None, None
    if choice == "auto":
        if service.template is None or not service.template.reads_tools:
            raise bad(
                "tools",
                f"the chat template of {service.model_name} writes nothing of tools, so the model would not hear of them: give "
                'the server another one (--chat-template), or force a call (tool_choice="required")',
                "unsupported_parameter",
            )
        return tools, None
    return tools, _forced(choice, dict(map(_function, tools or ())))


def _forced(choice: Any, known: dict[str, Any]) -> Forced:
    if not known:
        raise bad("tool_choice", f"tool_choice={choice!r} needs tools to choose from")
    if choice == "required" and len(known) > 1:
        each = [_call_schema(name, parameters) for name, parameters in known.items()]
        return Forced(None, {"anyOf": each}, "tool_calls")
    function = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    name = next(iter(known)) if choice == "required" else function.get("name") if isinstance(function, dict) else None
    if name is None:
        raise bad(
            "tool_choice",
            f'tool_choice is "auto", "none", "required" or {{"type": "function", "function": {{"name": ...}}}}, not {choice!r}',
        )
    if name not in known:
        raise bad("tool_choice", f"tool_choice names {name!r}, and the tools are {', '.join(known)}")
    return Forced(name, known[name], "tool_calls" if choice == "required" else "stop")


def _function(tool: Any) -> tuple[str, Any]:
    function = tool.get("function")
    if tool.get("type", "function") != "function" or not isinstance(function, dict):
        raise bad("tools", 'each of tools is {"type": "function", "function": {"name": ..., "parameters": ...}}')
    name, parameters = function.get("name"), function.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(name, str) or not isinstance(parameters, dict):
        raise bad("tools", "a function has a name, a string, and parameters, a JSON schema", "invalid_type")
    return name, parameters


def _call_schema(name: str, parameters: Any) -> Any:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": parameters},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def called(forced: Forced, text: str, reason: str) -> tuple[str, list[Any] | None, str]:
    """`(text, calls, reason)` of a whole answer. One that was cut before its function had a name is text."""
    name, arguments = forced.name, text
    if name is None:
        try:
            said = json.loads(text)
        except ValueError:
            return text, None, reason
        name, arguments = said["name"], json.dumps(said["arguments"], ensure_ascii=False)
    call = {"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": {"name": name, "arguments": arguments}}
    return "", [call], forced.reason if reason == "stop" else reason

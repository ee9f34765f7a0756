"""What a client asks for, as the engine takes it: prompts as token ids, options under transformers' names."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from ..engine.sampler import MOST_SCORES
from . import body as bodies
from .body import Body
from .calls import Forced, tools_of
from .errors import ApiError, bad
from .messages import messages_of
from .service import Service

MOST_CHOICES = 256  # of one HTTP request
_STOPS = {"most": 16, "longest": 1024}

# Parameters beside OpenAI's that go to the engine: least and most. They have an effect on samples only.
_SAMPLING = {"top_p": (0.0, 1.0), "min_p": (0.0, 1.0)}
_SAMPLING_ABOVE_ZERO = {"typical_p": (1e-6, 1.0), "top_h": (1e-6, 1.0)}
_CUTOFFS = {"epsilon_cutoff": (0.0, 0.999), "eta_cutoff": (0.0, 0.999)}
SAMPLING = _SAMPLING | _SAMPLING_ABOVE_ZERO | _CUTOFFS
PENALTIES = {"presence_penalty": (-2.0, 2.0), "frequency_penalty": (-2.0, 2.0), "repetition_penalty": (0.01, 100.0)}

COMMON = {
    *SAMPLING,
    *PENALTIES,
    "add_special_tokens",
    "ignore_eos",
    "logit_bias",
    "logprobs",
    "max_tokens",
    "min_tokens",
    "model",
    "n",
    "no_repeat_ngram_size",
    "response_format",
    "seed",
    "stop",
    "stop_token_ids",
    "stream",
    "stream_options",
    "temperature",
    "top_k",
}
COMPLETION = COMMON | {"echo", "prompt"}
CHAT = COMMON | {
    "add_generation_prompt",
    "chat_template_kwargs",
    "max_completion_tokens",
    "messages",
    "top_logprobs",
    "tool_choice",
    "tools",
}


@dataclasses.dataclass
class Asked:
    """`n` answers to each prompt."""

    model: str
    adapter: str | None
    prompts: list[list[int]]
    n: int
    seed: int
    stop: tuple[str, ...]
    ends: frozenset[int]  # the ids that end an answer
    options: dict[str, Any]
    stream: bool
    include_usage: bool
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # the images of the prompt
    echo: tuple[str, ...] = ()  # the texts of the prompts, if the answers begin with them
    forced: Forced | None = None  # the call that each answer is


def completion(body: Body, service: Service) -> Asked:
    """`POST /v1/completions`."""
    bodies.check_names(body, COMPLETION)
    model, adapter = service.chosen(body)
    given = body.get("prompt")
    if isinstance(given, str) or (bodies.is_ids(given) and given):
        given = [given]
    if not isinstance(given, list) or not given:
        raise bad("prompt", "prompt must be a string, a list of strings, token ids, or a list of lists of token ids")
    special = bodies.flag(body, "add_special_tokens", True)
    prompts = [_ids(one, service, special) for one in given]
    echo = tuple(one if isinstance(one, str) else service.decode(one) for one in given)
    echoed = bodies.flag(body, "echo", False)
    scores = bodies.count(body, "logprobs", 0, MOST_SCORES)
    if echoed and scores is not None:
        raise bad(
            "logprobs", "logprobs are those of new tokens, and echo would have those of the prompt, too: leave one"
        )
    return _asked(body, service, model, adapter, "prompt", prompts, 16, echo if echoed else (), scores=scores)


def chat(body: Body, service: Service) -> Asked:
    """`POST /v1/chat/completions`."""
    bodies.check_names(body, CHAT)
    model, adapter = service.chosen(body)
    if service.template is None:
        raise ApiError(
            400,
            f"{service.model_name} has no chat template: ask /v1/completions, or give the server one (--chat-template)",
            param="messages",
            code="no_chat_template",
        )
    if "max_tokens" in body and "max_completion_tokens" in body:
        raise bad("max_tokens", "max_tokens is the old name of max_completion_tokens: give one of them")
    more = body.get("chat_template_kwargs", {})
    if not isinstance(more, dict):
        raise bad("chat_template_kwargs", f"chat_template_kwargs must be an object, not {more!r}", "invalid_type")
    if own := set(more) & set(service.reserved):
        raise bad("chat_template_kwargs", f"chat_template_kwargs may not hold {', '.join(sorted(own))}")
    begin = bodies.flag(body, "add_generation_prompt", True)
    messages, pictures = messages_of(body, service.images)
    tools, forced = tools_of(body, service)
    best = bodies.count(body, "top_logprobs", 0, MOST_SCORES, default=0)
    scores = best if bodies.flag(body, "logprobs", False) else None
    if best and scores is None:
        raise bad("top_logprobs", "top_logprobs are told where logprobs is true")

    def asked(prompt: list[int]) -> Asked:
        return _asked(body, service, model, adapter, "messages", [prompt], None, scores=scores, forced=forced)

    try:
        text = service.template(messages, tools=tools, add_generation_prompt=begin, **more)
    except ValueError as error:
        raise bad("messages", str(error)) from error
    # The template writes the special tokens itself.
    special = bodies.flag(body, "add_special_tokens", False)
    if not pictures or service.images is None:
        return asked(service.encode(text, special))
    prompt, inputs = service.images.prompt(text, pictures, special)
    return dataclasses.replace(asked(prompt), inputs=inputs)


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


def _asked(
    body: Body,
    service: Service,
    model: str,
    adapter: str | None,
    param: str,
    prompts: list[list[int]],
    usual: int | None,
    echo: tuple[str, ...] = (),
    *,
    scores: int | None = None,
    forced: Forced | None = None,
) -> Asked:
    n = bodies.count(body, "n", 1, MOST_CHOICES, default=1)
    if n * len(prompts) > MOST_CHOICES:
        raise bad(param, f"{len(prompts)} prompts with n={n} are more than the {MOST_CHOICES} answers of one request")
    stream = bodies.flag(body, "stream", False)
    said = body.get("stream_options", {})
    if not isinstance(said, dict) or set(said) - {"include_usage", "include_obfuscation"}:
        raise bad("stream_options", "stream_options may hold include_usage", "invalid_type")
    if said and not stream:
        raise bad("stream_options", "stream_options are for stream=true")
    stop = bodies.texts(body, "stop", **_STOPS)
    ends = _ends(body, service, stop)
    options = {**sampling(body, service), **_lengths(body, service, param, prompts, usual), "eos_token_id": ends or -1}
    if (constraint := _constraint(body, service, ends, forced)) is not None:
        options["constraint"] = constraint
    if scores is not None:
        options["logprobs"] = scores
    seed = bodies.count(body, "seed", -(2**63), 2**63 - 1)
    return Asked(
        model=model,
        adapter=adapter,
        prompts=prompts,
        n=n,
        seed=secrets.randbits(32) if seed is None else seed % 2**63,  # what a PRNG key takes
        stop=stop,
        ends=frozenset(ends),
        options=options,
        stream=stream,
        include_usage=said.get("include_usage") is True,
        echo=echo,
        forced=forced,
    )


def sampling(body: Body, service: Service) -> dict[str, Any]:
    """What is not said is as the checkpoint's `generation_config.json` has it, or else as OpenAI has it: samples of
    temperature 1 from the whole vocabulary."""
    usual = service.defaults
    options: dict[str, Any] = {}
    for name, (low, high) in PENALTIES.items():
        options[name] = bodies.number(body, name, low, high)
    options["no_repeat_ngram_size"] = bodies.count(body, "no_repeat_ngram_size", 0)
    chosen = {name: bodies.number(body, name, low, high) for name, (low, high) in SAMPLING.items()}
    top_k = bodies.count(body, "top_k", -1)
    temperature = bodies.number(body, "temperature", 0.0, 2.0, default=usual.temperature)
    bias = body.get("logit_bias", {})
    if not isinstance(bias, Mapping):
        raise bad("logit_bias", "logit_bias must be an object of token ids and numbers", "invalid_type")
    if bias:
        options["sequence_bias"] = _bias(bias, service.vocab_size)
    greedy = temperature == 0 or (usual.do_sample is False and "temperature" not in body)
    if greedy:
        options["do_sample"] = False
    else:
        options |= chosen
        options["do_sample"] = True
        options["temperature"] = 1.0 if temperature is None else temperature
        options["top_k"] = max(0, usual.top_k or 0 if top_k is None else top_k)
    return {name: value for name, value in options.items() if value is not None}


def _bias(bias: Mapping[str, Any], vocab_size: int) -> dict[tuple[int, ...], float]:
    found: dict[tuple[int, ...], float] = {}
    for token in bias:
        if not token.isdecimal():
            raise bad("logit_bias", f"logit_bias holds {token!r}, which is no token id")
        bodies.token("logit_bias", int(token), vocab_size)
        try:
            found[int(token),] = bodies.number(bias, token, -100.0, 100.0, default=0.0)
        except ApiError as error:
            raise bad("logit_bias", f"logit_bias: {error.message}", error.code) from error
    return found


def _lengths(
    body: Body, service: Service, param: str, prompts: Sequence[Sequence[int]], usual: int | None
) -> dict[str, Any]:
    name = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
    most = bodies.count(body, name, 1)
    least = bodies.count(body, "min_tokens", 0)
    longest = max(map(len, prompts))
    if min(map(len, prompts)) == 0:
        raise bad(param, f"{param} holds no token to go on from")
    room = service.room(longest)
    if room < max(1, most or 1):
        asked = f" and {name}={most}" if most is not None else ""
        raise bad(
            name if room > 0 else param,
            f"the prompt of {longest} tokens{asked} are more than the {service.max_length} tokens that this server holds",
            "context_length_exceeded",
        )
    most = most or min(room, usual or room)
    if least is not None and least > most:
        raise bad("min_tokens", f"min_tokens={least} is more than the {most} tokens that may come")
    return {"max_new_tokens": most, **({"min_new_tokens": least} if least else {})}


def _ends(body: Body, service: Service, stop: tuple[str, ...]) -> list[int]:
    """The ids that end an answer. A special token is never text, so a stop string that is one is found as its id."""
    own = [] if bodies.flag(body, "ignore_eos", False) else list(service.eos)
    asked = bodies.ids(body, "stop_token_ids", service.vocab_size)
    return [*dict.fromkeys([*own, *asked, *(service.special[word] for word in stop if word in service.special)])]


def _constraint(body: Body, service: Service, ends: list[int], forced: Forced | None) -> Any:
    said, param = body.get("response_format", {"type": "text"}), "response_format"
    kind = said.get("type") if isinstance(said, dict) else None
    if kind == "text" and forced is None:
        return None
    if forced is not None:
        if kind != "text":
            raise bad("response_format", "the answer is a call of a tool (tool_choice), which has a schema of its own")
        schema, param = forced.schema, "tools"
    elif kind == "json_object":
        schema = {"type": "object"}
    elif kind == "json_schema" and isinstance(said.get("json_schema"), dict):
        schema = said["json_schema"].get("schema", {"type": "object"})
    else:
        raise bad(
            "response_format", 'response_format is {"type": "text"}, "json_object", or "json_schema" with a schema'
        )
    try:
        return service.constraint(schema, tuple(ends))
    except (ImportError, TypeError, ValueError) as error:
        raise bad(param, f"{param}: {error}") from error

"""What a client asks for, as the engine takes it: prompts as token ids, options under transformers' names."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from ..engine.sampler import MOST_SCORES
from ..generation.constraint_apart import CompilerBusy
from . import body as bodies, prompts as prompts_of
from .body import Body
from .calls import Forced
from .errors import ApiError, bad, full
from .service import Service

MOST_CHOICES = 256  # of one HTTP request
_STOPS = {"most": 16, "longest": 1024}
_MOST_BIAS = 1024  # entries of logit_bias, each of which is looked at for every token

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
    "max_seconds",
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
COMPLETION = COMMON | {"best_of", "echo", "prompt"}
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
    """`n` answers to each prompt, of which the `kept` best are told, or all."""

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
    scores: int | None = None  # how many of the likeliest tokens are told
    kept: int | None = None
    seconds: float | None = None  # in which all must be done
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # what the answer repeats of the question


def completion(body: Body, service: Service) -> Asked:
    """`POST /v1/completions`."""
    bodies.check_names(body, COMPLETION)
    model, adapter = service.chosen(body)
    prompts, echo = prompts_of.of_texts(body, service)
    echoed = bodies.flag(body, "echo", False)
    scores = bodies.count(body, "logprobs", 0, MOST_SCORES)
    if echoed and scores is not None and service.encodes:
        raise bad("logprobs", "an encoder reads the prompt, which has no logprobs: leave echo")
    asked = _asked(body, service, model, adapter, "prompt", prompts, 16, echo if echoed else (), scores=scores)
    if echoed and (scores is not None or not asked.options["max_new_tokens"]):
        asked.options["prompt_logprobs"] = scores or 0
    return _best(asked, body)


def _best(asked: Asked, body: Body) -> Asked:
    """With the best of more answers than are told."""
    many = bodies.count(body, "best_of", 1, MOST_CHOICES, default=asked.n)
    if many < asked.n:
        raise bad("best_of", f"best_of={many} is less than n={asked.n}, the answers that are told")
    if many == asked.n:
        return asked
    if asked.stream:
        raise bad("best_of", "which answer is the best is known at its end: leave stream or best_of")
    if many * len(asked.prompts) > MOST_CHOICES:
        raise bad("best_of", f"{len(asked.prompts)} prompts with best_of={many} are more than {MOST_CHOICES} answers")
    options = {"logprobs": 0, **asked.options}
    return dataclasses.replace(asked, n=many, kept=asked.n, options=options)


def chat(body: Body, service: Service) -> Asked:
    """`POST /v1/chat/completions`."""
    bodies.check_names(body, CHAT)
    model, adapter = service.chosen(body)
    if "max_tokens" in body and "max_completion_tokens" in body:
        raise bad("max_tokens", "max_tokens is the old name of max_completion_tokens: give one of them")
    best = bodies.count(body, "top_logprobs", 0, MOST_SCORES, default=0)
    scores = best if bodies.flag(body, "logprobs", False) else None
    if best and scores is None:
        raise bad("top_logprobs", "top_logprobs are told where logprobs is true")

    prompt, inputs, forced = prompts_of.of_chat(body, service)
    asked = _asked(body, service, model, adapter, "messages", [prompt], None, scores=scores, forced=forced)
    return dataclasses.replace(asked, inputs=inputs)


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
    lengths = _lengths(body, service, param, prompts, usual, least=0 if echo else 1)
    options = {**sampling(body, service), **lengths, "eos_token_id": ends or -1}
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
        scores=scores,
        seconds=bodies.number(body, "max_seconds", 0.001, 86400.0),
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
    if len(bias) > _MOST_BIAS:
        raise bad("logit_bias", f"logit_bias holds {len(bias)} tokens, more than {_MOST_BIAS}")
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
        if not (token.isdecimal() and len(token) < 20):
            raise bad("logit_bias", f"logit_bias holds {token!r}, which is no token id")
        bodies.token("logit_bias", int(token), vocab_size)
        try:
            found[int(token),] = bodies.number(bias, token, -100.0, 100.0, default=0.0)
        except ApiError as error:
            raise bad("logit_bias", f"logit_bias: {error.message}", error.code) from error
    return found


def _lengths(
    body: Body, service: Service, param: str, prompts: Sequence[Sequence[int]], usual: int | None, *, least: int = 1
) -> dict[str, Any]:
    name = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
    most = bodies.count(body, name, 0)
    if most is not None and most < least:
        raise bad(name, f"{name}={most} must be at least 1; 0 is for echo, which tells of the prompt alone")
    least = bodies.count(body, "min_tokens", 0)
    longest = max(map(len, prompts))
    if min(map(len, prompts)) == 0:
        raise bad(param, f"{param} holds no token to go on from")
    room = service.room(longest)
    if room < (1 if most is None else most):
        asked = f" and {name}={most}" if most is not None else ""
        raise bad(
            name if room > 0 else param,
            f"the prompt of {longest} tokens{asked} are more than the {service.max_length} tokens that this server holds",
            "context_length_exceeded",
        )
    most = min(room, usual or room) if most is None else most
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
    except CompilerBusy as error:
        raise full(str(error)) from error
    except (ImportError, TypeError, ValueError) as error:
        raise bad(param, f"{param}: {error}") from error

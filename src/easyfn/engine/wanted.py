"""What a request asks for: its options read, checked and refused as `generate` does, before it waits for its turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..generation import checks
from ..generation.constraint import constrained
from ..generation.model import decoder_prompt, encodes
from ..generation.options import resolve, with_defaults
from .beside import apart, held, moved
from .controls import Controls
from .sampler import EOS, INDEX, MOST_SCORES, numbers_of

# Arguments and options of `generate` that one row of a running batch cannot have, and what to write instead.
_REFUSED = {
    "num_beams": "beams are rows that are chosen together, which is another program; use ef.generate",
    "num_return_sequences": "submit the prompt several times, with a key for each",
    "guidance_scale": "a second prompt for each row is another program; use ef.generate",
    "prefill_chunk_size": "the engine cuts prompts: ef.Engine(model, prefill_chunk=)",
    "prompt_lookup_num_tokens": "drafts are another program; use ef.generate",
    "cache_implementation": "the engine's cache is its own: ef.Engine(model, dtype=)",
    "output_scores": "of the likeliest tokens logprobs= tells them; all are ef.generate's",
    "output_logits": "the logits stay on the device; use ef.generate",
    "output_attentions": "they are another program; use ef.generate",
    "output_hidden_states": "they are another program; use ef.generate",
}
_OFF: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "guidance_scale": (1, 1.0),
    "cache_implementation": ("static",),
}
_ELSEWHERE = {
    "attention_mask": "every id of a request is a token; leave the padding out",
    "processors": "they run for all rows: ef.Engine(model, processors=)",
    "runtime": "it is the engine's: ef.Engine(model, runtime=)",
    "cache": "the engine knows prompts that begin alike: ef.Engine(model, prefix_cache=True)",
    "return_cache": "the pages go to the next request; use ef.generate",
    "adapter_ids": "adapter= is the one of this request",
    "assistant_model": "drafts are another program; use ef.generate",
    "negative_prompt_ids": "a second prompt for each row is another program; use ef.generate",
    "negative_prompt_attention_mask": "a second prompt for each row is another program; use ef.generate",
}


@dataclasses.dataclass
class Wanted:
    """A request as the engine works on it."""

    prompt: tuple[int, ...]  # that the new tokens follow
    source: tuple[int, ...]  # that an encoder reads
    max_length: int  # prompt and new tokens
    eos: frozenset[int]
    pad: int
    numbers: np.ndarray
    raised: np.ndarray  # the ids that `exponential_decay_length_penalty` raises
    controls: Controls
    stop: np.ndarray | None  # the table of `generation/stop.py`
    sample: bool
    inputs: dict[str, np.ndarray]  # beside the prompt: images
    logprobs: int | None  # how many of the likeliest tokens are told
    prompt_logprobs: int | None  # the same of the prompt's own
    moved: int  # by how much positions after the prompt are larger than its tokens are many


def read(
    model: Any,
    ids: Any,
    config: Any,
    constraint: Any,
    options: Mapping[str, Any],
    stop_table: Callable[[tuple[str, ...]], np.ndarray],
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
) -> Wanted:
    """Raises `ValueError` for bad input, and for options by name."""
    for name in options:
        if name in _ELSEWHERE and options[name] is not None:
            raise ValueError(f"submit takes no {name}: {_ELSEWHERE[name]}")
    options = dict(options)
    second = encodes(model)
    read_only = prompt_logprobs is not None and options.get("max_new_tokens") == 0  # which `generate` refuses
    if read_only:
        options["max_new_tokens"] = 1
    given = options.pop("decoder_input_ids", None) if second else None
    beside = {} if second else apart(model, options)
    ids = _one(model, ids, "ids")
    c = with_defaults(resolve(getattr(model, "config", None), config, options))
    for name, why in _REFUSED.items():
        value = getattr(c, name, None)
        if value is not None and value is not False and value not in _OFF.get(name, ()):
            raise ValueError(f"submit: {name}={value!r} is not for one row of a running batch: {why}")
    if second and c.encoder_repetition_penalty != 1.0:
        raise ValueError("submit: encoder_repetition_penalty is not for an encoder-decoder's row; use ef.generate")
    if c.exponential_decay_length_penalty is not None and len(c.eos) > EOS:
        raise ValueError(f"submit: exponential_decay_length_penalty is for at most {EOS} eos_token_id")
    checks.vocabulary(model, c)
    scores = {"logprobs": logprobs, "prompt_logprobs": prompt_logprobs}
    for name, many in scores.items():
        if many is not None and not 0 <= many <= MOST_SCORES:
            raise ValueError(f"submit: {name}={many} must be between 0 and {MOST_SCORES}")
    if second and prompt_logprobs is not None:
        raise ValueError("submit: prompt_logprobs are of a prompt that new tokens follow; here an encoder reads it")
    if constraint is not None:
        constrained([constraint], c.eos, 1)
    start = c.decoder_start_token_id if c.decoder_start_token_id is not None else c.bos_token_id
    prompt = ids
    if second:
        own = {"decoder_input_ids": None if given is None else _one(model, given, "decoder_input_ids")[None]}
        prompt = np.asarray(decoder_prompt(model, ids[None], None, start, own)[0])[0]
    vocab_size = (second and getattr(model.config, "decoder_vocab_size", None)) or model.config.vocab_size
    beside = held(model, ids, beside)
    max_length = checks.longest(model, c, len(prompt), None, in_pieces=True)
    max_length -= read_only
    words = (c.stop_strings,) if isinstance(c.stop_strings, str) else c.stop_strings
    raised = np.full((EOS,), -1, np.int32)
    raised[: len(c.eos[:EOS])] = c.eos[:EOS]
    numbers = numbers_of(c)
    for name, many in scores.items():
        numbers[INDEX[name]] = 0 if many is None else 1 + many
    return Wanted(
        prompt=tuple(prompt.tolist()),
        source=tuple(ids.tolist()) if second else (),
        max_length=max_length,
        eos=frozenset(c.eos),
        pad=c.pad if c.pad is not None else 0,
        numbers=numbers,
        raised=raised,
        controls=Controls(
            c,
            prompt=prompt.tolist(),
            source=ids.tolist(),
            max_length=max_length,
            vocab_size=vocab_size,
            constraint=constraint,
        ),
        stop=None if words is None else stop_table(words),
        sample=bool(c.do_sample),
        inputs=beside,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        moved=0 if second else moved(model, ids, beside),
    )


def _one(model: Any, ids: Any, name: str) -> np.ndarray:
    """One prompt, int32 `(tokens,)`."""
    ids = np.asarray(ids)
    if ids.ndim == 2 and ids.shape[0] == 1:
        ids = ids[0]
    if ids.ndim != 1:
        raise ValueError(
            f"submit: {name} are one prompt, (tokens,), not of shape {ids.shape}; submit each row by itself"
        )
    return np.asarray(checks.prompt(model, ids[None], None, name)[0])[0].astype(np.int32)

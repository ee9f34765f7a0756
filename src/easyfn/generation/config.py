"""`GenerationConfig`: what to generate, under transformers' names, each value checked before anything is compiled."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ..core.frozen import Frozen, freeze


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """Options of [`easyfn.generate`][], with transformers' names and meanings. `None` is unset.

    A field that is unset here comes from the model's `generation_config.json`, then (the special ids, and if there
    is no such file everything) from its `config.json`, then from transformers' defaults, of which two surprise:
    `max_length` is 20 tokens beyond the prompt, and sampling has `top_k=50`.

    Lengths: `max_new_tokens` or `max_length`, `min_new_tokens` or `min_length`; lengths count columns, as
    transformers does: the prompt with its padding. `eos_token_id` is an id or several; `-1` means that nothing ends
    a row.

    Two options are not transformers' but everybody's: `frequency_penalty` and `presence_penalty` lower the logits of
    tokens that were generated before, by their count and by the fact. `num_assistant_tokens` is 5 by default: every
    round of an `assistant_model` drafts as many.

    `cache_implementation` is `"static"`, as every cache here, or `"quantized"`: keys and values in int8 (transformers' has 4
    bits by default).

    Equal configs are equal and hash alike; lists are stored as tuples.

    ```python
    import easyfn as ef
    config = ef.GenerationConfig(max_new_tokens=8, do_sample=True, temperature=0.7, eos_token_id=[1, 2])
    assert hash(config) == hash(ef.GenerationConfig(max_new_tokens=8, do_sample=True, temperature=0.7,
                                                     eos_token_id=(1, 2)))
    ```
    """

    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int | None = None
    min_new_tokens: int | None = None
    do_sample: bool | None = None
    num_beams: int | None = None
    early_stopping: bool | str | None = None
    length_penalty: Any = None
    temperature: Any = None
    top_k: int | None = None
    top_p: Any = None
    min_p: Any = None
    top_h: Any = None
    typical_p: Any = None
    epsilon_cutoff: Any = None
    eta_cutoff: Any = None
    repetition_penalty: Any = None
    encoder_repetition_penalty: Any = None
    frequency_penalty: Any = None
    presence_penalty: Any = None
    no_repeat_ngram_size: int | None = None
    encoder_no_repeat_ngram_size: int | None = None
    bad_words_ids: Any = None
    sequence_bias: Any = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: Any = None
    remove_invalid_values: bool | None = None
    renormalize_logits: bool | None = None
    exponential_decay_length_penalty: Any = None
    suppress_tokens: Any = None
    begin_suppress_tokens: Any = None
    num_return_sequences: int | None = None
    guidance_scale: Any = None
    stop_strings: Any = None
    prefill_chunk_size: int | None = None
    prompt_lookup_num_tokens: int | None = None
    max_matching_ngram_size: int | None = None
    num_assistant_tokens: int | None = None
    cache_implementation: str | None = None
    output_scores: bool | None = None
    output_logits: bool | None = None
    output_attentions: bool | None = None
    output_hidden_states: bool | None = None
    bos_token_id: int | None = None
    eos_token_id: Any = None
    pad_token_id: int | None = None
    decoder_start_token_id: Any = None

    def __post_init__(self) -> None:
        bias = self.sequence_bias
        if isinstance(bias, Mapping) and not isinstance(bias, Frozen):
            object.__setattr__(self, "sequence_bias", tuple((tuple(k), float(v)) for k, v in bias.items()))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (np.ndarray, jax.Array)) and value.ndim and not isinstance(value, jax.core.Tracer):
                value = value.tolist()  # ids
            object.__setattr__(self, field.name, freeze(value))
        _validate(self)

    def replace(self, **changes: Any) -> GenerationConfig:
        return dataclasses.replace(self, **changes)

    @property
    def eos(self) -> tuple[int, ...]:
        """The ids that end a row."""
        return ids_of(self.eos_token_id)

    @property
    def pad(self) -> int | None:
        """The id that fills a row after its end: `pad_token_id`, or else the first id that ends a row."""
        return self.pad_token_id if self.pad_token_id is not None else next(iter(self.eos), None)


FIELDS = tuple(field.name for field in dataclasses.fields(GenerationConfig))


def ids_of(value: Any) -> tuple[int, ...]:
    """One id, several or none; a negative id is none, as everywhere in transformers."""
    if value is None:
        return ()
    return tuple(int(i) for i in (value if isinstance(value, tuple) else (value,)) if int(i) >= 0)


def validate(values: Mapping[str, Any]) -> None:
    """Checks what a file says before a config is made of it."""
    _validate(types.SimpleNamespace(**{**dict.fromkeys(FIELDS), **{k: freeze(v) for k, v in values.items()}}))


def _validate(c: Any) -> None:
    """The ranges that transformers' processors ask for, checked before anything is compiled."""

    def check(name: str, holds: Any, wanted: str) -> None:
        value = getattr(c, name)
        if value is None or isinstance(value, jax.core.Tracer):
            return
        try:
            good = bool(holds(value))
        except (TypeError, ValueError, OverflowError):
            good = False
        if not good:
            raise ValueError(f"{name}={value!r} must be {wanted}")

    def count(low: int) -> Any:
        return lambda v: isinstance(v, (int, np.integer)) and not isinstance(v, bool) and v >= low

    for name in ("max_length", "max_new_tokens", "num_beams", "num_return_sequences"):
        check(name, count(1), "an integer of at least 1")
    for name in ("prefill_chunk_size", "prompt_lookup_num_tokens", "max_matching_ngram_size", "num_assistant_tokens"):
        check(name, count(1), "an integer of at least 1")
    for name in ("min_length", "min_new_tokens", "top_k", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"):
        check(name, count(0), "an integer of at least 0")
    if (c.num_beams or 1) > 1 and (c.num_return_sequences or 1) > (c.num_beams or 1):
        raise ValueError(f"num_return_sequences={c.num_return_sequences} must be at most num_beams={c.num_beams}")
    check("temperature", lambda v: v > 0, "positive; for greedy decoding leave it out, with do_sample=False")
    check("repetition_penalty", lambda v: v > 0, "positive")
    check("encoder_repetition_penalty", lambda v: v > 0, "positive")
    for name in ("top_p", "min_p"):
        check(name, lambda v: 0 <= v <= 1, "in [0, 1]")
    for name in ("typical_p", "top_h"):
        check(name, lambda v: 0 < v <= 1, "in (0, 1]")
    for name in ("epsilon_cutoff", "eta_cutoff"):
        check(name, lambda v: 0 <= v < 1, "in [0, 1)")
    check("early_stopping", lambda v: v in (True, False, "never"), "True, False or 'never'")
    check(
        "cache_implementation", lambda v: v in ("static", "quantized"), "'static', as every cache here, or 'quantized'"
    )
    words = lambda v: isinstance(v, str) or (isinstance(v, tuple) and all(isinstance(s, str) and s for s in v))
    check("stop_strings", lambda v: v and words(v), "a string or a list of strings, none of them empty")
    many = lambda v: isinstance(v, tuple) and all(isinstance(i, (int, np.integer)) for i in v)
    check("suppress_tokens", many, "a list of ids")
    check("begin_suppress_tokens", many, "a list of ids")
    check("bad_words_ids", lambda v: v and all(many(w) and w and min(w) >= 0 for w in v), "a list of lists of ids")
    check("sequence_bias", lambda v: v and all(many(w) and w and float(b) == float(b) for w, b in v), "{(ids): bias}")
    check("exponential_decay_length_penalty", lambda v: len(v) == 2 and v[0] >= 0, "(start, factor)")
    one = lambda v: count(-(2**31))(v) and v < 2**31
    for name in ("bos_token_id", "pad_token_id", "forced_bos_token_id"):
        check(name, one, "an id, an integer of 32 bits")
    for name in ("eos_token_id", "forced_eos_token_id", "decoder_start_token_id"):
        check(name, lambda v: all(map(one, v)) if isinstance(v, tuple) else one(v), "an id or a list of ids")
    for name in (
        "do_sample",
        "remove_invalid_values",
        "renormalize_logits",
        "output_scores",
        "output_logits",
        "output_attentions",
        "output_hidden_states",
    ):
        check(name, lambda v: isinstance(v, (bool, np.bool_)), "True or False")

"""`GenerationConfig`: what to generate, under transformers' names; an option is honoured or refused, never ignored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ._frozen import Frozen, freeze
from ._tree import near

# What transformers assumes of a field that nobody set (`GenerationConfig._get_default_generation_params`).
DEFAULTS: dict[str, Any] = {
    "max_length": 20,
    "min_length": 0,
    "do_sample": False,
    "num_beams": 1,
    "early_stopping": False,
    "length_penalty": 1.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "num_return_sequences": 1,
    "output_scores": False,
    "output_logits": False,
    "remove_invalid_values": False,
    "renormalize_logits": False,
}

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
BEAMS = ("early_stopping", "length_penalty")

# Options of transformers that easyfn does not have, each with the values that turn it off.
REFUSED: dict[str, tuple[Any, ...]] = {
    "max_time": (),
    "stop_strings": (),
    "use_mtp": (False,),
    "token_healing": (False,),
    "guidance_scale": (1, 1.0),
    "watermarking_config": (),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "is_assistant": (False,),
    "prompt_lookup_num_tokens": (),
    "assistant_early_exit": (),
    "assistant_ensemble_weight": (),
    "speculation_type": (),
    "penalty_alpha": (0, 0.0),
    "dola_layers": (),
    "diversity_penalty": (0, 0.0),
    "num_beam_groups": (1,),
    "constraints": (),
    "force_words_ids": (),
    "forced_decoder_ids": (),
}

# Keys of a `generation_config.json` that change how transformers computes, or what it returns, but no token.
HARMLESS = frozenset(
    [
        "use_cache",
        "cache_implementation",
        "cache_config",
        "max_cache_len",
        "return_dict_in_generate",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "assistant_confidence_threshold",
        "assistant_lookbehind",
        "target_lookbehind",
        "max_matching_ngram_size",
        "compile_config",
        "disable_compile",
        "continuous_batching_config",
        "low_memory",
        "prefill_chunk_size",
        "transformers_version",
        "generation_kwargs",
        "trust_remote_code",
    ]
)

IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


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
    tokens that were generated before, by their count and by the fact.

    Equal configs are equal and hash alike; lists are stored as tuples.

    ```python
    import easyfn as ef
    config = ef.GenerationConfig(max_new_tokens=8, do_sample=True, temperature=0.7, eos_token_id=[1, 2])
    assert hash(config) == hash(ef.GenerationConfig(max_new_tokens=8, do_sample=True, temperature=0.7,
    eos_token_id=(1, 2))) ```
    """

    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int | None = None
    min_new_tokens: int | None = None
    do_sample: bool | None = None
    num_beams: int | None = None
    early_stopping: bool | str | None = None
    length_penalty: float | None = None
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
    output_scores: bool | None = None
    output_logits: bool | None = None
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
        return _ids(self.eos_token_id)

    @property
    def pad(self) -> int | None:
        """The id that fills a row after its end: `pad_token_id`, or else the first id that ends a row."""
        return self.pad_token_id if self.pad_token_id is not None else next(iter(self.eos), None)


FIELDS = tuple(field.name for field in dataclasses.fields(GenerationConfig))


def _ids(value: Any) -> tuple[int, ...]:
    """One id, several or none; a negative id is none, as everywhere in transformers."""
    if value is None:
        return ()
    return tuple(int(i) for i in (value if isinstance(value, tuple) else (value,)) if int(i) >= 0)


def resolve(model_config: Any, config: Any, options: Mapping[str, Any]) -> GenerationConfig:
    """The complete config of one call: options, then `config`, then the checkpoint's, then transformers' defaults."""
    given = GenerationConfig(**_known(options, "generate"))
    chosen = {name: getattr(given, name) for name in FIELDS if getattr(given, name) is not None}
    for short, long in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
        if short in chosen and long in chosen:
            raise ValueError(f"generate: {short}={chosen[short]} and {long}={chosen[long]} say a thing twice; give one")
    explicit = dict(chosen)
    for layer in (_set(config), checkpoint_defaults(model_config)):
        layer = dict(layer)
        for short, long in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
            if short in chosen or long in chosen:  # the caller's word on a length is the only one
                layer.pop(short, None), layer.pop(long, None)
        chosen = {**layer, **chosen}
    done = GenerationConfig(**chosen)
    if not done.do_sample and (idle := [name for name in SAMPLING if name in explicit]):
        raise ValueError(f"generate: {', '.join(idle)} has an effect only with do_sample=True; add it")
    if (done.num_beams or 1) == 1 and (idle := [name for name in BEAMS if name in explicit]):
        raise ValueError(f"generate: {', '.join(idle)} has an effect only with num_beams= above 1; leave it out")
    return done


def with_defaults(config: GenerationConfig) -> GenerationConfig:
    """`config` with transformers' defaults where nothing is set; lengths are left to the caller."""
    unset = {k: v for k, v in DEFAULTS.items() if getattr(config, k) is None and k not in ("max_length", "min_length")}
    return config.replace(**unset)


def _set(config: Any) -> dict[str, Any]:
    """What a config says: one of ours, a mapping, or transformers' own."""
    if config is None:
        return {}
    if hasattr(config, "to_diff_dict"):
        config = config.to_diff_dict()
    if isinstance(config, Mapping):
        return _known(config, "config", file=True)
    if not isinstance(config, GenerationConfig):
        raise TypeError(f"generate: config must be an ef.GenerationConfig, not {type(config).__name__}")
    return {name: getattr(config, name) for name in FIELDS if getattr(config, name) is not None}


def checkpoint_defaults(model_config: Any) -> dict[str, Any]:
    """What a checkpoint's own files say of generation."""
    generation = dict(getattr(model_config, "generation", None) or {})
    extra = dict(getattr(model_config, "extra", None) or {})
    here = {name: getattr(model_config, name) for name in IDS if getattr(model_config, name, None) is not None}
    file = _known(generation, "generation_config.json", file=True)
    # Where there is no generation_config.json, transformers reads all of it from config.json.
    names = IDS if generation else (*FIELDS, *REFUSED)
    old = _known({k: extra[k] for k in names if k in extra}, "config.json", file=True)
    return {**old, **here, **file}


def _known(options: Mapping[str, Any], where: str, *, file: bool = False) -> dict[str, Any]:
    """The options that are fields; every other one is refused by name, unless it is off or changes no token."""
    kept, refused = {}, []
    for name, value in options.items():
        if name in FIELDS:
            kept[name] = value
        elif (
            value is None
            or (name in REFUSED and value in REFUSED[name])
            or (file and (name in HARMLESS or name.startswith("_")) and value != "quantized")
        ):
            continue
        else:
            refused.append(name)
    if refused:
        name = refused[0]
        if name in REFUSED or name in HARMLESS:
            why = "easyfn does not have this option of transformers, and an option is never ignored"
        else:
            why = f"no such option. {near(name, FIELDS)}"
        write = (
            f" Load with config_overrides, or set config.generation without {name}."
            if where.endswith(".json")
            else " Leave it out."
        )
        listed = ", ".join(f"{n}={options[n]!r}" for n in refused)
        raise ValueError(f"{where}: {listed} is not supported: {why}.{write}")
    return kept


def _validate(c: GenerationConfig) -> None:
    """The ranges that transformers' processors ask for, checked before anything is compiled."""

    def check(name: str, holds: Any, wanted: str) -> None:
        value = getattr(c, name)
        if value is None or isinstance(value, jax.core.Tracer):
            return
        try:
            good = bool(holds(value))
        except TypeError:
            good = False
        if not good:
            raise ValueError(f"{name}={value!r} must be {wanted}")

    def count(low: int) -> Any:
        return lambda v: isinstance(v, (int, np.integer)) and not isinstance(v, bool) and v >= low

    for name in ("max_length", "max_new_tokens", "num_beams", "num_return_sequences"):
        check(name, count(1), "an integer of at least 1")
    for name in ("min_length", "min_new_tokens", "top_k", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"):
        check(name, count(0), "an integer of at least 0")
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
    many = lambda v: isinstance(v, tuple) and all(isinstance(i, (int, np.integer)) for i in v)
    check("suppress_tokens", many, "a list of ids")
    check("begin_suppress_tokens", many, "a list of ids")
    check("bad_words_ids", lambda v: v and all(many(w) and w and min(w) >= 0 for w in v), "a list of lists of ids")
    check("sequence_bias", lambda v: v and all(many(w) and w and float(b) == float(b) for w, b in v), "{(ids): bias}")
    check("exponential_decay_length_penalty", lambda v: len(v) == 2 and v[0] >= 0, "(start, factor)")
    check("eos_token_id", lambda v: many(v) or count(-1)(v), "an id or a list of ids")

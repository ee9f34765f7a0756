"""Where options come from, and what becomes of each: an option is honoured or refused by name, never ignored."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from ..core.tree import near
from .config import FIELDS, GenerationConfig, validate
from .speech import FACTS

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
    "guidance_scale": 1.0,
    "max_matching_ngram_size": 2,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_scores": False,
    "output_logits": False,
    "remove_invalid_values": False,
    "renormalize_logits": False,
}

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
BEAMS = ("early_stopping", "length_penalty")

_GONE = "transformers 5 moved it out of its core, and easyfn follows"

_SPEECH = "it is an option of ef.transcribe, which makes the prompt, the windows and the checks of speech"

# Options of transformers that easyfn refuses: the values that turn each off, and the reason.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    **{name: ((), _SPEECH) for name in ("language", "task", "prompt_ids", "prompt_condition_type")},
    **{name: ((False,), _SPEECH) for name in ("return_timestamps", "condition_on_prev_tokens")},
    **{name: ((), _SPEECH) for name in ("compression_ratio_threshold", "logprob_threshold", "no_speech_threshold")},
    "return_token_timestamps": ((False,), "ef.transcribe gives the times of segments, not of tokens"),
    "return_segments": ((), "ef.transcribe always returns them"),
    "is_multilingual": ((), "the checkpoint's generation_config.json says it"),
    "monitor_progress": ((), "ef.transcribe yields nothing before its end"),
    "force_unique_generate_call": ((False,), "a single call is ef.generate itself"),
    "num_segment_frames": ((), "the config's max_source_positions say it"),
    "time_precision": ((0.02,), "two frames of Whisper's encoder are 20 ms"),
    "time_precision_features": ((0.01,), "a frame of Whisper's spectrogram is 10 ms"),
    "max_time": ((), "a compiled loop reads no clock; take tokens from ef.stream and leave its loop in time"),
    "use_mtp": ((False,), "no family of easyfn has heads for several tokens; assistant_model= drafts for any"),
    "token_healing": ((False,), "it rewrites the prompt with a tokenizer; cut the prompt's last token yourself"),
    "watermarking_config": ((), "its green lists come from torch's random numbers; write it as one of processors="),
    "is_assistant": ((False,), "transformers sets it on its own drafts; give the draft as assistant_model="),
    "assistant_early_exit": (
        (),
        "easyfn drafts with a model of its own, assistant_model=, or prompt_lookup_num_tokens=",
    ),
    "assistant_ensemble_weight": ((), "it biases what is sampled; drafts here never change the distribution"),
    "speculation_type": ((), "give assistant_model= or prompt_lookup_num_tokens="),
    "num_assistant_tokens_schedule": (("constant",), "every round of a compiled loop drafts num_assistant_tokens"),
    "assistant_confidence_threshold": ((0, 0.0), "every round of a compiled loop drafts num_assistant_tokens"),
    "assistant_lookbehind": ((), "the draft must have the model's own vocabulary"),
    "target_lookbehind": ((), "the draft must have the model's own vocabulary"),
    "penalty_alpha": ((0, 0.0), f"contrastive search: {_GONE}"),
    "dola_layers": ((), f"DoLa: {_GONE}"),
    "diversity_penalty": ((0, 0.0), f"diverse beam groups: {_GONE}"),
    "num_beam_groups": ((1,), f"diverse beam groups: {_GONE}"),
    "constraints": ((), f"constrained beams: {_GONE}"),
    "force_words_ids": ((), f"constrained beams: {_GONE}"),
    "forced_decoder_ids": ((), "transformers 5 dropped it: give decoder_input_ids"),
    "low_memory": ((False,), "transformers refuses it too since its beam search was rewritten"),
    "use_cache": ((True,), "easyfn always keeps a cache while it generates: the same tokens, sooner"),
    "cache_config": (
        (),
        "cache_implementation='quantized' has 8 bits and a scale for each slot and head, and no choices",
    ),
    "max_cache_len": ((), "give the cache itself, cache=ef.init_cache(model, rows, slots)"),
    "compile_config": ((), "generate is compiled by jax.jit; its flags are JAX's own"),
    "disable_compile": ((False,), "use jax.disable_jit()"),
    "continuous_batching_config": ((), "generate runs one batch from its start to its end"),
    "generation_kwargs": ((), "give the options themselves"),
    "trust_remote_code": ((False,), "easyfn runs no code of a checkpoint"),
    "custom_generate": ((), "easyfn runs no code of a checkpoint"),
}

# Options that change nothing here whatever they say: a Generation is always returned.
HARMLESS = frozenset(["return_dict_in_generate", "transformers_version"])

# Keys of a `generation_config.json` that change how transformers computes, but no token.
HARMLESS_IN_FILES = frozenset(
    [
        "use_cache",
        "cache_config",
        "max_cache_len",
        "num_assistant_tokens_schedule",
        "assistant_confidence_threshold",
        "assistant_lookbehind",
        "target_lookbehind",
        "is_assistant",
        "compile_config",
        "disable_compile",
        "continuous_batching_config",
        "generation_kwargs",
        "trust_remote_code",
    ]
)

IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def resolve(model_config: Any, config: Any, options: Mapping[str, Any]) -> GenerationConfig:
    """The complete config of one call: options, then `config`, then the checkpoint's, then transformers' defaults."""
    given = GenerationConfig(**_known(options, "generate"))
    chosen = {name: getattr(given, name) for name in FIELDS if getattr(given, name) is not None}
    for short, long in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
        if short in chosen and long in chosen:
            raise ValueError(f"generate: {short}={chosen[short]} and {long}={chosen[long]} say a thing twice; give one")
    explicit = dict(chosen)
    for layer in (_set(config), checkpoint_defaults(model_config)):
        for short, long in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
            if short not in chosen and long in chosen and layer.get(short) is not None:
                warnings.warn(
                    f"generate: {long}={chosen[long]} does nothing, because the checkpoint or config= says "
                    f"{short}={layer[short]}, which wins (in transformers too); give {short}= instead",
                    stacklevel=4,
                )
        chosen = {**layer, **chosen}
    for short, long in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
        if chosen.get(short) is not None:  # wherever it was said
            chosen.pop(long, None)
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
    file = _known(generation, "generation_config.json", file=True)
    # Where there is no generation_config.json, transformers reads all of it from config.json.
    names = IDS if generation else (*FIELDS, *REFUSED)
    mine = IDS if generation else FIELDS
    here = {name: getattr(model_config, name) for name in mine if getattr(model_config, name, None) is not None}
    old = _known({k: extra[k] for k in names if k in extra}, "config.json", file=True)
    return {**old, **here, **file}


def _known(options: Mapping[str, Any], where: str, *, file: bool = False) -> dict[str, Any]:
    """The options that are fields; every other one is refused by name, unless it is off or changes no token."""
    kept, refused = {}, []
    for name, value in options.items():
        if file and name == "cache_implementation" and value != "quantized":
            continue  # every cache here is static, and gives the tokens of the others
        if name in FIELDS:
            kept[name] = value
        elif not _off(name, value, file):
            refused.append(name)
    if refused:
        name = refused[0]
        why = REFUSED[name][1] if name in REFUSED else f"no such option. {near(name, FIELDS).rstrip('.')}"
        write = (
            f" Load with config_overrides, or set config.generation without {name}."
            if where.endswith(".json")
            else " Leave it out."
        )
        listed = ", ".join(f"{n}={options[n]!r}" for n in refused)
        raise ValueError(f"{where}: {listed} is not supported: {why}.{write}")
    if file:
        try:
            validate(kept)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return kept


def _off(name: str, value: Any, file: bool) -> bool:
    """Whether an option that is no field says nothing, or nothing that changes a token."""
    if value is None or name in HARMLESS or (name in REFUSED and _in(value, REFUSED[name][0])):
        return True
    return file and (name in HARMLESS_IN_FILES or name in FACTS or name.startswith("_"))


def _in(value: Any, values: tuple[Any, ...]) -> bool:
    """Whether a value is one of some, which of a JSON list or object it is not."""
    return isinstance(value, str | int | float) and value in values

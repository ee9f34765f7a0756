"""`config.json` to a frozen dataclass and back, with every key accounted for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from ..core.frozen import Frozen, freeze, thaw

# Keys of transformers that say nothing about the mathematics of a forward pass. They are kept in `config.extra` and
# written back. Keys that start with an underscore are private to transformers, and ignored as well.
# (`original_max_position_embeddings` at the top is read by `rope_parameters`.)
IGNORABLE = frozenset(
    """architectures auto_map bad_words_ids begin_suppress_tokens bos_token_id cache_implementation
    chunk_size_feed_forward decoder_start_token_id diversity_penalty do_sample dtype early_stopping
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id gradient_checkpointing id2label initializer_range is_decoder is_encoder_decoder
    keys_to_ignore_at_inference label2id length_penalty max_length max_sequence_length min_length model_max_length
    model_type name_or_path neftune_noise_alpha no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    original_max_position_embeddings output_attentions output_hidden_states output_past output_router_logits output_scores pad_token_id prefix
    pretraining_tp problem_type pruned_heads remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
    tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p
    unsloth_fixed unsloth_version use_bfloat16 use_cache vocab_file quantization_config transformers.js_config
    sentence_transformers sbert_ce_default_activation_function xla_device""".split()  # noqa: SIM905
)

# Of these the model knows better than the file: `save` writes them anew. So a model loaded has the config of the model saved.
DERIVED = frozenset(["model_type", "dtype", "torch_dtype"])

# Switches of other families and of forks: they say nothing while they are off.
SWITCHES = frozenset(["add_cross_attention", "attention_bias", "mlp_bias", "rope_interleaved", "use_mrope"])


class UnknownConfigKey(ValueError):
    """A `config.json` holds a key that could change the mathematics and that the family does not implement."""


class Config:
    """What every family's config dataclass must have; only a description, not a base class.

    `model_type`, and two fields: `extra` (keys without influence on the mathematics, kept for the way back) and `generation`
    (the content of `generation_config.json`).
    """

    model_type: ClassVar[str]
    extra: Frozen
    generation: Frozen


def read(cls: type, data: Mapping[str, Any], ignore: frozenset[str] = frozenset(), where: str = "config.json") -> Any:
    """A config of class `cls` from the JSON of a `config.json`.

    Every key is a field of `cls`, or listed as ignorable (by transformers' conventions or by the family), or `null`;
    otherwise [`easyfn.UnknownConfigKey`][] names it. A required field that is missing is a `ValueError`. If the class has
    a static method `normalize(data) -> data` it sees the JSON first: there older spellings become today's.
    """
    data = dict(data)
    normalize = getattr(cls, "normalize", None)
    if normalize is not None:
        data = normalize(data)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    known = {k: freeze(v) for k, v in data.items() if k in fields and k not in ("extra", "generation")}
    rest = {k: v for k, v in data.items() if k not in known}
    matters = {
        k: v
        for k, v in rest.items()
        if k not in IGNORABLE
        and k not in ignore
        and not k.startswith("_")
        and v is not None
        and not (v is False and k in SWITCHES)
    }
    if matters:
        listed = ", ".join(f"{k}={v!r}" for k, v in sorted(matters.items()))
        raise UnknownConfigKey(
            f"{where}: {cls.__name__} does not know {listed}. A key that easyfn does not implement could change the "
            "results, so it is refused. If you are sure that it does not matter here, load with "
            f"config_overrides={{{', '.join(f'{k!r}: None' for k in sorted(matters))}}}."
        )
    missing = [
        name
        for name, f in fields.items()
        if name not in known and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{where}: {cls.__name__} needs {', '.join(missing)}, which the file does not give")
    for name, value in known.items():
        whole = fields[name].type in (int, "int", "int | None") and value is not None
        if whole and (not isinstance(value, int) or value < 0):
            raise ValueError(f"{where}: {name}={value!r} must be an integer of at least 0")
    if "extra" in fields:
        known["extra"] = Frozen({k: v for k, v in rest.items() if k not in ("extra", "generation", *DERIVED)})
    return cls(**known)


def write(config: Any) -> dict[str, Any]:
    """The JSON of a config: its fields and what it carries in `extra`, with its `model_type` if it knows it."""
    data: dict[str, Any] = thaw(getattr(config, "extra", Frozen()))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        # What is None by default is left out: transformers takes a key that is null for said, not for its default.
        if field.name not in ("extra", "generation") and not (value is None and field.default is None):
            data[field.name] = thaw(value)
    if hasattr(config, "model_type"):
        data["model_type"] = config.model_type
    denormalize = getattr(type(config), "denormalize", None)
    return data if denormalize is None else denormalize(data)


def ignored(config: Any) -> dict[str, Any]:
    """The keys of the file that have no influence on what the model computes."""
    return thaw(getattr(config, "extra", Frozen()))


def labels(data: dict[str, Any]) -> dict[str, Any]:
    """`num_labels` as transformers derives it: from `id2label`."""
    if "num_labels" not in data and data.get("id2label"):
        data = {**data, "num_labels": len(data["id2label"])}
    return data


def only(data: Mapping[str, Any], key: str, *allowed: Any) -> None:
    """Refuses a key that is implemented for some values only; list it in the family's `ignore` as well.

    Raises [`easyfn.UnknownConfigKey`][] unless the value is absent, `null` or one of `allowed`.
    """
    value = data.get(key)
    if value is not None and value not in allowed:
        known = " or ".join(map(repr, (*allowed, None)))
        raise UnknownConfigKey(f"config.json: {key}={value!r} is not implemented, only {known}")


# What each kind cannot do without; transformers needs the same.
_ROPE_NEEDS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}
# What `nn.inverse_frequencies` reads (and `finetuned`, a remark). Another key (`mrope_section`, ...) would change the rotation.
_ROPE_KEYS = frozenset(
    """rope_type rope_theta partial_rotary_factor factor original_max_position_embeddings attention_factor
    beta_fast beta_slow short_factor long_factor low_freq_factor high_freq_factor mscale mscale_all_dim
    truncate finetuned""".split()  # noqa: SIM905
)


def rope_parameters(data: dict[str, Any], *, theta: float = 10000.0) -> dict[str, Any]:
    """Rewrites older spellings of the rotary settings (`rope_theta`, `rope_scaling`) as `rope_parameters`.

    Follows transformers `PreTrainedConfig.standardize_rope_params`. Parameters may be nested by kind of layer.
    `theta` is the base of a family whose file gives none. Raises [`easyfn.UnknownConfigKey`][] for a parameter that
    is not implemented.
    """
    data = dict(data)
    scaling = data.pop("rope_scaling", None)
    parameters = dict(scaling or data.get("rope_parameters") or {})
    base = data.pop("rope_theta", None)
    partial = data.pop("partial_rotary_factor", None)

    def one(part: Mapping[str, Any]) -> dict[str, Any]:
        part = dict(part)
        kind = part.pop("type", None)
        part["rope_type"] = part.get("rope_type") or kind or "default"
        if part["rope_type"] == "su":  # the first name of longrope
            part["rope_type"] = "longrope"
        part.setdefault("rope_theta", theta if base is None else base)
        if partial is not None:
            part.setdefault("partial_rotary_factor", partial)
        if part["rope_type"] in ("llama3", "yarn", "longrope"):
            outer = data.get("original_max_position_embeddings")  # Phi-3's place for it; it wins
            if outer is not None:
                part["original_max_position_embeddings"] = outer
            elif data.get("max_position_embeddings") is not None:
                part.setdefault("original_max_position_embeddings", data["max_position_embeddings"])
        if unknown := sorted(k for k, v in part.items() if k not in _ROPE_KEYS and v is not None):
            raise UnknownConfigKey(f"config.json: rotary positions with {', '.join(unknown)} are not implemented")
        if lost := [k for k in _ROPE_NEEDS.get(part["rope_type"], ()) if part.get(k) is None]:
            raise ValueError(f"config.json: rope_type {part['rope_type']!r} needs {', '.join(lost)}; it has {part}")
        return part

    if any(isinstance(value, Mapping) for value in parameters.values()):
        data["rope_parameters"] = {kind: None if part is None else one(part) for kind, part in parameters.items()}
    else:
        data["rope_parameters"] = one(parameters)
    return data

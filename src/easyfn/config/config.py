"""`config.json` to a frozen dataclass and back, with every key accounted for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from ..core.frozen import Frozen, thaw
from .check import check, hints
from .errors import UnknownConfigKey as UnknownConfigKey
from .fields import aliases
from .quantization import quantization
from .rope import rope_parameters as rope_parameters

# Keys of transformers that say nothing about the mathematics of a forward pass. They are kept in `config.extra` and
# written back. Keys that start with an underscore are private to transformers: it writes them and never reads them.
IGNORABLE = frozenset(
    """architectures auto_map bad_words_ids begin_suppress_tokens bos_token_id cache_implementation
    chunk_size_feed_forward decoder_start_token_id diversity_penalty do_sample dtype early_stopping
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id gradient_checkpointing id2label initializer_range is_decoder is_encoder_decoder
    keys_to_ignore_at_inference label2id length_penalty max_length max_sequence_length min_length model_max_length
    model_type name_or_path neftune_noise_alpha no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    output_attentions output_hidden_states output_past output_router_logits output_scores pad_token_id prefix
    pretraining_tp problem_type pruned_heads remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
    tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p
    unsloth_fixed unsloth_version use_bfloat16 use_cache vocab_file quantization_config transformers.js_config
    sentence_transformers sbert_ce_default_activation_function xla_device""".split()  # noqa: SIM905
)

# Of these the model knows better than the file: `save` writes them anew. So a model loaded has the config of the model saved.
DERIVED = frozenset(["model_type", "dtype", "torch_dtype"])

# Not transformers' but ours: what lies beside a config.json and belongs to the model.
PRIVATE = frozenset(["_sentence_transformers"])

# Of the ignorable keys, those that something does read, and what they must be.
TYPES: dict[str, Any] = {
    "architectures": tuple[str, ...] | None,
    "id2label": Mapping | None,
    "label2id": Mapping | None,
    "initializer_range": float | int | None,
    "quantization_config": Mapping | None,
    "dtype": str | None,
    "torch_dtype": str | None,
    "task_specific_params": Mapping | None,
}

# Switches of other families and of forks: they say nothing while they are off.
SWITCHES = frozenset(["add_cross_attention", "attention_bias", "mlp_bias", "rope_interleaved", "use_mrope"])


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

    Every key is a field of `cls` or an `alias` of one, or listed as ignorable (by transformers' conventions, by the family,
    by the class in `ignored`), or `null`; otherwise [`easyfn.UnknownConfigKey`][] names it. Values must be of the type that
    the field is annotated with; a required field that is missing, or a value of another type, is a `ValueError`.

    A class lists in `unsaid` the fields that transformers' config does not have: `write` leaves out their defaults.

    If the class has a static method `normalize(data) -> data` it sees the JSON first: there older spellings become today's.
    Rotary settings (`rope_theta`, `rope_scaling`) and labels (`id2label`) need none: they are understood wherever the class
    has the fields `rope_parameters` and `num_labels`. What the field's default says of `rope_theta` and
    `partial_rotary_factor` is what a file without them means. A field annotated with another config class is read with it.
    """
    data = common(data, where)
    data = _normalized(cls, data, where)
    for other, name in aliases(cls).items():
        if (value := data.pop(other, None)) is not None:
            data[name] = value
    fields = {f.name: f for f in dataclasses.fields(cls) if f.name not in ("extra", "generation")}
    if "rope_parameters" in fields:
        given = fields["rope_parameters"].default
        said = given if isinstance(given, Mapping) else {}
        theta, partial = said.get("rope_theta", 10000.0), said.get("partial_rotary_factor")
        data = rope_parameters(data, theta=theta, partial=partial, where=where)
        if "original_max_position_embeddings" not in fields:
            data.pop("original_max_position_embeddings", None)  # where it says anything, rope_parameters have it now
    if "num_labels" in fields:
        data = labels(data)
    rest = {k: v for k, v in data.items() if k not in fields}
    _refuse_unknown(cls, rest, ignore | frozenset(getattr(cls, "ignored", ())), where)
    types = hints(cls)
    known = {
        k: read(types[k], v, where=f"{where}: {k}")
        if dataclasses.is_dataclass(types[k]) and isinstance(v, Mapping)
        else check(k, v, types[k], where)
        for k, v in data.items()
        if k in fields
    }
    missing = [
        name
        for name, f in fields.items()
        if name not in known and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{where}: {cls.__name__} needs {', '.join(missing)}, which the file does not give")
    if any(f.name == "extra" for f in dataclasses.fields(cls)):
        private = {k for k in rest if k.startswith("_")} - PRIVATE
        dropped = {"extra", "generation", *DERIVED, *private}
        known["extra"] = Frozen({k: v for k, v in rest.items() if k not in dropped})
    return cls(**known)


def _normalized(cls: type, data: dict[str, Any], where: str) -> dict[str, Any]:
    """What the class makes of older spellings; where it stumbles over a value, the error says over which."""
    normalize = getattr(cls, "normalize", None)
    if normalize is None:
        return data
    try:
        return dict(normalize(dict(data)))
    except (TypeError, AttributeError, KeyError, IndexError, ArithmeticError) as error:
        types = hints(cls)
        for name in types.keys() & data.keys():
            check(name, data[name], types[name], where)
        raise ValueError(f"{where}: {cls.__name__} cannot be read from it: {type(error).__name__}: {error}") from error


def common(data: Mapping[str, Any], where: str = "config.json") -> dict[str, Any]:
    """The JSON with the keys that all checkpoints have in common checked."""
    found = {k: numbers(v, f"{where}: {k}") for k, v in data.items()}
    for key, hint in TYPES.items():
        if key in found:
            check(key, found[key], hint, where)
    if found.get("quantization_config"):
        quantization(found["quantization_config"], f"{where}: quantization_config")
    return found


def _refuse_unknown(cls: type, rest: Mapping[str, Any], ignore: frozenset[str], where: str) -> None:
    matters = {
        k: v
        for k, v in rest.items()
        if k not in IGNORABLE
        and k not in ignore
        and k not in ("extra", "generation")
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


def write(config: Any) -> dict[str, Any]:
    """The JSON of a config: its fields and what it carries in `extra`, with its `model_type` if it knows it."""
    data: dict[str, Any] = {k: _finite(v) for k, v in thaw(getattr(config, "extra", Frozen())).items()}
    unsaid = getattr(type(config), "unsaid", ())  # what the reference has no place for: said where it says anything
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in unsaid and value == field.default:
            continue
        # What is None by default is left out: transformers takes a key that is null for said, not for its default.
        if field.name not in ("extra", "generation") and not (value is None and field.default is None):
            data[field.name] = write(value) if dataclasses.is_dataclass(value) else _finite(thaw(value))
    if hasattr(config, "model_type"):
        data["model_type"] = config.model_type
    denormalize = getattr(type(config), "denormalize", None)
    return data if denormalize is None else denormalize(data)


def _finite(value: Any) -> Any:
    """JSON has no infinity: transformers writes `{"__float__": "Infinity"}`."""
    if isinstance(value, list):
        return [_finite(v) for v in value]
    if isinstance(value, float) and math.isinf(value):
        return {"__float__": "Infinity" if value > 0 else "-Infinity"}
    return value


def numbers(value: Any, where: str = "config.json") -> Any:
    """The inverse of what `write` makes of infinity: `{"__float__": "Infinity"}` is a number again."""
    if isinstance(value, list | tuple):
        return type(value)(numbers(v, where) for v in value)
    if isinstance(value, Mapping) and list(value) == ["__float__"]:
        try:
            return float(value["__float__"])
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{where} is {dict(value)!r}, and {value['__float__']!r} is no number") from None
    return value


def ignored(config: Any) -> dict[str, Any]:
    """The keys of the file that have no influence on what the model computes."""
    return thaw(getattr(config, "extra", Frozen()))


def labels(data: dict[str, Any]) -> dict[str, Any]:
    """`num_labels` as transformers derives it: from `id2label`, which wins."""
    return {**data, "num_labels": len(data["id2label"])} if data.get("id2label") else data


def without_nulls(data: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The JSON without those of `keys` that are `null`: where the reference takes its default for one."""
    return {k: v for k, v in data.items() if v is not None or k not in keys}


def only(data: Mapping[str, Any], key: str, *allowed: Any) -> None:
    """Refuses a key that is implemented for some values only; list it in the family's `ignore` as well.

    Raises [`easyfn.UnknownConfigKey`][] unless the value is absent, `null` or one of `allowed`.
    """
    value = data.get(key)
    if value is not None and value not in allowed:
        known = " or ".join(map(repr, (*allowed, None)))
        raise UnknownConfigKey(f"config.json: {key}={value!r} is not implemented, only {known}")

"""What `fuzz_configs.py` draws: changes of a config, another head, inputs."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import random
import re
import typing
from collections.abc import Iterator
from typing import Any

import numpy as np

# Keys that change no number of a forward pass, that are ids, or that say what the whole thing is.
LEFT = frozenset(
    """model_type architectures transformers_version dtype torch_dtype id2label label2id problem_type use_cache
    initializer_range initializer_factor bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id
    return_dict output_hidden_states output_attentions is_encoder_decoder chunk_size_feed_forward name_or_path
    output_router_logits pretraining_tp tokenizer_class finetuning_task _name_or_path attn_implementation num_labels
    cross_attention_hidden_size image_token_id image_token_index video_token_id
    vision_start_token_id vision_end_token_id forced_eos_token_id forced_bos_token_id initializer_std init_std
    use_mamba_kernels router_jitter_noise gradient_checkpointing""".split()  # noqa: SIM905
)
WIDTHS = ("hidden_size", "d_model", "n_embd", "dim", "embed_dim")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads")
DEPTHS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
)
ROTARY = frozenset(
    """rope_type type rope_theta partial_rotary_factor factor original_max_position_embeddings low_freq_factor high_freq_factor
    beta_fast beta_slow mscale mscale_all_dim attention_factor truncate short_factor long_factor""".split()  # noqa: SIM905
)
WINDOW = re.compile("window|attention_chunk_size")
ACTIVATION = re.compile("(_act|activation|activation_function|act_fn)$")
SIZES = {
    "intermediate_size": [1, 40, 80, 97],
    "vocab_size": [97, 98, 128],
    "max_position_embeddings": [8, 32, 33, 64, 4096],
    "n_positions": [32, 33, 64],
    "num_experts": [1, 2, 3, 4, 8],
    "num_local_experts": [1, 2, 3, 4, 8],
    "n_routed_experts": [2, 4, 8],
    "num_experts_per_tok": [1, 2, 3],
    "top_k_experts": [1, 2],
}
WORDS = {  # of keys that are strings and whose class does not list them
    "position_embedding_type": ["absolute", "relative_key", "relative_key_query"],
    "feed_forward_proj": ["relu", "gelu", "gated-gelu", "gated-silu", "gated-relu", "silu"],
    "scoring_func": ["softmax", "sigmoid"],
    "topk_method": ["greedy", "group_limited_greedy", "noaux_tc"],
    "norm_type": ["layer_norm", "rms_norm"],
}


# Heads that a case may get instead of its own, and the class of transformers that knows which model it is.
OTHER_HEADS = {
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "base": "AutoModel",
}


# Drawing a config.


def keys_of(data: dict[str, Any]) -> list[str]:
    """What can be changed in a config's JSON, without what is nested."""
    left = LEFT | said_in_tables(data)
    return sorted(
        k for k in data if k not in left and not k.startswith("_") and "dropout" not in k and "pdrop" not in k
    )


def said_in_tables(data: dict[str, Any]) -> set[str]:
    """Older spellings of what every table in `rope_parameters` says: nothing reads them beside it."""
    value = data.get("rope_parameters") or {}
    tables = [table for table in value.values() if isinstance(table, dict)] or [value]
    older = ("rope_theta", "compress_rope_theta", "partial_rotary_factor")
    return {key for key in older if all(key.removeprefix("compress_") in table for table in tables)}


def parts(config: Any) -> Iterator[tuple[str, Any]]:
    """The config and the configs inside it, each with its place: `""`, `"text_config."`."""
    yield "", config
    for name in getattr(type(config), "sub_configs", None) or {}:
        if (inner := getattr(config, name, None)) is not None:
            yield f"{name}.", inner


def hints_of(config: Any) -> dict[str, Any]:
    """The types that the reference's class states."""
    try:
        return typing.get_type_hints(type(config))
    except Exception:
        return {}


def changes_of(base: Any, rng: random.Random) -> dict[str, Any]:
    """The changes of one case, by dotted key: one to five draws, some of which change keys that belong together."""
    changes: dict[str, Any] = {}
    places = list(parts(base))
    for _ in range(rng.choice([1, 1, 2, 3, 5])):
        place, config = rng.choice(places)
        data = {k: changes.get(place + k, v) for k, v in config.to_dict().items()}
        moves = [heads, depth, rotary, mixed_layers]
        if rng.random() < 0.4:
            new = rng.choice(moves)(data, config, rng)
        else:
            keys = [k for k in keys_of(data) if not (isinstance(data[k], dict) and "rope" not in k)]
            if not keys:
                continue
            key = rng.choice(keys)
            if key in DEPTHS and rng.random() < 0.9:
                new = depth(data, config, rng)
            else:
                new = {key: draw(key, data[key], data, hints_of(config), rng)}
        changes |= {place + k: v for k, v in new.items() if v != data.get(k, ...)}
    return changes


def heads(data: dict[str, Any], config: Any, rng: random.Random) -> dict[str, Any]:
    """Heads, their width, and the model's, together: groups of any size, odd numbers, a width apart."""
    count, width = rng.choice([1, 2, 3, 4, 5, 6]), rng.choice([4, 6, 8, 10, 12, 16])
    apart = data.get("head_dim") is not None and rng.random() < 0.6
    size = rng.choice([20, 36, 50, 64]) if apart else count * width
    kv = rng.choice([k for k in range(1, count + 1) if count % k == 0])
    new = dict.fromkeys([k for k in WIDTHS if isinstance(data.get(k), int)], size)
    new |= dict.fromkeys([k for k in HEADS if isinstance(data.get(k), int)], count)
    new |= dict.fromkeys([k for k in KV_HEADS if k in data], kv)
    if "head_dim" in data:
        new["head_dim"] = width
    return new


def depth(data: dict[str, Any], config: Any, rng: random.Random) -> dict[str, Any]:
    """Another number of layers, and every list that has a value for each."""
    names = [k for k in DEPTHS if isinstance(data.get(k), int)]
    if not names:
        return {}
    old, new = data[names[0]], rng.choice([1, 2, 3, 4])
    lists = {k: v for k, v in data.items() if isinstance(v, list) and len(v) == old and k not in LEFT}
    return {names[0]: new, **{k: [rng.choice(v) for _ in range(new)] for k, v in lists.items()}}


def mixed_layers(data: dict[str, Any], config: Any, rng: random.Random) -> dict[str, Any]:
    """Kinds of layers in any order; where attention may slide, a window with them."""
    found = {}
    for key in ("layer_types", "layers_block_type", "mlp_layer_types"):
        if isinstance(data.get(key), list) and data[key]:
            kinds = set(data[key])
            if kinds <= {"full_attention", "sliding_attention"}:
                kinds = {"full_attention", "sliding_attention"}
            found[key] = [rng.choice(sorted(kinds, key=str)) for _ in data[key]]
    if "sliding_window" in data and rng.random() < 0.7:
        found["sliding_window"] = rng.choice([1, 2, 3, 5, 16])
        if "use_sliding_window" in data:
            found["use_sliding_window"] = True
    return found


def rotary(data: dict[str, Any], config: Any, rng: random.Random) -> dict[str, Any]:
    """Another kind of rotary positions, for each kind of layer that has its own."""
    value = data.get("rope_parameters")
    if not isinstance(value, dict):
        return {}
    if any(isinstance(v, dict) for v in value.values()):
        return {"rope_parameters": {k: turned(v, data, rng) if isinstance(v, dict) else v for k, v in value.items()}}
    return {"rope_parameters": turned(value, data, rng)}


def turned(value: dict[str, Any], data: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """One table of rotary parameters."""
    kind = rng.choice(["default", "linear", "dynamic", "yarn", "yarn", "llama3", "longrope", "proportional"])
    # What the family has of its own there stays: parts of images, a temperature that grows.
    new = {k: v for k, v in value.items() if k not in ROTARY}
    new |= {"rope_type": kind, "rope_theta": rng.choice([value.get("rope_theta") or 10000.0, 10.0, 500.0, 1e6])}
    if rng.random() < 0.25 or "partial_rotary_factor" in value:
        new["partial_rotary_factor"] = rng.choice([0.25, 0.5, 0.75, 1.0])
    if kind in ("linear", "dynamic", "yarn", "llama3", "longrope"):
        new["factor"] = rng.choice([1.0, 2.5, 4.0, 8.0])
    if kind in ("yarn", "llama3", "longrope") and rng.random() < 0.7:
        new["original_max_position_embeddings"] = rng.choice([4, 8, 16])
    if kind == "llama3":
        new |= {"low_freq_factor": rng.choice([1.0, 2.0]), "high_freq_factor": rng.choice([4.0, 8.0])}
    if kind == "yarn":
        more = {"beta_fast": 16.0, "beta_slow": 2.0, "mscale": 0.7, "mscale_all_dim": 1.3, "attention_factor": 1.2}
        new |= {k: v for k, v in {**more, "truncate": False}.items() if rng.random() < 0.3}
    if kind == "longrope":
        count = next((data[k] for k in HEADS if isinstance(data.get(k), int)), 1)
        width = data.get("qk_rope_head_dim") or data.get("head_dim") or (data.get("hidden_size") or 48) // count
        half = int(width * new.get("partial_rotary_factor", 1.0)) // 2
        new["short_factor"] = [round(1.0 + 0.1 * i, 3) for i in range(half)]
        new["long_factor"] = [round(2.0 + 0.5 * i, 3) for i in range(half)]
    return new


def draw(key: str, value: Any, data: dict[str, Any], hints: dict[str, Any], rng: random.Random) -> Any:
    """Another value for a key, of a kind that its class allows."""
    from transformers.activations import ACT2FN

    hint = hints.get(key, Any)
    kinds = typing.get_args(hint) if typing.get_origin(hint) is not typing.Literal else ()
    if type(None) in kinds and rng.random() < 0.15:
        return None
    for one in (hint, *kinds):
        if typing.get_origin(one) is typing.Literal:
            return rng.choice(typing.get_args(one))
    if "rope" in key and isinstance(value, dict):
        return rotary(data, None, rng).get("rope_parameters", value)
    count = next((data[k] for k in HEADS if isinstance(data.get(k), int)), 1)
    if key in KV_HEADS and rng.random() < 0.9:
        return rng.choice([k for k in range(1, count + 1) if count % k == 0])
    if key in WIDTHS and isinstance(value, int) and rng.random() < 0.9:
        return 2 * count * rng.choice([1, 2, 3, 4, 5])
    if key in WORDS and isinstance(value, str):
        return rng.choice(WORDS[key])
    if ACTIVATION.search(key) and isinstance(value, str):
        return rng.choice(list(ACT2FN))
    if isinstance(value, bool):
        return not value
    if WINDOW.search(key) and (isinstance(value, int) or int in kinds):
        return rng.choice([1, 2, 3, 5, 16])
    if key in SIZES:
        return rng.choice(SIZES[key])
    if isinstance(value, int):
        return rng.choice([max(0, value - 1), value + 1, 1, 2, value * 2])
    if isinstance(value, float):
        small = [0.0, 1e-12, 1e-2] if "eps" in key else [0.0, value * 2, value / 2, 3.0]
        return rng.choice([*small, 1.0, 0.5])
    if isinstance(value, list) and value:
        if len(set(map(str, value))) > 1:
            return [rng.choice(value) for _ in value]
        return [draw(key, v, data, {}, rng) for v in value] if isinstance(value[0], float) else value
    if isinstance(value, list):  # of layers, nearly always
        return [rng.randrange(3)]
    if value is None:
        simple = [k for k in (hint, *kinds) if k in (int, float, bool)]
        choices: dict[Any, list[Any]] = {int: [1, 2, 3, 8], float: [0.5, 1.0, 3.0], bool: [True, False]}
        return rng.choice(choices[rng.choice(simple)]) if simple else None
    return value


def changed(base: Any, changes: dict[str, Any]) -> Any:
    """The reference's config with the changes."""
    full = copy.deepcopy(base.to_dict())
    for key, value in changes.items():
        *place, name = key.split(".")
        inner = full
        for step in place:
            inner = inner[step]
        inner[name] = value
    config = type(base).from_dict(full)
    config._experts_implementation = "eager"  # torch's grouped products take no odd sizes
    return config


def class_of(case: Any, base: Any) -> Any:
    """The reference's class for the task of the case, which may be another than that of the model it starts from."""
    import transformers

    from cases import CASES, IMAGES

    if case.task == (CASES | IMAGES)[case.name].task:
        return type(base)
    found = getattr(transformers, OTHER_HEADS[case.task])._model_mapping.get(type(base.config), None)
    return found[0] if isinstance(found, list | tuple) else found


def other_head(case: Any, rng: random.Random) -> Any:
    """The case under another head that both have, now and then; decoders and encoders of text alone."""
    import easyfn as ef

    if case.inputs is not None or pixels(case) or case.encoder_decoder or rng.random() > 0.25:
        return case
    known = ef.families().get(case.torch().config.model_type)
    heads = [dataclasses.replace(case, task=task) for task in OTHER_HEADS if known and task in known.tasks]
    heads = [one for one in heads if class_of(one, case.torch()) is not None]
    return rng.choice(heads) if heads else case


# Drawing inputs.


def text_inputs(case: Any, module: Any, rng: random.Random) -> tuple[dict[str, Any], dict[str, Any], np.ndarray]:
    """What both are given, what only the reference must be told, and where there are tokens."""
    text = module.config.get_text_config()
    rows, length = rng.choice([1, 3]), rng.choice([1, 2, 7, 11, 17, 40])
    limit = None if getattr(text, "rope_parameters", None) else getattr(text, "max_position_embeddings", None) or 64
    length = max(1, min(length, limit - 4)) if isinstance(limit, int) else length
    numbers = np.random.RandomState(rng.randrange(2**31))
    ids = numbers.randint(3, min(97, text.vocab_size), (rows, length))
    mask = np.ones_like(ids)
    padding = rng.choice(["no mask", "none", "left", "right", "both"])
    if padding in ("left", "both") and case.causal:
        mask[0, : length // 3] = 0
    if padding in ("right", "both"):
        mask[-1, length - length // 4 :] = 0
    ids = np.where(mask > 0, ids, 0)
    if padding == "no mask" and case.task == "sequence-classification" and case.causal and text.pad_token_id == 0:
        ids = ids * (numbers.rand(rows, length) < 0.7)  # which row of scores is read, says the last that is no pad id
    given = {"input_ids": ids} if padding == "no mask" else {"input_ids": ids, "attention_mask": mask}
    told = {}
    takes = inspect.signature(module.forward).parameters
    if case.task == "multiple-choice":
        given = {k: np.stack([v, v[::-1]], axis=1) for k, v in given.items()}
        mask = given["input_ids"].reshape(-1, length) > 0
    elif case.encoder_decoder:
        given["decoder_input_ids"] = numbers.randint(3, 97, (rows, 5))
        mask = np.ones((rows, 5), int)
    elif "position_ids" in takes and case.causal:
        told["position_ids"] = np.maximum(mask.cumsum(1) - 1, 0)
    if "token_type_ids" in takes and (kinds := getattr(module.config, "type_vocab_size", 0)) and rng.random() < 0.5:
        given["token_type_ids"] = numbers.randint(0, kinds, given["input_ids"].shape)
    return given, told, mask


def pixels(case: Any) -> bool:
    from cases import IMAGES

    return case.name in IMAGES

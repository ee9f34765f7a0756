"""Dense decoders of later years in `.gguf` files, as `architectures.py` has the others: what their files say and what llama.cpp
knows without being told."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from .facts import (
    DECODER,
    LAYER_NORM,
    PAIRS,
    Architecture,
    Data,
    dim_of,
    groups_apart,
    has,
    read_decoder,
    read_partial,
    read_rope,
    write_decoder,
    write_partial,
    write_rope,
)
from .read import GGUF


def _read_granite(keys: Data, data: Data, file: GGUF) -> None:
    read_decoder(keys, data, file)
    data["mlp_bias"] = has(file, "blk.0.ffn_up.bias")


def _read_seed_oss(keys: Data, data: Data, file: GGUF) -> None:
    read_decoder(keys, data, file)
    data |= {
        "attention_bias": has(file, "blk.0.attn_q.bias"),
        "attention_out_bias": has(file, "blk.0.attn_output.bias"),
    }


def _read_smollm3(keys: Data, data: Data, file: GGUF) -> None:
    read_decoder(keys, data, file)
    # llama.cpp leaves out the positions of every fourth layer.
    data["no_rope_layers"] = [int((i + 1) % 4 != 0) for i in range(data["num_hidden_layers"])]
    data["layer_types"] = ["full_attention"] * data["num_hidden_layers"]


def _read_cohere2(keys: Data, data: Data, file: GGUF) -> None:
    read_decoder(keys, data, file)
    # llama.cpp lets every fourth layer see everything.
    count = data["num_hidden_layers"]
    data["layer_types"] = ["full_attention" if i % 4 == 3 else "sliding_attention" for i in range(count)]


def _read_glm4(keys: Data, data: Data, file: GGUF) -> None:
    data["head_dim"] = width = keys.pop("attention.key_length", data["hidden_size"] // data["num_attention_heads"])
    if keys.get("attention.value_length") == width:
        del keys["attention.value_length"]
    read_partial(keys, data, file, width)
    data["attention_bias"] = has(file, "blk.0.attn_q.bias")


def _read_exaone4(keys: Data, data: Data, file: GGUF) -> None:
    read_decoder(keys, data, file)
    layers = data["num_hidden_layers"]
    # llama.cpp knows the one of 64 layers by its depth, and has windows in no other.
    data["sliding_window"] = window = keys.pop("attention.sliding_window", 4096 if layers == 64 else None)
    slides = keys.pop("attention.sliding_window_pattern", [window is not None and i % 4 != 3 for i in range(layers)])
    data["layer_types"] = ["sliding_attention" if s else "full_attention" for s in slides]


def _said_exaone4(config: Any) -> Any:
    c, every = config, config.sliding_window_pattern
    kinds = c.layer_types or tuple(
        "sliding_attention" if every and (i + 1) % every else "full_attention" for i in range(c.num_hidden_layers)
    )
    return dataclasses.replace(c, layer_types=kinds, sliding_window_pattern=4)


def _write_exaone4(config: Any) -> Data:
    out = write_decoder(config)
    if config.sliding_window:
        out["attention.sliding_window"] = config.sliding_window
        out["attention.sliding_window_pattern"] = [
            kind == "sliding_attention" for kind in _said_exaone4(config).layer_types
        ]
    return out


def _read_ernie4_5(keys: Data, data: Data, file: GGUF) -> None:
    read_decoder(keys, data, file)
    data["use_bias"] = data.pop("attention_bias", False)


# One projection for queries, keys and values.


def _read_falcon(keys: Data, data: Data, file: GGUF) -> None:
    data["rope_parameters"] = read_rope(keys, data, file)
    keys.pop("rope.dimension_count", None)
    two, single = has(file, "blk.0.attn_norm_2.weight"), data["num_kv_heads"] == 1
    # As llama.cpp has them; whether it is Falcon-7B or of the architecture after it, heads and norms tell.
    data |= {"bias": False, "alibi": False, "parallel_attn": True, "multi_query": True}
    data["new_decoder_architecture"] = two or not single
    data["num_ln_in_parallel_attn"] = 2 if two else 1


def _said_falcon(config: Any) -> Any:
    c = config
    new = bool(c.new_decoder_architecture)
    heads = (c.num_kv_heads or c.num_attention_heads) if new else 1 if c.multi_query else c.num_attention_heads
    return dataclasses.replace(
        c,
        num_kv_heads=heads,
        ffn_hidden_size=c.ffn_hidden_size or 4 * c.hidden_size,
        num_ln_in_parallel_attn=(c.num_ln_in_parallel_attn or 2) if new else 1,
        multi_query=c.multi_query or new,
        parallel_attn=c.parallel_attn or new,
        activation=c.activation or "gelu",
        new_decoder_architecture=new,
        bias=bool(c.bias),
        alibi=bool(c.alibi),
    )


def _write_falcon(config: Any) -> Data:
    c = _said_falcon(config)
    return {
        **write_rope(c.rope_parameters, c.hidden_size // c.num_attention_heads),
        "attention.head_count_kv": c.num_kv_heads,
        "feed_forward_length": c.ffn_hidden_size,
        "tensor_data_layout": "jploski",
    }


def _read_bloom(keys: Data, data: Data, file: GGUF) -> None:
    for key, value in (("feed_forward_length", 4 * data["hidden_size"]), ("attention.head_count_kv", data["n_head"])):
        if keys.get(key) == value:
            del keys[key]


def _read_mpt(keys: Data, data: Data, file: GGUF) -> None:
    data["attn_config"] = {"clip_qkv": keys.pop("attention.clamp_kqv", None)}
    for key, value in (("feed_forward_length", 4 * data["d_model"]), ("attention.head_count_kv", data["n_heads"])):
        if keys.get(key) == value:
            del keys[key]
    if (steepest := keys.pop(_STEEPEST, 0.0)) != 8:
        raise ValueError(f"mpt: {_STEEPEST} is {steepest}, and transformers has MPT with ALiBi of 8 only")


_STEEPEST = "attention.max_alibi_bias"


def _said_mpt(config: Any) -> Any:
    attention = config.attn_config
    clip, scale = attention.clip_qkv, attention.softmax_scale
    usual = scale is None or scale == (config.d_model / config.n_heads) ** -0.5
    said = {"clip_qkv": float(np.float32(clip)) if clip else None, "softmax_scale": None if usual else scale}
    return dataclasses.replace(
        config, attn_config=dataclasses.replace(attention, **said, attn_pdrop=0, extra=type(attention.extra)())
    )


def _write_mpt(config: Any) -> Data:
    clip = config.attn_config.clip_qkv
    return {
        "feed_forward_length": 4 * config.d_model,
        _STEEPEST: 8.0,
        **({"attention.clamp_kqv": float(clip)} if clip else {}),
    }


def _read_gpt_neox(keys: Data, data: Data, file: GGUF) -> None:
    read_partial(keys, data, file)
    if keys.get("attention.head_count_kv") == data["num_attention_heads"]:
        del keys["attention.head_count_kv"]


_QKV = groups_apart(lambda c: (c.num_attention_heads, c.num_attention_heads))

DECODERS = (
    Architecture("exaone4", "exaone4", DECODER, _read_exaone4, _write_exaone4, said=_said_exaone4),
    Architecture("ernie4_5", "ernie4_5", DECODER, _read_ernie4_5, write_decoder),
    Architecture(
        "falcon",
        "falcon",
        {
            "context_length": "max_position_embeddings",
            "embedding_length": "hidden_size",
            "block_count": "num_hidden_layers",
            "feed_forward_length": "ffn_hidden_size",
            "attention.head_count": "num_attention_heads",
            "attention.head_count_kv": "num_kv_heads",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        _read_falcon,
        _write_falcon,
        (groups_apart(lambda c: (c.num_attention_heads, _said_falcon(c).num_kv_heads)),),
        ("tensor_data_layout",),
        said=_said_falcon,
    ),
    Architecture(
        "bloom",
        "bloom",
        {
            "embedding_length": "hidden_size",
            "block_count": "n_layer",
            "attention.head_count": "n_head",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        _read_bloom,
        lambda c: {
            "context_length": c.extra.get("seq_length", 2048),
            "feed_forward_length": 4 * c.hidden_size,
            "attention.head_count_kv": c.n_head,
        },
        (_QKV,),
        ("context_length",),
        ((r"transformer\.(.*)", r"\1"),),
    ),
    Architecture(
        "mpt",
        "mpt",
        {
            "context_length": "max_seq_len",
            "embedding_length": "d_model",
            "block_count": "n_layers",
            "attention.head_count": "n_heads",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        _read_mpt,
        _write_mpt,
        said=_said_mpt,
    ),
    Architecture(
        "gptneox",
        "gpt_neox",
        {
            **{key: ours for key, ours in LAYER_NORM.items() if key != "attention.head_count_kv"},
            "attention.layer_norm_epsilon": "layer_norm_eps",
            "use_parallel_residual": "use_parallel_residual",
        },
        _read_gpt_neox,
        write_partial,
        (_QKV,),
    ),
    Architecture("olmo2", "olmo2", DECODER, read_decoder, write_decoder),
    Architecture(
        "granite",
        "granite",
        {
            **DECODER,
            "attention.scale": "attention_multiplier",
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "logit_scale": "logits_scaling",
        },
        _read_granite,
        write_decoder,
        PAIRS,
    ),
    Architecture("seed_oss", "seed_oss", DECODER, _read_seed_oss, write_decoder),
    Architecture("smollm3", "smollm3", DECODER, _read_smollm3, write_decoder, PAIRS),
    Architecture(
        "cohere2",
        "cohere2",
        {
            **LAYER_NORM,
            "attention.layer_norm_epsilon": "layer_norm_eps",
            "attention.sliding_window": "sliding_window",
            "logit_scale": "logit_scale",
        },
        _read_cohere2,
        write_decoder,
    ),
    Architecture(
        "glm4",
        "glm4",
        DECODER,
        _read_glm4,
        lambda c: {**write_partial(c), "attention.key_length": dim_of(c), "attention.value_length": dim_of(c)},
    ),
)

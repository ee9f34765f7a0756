"""Dense decoders of later years in `.gguf` files, as `architectures.py` has the others: what their files say and what llama.cpp
knows without being told."""

from __future__ import annotations

from .facts import (
    DECODER,
    LAYER_NORM,
    PAIRS,
    Architecture,
    Data,
    dim_of,
    has,
    read_decoder,
    read_partial,
    write_decoder,
    write_partial,
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


DECODERS = (
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

"""What `.gguf` files say of each architecture: keys of their metadata, and how their tensors differ from ours.

Facts of llama.cpp's convert_hf_to_gguf.py and its models, one table per architecture; the names of tensors are the `gguf`
package's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...nn.attention.rope import longrope_factor
from .decoders import DECODERS
from .facts import (
    BASE,
    DECODER,
    DT_BIAS,
    LAYER_NORM,
    LOCAL,
    MAMBA2,
    NORM_PLUS_ONE,
    PAIRS,
    Architecture,
    Data,
    dim_of,
    flat,
    has,
    one_row,
    read_decoder,
    read_head_dim,
    read_partial,
    read_rope,
    value_of,
    write_decoder,
    write_partial,
    write_rope,
)
from .hybrids import HYBRIDS
from .mixtures import MIXTURES
from .nemotron import NEMOTRON_H
from .read import GGUF


def _read_llama(keys: Data, data: Data, file: GGUF) -> None:
    read_decoder(keys, data, file)
    if has(file, "blk.0.ffn_up.bias"):
        data["mlp_bias"] = True


def _read_mixtral(keys: Data, data: Data, file: GGUF) -> None:
    read_decoder(keys, data, file)
    data |= {"num_local_experts": keys.pop("expert_count"), "num_experts_per_tok": keys.pop("expert_used_count")}
    data["sliding_window"] = None


def _write_mixtral(config: Any) -> Data:
    counts = {"expert_count": config.num_local_experts, "expert_used_count": config.num_experts_per_tok}
    return {**write_decoder(config), **counts}


def _read_qwen2(keys: Data, data: Data, file: GGUF) -> None:
    if read_head_dim(keys, data) * data["num_attention_heads"] != data["hidden_size"]:
        raise ValueError("qwen2: the heads of this file are not hidden_size / num_attention_heads wide")
    data["rope_parameters"] = read_rope(keys, data, file)


def _write_turning(config: Any) -> Data:
    """How positions turn, of files that say no width of heads."""
    return write_rope(config.rope_parameters, dim_of(config))


def _read_gemma2(keys: Data, data: Data, file: GGUF) -> None:
    read_decoder(keys, data, file)
    # The file does not say it; llama.cpp knows the one of 27 billion by its depth.
    wide = data["num_hidden_layers"] == 46
    data["query_pre_attn_scalar"] = data["hidden_size"] // data["num_attention_heads"] if wide else data["head_dim"]
    for key in _CAPS:
        data[key] = keys.pop(key, None)


_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")


def _write_gemma2(config: Any) -> Data:
    caps = {key: getattr(config, key) for key in _CAPS}
    return {**write_decoder(config), **{key: float(cap) for key, cap in caps.items() if cap is not None}}


def _read_qwen2_moe(keys: Data, data: Data, file: GGUF) -> None:
    _read_qwen2(keys, data, file)
    # Files do not say these; llama.cpp has them so.
    data |= {"norm_topk_prob": False, "mlp_only_layers": []}


def _read_qwen3_moe(keys: Data, data: Data, file: GGUF) -> None:
    read_decoder(keys, data, file)
    data |= {"norm_topk_prob": True, "mlp_only_layers": []}


_EXPERTS = {
    **DECODER,
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}


def _read_starcoder2(keys: Data, data: Data, file: GGUF) -> None:
    data["rope_parameters"] = read_rope(keys, data, file)
    data["use_bias"] = has(file, "blk.0.attn_q.bias")
    data["sliding_window"] = None  # llama.cpp has none here


def _read_nemotron(keys: Data, data: Data, file: GGUF) -> None:
    read_partial(keys, data, file)
    data["head_dim"] = data["hidden_size"] // data["num_attention_heads"]
    data |= {"attention_bias": has(file, "blk.0.attn_q.bias"), "mlp_bias": has(file, "blk.0.ffn_up.bias")}


def _read_stablelm(keys: Data, data: Data, file: GGUF) -> None:
    read_partial(keys, data, file)
    data |= {"use_qkv_bias": has(file, "blk.0.attn_q.bias"), "qk_layernorm": has(file, "blk.0.attn_q_norm.weight")}


def _read_phi3(keys: Data, data: Data, file: GGUF) -> None:
    data["sliding_window"] = keys.pop("attention.sliding_window", None) or None
    data["original_max_position_embeddings"] = trained = keys.pop("rope.scaling.original_context_length", 4096)
    said = keys.pop("rope.scaling.attn_factor", None)
    read_partial(keys, data, file)
    if has(file, _LONG):
        long, short = (value_of(file, name).astype(float).tolist() for name in (_LONG, _SHORT))
        data["rope_parameters"] |= {"rope_type": "longrope", "long_factor": long, "short_factor": short}
        if said is not None and not math.isclose(
            said, longrope_factor(data["max_position_embeddings"] / trained, trained), rel_tol=1e-6
        ):
            data["rope_parameters"]["attention_factor"] = said


_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"


def _write_phi3(config: Any) -> Data:
    rope, trained = config.rope_parameters, config.original_max_position_embeddings
    out = {**write_partial(config), "rope.scaling.original_context_length": trained}
    if rope.get("rope_type") == "longrope":
        given = rope.get("attention_factor") or longrope_factor(config.max_position_embeddings / trained, trained)
        factors = (np.asarray(rope[key], np.float32) for key in ("long_factor", "short_factor"))
        out |= {"rope.scaling.attn_factor": given, **dict(zip((_LONG, _SHORT), factors, strict=True))}
    return {**out, "attention.sliding_window": config.sliding_window or 0}


def _read_gemma3(keys: Data, data: Data, file: GGUF) -> None:
    data["head_dim"] = dim = read_head_dim(keys, data)
    heads, layers = data["num_attention_heads"], data["num_hidden_layers"]
    # The file does not say it; llama.cpp knows the one of 27 billion by its depth.
    data["query_pre_attn_scalar"] = data["hidden_size"] // heads if layers == 62 else dim
    local = {"rope_type": "default", "rope_theta": float(keys.pop(LOCAL, 10000.0))}
    keys.setdefault(BASE, 1000000.0)
    data["rope_parameters"] = {"sliding_attention": local, "full_attention": read_rope(keys, data, file)}
    pattern = keys.pop("attention.sliding_window_pattern", 6)
    if isinstance(pattern, list):
        data["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in pattern]
    else:
        data["sliding_window_pattern"] = pattern
    data["final_logit_softcapping"] = keys.pop("final_logit_softcapping", None)
    if has(file, "blk.0.attn_q.bias"):
        data["attention_bias"] = True


def _write_gemma3(config: Any) -> Data:
    ropes, dim = config.rope_parameters, dim_of(config)
    out = {
        "attention.key_length": dim,
        "attention.value_length": dim,
        "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in config.layer_types],
        LOCAL: float(ropes["sliding_attention"]["rope_theta"]),
        **write_rope(ropes["full_attention"], dim),
    }
    if config.final_logit_softcapping is not None:
        out["final_logit_softcapping"] = float(config.final_logit_softcapping)
    return out


def _read_mamba2(keys: Data, data: Data, file: GGUF) -> None:
    inner = keys.pop("ssm.inner_size")
    data |= {"expand": inner // data["hidden_size"], "head_dim": inner // data["num_heads"]}
    data |= {"use_bias": has(file, "blk.0.ssm_in.bias"), "use_conv_bias": has(file, "blk.0.ssm_conv1d.bias")}


def _write_mamba2(config: Any) -> Data:
    idle = {"context_length": 1 << 20, "feed_forward_length": 0, "attention.head_count": 0}  # llama.cpp wants them
    return {**idle, "ssm.inner_size": config.expand * config.hidden_size}


_MAMBA2_CHANGES = (*MAMBA2, flat(r"\.ssm_norm\.weight$", lambda x, c: x.reshape(c.n_groups, -1)))


def _read_t5(keys: Data, data: Data, file: GGUF) -> None:
    gated = has(file, "enc.blk.0.ffn_gate.weight")
    data["feed_forward_proj"] = "gated-gelu" if gated else "relu"
    keys.setdefault("decoder_block_count", data["num_layers"])
    data["num_decoder_layers"] = keys.pop("decoder_block_count")
    if keys.get("attention.value_length") == data["d_kv"]:
        del keys["attention.value_length"]


def _write_t5(config: Any) -> Data:
    decoder = config.num_layers if config.num_decoder_layers is None else config.num_decoder_layers
    start = (config.generation or {}).get("decoder_start_token_id", config.extra.get("decoder_start_token_id", 0))
    return {
        "context_length": 512,
        "attention.value_length": config.d_kv,
        "attention.layer_norm_rms_epsilon": float(config.layer_norm_epsilon),
        "decoder_block_count": decoder,
        "decoder_start_token_id": start,
    }


ARCHITECTURES = (
    Architecture(
        "llama",
        "mixtral",
        DECODER,
        _read_mixtral,
        _write_mixtral,
        PAIRS,
        fits=lambda metadata: bool(metadata.get("llama.expert_count")),
    ),
    Architecture("llama", "llama", DECODER, _read_llama, write_decoder, PAIRS),
    Architecture("llama", "mistral", DECODER, _read_llama, write_decoder, PAIRS),
    Architecture(
        "qwen2",
        "qwen2",
        DECODER,
        _read_qwen2,
        _write_turning,
        ignored=("rope.dimension_count",),
    ),
    Architecture("qwen3", "qwen3", DECODER, read_decoder, write_decoder),
    Architecture(
        "qwen2moe",
        "qwen2_moe",
        {**_EXPERTS, "expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
        _read_qwen2_moe,
        _write_turning,
        (one_row(r"\.ffn_gate_inp_shexp\.weight$"),),
        ignored=("rope.dimension_count",),
    ),
    Architecture("qwen3moe", "qwen3_moe", _EXPERTS, _read_qwen3_moe, write_decoder),
    Architecture("gemma", "gemma", DECODER, read_decoder, write_decoder, (NORM_PLUS_ONE,)),
    Architecture(
        "gemma2",
        "gemma2",
        {**DECODER, "attention.sliding_window": "sliding_window"},
        _read_gemma2,
        _write_gemma2,
        (NORM_PLUS_ONE,),
    ),
    Architecture(
        "starcoder2",
        "starcoder2",
        {**LAYER_NORM, "attention.layer_norm_epsilon": "norm_epsilon"},
        _read_starcoder2,
        _write_turning,
        ignored=("rope.dimension_count",),
    ),
    Architecture(
        "nemotron",
        "nemotron",
        {**LAYER_NORM, "attention.layer_norm_epsilon": "norm_eps"},
        _read_nemotron,
        write_partial,
        (NORM_PLUS_ONE,),
    ),
    Architecture(
        "stablelm",
        "stablelm",
        {
            **LAYER_NORM,
            "attention.layer_norm_epsilon": "layer_norm_eps",
            "use_parallel_residual": "use_parallel_residual",
        },
        _read_stablelm,
        write_partial,
    ),
    Architecture("phi3", "phi3", DECODER, _read_phi3, _write_phi3),
    Architecture(
        "gemma3",
        "gemma3_text",
        {**DECODER, "attention.sliding_window": "sliding_window"},
        _read_gemma3,
        _write_gemma3,
        (NORM_PLUS_ONE,),
        ignored=("rope.dimension_count",),
    ),
    Architecture(
        "gpt2",
        "gpt2",
        {
            "context_length": "n_positions",
            "embedding_length": "n_embd",
            "block_count": "n_layer",
            "feed_forward_length": "n_inner",
            "attention.head_count": "n_head",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        write=lambda c: {} if c.n_inner else {"feed_forward_length": 4 * c.n_embd},
    ),
    Architecture(
        "mamba2",
        "mamba2",
        {
            "embedding_length": "hidden_size",
            "block_count": "num_hidden_layers",
            "ssm.conv_kernel": "conv_kernel",
            "ssm.state_size": "state_size",
            "ssm.time_step_rank": "num_heads",
            "ssm.group_count": "n_groups",
            "attention.layer_norm_rms_epsilon": "layer_norm_epsilon",
        },
        _read_mamba2,
        _write_mamba2,
        _MAMBA2_CHANGES,
        ("context_length", "feed_forward_length", "attention.head_count"),
        (DT_BIAS, (r"backbone\.embeddings\.(.*)", r"backbone.embedding.\1")),
    ),
    Architecture(
        "t5",
        "t5",
        {
            "embedding_length": "d_model",
            "block_count": "num_layers",
            "feed_forward_length": "d_ff",
            "attention.head_count": "num_heads",
            "attention.key_length": "d_kv",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
            "attention.relative_buckets_count": "relative_attention_num_buckets",
            "decoder_start_token_id": "decoder_start_token_id",
        },
        _read_t5,
        _write_t5,
        ignored=("context_length", "attention.head_count_kv", "attention.layer_norm_rms_epsilon"),
    ),
    *DECODERS,
    *MIXTURES,
    *HYBRIDS,
    *NEMOTRON_H,
)

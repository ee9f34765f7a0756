"""Decoders with recurrent layers in `.gguf` files, as `architectures.py` has the others."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ...names.rules import Rule
from .facts import (
    CONV,
    DECODER,
    DT_BIAS,
    LOG_A,
    MAMBA2,
    NORM_PLUS_ONE,
    Architecture,
    Change,
    Data,
    flat,
    float32,
    has,
    one_row,
    read_decoder,
    read_head_dim,
    read_rope,
    write_decoder,
)
from .layouts import KindsApart
from .mixtures import COUNTS, SIGMOID, WIDTH, only, read_wide, write_wide
from .read import GGUF

KEY_HEADS = "attention.head_count_kv"


def kinds_of(keys: Data, data: Data, other: str) -> None:
    """`layer_types`, from the key heads of each layer: those without any are of the kind `other`."""
    heads, layers = keys.pop(KEY_HEADS), data["num_hidden_layers"]
    each = heads if isinstance(heads, list) else [heads] * layers
    data["layer_types"] = ["full_attention" if count else other for count in each]
    data["num_key_value_heads"] = max(each) or data["num_attention_heads"]


def _read_lfm2(keys: Data, data: Data, file: GGUF) -> None:
    kinds_of(keys, data, "conv")
    read_decoder(keys, data, file)
    data["conv_bias"] = False
    if data["model_type"] == "lfm2":
        data["block_auto_adjust_ff_dim"] = False
        return
    only(keys, "expert_gating_func", SIGMOID)
    # As llama.cpp has them.
    data |= {"use_expert_bias": True, "norm_topk_prob": True, "routed_scaling_factor": 1.0}


def _write_lfm2(config: Any) -> Data:
    heads = config.num_key_value_heads
    kinds = _kinds_lfm2(config)
    out = {**write_decoder(config), KEY_HEADS: [heads if kind == "full_attention" else 0 for kind in kinds]}
    if config.model_type == "lfm2":
        return {**out, "feed_forward_length": _said_lfm2(config).intermediate_size}
    return {**out, "expert_gating_func": SIGMOID}


def _kinds_lfm2(config: Any) -> tuple[str, ...]:
    attends = getattr(config, "full_attn_idxs", None)
    layers = range(config.num_hidden_layers)
    return config.layer_types or tuple("full_attention" if attends is None or i in attends else "conv" for i in layers)


def _said_lfm2(config: Any) -> Any:
    c = dataclasses.replace(config, layer_types=_kinds_lfm2(config))
    if c.model_type != "lfm2":
        return c
    size = c.intermediate_size
    if c.block_auto_adjust_ff_dim:
        size = int(2 * size / 3)
        if c.block_ffn_dim_multiplier is not None:
            size = -(-int(c.block_ffn_dim_multiplier * size) // c.block_multiple_of) * c.block_multiple_of
    own = {"full_attn_idxs": None, "block_ffn_dim_multiplier": 1.0, "block_multiple_of": 256}
    return dataclasses.replace(c, intermediate_size=size, block_auto_adjust_ff_dim=False, **own)


_LFM2 = {
    **{key: ours for key, ours in DECODER.items() if key not in (KEY_HEADS, "attention.layer_norm_rms_epsilon")},
    "attention.layer_norm_rms_epsilon": "norm_eps",
    "shortconv.l_cache": "conv_L_cache",
}

IDLE = {"context_length": 1 << 20, "feed_forward_length": 0, "attention.head_count": 0}  # llama.cpp wants them
SSM = {"ssm.conv_kernel": "conv_kernel", "ssm.state_size": "state_size"}


def _read_mamba(keys: Data, data: Data, file: GGUF) -> None:
    data["intermediate_size"] = inner = keys.pop("ssm.inner_size")
    data["expand"] = inner // data["hidden_size"]
    keys.pop("ssm.dt_b_c_rms", None)  # says the family
    data["use_conv_bias"] = has(file, "blk.0.ssm_conv1d.bias")


def _said_mamba(config: Any) -> Any:
    inner = config.intermediate_size or int(config.expand * config.hidden_size)
    rank = math.ceil(config.hidden_size / 16) if config.time_step_rank == "auto" else int(config.time_step_rank)
    expand = inner // config.hidden_size
    return dataclasses.replace(config, intermediate_size=inner, expand=expand, time_step_rank=rank)


def _mamba(model_type: str, normed: bool) -> Architecture:
    def write(config: Any) -> Data:
        c = _said_mamba(config)
        return {
            **IDLE,
            "ssm.inner_size": c.intermediate_size,
            "ssm.time_step_rank": c.time_step_rank,
            "ssm.dt_b_c_rms": normed,
        }

    return Architecture(
        "mamba",
        model_type,
        {
            "embedding_length": "hidden_size",
            "block_count": "num_hidden_layers",
            **SSM,
            "ssm.time_step_rank": "time_step_rank",
            "attention.layer_norm_rms_epsilon": "layer_norm_epsilon",
        },
        _read_mamba,
        write,
        (LOG_A, CONV),
        tuple(IDLE),
        ((r"backbone\.embeddings\.(.*)", r"backbone.embedding.\1"),),
        fits=lambda metadata: bool(metadata.get("mamba.ssm.dt_b_c_rms")) == normed,
        said=_said_mamba,
    )


def _read_falcon_h1(keys: Data, data: Data, file: GGUF) -> None:
    data["head_dim"] = read_head_dim(keys, data)
    data["rope_parameters"] = read_rope(keys, data, file)
    data["mamba_d_ssm"] = inner = keys.pop("ssm.inner_size")
    data["mamba_d_head"] = inner // data["mamba_n_heads"]
    data["mamba_rms_norm"] = has(file, "blk.0.ssm_norm.weight")
    data["mamba_norm_before_gate"] = False  # as llama.cpp has it
    data["mamba_conv_bias"] = has(file, "blk.0.ssm_conv1d.bias")


def _write_falcon_h1(config: Any) -> Data:
    c, inner = config, _inner(config)
    if c.tie_word_embeddings and c.lm_head_multiplier != c.embedding_multiplier:
        raise ValueError(
            f"save: the factors of Falcon-H1 are in the weights of a .gguf file, and here one matrix has two: "
            f"embedding_multiplier={c.embedding_multiplier} and lm_head_multiplier={c.lm_head_multiplier}. Untie the head"
        )
    return {**write_decoder(c), "ssm.inner_size": inner}


def _inner(config: Any) -> int:
    return config.mamba_d_ssm or int(config.mamba_expand * config.hidden_size)


_ONES = (
    *("lm_head_multiplier", "embedding_multiplier", "key_multiplier", "attention_in_multiplier"),
    *("attention_out_multiplier", "ssm_in_multiplier", "ssm_out_multiplier"),
)


def _said_falcon_h1(config: Any) -> Any:
    c, inner = config, _inner(config)
    return dataclasses.replace(
        c,
        **dict.fromkeys(_ONES, 1.0),
        mlp_multipliers=None,
        ssm_multipliers=None,
        mamba_d_ssm=inner,
        mamba_d_head=inner // c.mamba_n_heads,
        mamba_expand=2,
        mamba_chunk_size=256,
        mamba_norm_before_gate=c.mamba_rms_norm and c.mamba_norm_before_gate,
    )


def _times(pattern: str, factor: Callable[[Any], Any]) -> Change:
    """A factor of the config, of the whole matrix or of each row, which is in the weights of a file."""

    def write(x: np.ndarray, config: Any) -> np.ndarray:
        by = np.asarray(factor(config), np.float32)
        return (float32(x) * (by[:, None] if by.ndim else by)).astype(x.dtype)

    return Change(pattern, lambda x, _: x, write, counts=lambda c: bool(np.any(np.asarray(factor(c)) != 1)))


def _of_in_proj(config: Any) -> np.ndarray:
    """The factors of the rows: of the gate, x, B, C and time steps."""
    c, inner, shared = config, _inner(config), config.mamba_n_groups * config.mamba_d_state
    each = np.asarray(c.ssm_multipliers or (1.0,) * 5) * c.ssm_in_multiplier
    return np.repeat(each, (inner, inner, shared, shared, c.mamba_n_heads))


_FACTORS = (
    _times(r"\.ffn_gate\.weight$", lambda c: (c.mlp_multipliers or (1.0, 1.0))[0]),
    _times(r"\.ffn_down\.weight$", lambda c: (c.mlp_multipliers or (1.0, 1.0))[1]),
    _times(r"\.attn_k\.weight$", lambda c: c.key_multiplier * c.attention_in_multiplier),
    _times(r"\.attn_[qv]\.weight$", lambda c: c.attention_in_multiplier),
    _times(r"\.attn_output\.weight$", lambda c: c.attention_out_multiplier),
    _times(r"\.ssm_in\.weight$", _of_in_proj),
    _times(r"\.ssm_out\.weight$", lambda c: c.ssm_out_multiplier),
    _times(r"^output\.weight$", lambda c: c.lm_head_multiplier),
    _times(r"^token_embd\.weight$", lambda c: c.embedding_multiplier),
)


def _read_jamba(keys: Data, data: Data, file: GGUF) -> None:
    layers = data["num_hidden_layers"]
    kinds_of(keys, data, "mamba")
    data["attn_layer_offset"], data["attn_layer_period"] = _spaced(
        [kind == "full_attention" for kind in data.pop("layer_types")]
    )
    sparse = [has(file, f"blk.{i}.ffn_gate_inp.weight") for i in range(layers)]
    data["expert_layer_offset"], data["expert_layer_period"] = _spaced(sparse)
    data["mamba_expand"] = keys.pop("ssm.inner_size") // data["hidden_size"]
    data["mamba_conv_bias"] = has(file, "blk.0.ssm_conv1d.bias")


def _spaced(those: list[bool]) -> tuple[int, int]:
    """Offset and period of the layers that are such; a period longer than the model for one layer or none."""
    found = [i for i, such in enumerate(those) if such]
    if len(found) < 2:
        return (found[0] if found else len(those)), len(those) + 1
    return found[0], found[1] - found[0]


def _jamba_layers(config: Any) -> tuple[list[bool], list[bool]]:
    """Which layers attend, and which have experts."""
    c, layers = config, range(config.num_hidden_layers)
    attends = [i % c.attn_layer_period == c.attn_layer_offset for i in layers]
    return attends, [c.num_experts > 1 and i % c.expert_layer_period == c.expert_layer_offset for i in layers]


def _said_jamba(config: Any) -> Any:
    (a, b), (c, d) = map(_spaced, _jamba_layers(config))
    rank = config.mamba_dt_rank
    return dataclasses.replace(
        config,
        attn_layer_offset=a,
        attn_layer_period=b,
        expert_layer_offset=c,
        expert_layer_period=d,
        mamba_dt_rank=math.ceil(config.hidden_size / 16) if rank == "auto" else int(rank),
    )


def _write_jamba(config: Any) -> Data:
    c, heads = config, config.num_key_value_heads or config.num_attention_heads
    return {
        KEY_HEADS: [heads if attends else 0 for attends in _jamba_layers(c)[0]],
        "ssm.inner_size": c.mamba_expand * c.hidden_size,
        "ssm.time_step_rank": _said_jamba(c).mamba_dt_rank,
    }


def _read_qwen3_next(keys: Data, data: Data, file: GGUF) -> None:
    read_wide(keys, data, file)
    data["linear_value_head_dim"] = keys.pop("ssm.inner_size") // data["linear_num_value_heads"]
    every = keys.pop("full_attention_interval", 4)
    recurrent = keys.pop("attention.recurrent_layers", [(i + 1) % every != 0 for i in range(data["num_hidden_layers"])])
    data["layer_types"] = ["linear_attention" if is_recurrent else "full_attention" for is_recurrent in recurrent]
    data |= {"norm_topk_prob": True, "mlp_only_layers": [], "decoder_sparse_step": 1}  # as llama.cpp has them
    data["attention_bias"] = False


def _said_qwen3_next(config: Any) -> Any:
    c, every = config, config.full_attention_interval
    derived = tuple("linear_attention" if (i + 1) % every else "full_attention" for i in range(c.num_hidden_layers))
    return dataclasses.replace(
        c, layer_types=c.layer_types or derived, full_attention_interval=4, mlp_only_layers=c.mlp_only_layers or ()
    )


def _write_qwen3_next(config: Any) -> Data:
    c = config
    kinds = _said_qwen3_next(c).layer_types
    every = kinds.index("full_attention") + 1 if "full_attention" in kinds else len(kinds) + 1
    if any((kind == "full_attention") != ((i + 1) % every == 0) for i, kind in enumerate(kinds)):
        raise ValueError(f"save: llama.cpp has attention in every so many layers of Qwen3-Next, not in {kinds}")
    if c.linear_key_head_dim != c.linear_value_head_dim:
        raise ValueError(
            f"save: llama.cpp has heads of one width in Qwen3-Next, and linear_key_head_dim={c.linear_key_head_dim}, "
            f"linear_value_head_dim={c.linear_value_head_dim}"
        )
    return {
        **write_wide(c),
        "ssm.inner_size": c.linear_value_head_dim * c.linear_num_value_heads,
        "full_attention_interval": every,
    }


def _own_qwen3_next(config: Any) -> tuple[Rule, ...]:
    c = config
    values = c.linear_num_value_heads // c.linear_num_key_heads * c.linear_value_head_dim
    layout = KindsApart((c.linear_key_head_dim, c.linear_key_head_dim, values, values), ((0, 1, 2), (3,)))
    theirs = ("blk.{i}.attn_qkv.weight", "blk.{i}.attn_gate.weight")
    return (Rule("{rest}layers.{i}.mixer.in_proj_qkvz.weight", theirs, layout),)


HYBRIDS = (
    Architecture(
        "qwen3next",
        "qwen3_next",
        {
            **DECODER,
            **COUNTS,
            **WIDTH,
            "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
            "ssm.conv_kernel": "linear_conv_kernel_dim",
            "ssm.state_size": "linear_key_head_dim",
            "ssm.group_count": "linear_num_key_heads",
            "ssm.time_step_rank": "linear_num_value_heads",
        },
        _read_qwen3_next,
        _write_qwen3_next,
        (
            LOG_A,
            CONV,
            one_row(r"\.ffn_gate_inp_shexp\.weight$"),
            NORM_PLUS_ONE._replace(pattern=r"(?<!ssm_)norm\.weight$"),
        ),
        names=(DT_BIAS,),
        own=_own_qwen3_next,
        said=_said_qwen3_next,
    ),
    Architecture("lfm2", "lfm2", _LFM2, _read_lfm2, _write_lfm2, (CONV,), said=_said_lfm2),
    Architecture(
        "lfm2moe",
        "lfm2_moe",
        {**_LFM2, **COUNTS, **WIDTH, "leading_dense_block_count": "num_dense_layers"},
        _read_lfm2,
        _write_lfm2,
        (CONV,),
        names=(
            (r"(.*)\.expert_bias", r"\1.expert_bias.bias"),
            *(
                (rf"(.*)\.feed_forward\.experts\.\d+\.{theirs}\.(.*)", rf"\1.mlp.experts.{name}.\2")
                for theirs, name in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj"))
            ),
        ),
        said=_said_lfm2,
    ),
    _mamba("falcon_mamba", True),
    _mamba("mamba", False),
    Architecture(
        "falcon-h1",
        "falcon_h1",
        {
            **DECODER,
            "ssm.conv_kernel": "mamba_d_conv",
            "ssm.state_size": "mamba_d_state",
            "ssm.group_count": "mamba_n_groups",
            "ssm.time_step_rank": "mamba_n_heads",
        },
        _read_falcon_h1,
        _write_falcon_h1,
        (*MAMBA2, flat(r"\.ssm_norm\.weight$", lambda x, c: x.reshape(c.mamba_n_groups, -1)), *_FACTORS),
        names=(DT_BIAS,),
        said=_said_falcon_h1,
    ),
    Architecture(
        "jamba",
        "jamba",
        {
            **{key: ours for key, ours in DECODER.items() if key != KEY_HEADS},
            **COUNTS,
            "ssm.conv_kernel": "mamba_d_conv",
            "ssm.state_size": "mamba_d_state",
            "ssm.time_step_rank": "mamba_dt_rank",
        },
        _read_jamba,
        _write_jamba,
        (LOG_A, CONV),
        said=_said_jamba,
    ),
)

"""Mixtures of experts in `.gguf` files, as `architectures.py` has the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ...names.rules import Rule, concatenated, rename
from .facts import (
    CORRECTION,
    DECODER,
    PAIRS,
    Architecture,
    Data,
    dim_of,
    has,
    one_row,
    read_decoder,
    read_partial,
    read_rope,
    write_decoder,
    write_partial,
    write_rope,
)
from .layouts import InTurns, KeysAndValues
from .read import GGUF

SOFTMAX, SIGMOID = 1, 2  # `expert_gating_func`
COUNTS = {"expert_count": "num_experts", "expert_used_count": "num_experts_per_tok"}
WIDTH = {"expert_feed_forward_length": "moe_intermediate_size"}
_HERE, _THERE = "{rest}layers.{i}.mlp.experts.", "blk.{i}.ffn_"


def only(keys: Data, key: str, *values: Any) -> None:
    """Takes what says nothing more; another value stays, and is refused."""
    if keys.get(key) in values:
        del keys[key]


def _own_gpt_oss(config: Any) -> tuple[Rule, ...]:
    gate_up = (f"{_THERE}gate_exps.", f"{_THERE}up_exps.")
    return (
        Rule(f"{_HERE}gate_up_proj", tuple(f"{n}weight" for n in gate_up), InTurns(1, 2)),
        Rule(f"{_HERE}gate_up_proj_bias", tuple(f"{n}bias" for n in gate_up), InTurns(1, 2)),
        rename(f"{_HERE}down_proj", f"{_THERE}down_exps.weight"),
        rename(f"{_HERE}down_proj_bias", f"{_THERE}down_exps.bias"),
    )


def _read_gpt_oss(keys: Data, data: Data, file: GGUF) -> None:
    only(keys, "expert_feed_forward_length", data["intermediate_size"])
    read_decoder(keys, data, file)
    if data["rope_parameters"]["rope_type"] == "yarn":
        data["rope_parameters"]["truncate"] = False  # what the models have, and no file says
    data["attention_bias"] = True
    # llama.cpp gives every second layer a window.
    kinds = ("sliding_attention", "full_attention")
    data["layer_types"] = [kinds[i % 2] for i in range(data["num_hidden_layers"])]


def read_groups(keys: Data, data: Data) -> None:
    data["n_group"], data["topk_group"] = keys.pop("expert_group_count", 1), keys.pop("expert_group_used_count", 1)


def write_groups(config: Any) -> Data:
    if (config.n_group or 1) == 1:
        return {}
    return {"expert_group_count": config.n_group, "expert_group_used_count": config.topk_group}


def _read_deepseek(keys: Data, data: Data, file: GGUF) -> None:
    heads, rank = data["num_attention_heads"], data["kv_lora_rank"]
    only(keys, "attention.head_count_kv", 1, heads)
    data["num_hidden_layers"] -= keys.pop("nextn_predict_layers", 0)
    data["num_key_value_heads"] = heads
    data["qk_rope_head_dim"] = rotary = keys.pop("rope.dimension_count")
    only(keys, "attention.key_length", rank + rotary)
    only(keys, "attention.value_length", rank)
    # Older files have one matrix for keys and values, and say the widths of heads here.
    data["qk_nope_head_dim"] = keys.pop("attention.key_length_mla", keys.pop("attention.key_length", 0)) - rotary
    data["v_head_dim"] = keys.pop("attention.value_length_mla", keys.pop("attention.value_length", 0))
    data["q_lora_rank"] = keys.pop("attention.q_lora_rank", None)
    data["routed_scaling_factor"] = keys.pop("expert_weights_scale", 1.0)
    data["norm_topk_prob"] = keys.pop("expert_weights_norm", False)
    read_groups(keys, data)
    mscale = keys.pop("rope.scaling.yarn_log_multiplier", 0.0) * 10
    rope = read_rope(keys, data, file)
    if rope["rope_type"] == "yarn":
        rope |= {"mscale": mscale, "mscale_all_dim": mscale} if mscale else {"attention_factor": 1.0}
    data["rope_parameters"] = rope
    if has(file, "blk.0.attn_q_a.bias") or has(file, "blk.0.attn_kv_a_mqa.bias"):
        data["attention_bias"] = True


def _read_deepseek_v2(keys: Data, data: Data, file: GGUF) -> None:
    only(keys, "expert_gating_func", SOFTMAX)
    _read_deepseek(keys, data, file)
    data["topk_method"] = "greedy" if data["n_group"] == 1 else "group_limited_greedy"


def _read_deepseek_v3(keys: Data, data: Data, file: GGUF) -> None:
    only(keys, "expert_gating_func", SIGMOID)
    _read_deepseek(keys, data, file)


def _write_deepseek(config: Any) -> Data:
    c, rope = config, config.rope_parameters
    rotary = c.qk_rope_head_dim
    out = {
        "attention.head_count_kv": 1,
        "attention.key_length": c.kv_lora_rank + rotary,
        "attention.value_length": c.kv_lora_rank,
        "attention.key_length_mla": c.qk_nope_head_dim + rotary,
        "attention.value_length_mla": c.v_head_dim,
        "attention.q_lora_rank": c.q_lora_rank,
        "rope.dimension_count": rotary,
        "expert_weights_scale": float(c.routed_scaling_factor),
        "expert_weights_norm": bool(getattr(c, "norm_topk_prob", False)),
        "expert_gating_func": SOFTMAX if c.model_type == "deepseek_v2" else SIGMOID,
        **write_rope(rope, rotary),
        **write_groups(c),
    }
    if rope.get("rope_type") == "yarn" and rope.get("mscale_all_dim"):
        out["rope.scaling.yarn_log_multiplier"] = 0.1 * rope["mscale_all_dim"]
    return out


def _said_deepseek(config: Any) -> Any:
    """Groups of which there is one say nothing, and where the dense layers are is said by their number."""
    changes: Data = {"first_k_dense_replace": config.first_k_dense_replace or 0, "head_dim": None}
    if (config.n_group or 1) == 1 or getattr(config, "topk_method", "") == "greedy":
        changes |= {"n_group": 1, "topk_group": 1}
    if kinds := getattr(config, "mlp_layer_types", None):
        changes["first_k_dense_replace"] = dense = kinds.index("sparse") if "sparse" in kinds else len(kinds)
        if "dense" not in kinds[dense:]:
            changes["mlp_layer_types"] = None
    return dataclasses.replace(config, **changes)


def _deepseek(model_type: str, read: Any, fits: Any) -> Architecture:
    keys = {key: ours for key, ours in DECODER.items() if key != "attention.head_count_kv"}
    return Architecture(
        "deepseek2",
        model_type,
        {
            **keys,
            **WIDTH,
            "expert_count": "n_routed_experts",
            "expert_used_count": "num_experts_per_tok",
            "expert_shared_count": "n_shared_experts",
            "leading_dense_block_count": "first_k_dense_replace",
            "attention.kv_lora_rank": "kv_lora_rank",
        },
        read,
        _write_deepseek,
        names=(CORRECTION,),
        own=lambda c: (
            Rule(
                "{rest}layers.{i}.self_attn.kv_b_proj.weight",
                ("blk.{i}.attn_k_b.weight", "blk.{i}.attn_v_b.weight"),
                KeysAndValues(c.qk_nope_head_dim, c.v_head_dim),
            ),
        ),
        fits=fits,
        said=_said_deepseek,
    )


def _by_sigmoid(metadata: Mapping[str, Any]) -> bool:
    """Files that do not say it are those of DeepSeek-V2, and of GLM-4.7-Flash, whose size tells."""
    size = (metadata.get("deepseek2.block_count"), metadata.get("deepseek2.vocab_size"))
    return metadata.get("deepseek2.expert_gating_func", SIGMOID if size in ((47, 154880), (48, 154880)) else 0) == 2


def read_wide(keys: Data, data: Data, file: GGUF) -> None:
    """Heads of a width of their own, the same for keys and values, of which a part turns."""
    data["head_dim"] = width = keys.pop("attention.key_length", data["hidden_size"] // data["num_attention_heads"])
    only(keys, "attention.value_length", width)
    read_partial(keys, data, file, width)


def write_wide(config: Any) -> Data:
    width = dim_of(config)
    return {**write_partial(config), "attention.key_length": width, "attention.value_length": width}


def _read_minimax_m2(keys: Data, data: Data, file: GGUF) -> None:
    only(keys, "expert_feed_forward_length", data["intermediate_size"])
    only(keys, "expert_gating_func", SIGMOID)
    read_wide(keys, data, file)


def _write_minimax_m2(config: Any) -> Data:
    return {
        **write_wide(config),
        "expert_gating_func": SIGMOID,
        "expert_feed_forward_length": config.intermediate_size,
    }


def _read_glm4_moe(keys: Data, data: Data, file: GGUF) -> None:
    only(keys, "expert_gating_func", SIGMOID)
    data["num_hidden_layers"] -= keys.pop("nextn_predict_layers", 0)
    read_wide(keys, data, file)
    data["norm_topk_prob"] = keys.pop("expert_weights_norm", False)
    read_groups(keys, data)
    data["attention_bias"] = has(file, "blk.0.attn_q.bias")
    data["use_qk_norm"] = has(file, "blk.0.attn_q_norm.weight")


def _write_glm4_moe(config: Any) -> Data:
    return {
        **write_wide(config),
        "expert_gating_func": SIGMOID,
        "expert_weights_norm": config.norm_topk_prob,
        **write_groups(config),
    }


def _read_ernie4_5_moe(keys: Data, data: Data, file: GGUF) -> None:
    read_decoder(keys, data, file)
    shared = data.get("moe_num_shared_experts", 0)
    only(keys, "expert_shared_feed_forward_length", shared * data["moe_intermediate_size"])
    keys.pop("expert_shared_feed_forward_length", None)  # convert_hf_to_gguf.py guesses it; the matrices tell
    data["use_bias"] = data.pop("attention_bias", False)


def _read_olmoe(keys: Data, data: Data, file: GGUF) -> None:
    read_decoder(keys, data, file)
    data["norm_topk_prob"] = False  # as llama.cpp has it


def _read_granitemoe(keys: Data, data: Data, file: GGUF) -> None:
    read_decoder(keys, data, file)
    if (shared := keys.pop("expert_shared_feed_forward_length", 0)) > 0:
        data["shared_intermediate_size"] = shared


def _own_granitemoe(config: Any) -> tuple[Rule, ...]:
    shared = "{rest}layers.{i}.mlp.shared_experts.gate_up_proj.weight"
    return (
        concatenated(f"{_HERE}gate_up_proj", f"{_THERE}gate_exps.weight", f"{_THERE}up_exps.weight", axis=1),
        concatenated(shared, f"{_THERE}gate_shexp.weight", f"{_THERE}up_shexp.weight"),
        rename(f"{_HERE}down_proj", f"{_THERE}down_exps.weight"),
    )


_GRANITE = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
_LOCAL = {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"}


def _granitemoe(model_type: str, fits: Any) -> Architecture:
    def write(config: Any) -> Data:
        shared = getattr(config, "shared_intermediate_size", 0)
        return {**write_decoder(config), **({"expert_shared_feed_forward_length": shared} if shared else {})}

    return Architecture(
        "granitemoe",
        model_type,
        {**DECODER, **_GRANITE, **_LOCAL},
        _read_granitemoe,
        write,
        PAIRS,
        own=_own_granitemoe,
        fits=fits,
    )


def _shares(metadata: Mapping[str, Any]) -> bool:
    return bool(metadata.get("granitemoe.expert_shared_feed_forward_length"))


MIXTURES = (
    Architecture(
        "gpt-oss",
        "gpt_oss",
        {**DECODER, **_LOCAL, "attention.sliding_window": "sliding_window"},
        _read_gpt_oss,
        lambda c: {**write_decoder(c), "expert_feed_forward_length": c.intermediate_size},
        names=((r"(.*)\.sinks", r"\1.sinks.weight"),),
        own=_own_gpt_oss,
    ),
    _deepseek("deepseek_v3", _read_deepseek_v3, _by_sigmoid),
    _deepseek("glm4_moe_lite", _read_deepseek_v3, _by_sigmoid),
    _deepseek("deepseek_v2", _read_deepseek_v2, lambda metadata: not _by_sigmoid(metadata)),
    Architecture(
        "minimax-m2", "minimax_m2", {**DECODER, **_LOCAL}, _read_minimax_m2, _write_minimax_m2, names=(CORRECTION,)
    ),
    Architecture(
        "glm4moe",
        "glm4_moe",
        {
            **DECODER,
            **WIDTH,
            "expert_count": "n_routed_experts",
            "expert_used_count": "num_experts_per_tok",
            "expert_shared_count": "n_shared_experts",
            "leading_dense_block_count": "first_k_dense_replace",
            "expert_weights_scale": "routed_scaling_factor",
        },
        _read_glm4_moe,
        _write_glm4_moe,
        names=(CORRECTION,),
        said=lambda c: dataclasses.replace(c, first_k_dense_replace=c.first_k_dense_replace or 0),
    ),
    Architecture(
        "ernie4_5-moe",
        "ernie4_5_moe",
        {
            **DECODER,
            **WIDTH,
            "expert_count": "moe_num_experts",
            "expert_used_count": "moe_k",
            "expert_shared_count": "moe_num_shared_experts",
            "interleave_moe_layer_step": "moe_layer_interval",
            "leading_dense_block_count": "moe_layer_start_index",
        },
        _read_ernie4_5_moe,
        lambda c: {
            **write_decoder(c),
            "expert_shared_feed_forward_length": c.moe_intermediate_size * (c.moe_num_shared_experts or 0),
        },
        (one_row(r"\.exp_probs_b\.bias$"),),
        names=(CORRECTION,),
    ),
    Architecture("olmoe", "olmoe", {**DECODER, **COUNTS}, _read_olmoe, write_decoder),
    _granitemoe("granitemoe", lambda metadata: not _shares(metadata)),
    _granitemoe("granitemoeshared", lambda metadata: True),
)

"""Nemotron-H in `.gguf` files: layers of one part each, told by their key heads and by the width of their feed-forward part."""

from __future__ import annotations

import dataclasses
from typing import Any

from .facts import CORRECTION, DT_BIAS, MAMBA2, Architecture, Data, flat, has, read_head_dim
from .hybrids import KEY_HEADS
from .mixtures import COUNTS, SIGMOID, WIDTH, only, read_groups, write_groups
from .read import GGUF

WIDTHS, SHARED, LATENT = "feed_forward_length", "expert_shared_feed_forward_length", "moe_latent_size"
_EXPERTS = (
    *("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "moe_shared_expert_intermediate_size"),
    *("moe_latent_size", "routed_scaling_factor", "n_group", "topk_group", "norm_topk_prob"),
)


def _each(value: Any, layers: int) -> list[int]:
    return value[:layers] if isinstance(value, list) else [value] * layers


def _read(keys: Data, data: Data, file: GGUF) -> None:
    layers = keys.pop("block_count") - keys.pop("nextn_predict_layers", 0)
    heads, widths = (_each(keys.pop(key), layers) for key in (KEY_HEADS, WIDTHS))
    kinds = []
    for i, (count, width) in enumerate(zip(heads, widths, strict=True)):
        feeds = "moe" if has(file, f"blk.{i}.ffn_gate_inp.weight") else "mlp"
        kinds.append(feeds if width else "full_attention" if count else "linear_attention")
    data["layers_block_type"] = kinds
    data["num_key_value_heads"] = max(heads) or data["num_attention_heads"]
    data["head_dim"] = read_head_dim(keys, data)
    data["mamba_head_dim"] = keys.pop("ssm.inner_size") // data["mamba_num_heads"]
    first = {kind: kinds.index(kind) for kind in kinds}
    if (at := first.get("linear_attention")) is not None:
        data["use_conv_bias"] = has(file, f"blk.{at}.ssm_conv1d.bias")
    if (at := first.get("mlp")) is not None:
        data |= {"intermediate_size": widths[at], "mlp_bias": has(file, f"blk.{at}.ffn_up.bias")}
    if "moe" in first:
        only(keys, "expert_gating_func", SIGMOID)
        data["moe_shared_expert_intermediate_size"] = keys.pop(SHARED)
        data["moe_latent_size"] = keys.pop(LATENT, None)
        data["routed_scaling_factor"] = keys.pop("expert_weights_scale", 1.0)
        data["norm_topk_prob"] = keys.pop("expert_weights_norm", False)
        read_groups(keys, data)


def _write(config: Any) -> Data:
    c, kinds = config, config.layers_block_type
    if {"mlp", "moe"} <= set(kinds):
        raise ValueError("save: llama.cpp has MLPs or experts in Nemotron-H, and layers_block_type has both")
    if "moe" in kinds and c.mlp_bias:
        raise ValueError("save: llama.cpp has no biases beside the experts of Nemotron-H, and mlp_bias=True")
    width = c.moe_intermediate_size if "moe" in kinds else c.intermediate_size
    heads = c.num_key_value_heads or c.num_attention_heads
    out = {
        "block_count": len(kinds),
        WIDTHS: [width if kind in ("mlp", "moe") else 0 for kind in kinds],
        KEY_HEADS: [heads if kind == "full_attention" else 0 for kind in kinds],
        "attention.key_length": c.head_dim,
        "attention.value_length": c.head_dim,
        "ssm.inner_size": c.mamba_num_heads * c.mamba_head_dim,
        "attention.layer_norm_epsilon": c.layer_norm_epsilon,  # which llama.cpp wants, too
    }
    if "moe" not in kinds:
        return out
    return {
        **out,
        SHARED: c.moe_shared_expert_intermediate_size,
        LATENT: c.moe_latent_size,
        "expert_shared_count": 1,
        "expert_weights_scale": float(c.routed_scaling_factor),
        "expert_weights_norm": c.norm_topk_prob,
        **write_groups(c),
    }


def _said(config: Any) -> Any:
    """Without what no layer of its kinds reads."""
    c, kinds = config, config.layers_block_type
    unread: list[str] = [] if "linear_attention" in kinds else ["use_conv_bias"]
    unread += [] if "mlp" in kinds else ["intermediate_size"]
    unread += [] if {"mlp", "moe"} & set(kinds) else ["mlp_bias"]
    unread += [] if "moe" in kinds else _EXPERTS
    defaults = {f.name: f.default for f in dataclasses.fields(c) if f.name in unread}
    heads = c.num_key_value_heads if "full_attention" in kinds else None
    return dataclasses.replace(c, **defaults, num_key_value_heads=heads or c.num_attention_heads)


# transformers keeps time steps above `time_step_min`, and llama.cpp takes them as they are.
_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "layer_norm_epsilon",
    "ssm.conv_kernel": "conv_kernel",
    "ssm.state_size": "ssm_state_size",
    "ssm.group_count": "n_groups",
    "ssm.time_step_rank": "mamba_num_heads",
}


def _nemotron_h(name: str, keys: dict[str, str], experts: bool) -> Architecture:
    return Architecture(
        name,
        "nemotron_h",
        {**_KEYS, **keys},
        _read,
        _write,
        (*MAMBA2, flat(r"\.ssm_norm\.weight$", lambda x, c: x.reshape(c.n_groups, -1))),
        (
            "rope.dimension_count",
            "rope.freq_base",
            "rope.scaling.finetuned",
            "attention.layer_norm_epsilon",
            "expert_shared_count",
        ),
        (
            DT_BIAS,
            CORRECTION,
            (r"backbone\.layers\.(\d+)\.mixer\.experts\.\d+\.(.*)", r"model.layers.\1.mlp.experts.\2"),
        ),
        said=_said,
        writes=lambda config: ("moe" in config.layers_block_type) == experts,
    )


NEMOTRON_H = (
    _nemotron_h("nemotron_h", {}, False),
    _nemotron_h(
        "nemotron_h_moe",
        {**COUNTS, "expert_count": "n_routed_experts", **WIDTH},
        True,
    ),
)

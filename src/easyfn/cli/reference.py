"""What is known of the reference's modules: their names for parts that easyfn has, an instance without numbers, its files."""

from __future__ import annotations

from typing import Any

# Which of a layer's norms stand where.
BLOCKS = {
    ("input_layernorm", "post_attention_layernorm"): "Block",
    ("post_attention_layernorm", "post_feedforward_layernorm"): "PostNormBlock",
    (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ): "SandwichBlock",
    ("input_layernorm",): "ParallelBlock",
}
# Other names for these, of a whole layer: one name stands in two places.
NAMINGS: tuple[dict[str, str], ...] = (
    {},
    {"pre_feedforward_layernorm": "pre_mlp_layernorm", "post_feedforward_layernorm": "post_mlp_layernorm"},
    {
        "post_attention_layernorm": "post_self_attn_layernorm",
        "pre_feedforward_layernorm": "post_attention_layernorm",
        "post_feedforward_layernorm": "post_mlp_layernorm",
    },
    {"input_layernorm": "attention_layernorm", "post_attention_layernorm": "feedforward_layernorm"},
    {"input_layernorm": "operator_norm", "post_attention_layernorm": "ffn_norm"},
    {
        "input_layernorm": "operator_norm",
        "post_attention_layernorm": "post_operator_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffn_norm",
    },
)
# What layers call the two parts of a block.
PLACES = {
    "self_attn": ("self_attn", "self_attention", "attention", "attn"),
    "mlp": ("mlp", "block_sparse_moe", "feed_forward", "moe", "ffn"),
}
MLPS = {
    ("down_proj", "gate_proj", "up_proj"): "mlp(c)",
    ("down_proj", "gate_up_proj"): "ef.nn.FusedGatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act)",
    ("down_proj", "up_proj"): "ef.nn.MLP(c.hidden_size, c.intermediate_size, c.hidden_act{bias})",
}
# Other names for the layers of these.
LAYERS: dict[tuple[str, ...], dict[str, str]] = {
    ("w1", "w2", "w3"): {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
    ("fc1", "fc2"): {"up_proj": "fc1", "down_proj": "fc2"},
    ("c_fc", "c_proj"): {"up_proj": "c_fc", "down_proj": "c_proj"},
    ("dense_4h_to_h", "dense_h_to_4h"): {"up_proj": "dense_h_to_4h", "down_proj": "dense_4h_to_h"},
}
# What a config must have for `decoder`, `attention` and `norm` to read it.
KEYS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "rope_parameters")
GROUPED = ("n_routed_experts", "n_shared_experts", "n_group", "topk_group", "norm_topk_prob", "routed_scaling_factor")
COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
CHOSEN = ("num_experts_per_tok", "moe_topk", "moe_k", "top_k")
LATENT = ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
# Keys whose part is an argument of attention, of the decoder or of its head.
ATTENDS = {"attn_logit_softcapping": "softcap", "clip_qkv": "clip", "attention_multiplier": "scale"}
ROUTES = {
    "norm_topk_prob": "normalize",
    "routed_scaling_factor": "scale",
    "moe_routed_scaling_factor": "scale",
    "router_scaling_factor": "scale",
    "moe_router_logit_softcapping": "softcap",
}
HEADS = {"final_logit_softcapping": "softcap", "logit_scale": "scale"}


def on_meta(theirs: Any, **sizes: Any) -> Any:
    """The reference's language model, without numbers; or why there is none, as a text."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(theirs(**sizes))
    except Exception as error:  # whatever a reference raises of its own defaults
        return f"transformers makes no language model of its config: {first_line(error)}"


def first_line(error: Exception) -> str:
    """An error on one line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def stored(model_type: str) -> list[tuple[list[str], list[str], bool]]:
    """What transformers renames or converts as it reads files: patterns of files and of modules, and whether it stacks."""
    try:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    except ImportError:  # of another version
        return []
    listed = lambda found: [found] if isinstance(found, str) else list(found or ())
    return [
        (
            listed(getattr(each, "source_patterns", None)),
            listed(getattr(each, "target_patterns", None)),
            any("Merge" in type(step).__name__ for step in getattr(each, "operations", None) or ()),
        )
        for each in get_checkpoint_conversion_mapping(model_type) or ()
    ]

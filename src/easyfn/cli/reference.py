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
# Other names for these.
NORMS = {"pre_mlp_layernorm": "pre_feedforward_layernorm", "post_mlp_layernorm": "post_feedforward_layernorm"}
MLPS = {
    ("down_proj", "gate_proj", "up_proj"): "mlp(c)",
    ("down_proj", "gate_up_proj"): "ef.nn.FusedGatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act)",
    ("down_proj", "up_proj"): "ef.nn.MLP(c.hidden_size, c.intermediate_size, c.hidden_act{bias})",
}
# What a config must have for `decoder`, `attention` and `norm` to read it.
KEYS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rope_parameters")
GROUPED = ("n_routed_experts", "n_shared_experts", "n_group", "topk_group", "norm_topk_prob", "routed_scaling_factor")
COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
# Keys whose part is an argument of attention, of the decoder or of its head.
ATTENDS = {"attn_logit_softcapping": "softcap", "clip_qkv": "clip", "attention_multiplier": "scale"}
ROUTES = {
    "norm_topk_prob": "normalize",
    "routed_scaling_factor": "scale",
    "moe_routed_scaling_factor": "scale",
    "moe_router_logit_softcapping": "softcap",
}
HEADS = {"final_logit_softcapping": "softcap", "logit_scale": "scale"}


def on_meta(theirs: Any, **sizes: Any) -> Any:
    """The reference's language model, without numbers, or `None` where transformers has none of this config."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(theirs(**sizes))
    except (ValueError, AttributeError, KeyError, TypeError, NotImplementedError):
        return None


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

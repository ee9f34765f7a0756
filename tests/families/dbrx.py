"""DBRX: experts whose matrices are one in the file, bounds on queries, keys and values."""

from cases import SMALL, VOCAB, case, reference

IDS = {k: SMALL[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
SIZES = {"vocab_size": VOCAB, "d_model": 48, "n_layers": 3, "n_heads": 6, "max_seq_len": 64, **IDS}


@case("dbrx", moe=True)
def _():
    from transformers import DbrxConfig, DbrxForCausalLM

    attention = {"kv_n_heads": 2, "clip_qkv": 0.5, "rope_theta": 500.0}
    experts = {"ffn_hidden_size": 80, "moe_num_experts": 5, "moe_top_k": 2}
    rope = {"rope_type": "default", "rope_theta": 500.0}
    return reference(
        DbrxForCausalLM, DbrxConfig(**SIZES, attn_config=attention, ffn_config=experts, rope_parameters=rope)
    )


@case("dbrx-unnormalized", moe=True, variant=True)
def _():
    from transformers import DbrxConfig, DbrxForCausalLM

    attention = {"kv_n_heads": 3, "clip_qkv": 8, "rope_theta": 10000.0}
    experts = {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 3, "moe_normalize_expert_weights": None}
    config = DbrxConfig(**SIZES, attn_config=attention, ffn_config={**experts, "ffn_act_fn": {"name": "gelu"}})
    return reference(DbrxForCausalLM, config)

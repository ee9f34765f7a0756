"""DeepSeek-V4: three streams, windows of five tokens, entries of two tokens (of which two are chosen) and of four, two layers
that choose experts by the token.

transformers counts padding on the left into its windows of tokens, so it is given rows without any (`left=False`).
"""

from cases import SMALL, case, reference

SIZES = {k: v for k, v in SMALL.items() if k not in ("intermediate_size", "num_key_value_heads", "num_hidden_layers")}
KINDS = ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"]
V4 = dict(
    **SIZES,
    num_hidden_layers=4,
    layer_types=[*KINDS, "compressed_sparse_attention"],
    mlp_layer_types=["hash_moe", "moe", "hash_moe", "moe"],
    compress_rates={"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
    head_dim=16,
    partial_rotary_factor=0.5,
    q_lora_rank=20,
    moe_intermediate_size=20,
    n_routed_experts=6,
    num_experts_per_tok=3,
    hc_mult=3,
    hc_sinkhorn_iters=3,
    sliding_window=5,
    o_groups=2,
    o_lora_rank=7,
    index_n_heads=9,  # many: no two sums are alike
    index_head_dim=14,
    index_topk=2,
    swiglu_limit=0.4,  # low: much is clipped
)


def model(**own):
    import torch
    from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

    found = reference(DeepseekV4ForCausalLM, DeepseekV4Config(**{**V4, **own}))
    for name, buffer in found.named_buffers():
        if name.endswith("tid2eid"):  # three experts of six for every token
            buffer.copy_(torch.rand(buffer.shape[0], found.config.n_routed_experts).argsort(-1)[:, : buffer.shape[1]])
    return found


FAILS = {"gradients_reach_exactly_the_trainable": "an indexer chooses entries, and a choice has no gradient"}


@case("deepseek_v4", moe=True, left=False, expected_failures=FAILS)
def _():
    return model(rope_theta=50.0, compress_rope_theta=200.0)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 4, "beta_slow": 1}


@case("deepseek_v4-yarn", moe=True, left=False, variant=True)
def _():
    more = {"scoring_func": "sigmoid", "mlp_bias": True, "tie_word_embeddings": True, "index_topk": 64}
    return model(**more, rope_parameters=YARN, mlp_layer_types=["moe"] * 4, hc_sinkhorn_iters=1, o_groups=3, hc_mult=2)

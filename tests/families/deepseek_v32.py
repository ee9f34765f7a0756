"""DeepSeek-V3.2: of eleven keys an indexer chooses four, by heads of their own; the other way, it has no choice."""

from cases import SMALL, case, reference
from families.deepseek_v3 import GROUPS, LATENT, YARN

SIZES = {**SMALL, **LATENT, **GROUPS, "num_key_value_heads": 6, "q_lora_rank": 20}
INDEXER = {"index_topk": 4, "index_head_dim": 13, "index_n_heads": 9}  # many heads: no two sums are alike


# What an indexer chooses has no gradient, nor in transformers.
CHOSEN = {"gradients_reach_exactly_the_trainable": "an indexer chooses keys"}


@case("deepseek_v32", moe=True, expected_failures=CHOSEN)
def _():
    from transformers import DeepseekV32Config, DeepseekV32ForCausalLM

    config = DeepseekV32Config(**SIZES, **INDEXER, n_shared_experts=2, attention_bias=True, rope_parameters=YARN)
    return reference(DeepseekV32ForCausalLM, config)


@case("deepseek_v32-all", moe=True, variant=True)
def _():
    from transformers import DeepseekV32Config, DeepseekV32ForCausalLM

    config = DeepseekV32Config(**SIZES, **{**INDEXER, "index_topk": 64}, mlp_layer_types=["sparse", "dense", "dense"])
    return reference(DeepseekV32ForCausalLM, config)

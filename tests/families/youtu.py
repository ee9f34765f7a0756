"""Youtu-LLM: latent attention before dense layers, a tied head."""

from cases import SMALL, case, reference

# No pad token: transformers makes its row zeros whenever it reads a file (findings/youtu-load-zeroes-the-pad-row.sh).
SIZES = {**SMALL, "num_key_value_heads": SMALL["num_attention_heads"], "pad_token_id": None}
LATENT = {"kv_lora_rank": 10, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 14}


@case("youtu")
def _():
    from transformers import YoutuConfig, YoutuForCausalLM

    return reference(YoutuForCausalLM, YoutuConfig(**SIZES, **LATENT, q_lora_rank=20, attention_bias=True))


@case("youtu-halves", variant=True)
def _():
    from transformers import YoutuConfig, YoutuForCausalLM

    facts = {"q_lora_rank": None, "rope_interleave": False, "tie_word_embeddings": False}
    return reference(YoutuForCausalLM, YoutuConfig(**SIZES, **LATENT, **facts))

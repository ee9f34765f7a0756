"""LongCat-Flash: two attentions a layer, and three of seven experts that hand on what they are given."""

from cases import VOCAB, case, reference
from families.deepseek_v3 import LATENT, YARN

SIZES = {
    **{"vocab_size": VOCAB, "hidden_size": 48, "ffn_hidden_size": 80, "num_attention_heads": 6, "num_layers": 2},
    **{"max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "q_lora_rank": 20},
    **{"head_dim": 8, "moe_topk": 3, "n_routed_experts": 4, "expert_ffn_hidden_size": 24, "routed_scaling_factor": 1.7},
}


@case("longcat_flash", moe=True)
def _():
    import torch
    from transformers import LongcatFlashConfig, LongcatFlashForCausalLM

    config = LongcatFlashConfig(**SIZES, **LATENT, zero_expert_num=3, attention_bias=True, rope_parameters=YARN)
    model = reference(LongcatFlashForCausalLM, config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.experts.gate_up_proj[4:] = 0  # which nothing reads
    return model


@case("longcat_flash-all", moe=True, variant=True)
def _():
    from transformers import LongcatFlashConfig, LongcatFlashForCausalLM

    return reference(LongcatFlashForCausalLM, LongcatFlashConfig(**SIZES, **LATENT, zero_expert_num=0))

"""Qwen4-Exp: three streams, n-grams in two layers, two blocks of two tokens chosen of up to ten."""

from cases import SMALL, case, reference

FAILS = {
    "names_are_a_bijection": "files hold the numbers of the hash, too, which the config says (`constants=`)",
    "gradients_reach_exactly_the_trainable": "an indexer chooses keys, and a choice has no gradient",
}


@case("qwen4_exp_text", moe=True, expected_failures=FAILS)
def _():
    from transformers import Qwen4ExpForCausalLM, Qwen4ExpTextConfig

    config = Qwen4ExpTextConfig(
        **{k: v for k, v in SMALL.items() if k not in ("intermediate_size", "num_hidden_layers")},
        num_hidden_layers=4,
        head_dim=24,
        layer_types=["linear_attention", "full_attention", "linear_attention", "full_attention"],
        linear_conv_kernel_dim=3,
        linear_key_head_dim=8,
        linear_value_head_dim=12,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        moe_intermediate_size=20,
        shared_expert_intermediate_size=28,
        num_experts=6,
        num_experts_per_tok=3,
        output_gate_type="sigmoid",
        hc_count=3,
        hc_lowrank=10,
        ple_layer_ids=[1, 3],
        ple_embed_dim=24,
        ple_conv_kernel_size=3,
        heads_per_ngram=2,
        ngram_vocab_size_base=50,
        make_ngram_vocab_size_divisible_by=8,
        split_ngram_parts=4,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
        indexer_n_heads=9,  # many: no two sums are alike
        indexer_kv_heads=1,
        indexer_head_dim=16,
        indexer_budget=4,
        indexer_compress_ratio=2,
    )
    return reference(Qwen4ExpForCausalLM, config)

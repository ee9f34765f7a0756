"""Gemma 3n, text: streams, low-rank residuals, inputs by layer, shared keys, sparse activations."""

from cases import SMALL, case, reference

KINDS = ["sliding_attention", "full_attention", "sliding_attention", "full_attention", "sliding_attention"]


@case("gemma3n_text")
def _():
    from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
    }
    config = Gemma3nTextConfig(
        **{**SMALL, "num_hidden_layers": 5, "intermediate_size": [80, 64, 80, 80, 72]},
        head_dim=16,
        attention_bias=True,
        layer_types=KINDS,
        sliding_window=4,
        rope_parameters=rope,
        final_logit_softcapping=3.0,
        vocab_size_per_layer_input=90,
        hidden_size_per_layer_input=12,
        altup_num_inputs=4,
        altup_active_idx=1,
        num_kv_shared_layers=2,
        laurel_rank=6,
        activation_sparsity_pattern=[0.6, 0.0, 0.3, 0.0, 0.5],
    )
    return reference(Gemma3nForCausalLM, config)


@case("gemma3n_text-base", task="base", variant=True)
def _():
    from transformers import Gemma3nTextConfig, Gemma3nTextModel

    sizes = {
        "vocab_size_per_layer_input": 97,
        "hidden_size_per_layer_input": 8,
        "altup_num_inputs": 3,
        "laurel_rank": 4,
    }
    config = Gemma3nTextConfig(
        **SMALL, **sizes, head_dim=16, layer_types=KINDS[:3], num_kv_shared_layers=0, altup_correct_scale=False
    )
    return reference(Gemma3nTextModel, config)

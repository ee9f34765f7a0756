"""GPT-NeoX: the parallel layers of the released models, and plain ones."""

from typing import Any

from cases import SMALL, case, reference


def _neox(**more: Any) -> Any:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    small = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
    return reference(GPTNeoXForCausalLM, GPTNeoXConfig(**{**small, "hidden_size": 96, **more}))


@case("gpt_neox")
def _():
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0, "partial_rotary_factor": 0.5}
    return _neox(hidden_act="gelu_new", layer_norm_eps=1e-3, rope_parameters=rope)


@case("gpt_neox-serial", variant=True)
def _():
    return _neox(use_parallel_residual=False, attention_bias=False, tie_word_embeddings=True)

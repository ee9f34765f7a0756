"""Granite: multipliers on embeddings, scores, residuals and logits."""

from cases import SMALL, case, reference


@case("granite")
def _():
    from transformers import GraniteConfig, GraniteForCausalLM

    config = GraniteConfig(
        **SMALL,
        head_dim=16,
        attention_bias=True,
        mlp_bias=True,
        embedding_multiplier=3.0,
        logits_scaling=2.0,
        residual_multiplier=0.5,
        attention_multiplier=0.2,
    )
    return reference(GraniteForCausalLM, config)

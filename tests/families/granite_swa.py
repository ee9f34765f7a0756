"""Granite SWA: multipliers, sinks, windows, a rotary base or no positions by layer."""

from cases import SMALL, case, reference

OWN = {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2, "logits_scaling": 2.0}


@case("granite_swa")
def _():
    from transformers import GraniteSWAConfig, GraniteSWAForCausalLM

    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    own = {"sliding_window": 5, "layer_types": kinds, "layer_rope_theta": [20.0, 0, 50.0], "attention_bias": True}
    return reference(GraniteSWAForCausalLM, GraniteSWAConfig(**SMALL, **OWN, **own, tie_word_embeddings=False))


@case("granite_swa-derived", variant=True)
def _():
    from transformers import GraniteSWAConfig, GraniteSWAForCausalLM

    return reference(GraniteSWAForCausalLM, GraniteSWAConfig(**SMALL, **OWN, sliding_window=4, mlp_bias=True))

"""Persimmon: norms on the queries and keys of each head."""

from cases import SMALL, case, reference


@case("persimmon")
def _():
    from transformers import PersimmonConfig, PersimmonForCausalLM

    small = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
    return reference(PersimmonForCausalLM, PersimmonConfig(**{**small, "hidden_size": 96}))

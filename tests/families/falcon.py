"""Falcon: the layouts of 40B, 7B and RW."""

from typing import Any

from cases import SMALL, case, reference


def _falcon(attention: str = "eager", **more: Any) -> Any:
    from transformers import FalconConfig, FalconForCausalLM

    small = {k: v for k, v in SMALL.items() if k not in ("num_key_value_heads", "intermediate_size")}
    model = reference(FalconForCausalLM, FalconConfig(**small, ffn_hidden_size=80, **more))
    model.config._attn_implementation = attention  # which the layers ask in each pass
    return model


@case("falcon")
def _():
    return _falcon(new_decoder_architecture=True, num_kv_heads=2, bias=True, tie_word_embeddings=False)


@case("falcon-7b", variant=True)
def _():
    return _falcon()


@case("falcon-one-norm", variant=True)
def _():
    return _falcon(new_decoder_architecture=True, num_kv_heads=3, num_ln_in_parallel_attn=1)


@case("falcon-rw", variant=True)
def _():
    # Eager attention adds ALiBi twice in transformers 5.24: to the mask, and to the scores.
    return _falcon("sdpa", alibi=True, multi_query=False, parallel_attn=False, bias=True)

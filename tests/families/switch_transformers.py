"""Switch Transformers: one expert per token in every second layer; with experts that are full."""

from typing import Any

from cases import case
from families.t5 import small


def _switch(**more: Any) -> Any:
    experts = {"num_experts": 5, "num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 1, "num_layers": 4}
    return small("SwitchTransformers", "ForConditionalGeneration", **{**experts, "router_bias": True, **more})


@case("switch_transformers", task="seq2seq-lm", causal=False, encoder_decoder=True, moe=True)
def _():
    return _switch()


@case("switch_transformers-full", task="seq2seq-lm", causal=False, encoder_decoder=True, moe=True, variant=True)
def _():
    return _switch(expert_capacity=2, router_bias=False, num_sparse_encoder_layers=4, dense_act_fn="gelu_new")

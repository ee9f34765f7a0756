"""LFM2 with a mixture of experts (Liquid AI 2025, arXiv 2511.23404): sigmoid scores, a bias that balances them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import Size
from ..nn import Decoder, Experts, GatedMLP, Router, SparseMoE
from ..registry.family import family
from .decoders import decoder_tasks
from .hybrids import LFM2_NAMES, Lfm2Fields, kinds_of_layers, lfm2_decoder


@dataclass(frozen=True, kw_only=True)
class Lfm2MoeConfig(Lfm2Fields):
    """The keys of an LFM2-MoE `config.json`. The first `num_dense_layers` layers have no experts."""

    model_type: ClassVar[str] = "lfm2_moe"
    layer_types: tuple[str, ...]
    hidden_size: Size = 2048
    intermediate_size: Size = 7168
    moe_intermediate_size: Size = 1792
    num_dense_layers: int = 2
    num_experts: Size = 32
    num_experts_per_tok: Size = 4
    use_expert_bias: bool = True
    routed_scaling_factor: float | int = 1.0
    norm_topk_prob: bool = True


def lfm2_moe(config: Lfm2MoeConfig) -> Decoder:
    """The decoder: a short convolution or attention, then a gated MLP or experts, all pre-norm."""
    c = config

    def mlp(i: int) -> Any:
        if i < c.num_dense_layers:
            return GatedMLP(c.hidden_size, c.intermediate_size)
        router = Router(
            c.hidden_size,
            c.num_experts,
            c.num_experts_per_tok,
            correction=c.use_expert_bias,
            normalize=c.norm_topk_prob,
            score="sigmoid",
            scale=c.routed_scaling_factor,
            wide=("e_score_correction_bias",),
        )
        return SparseMoE(router, Experts(c.num_experts, c.hidden_size, c.moe_intermediate_size))

    kinds = kinds_of_layers(c, ("conv", "full_attention"), lambda i: "full_attention")
    return lfm2_decoder(c, kinds, mlp)


tasks = decoder_tasks(lfm2_moe)
family(
    "lfm2_moe",
    config=Lfm2MoeConfig,
    tasks={name: tasks[name] for name in ("causal-lm", "base")},
    architectures={"Lfm2MoeForCausalLM": "causal-lm", "Lfm2MoeModel": "base"},
    names=LFM2_NAMES,
    ignore_tensors=(r"(rotary|pos)_emb\.inv_freq$",),
)

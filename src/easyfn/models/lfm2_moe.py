"""LFM2 with a mixture of experts (Liquid AI 2025, arXiv 2511.23404): sigmoid scores, a bias that balances them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import labels, rope_parameters
from ..core.frozen import Frozen
from ..nn import Decoder, Experts, GatedMLP, Router, SparseMoE
from ..registry.family import family
from .decoders import decoder_tasks
from .hybrids import LFM2_NAMES, kinds_of_layers, lfm2_decoder


@dataclass(frozen=True)
class Lfm2MoeConfig:
    """The keys of an LFM2-MoE `config.json`. The first `num_dense_layers` layers have no experts."""

    model_type: ClassVar[str] = "lfm2_moe"
    layer_types: tuple[str, ...]
    vocab_size: int = 65536
    hidden_size: int = 2048
    intermediate_size: int = 7168
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int | None = None
    max_position_embeddings: int = 128000
    norm_eps: float = 1e-5
    rope_parameters: Frozen = Frozen(rope_type="default", rope_theta=1000000.0)
    conv_bias: bool = False
    conv_L_cache: int = 3
    moe_intermediate_size: int = 1792
    num_dense_layers: int = 2
    num_experts: int = 32
    num_experts_per_tok: int = 4
    use_expert_bias: bool = True
    routed_scaling_factor: float = 1.0
    norm_topk_prob: bool = True
    tie_word_embeddings: bool = True
    num_labels: int = 2
    extra: Frozen = Frozen()
    generation: Frozen = Frozen()

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        if "tie_embedding" in data:
            data = {
                **{k: v for k, v in data.items() if k != "tie_embedding"},
                "tie_word_embeddings": data["tie_embedding"],
            }
        return labels(rope_parameters(data, theta=1000000.0))


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

"""DeepSeek-V2 (DeepSeek-AI 2024, arXiv 2405.04434): latent attention and many small experts beside shared ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import only
from ..config.fields import LlamaFields, Size, alias
from ..nn import Block, Decoder, Experts, GatedMLP, Router, SparseMoE
from .decoders import decoder, decoder_family, norm
from .mixtures import LatentFields, latent_attention, per_expert


@dataclass(frozen=True, kw_only=True)
class DeepseekV2Config(LatentFields, LlamaFields):
    """The keys of a DeepSeek-V2 `config.json`. `topk_method` is `greedy` or `group_limited_greedy`.

    transformers does not normalize the weights of the experts whatever `norm_topk_prob` says: only `false` is read.
    """

    model_type: ClassVar[str] = "deepseek_v2"
    num_experts = alias("n_routed_experts")
    attention_bias: bool = False
    mlp_bias: bool = False
    moe_intermediate_size: Size = 1407
    n_routed_experts: Size = 64
    n_shared_experts: Size = 2
    num_experts_per_tok: Size
    n_group: Size | None = None
    topk_group: Size | None = None
    topk_method: str = "greedy"
    routed_scaling_factor: float | int = 1.0
    first_k_dense_replace: int = 0
    ignored: ClassVar[tuple[str, ...]] = (
        *("norm_topk_prob", "scoring_func", "moe_layer_freq", "ep_size", "aux_loss_alpha", "seq_aux", "qk_head_dim"),
    )

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "norm_topk_prob", False)
        only(data, "scoring_func", "softmax")
        only(data, "moe_layer_freq", 1)
        only(data, "topk_method", "greedy", "group_limited_greedy")
        return data


def deepseek_v2(c: DeepseekV2Config) -> Decoder:
    """The decoder: pre-norm blocks of latent attention and, after the first layers, of experts chosen by softmax."""
    groups = (c.n_group, c.topk_group) if c.topk_method == "group_limited_greedy" else (1, 1)

    def mlp(width: int) -> GatedMLP:
        return GatedMLP(c.hidden_size, width, c.hidden_act, bias=c.mlp_bias)

    def sparse() -> SparseMoE:
        router = Router(
            c.hidden_size,
            c.n_routed_experts,
            c.num_experts_per_tok,
            normalize=False,
            groups=groups[0],
            topk_groups=groups[1],
            best=1,
            scale=c.routed_scaling_factor,
            float32=True,
        )
        width = c.moe_intermediate_size
        experts = Experts(c.n_routed_experts, c.hidden_size, width, c.hidden_act)
        return SparseMoE(router, experts, shared_experts=mlp(width * c.n_shared_experts))

    return decoder(
        c,
        lambda i: Block(
            latent_attention(c),
            mlp(c.intermediate_size) if i < c.first_k_dense_replace else sparse(),
            norm(c),
            norm(c),
        ),
        head_dim=c.qk_rope_head_dim,
    )


decoder_family("DeepseekV2", DeepseekV2Config, deepseek_v2, names=per_expert())

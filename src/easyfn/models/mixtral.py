"""Mixtral (Jiang et al. 2024, arXiv 2401.04088): Mistral with eight experts in the place of each MLP, two per token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import labels, rope_parameters
from ..core.frozen import Frozen
from ..names.rules import experts, rename
from ..nn import Attention, Block, Decoder, Experts, RMSNorm, Router, SparseMoE
from ..registry.family import family
from .decoders import decoder_classes, decoder_tasks


@dataclass(frozen=True)
class MixtralConfig:
    """The keys of a Mixtral `config.json`. `router_aux_loss_coef` weighs the load balancing loss in training."""

    model_type: ClassVar[str] = "mixtral"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-5
    rope_parameters: Frozen = Frozen(rope_type="default", rope_theta=1000000.0)
    sliding_window: int | None = None
    num_local_experts: int = 8
    num_experts_per_tok: int = 2
    router_aux_loss_coef: float = 0.001
    router_jitter_noise: float = 0.0
    attention_dropout: float | int = 0.0
    tie_word_embeddings: bool = False
    num_labels: int = 2
    extra: Frozen = Frozen()
    generation: Frozen = Frozen()

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return labels(rope_parameters(data, theta=1000000.0))


def mixtral(config: MixtralConfig) -> Decoder:
    """The decoder: RMSNorm, rotary grouped-query attention, a mixture of gated MLPs, all pre-norm."""
    c = config
    head_dim = c.head_dim or c.hidden_size // c.num_attention_heads
    layers = [
        Block(
            Attention(
                c.hidden_size,
                c.num_attention_heads,
                c.num_key_value_heads or c.num_attention_heads,
                head_dim,
                window=c.sliding_window,
                dropout=c.attention_dropout,
            ),
            SparseMoE(
                Router(c.hidden_size, c.num_local_experts, c.num_experts_per_tok),
                Experts(c.num_local_experts, c.hidden_size, c.intermediate_size, c.hidden_act),
                jitter=c.router_jitter_noise,
            ),
            RMSNorm(c.hidden_size, c.rms_norm_eps),
            RMSNorm(c.hidden_size, c.rms_norm_eps),
        )
        for _ in range(c.num_hidden_layers)
    ]
    return Decoder(
        c, layers, RMSNorm(c.hidden_size, c.rms_norm_eps), head_dim=head_dim, rope={"default": c.rope_parameters}
    )


# In memory the experts are stacked, as in transformers' modules; in files each has its w1 (gate), w3 (up), w2 (down).
_FILE = "{rest}layers.{i}.block_sparse_moe."
NAMES = (
    experts(
        "{rest}layers.{i}.mlp.experts.gate_up_proj",
        _FILE + "experts.{e}.w1.weight",
        _FILE + "experts.{e}.w3.weight",
    ),
    experts("{rest}layers.{i}.mlp.experts.down_proj", _FILE + "experts.{e}.w2.weight"),
    rename("{rest}layers.{i}.mlp.gate.weight", _FILE + "gate.weight"),
)

family(
    "mixtral",
    config=MixtralConfig,
    tasks=decoder_tasks(mixtral),
    architectures=decoder_classes("Mixtral"),
    names=NAMES,
    ignore_tensors=(r"rotary_emb\.inv_freq$",),
)

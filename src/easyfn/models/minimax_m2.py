"""MiniMax-M2 (MiniMax 2025): normed rows, heads rotated in part, sigmoid and correction bias over many small experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import only
from ..config.fields import LlamaFields, Size, alias, rope
from ..core.frozen import Frozen
from ..names.rules import rename
from ..nn import Block, Decoder, Experts, Router, SparseMoE
from .decoders import attention, decoder, decoder_family, norm
from .mixtures import per_expert, row_norms


@dataclass(frozen=True, kw_only=True)
class MiniMaxM2Config(LlamaFields):
    """The keys of a MiniMax-M2 `config.json`. `rotary_dim` is an older word for the rotated part of a head."""

    model_type: ClassVar[str] = "minimax_m2"
    num_experts = alias("num_local_experts")
    num_key_value_heads: Size | None = 8
    head_dim: Size | None = 128
    max_position_embeddings: Size = 196608
    rope_parameters: Frozen = rope(5000000.0)
    num_local_experts: Size = 256
    num_experts_per_tok: Size = 8
    router_aux_loss_coef: float = 0.001
    router_jitter_noise: float | int = 0.0
    # What the released files say beside, of one value each, and of layers that predict further tokens.
    ignored: ClassVar[tuple[str, ...]] = (
        *(
            "rotary_dim",
            "scoring_func",
            "use_routing_bias",
            "use_qk_norm",
            "qk_norm_type",
            "shared_intermediate_size",
            "attn_type_list",
        ),
        *("use_mtp", "num_mtp_modules", "mtp_transformer_layers", "mlp_intermediate_size", "layernorm_mlp_beta"),
        *("layernorm_full_attention_beta", "layernorm_linear_attention_beta"),
    )

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "scoring_func", "sigmoid")
        only(data, "use_routing_bias", True)
        only(data, "use_qk_norm", True)
        only(data, "qk_norm_type", "per_layer")
        only(data, "shared_intermediate_size", 0)
        for beta in ("layernorm_mlp_beta", "layernorm_full_attention_beta", "layernorm_linear_attention_beta"):
            only(data, beta, 1.0)
        if (width := data.get("rotary_dim")) is not None:
            data = {"partial_rotary_factor": width / (data.get("head_dim") or 128), **data}
        return data


def minimax_m2(c: MiniMaxM2Config) -> Decoder:
    """The decoder: pre-norm blocks of attention and experts."""
    count = c.num_local_experts
    return decoder(
        c,
        lambda _: Block(
            attention(c, qk_norm=row_norms(c), normed="rows"),
            SparseMoE(
                Router(c.hidden_size, count, c.num_experts_per_tok, correction=True, score="sigmoid"),
                Experts(count, c.hidden_size, c.intermediate_size, c.hidden_act),
                jitter=c.router_jitter_noise,
            ),
            norm(c),
            norm(c),
        ),
        partial=True,
    )


_OURS, _FILE = "{rest}layers.{i}.mlp.gate.", "{rest}layers.{i}.block_sparse_moe."

decoder_family(
    "MiniMaxM2",
    MiniMaxM2Config,
    minimax_m2,
    classifies=False,
    names=(
        *per_expert("w1", "w3", "w2", theirs="block_sparse_moe"),
        rename(_OURS + "weight", _FILE + "gate.weight"),
        rename(_OURS + "e_score_correction_bias", _FILE + "e_score_correction_bias"),
    ),
)

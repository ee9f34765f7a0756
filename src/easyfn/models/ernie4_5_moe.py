"""ERNIE 4.5 MoE, text (Baidu 2025): neighbours are rotated, and a correction bias on softmax chooses the experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import Integer, LlamaFields, Size, alias, rope
from ..core.frozen import Frozen
from ..names.rules import rename
from ..nn import Block, Decoder, Experts, GatedMLP, Router, SparseMoE
from .decoders import attention, decoder, decoder_family, norm
from .mixtures import per_expert


@dataclass(frozen=True, kw_only=True)
class Ernie4_5_MoeConfig(LlamaFields):
    """The keys of an ERNIE 4.5 MoE `config.json`.

    From `moe_layer_start_index` to `moe_layer_end_index` (-1: the last), every `moe_layer_interval`-th layer has experts.
    """

    model_type: ClassVar[str] = "ernie4_5_moe"
    unsaid: ClassVar[tuple[str, ...]] = ("attention_dropout",)
    num_experts = alias("moe_num_experts")
    num_experts_per_tok = alias("moe_k")
    num_key_value_heads: Size | None = 4
    max_position_embeddings: Size = 131072
    rms_norm_eps: float = 1e-5
    rope_parameters: Frozen = rope(500000.0)
    tie_word_embeddings: bool = True
    use_bias: bool | None = False
    moe_intermediate_size: Size = 1536
    moe_k: Size = 6
    moe_num_experts: Size = 64
    moe_num_shared_experts: int | None = 2
    moe_layer_start_index: int = 1
    moe_layer_end_index: Integer = -1
    moe_layer_interval: Size = 1
    moe_norm_min: float = 1e-12
    router_aux_loss_coef: float | None = 0.001


def ernie4_5_moe(c: Ernie4_5_MoeConfig) -> Decoder:
    """The decoder: pre-norm blocks of attention and, in the layers that have them, of experts beside shared ones."""
    bias = bool(c.use_bias)
    last = c.num_hidden_layers - 1 if c.moe_layer_end_index == -1 else c.moe_layer_end_index

    def mlp(i: int) -> GatedMLP | SparseMoE:
        dense = lambda width: GatedMLP(c.hidden_size, width, c.hidden_act, bias=bias)
        if (i + 1) % c.moe_layer_interval or not c.moe_layer_start_index <= i <= last:
            return dense(c.intermediate_size)
        count, width, shared = c.moe_num_experts, c.moe_intermediate_size, c.moe_num_shared_experts
        router = Router(c.hidden_size, count, c.moe_k, correction=(1, count), floor=c.moe_norm_min, float32=True)
        return SparseMoE(
            router,
            Experts(count, c.hidden_size, width, c.hidden_act),
            shared_experts=dense(width * shared) if shared else None,
        )

    return decoder(
        c,
        lambda i: Block(
            attention(c, qkv_bias=bias, out_bias=bias, interleaved=True, dropout=0.0), mlp(i), norm(c), norm(c)
        ),
    )


_BIAS = "{rest}layers.{i}.mlp.%s.e_score_correction_bias"

decoder_family(
    "Ernie4_5_Moe",
    Ernie4_5_MoeConfig,
    ernie4_5_moe,
    classifies=False,
    head={"bias": lambda c: bool(c.use_bias)},
    names=(*per_expert(), rename(_BIAS % "gate", _BIAS % "moe_statics")),
)

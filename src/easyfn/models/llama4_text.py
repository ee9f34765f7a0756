"""Llama 4, text (Meta 2025): attention in chunks, layers without positions, experts whose inputs the router weighs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import LlamaFields, Size, rope
from ..core.frozen import Frozen
from ..names.rules import transposed
from ..nn import Block, Decoder, Experts, GatedMLP, RMSNorm, Router, SparseMoE, Temperature
from .decoders import attention, decoder, decoder_family, norm
from .mixtures import module


@dataclass(frozen=True, kw_only=True)
class Llama4TextConfig(LlamaFields):
    """The keys of a Llama 4 text `config.json`.

    Without `no_rope_layers` (0 for a layer without positions), every `no_rope_layer_interval`-th has none; without
    `moe_layers`, every `interleave_moe_layer_step`-th has experts. `intermediate_size_mlp` is the width of the others.
    """

    model_type: ClassVar[str] = "llama4_text"
    num_key_value_heads: Size | None = 8
    head_dim: Size | None = 128
    max_position_embeddings: Size = 131072
    rms_norm_eps: float = 1e-5
    rope_parameters: Frozen = rope(500000.0)
    attention_bias: bool = False
    intermediate_size_mlp: Size = 16384
    num_local_experts: Size = 16
    num_experts_per_tok: Size = 1
    moe_layers: tuple[int, ...] | None = None
    interleave_moe_layer_step: Size = 1
    use_qk_norm: bool = True
    no_rope_layers: tuple[int, ...] | None = None
    no_rope_layer_interval: Size = 4
    attention_chunk_size: Size | None = 8192
    layer_types: tuple[str, ...] | None = None
    attn_temperature_tuning: bool = True
    floor_scale: Size = 8192
    attn_scale: float = 0.1
    # transformers reads these and uses neither in the text model.
    ignored: ClassVar[tuple[str, ...]] = ("router_aux_loss_coef", "router_jitter_noise", "for_llm_compressor")


def llama4_text(c: Llama4TextConfig) -> Decoder:
    """The decoder: pre-norm blocks of rotary attention in chunks, or of global attention without positions whose queries
    grow, and of one expert a token beside a shared one."""
    layers = range(c.num_hidden_layers)
    rotated = c.no_rope_layers or [(i + 1) % c.no_rope_layer_interval != 0 for i in layers]
    kinds = c.layer_types or [
        "chunked_attention" if r and c.attention_chunk_size else "full_attention" for r in rotated
    ]
    if len(kinds) != len(layers) or set(kinds) - {"chunked_attention", "full_attention"}:
        raise ValueError(
            f"llama4_text: layer_types says chunked_attention or full_attention of each layer, not {kinds}"
        )
    step = c.interleave_moe_layer_step
    sparse = set(range(step - 1, c.num_hidden_layers, step) if c.moe_layers is None else c.moe_layers)
    grows = Temperature(c.attn_scale, c.floor_scale, 1) if c.attn_temperature_tuning else None

    def mlp(i: int) -> GatedMLP | SparseMoE:
        if i not in sparse:
            return GatedMLP(c.hidden_size, c.intermediate_size_mlp, c.hidden_act)
        count, width = c.num_local_experts, c.intermediate_size
        return SparseMoE(
            Router(c.hidden_size, count, c.num_experts_per_tok, normalize=False, score="sigmoid"),
            Experts(count, c.hidden_size, width, c.hidden_act, weigh_inputs=True),
            shared_experts=GatedMLP(c.hidden_size, width, c.hidden_act),
        )

    def block(i: int) -> Block:
        attn = attention(
            c,
            qkv_bias=c.attention_bias,
            out_bias=c.attention_bias,
            qk_norm=RMSNorm(c.head_dim or 0, c.rms_norm_eps, affine=False) if c.use_qk_norm and rotated[i] else None,
            normed="rotated",
            rope="default" if rotated[i] else None,
            interleaved=True,
            chunk=c.attention_chunk_size if kinds[i] == "chunked_attention" else None,
            temperature=None if rotated[i] else grows,
        )
        return Block(attn, mlp(i), norm(c), norm(c))

    return decoder(c, block)


decoder_family(
    None,
    Llama4TextConfig,
    llama4_text,
    architectures={"Llama4ForCausalLM": "causal-lm", "Llama4TextModel": "base"},
    # Files hold the experts' matrices as (in, out).
    names=(
        transposed("{rest}layers.{i}.mlp.experts.gate_up_proj"),
        transposed("{rest}layers.{i}.mlp.experts.down_proj"),
        *module("mlp.gate", "feed_forward.router"),
        *module("mlp.shared_experts", "feed_forward.shared_expert"),
        *module("mlp", "feed_forward"),
    ),
)

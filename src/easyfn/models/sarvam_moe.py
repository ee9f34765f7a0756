"""Sarvam MoE (Sarvam AI 2026): GLM-4.5 with normed heads that are rotated as a whole, and files with names of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import only
from ..config.fields import Size, alias, head_dim, rope
from ..core.frozen import Frozen
from ..names.rules import Rule, concatenated, rename
from ..nn import Block, Decoder, RMSNorm
from .decoders import attention, decoder, decoder_family, key_heads, norm
from .mixtures import GroupedFields, grouped, per_expert, without_next_tokens

FIRST = {"use_bias": False, "embedding_dropout": 0.0, "output_dropout": 0.0, "moe_router_enable_expert_bias": True}


@dataclass(frozen=True, kw_only=True)
class SarvamMoeConfig(GroupedFields):
    """The keys of a Sarvam MoE `config.json`."""

    model_type: ClassVar[str] = "sarvam_moe"
    # Of the first files, whose code has no other values than these.
    ignored: ClassVar[tuple[str, ...]] = (*GroupedFields.ignored, *FIRST, "max_window_layers", "attn_implementation")
    num_local_experts = alias("n_routed_experts")
    num_experts = alias("n_routed_experts")
    num_shared_experts = alias("n_shared_experts")
    use_qkv_bias = alias("attention_bias")
    vocab_size: Size = 262144
    hidden_size: Size = 4096
    intermediate_size: Size = 8192
    num_hidden_layers: int = 19
    num_attention_heads: Size = 64
    num_key_value_heads: Size | None = 4
    head_dim: Size | None = 64
    max_position_embeddings: Size = 131072
    rope_parameters: Frozen = rope(8000000.0, partial_rotary_factor=1.0)
    moe_intermediate_size: Size = 1024
    n_routed_experts: Size = 128
    num_experts_per_tok: Size | None = 6
    routed_scaling_factor: float | int = 2.5
    first_k_dense_replace: int | None = 1
    use_qk_norm: bool = True
    pad_token_id: int | None = 0

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        for key, value in FIRST.items():
            only(data, key, value)
        return GroupedFields.normalize(data)


def sarvam_moe(c: SarvamMoeConfig) -> Decoder:
    """The decoder: pre-norm blocks of attention with normed heads and, after the first layer, of experts."""
    own = {
        "fused": "rows",
        "out_bias": False,
        "qk_norm": RMSNorm(head_dim(c), c.rms_norm_eps) if c.use_qk_norm else None,
    }
    return decoder(c, lambda i: Block(attention(c, **own), grouped(c, i), norm(c), norm(c)), partial=True)


_FILES = {
    "self_attn.qkv_proj.{tail}": "attention.query_key_value.{tail}",
    "self_attn.o_proj.{tail}": "attention.dense.{tail}",
    "self_attn.q_norm.{tail}": "attention.query_layernorm.{tail}",
    "self_attn.k_norm.{tail}": "attention.key_layernorm.{tail}",
    "mlp.gate.e_score_correction_bias": "mlp.gate.expert_bias",
}


def _modules(model: Any) -> list[Rule]:
    """Transformers' modules have queries, keys and values apart, the files one beside the other."""
    c = getattr(model, "config", None) or model.model.config
    heads = [head_dim(c) * n for n in (c.num_attention_heads, key_heads(c), key_heads(c))]
    ours, parts = "{rest}self_attn.qkv_proj.", [f"{{rest}}self_attn.{part}_proj." for part in "qkv"]
    return [concatenated(ours + kind, *(p + kind for p in parts), widths=heads) for kind in ("weight", "bias")]


decoder_family(
    "Glm4Moe",
    SarvamMoeConfig,
    sarvam_moe,
    architectures={
        "Glm4MoeForCausalLM": "causal-lm",
        "Glm4MoeModel": "base",
        "SarvamMoEForCausalLM": "causal-lm",  # of the code that came with the first files
    },
    names=(
        *per_expert(),
        *(rename("{rest}" + ours, "{rest}" + theirs) for ours, theirs in _FILES.items()),
        rename("model.embed_tokens.{tail}", "model.word_embeddings.{tail}"),
    ),
    modules=_modules,
    classifies=False,
    ignore_tensors=without_next_tokens,
)

"""LongCat-Flash (Meituan 2025, arXiv 2509.01322): two latent attentions a layer, experts on a shortcut beside the second, some
of which cost nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax

from ..config.config import only
from ..config.fields import CommonFields, Size, alias, rope
from ..core.frozen import Frozen
from ..names.rules import Rule, rename
from ..nn import Context, Decoder, Experts, GatedMLP, LatentAttention, RMSNorm, Router, SparseMoE, layer_cache
from .decoders import decoder_family, norm
from .mixtures import LatentFields, latent_attention, per_expert


@dataclass(frozen=True, kw_only=True)
class LongcatFlashConfig(LatentFields, CommonFields):
    """The keys of a LongCat-Flash `config.json`. `num_layers` counts layers of two attentions each."""

    model_type: ClassVar[str] = "longcat_flash"
    num_local_experts = alias("n_routed_experts")
    num_experts_per_tok = alias("moe_topk")
    intermediate_size = alias("ffn_hidden_size")
    moe_intermediate_size = alias("expert_ffn_hidden_size")
    vocab_size: Size = 131072
    hidden_size: Size = 6144
    num_layers: int = 28
    num_attention_heads: Size = 64
    num_key_value_heads: Size | None = None
    hidden_act: str = "silu"
    max_position_embeddings: Size = 131072
    rms_norm_eps: float = 1e-5
    rope_parameters: Frozen = rope(1e7)
    attention_bias: bool = False
    attention_dropout: float | int = 0.0
    ffn_hidden_size: Size = 12288
    q_lora_rank: Size = 1536
    head_dim: Size = 64
    qk_head_dim: Size | None = None
    moe_topk: Size = 12
    n_routed_experts: Size = 512
    zero_expert_num: int | None = 256
    expert_ffn_hidden_size: Size = 2048
    routed_scaling_factor: float | int = 6.0
    tie_word_embeddings: bool = False

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "router_bias", False)  # transformers makes one, and does not add it
        only(data, "zero_expert_type", "identity")
        only(data, "mla_scale_q_lora", True)
        only(data, "mla_scale_kv_lora", True)
        if (attentions := data.pop("num_hidden_layers", None)) is not None:
            data.setdefault("num_layers", attentions // 2)
        return data


class ShortcutBlock(eqx.Module):
    """Twice a pre-norm block of attention and a dense MLP. What the first norm after an attention says also goes to the
    experts, whose answer is added at the end."""

    mlp: SparseMoE
    self_attn: tuple[LatentAttention, LatentAttention]
    mlps: tuple[GatedMLP, GatedMLP]
    input_layernorm: tuple[RMSNorm, RMSNorm]
    post_attention_layernorm: tuple[RMSNorm, RMSNorm]

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, dict[str, Any]]:
        kept = cache or {"first": None, "second": None}
        h, first, seen = self.self_attn[0](self.input_layernorm[0](x), context, kept["first"])
        x = x + h
        h = self.post_attention_layernorm[0](x)
        shortcut, router_logits = self.mlp(h, context)
        x = x + self.mlps[0](h, context)
        second_key = None if context.key is None else jax.random.fold_in(context.key, 1)
        context = context.replace(key=second_key)
        h, second, also = self.self_attn[1](self.input_layernorm[1](x), context, kept["second"])
        x = x + h
        x = x + self.mlps[1](self.post_attention_layernorm[1](x), context) + shortcut
        attentions = None if seen is None else (seen, also)
        cache = None if cache is None else {"first": first, "second": second}
        return x, cache, {"attentions": attentions, "router_logits": router_logits}


@layer_cache.register(ShortcutBlock)
def _(block: ShortcutBlock, batch_size: int, max_length: int, dtype: Any) -> dict[str, Any]:
    first, second = (layer_cache(part, batch_size, max_length, dtype) for part in block.self_attn)
    return {"first": first, "second": second}


def longcat_flash(c: LongcatFlashConfig) -> Decoder:
    """The decoder. Queries and latents are multiplied by the root of how much narrower their rank is than the model."""
    width = c.qk_nope_head_dim + c.qk_rope_head_dim
    if (c.qk_head_dim or width) != width or c.head_dim != c.qk_rope_head_dim:
        raise ValueError(
            f"longcat_flash: qk_head_dim={c.qk_head_dim} is qk_nope_head_dim + qk_rope_head_dim = {width}, and head_dim="
            f"{c.head_dim}, of the rotary positions, is qk_rope_head_dim={c.qk_rope_head_dim}; leave the first two out"
        )
    factors = (c.hidden_size / c.q_lora_rank) ** 0.5, (c.hidden_size / c.kv_lora_rank) ** 0.5
    idle = c.zero_expert_num or 0
    dense = lambda: GatedMLP(c.hidden_size, c.ffn_hidden_size, c.hidden_act)

    def block() -> ShortcutBlock:
        router = Router(
            c.hidden_size,
            c.n_routed_experts + idle,
            c.moe_topk,
            correction=True,
            normalize=False,
            scale=c.routed_scaling_factor,
            float32=True,
            wide=("weight",),
        )
        experts = Experts(c.n_routed_experts, c.hidden_size, c.expert_ffn_hidden_size, c.hidden_act)
        return ShortcutBlock(
            SparseMoE(router, experts, zero_experts=idle > 0),
            (latent_attention(c, factors=factors), latent_attention(c, factors=factors)),
            (dense(), dense()),
            (norm(c), norm(c)),
            (norm(c), norm(c)),
        )

    layers = [block() for _ in range(c.num_layers)]
    return Decoder(c, layers, norm(c), head_dim=c.head_dim, rope={"default": c.rope_parameters})


def names(model: Any) -> list[Rule]:
    """transformers' files hold gates for the experts that cost nothing, too, and nothing reads them."""
    base = "" if isinstance(model, Decoder) else "model."
    gate, router = f"{base}layers.{{i}}.mlp.gate.", f"{base}layers.{{i}}.mlp.router."
    classifier = rename(gate + "w{rest}", router + "classifier.w{rest}")  # a pattern: it holds for adapters, too
    return [*per_expert(idle=model.config.zero_expert_num or 0), classifier, rename(gate + "{rest}", router + "{rest}")]


decoder_family(
    "LongcatFlash",
    LongcatFlashConfig,
    longcat_flash,
    classifies=False,
    names=names,
    ignore=("router_bias", "zero_expert_type", "mla_scale_q_lora", "mla_scale_kv_lora"),
    ignore_tensors=(r"rotary_emb\.inv_freq$", r"(^|\.)mtp\."),
)

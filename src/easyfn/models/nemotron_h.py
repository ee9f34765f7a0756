"""Nemotron-H (NVIDIA 2025, arXiv 2504.03624): every layer one part, of Mamba-2, attention, MLP or experts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax

from ..core.frozen import Frozen
from ..core.weight import dense
from ..names.rules import experts, rename
from ..nn import (
    MLP,
    Attention,
    Context,
    Decoder,
    GatedRMSNorm,
    Linear,
    Mamba2Mixer,
    PlainExperts,
    RMSNorm,
    Router,
    feed_forward,
)
from ..registry.family import family
from .decoders import decoder_tasks

KINDS = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}
OLDER = {"mamba": "linear_attention", "attention": "full_attention"}
NAMES = {  # of its first files
    "mamba_n_groups": "n_groups",
    "mamba_d_conv": "conv_kernel",
    "mamba_expand": "expand",
    "mamba_dt_min": "time_step_min",
    "mamba_dt_max": "time_step_max",
    "mamba_dt_limit": "time_step_limit",
    "mamba_dt_init_floor": "time_step_floor",
    "mamba_conv_bias": "use_conv_bias",
    "mamba_chunk_size": "chunk_size",
    "layer_types": "layers_block_type",
    "num_local_experts": "n_routed_experts",
}


@dataclass(frozen=True)
class NemotronHConfig:
    """The keys of a Nemotron-H `config.json`. `layers_block_type`, or `hybrid_override_pattern`, says what each layer is."""

    model_type: ClassVar[str] = "nemotron_h"
    vocab_size: int = 131072
    hidden_size: int = 4096
    layers_block_type: tuple[str, ...] = tuple(KINDS.values())
    intermediate_size: int = 21504
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    head_dim: int = 128
    max_position_embeddings: int = 4096
    attention_dropout: float | int = 0.0
    mlp_hidden_act: str = "relu2"
    mlp_bias: bool = False
    ssm_state_size: int = 128
    mamba_num_heads: int = 128
    mamba_head_dim: int = 64
    mamba_hidden_act: str = "silu"
    n_groups: int = 8
    conv_kernel: int = 4
    chunk_size: int = 128
    time_step_min: float = 0.001
    time_step_max: float = 0.1
    time_step_floor: float = 1e-4
    use_conv_bias: bool = True
    use_bias: bool = False
    n_routed_experts: int = 8
    num_experts_per_tok: int = 2
    moe_intermediate_size: int = 7688
    moe_shared_expert_intermediate_size: int = 7688
    moe_latent_size: int | None = None
    routed_scaling_factor: float | int = 1.0
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = True
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = False
    extra: Frozen = Frozen()
    generation: Frozen = Frozen()

    @property
    def num_hidden_layers(self) -> int:
        return len(self.layers_block_type)

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        data = {NAMES.get(name, name): value for name, value in data.items()}
        pattern = data.pop("hybrid_override_pattern", None)
        kinds = data.get("layers_block_type") or (pattern and [KINDS[letter] for letter in pattern])
        data = {k: v for k, v in data.items() if k not in ("num_hidden_layers", "layers_block_type")}
        return {**data, "layers_block_type": [OLDER.get(k, k) for k in kinds]} if kinds else data


class LatentMoE(eqx.Module):
    """Experts in a narrower space, between two projections, beside a shared one in the whole."""

    gate: Router
    experts: PlainExperts
    shared_experts: MLP
    fc1_latent_proj: Linear | None
    fc2_latent_proj: Linear | None

    def __init__(self, config: NemotronHConfig) -> None:
        c = config
        width = c.moe_latent_size or c.hidden_size
        self.gate = Router(
            c.hidden_size,
            c.n_routed_experts,
            c.num_experts_per_tok,
            correction=True,
            normalize=c.norm_topk_prob,
            score="sigmoid",
            groups=c.n_group,
            topk_groups=c.topk_group,
            scale=c.routed_scaling_factor,
            float32=True,
        )
        self.experts = PlainExperts(c.n_routed_experts, width, c.moe_intermediate_size, c.mlp_hidden_act)
        self.shared_experts = MLP(
            c.hidden_size, c.moe_shared_expert_intermediate_size, c.mlp_hidden_act, bias=c.mlp_bias
        )
        latent = c.moe_latent_size is not None
        self.fc1_latent_proj = Linear(c.hidden_size, width, c.mlp_bias, axes=(None, "embed")) if latent else None
        self.fc2_latent_proj = Linear(width, c.hidden_size, c.mlp_bias, axes=("embed", None)) if latent else None

    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, jax.Array | None]:
        routing = self.gate(x, context.runtime)
        h = x if self.fc1_latent_proj is None else self.fc1_latent_proj(x)
        h = self.experts(h, routing.chosen, routing.weights, context.runtime)
        h = h if self.fc2_latent_proj is None else self.fc2_latent_proj(h)
        logits = routing.logits
        wanted = logits.reshape(-1, logits.shape[-1]) if context.wants("router_logits") else None
        return h + self.shared_experts(x, context), wanted


class NemotronHBlock(eqx.Module):
    """`x + mixer(norm(x))`."""

    norm: RMSNorm
    mixer: Any
    kind: str = eqx.field(static=True)

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, dict[str, Any]]:
        h = self.norm(x.astype(dense(self.norm.weight).dtype))
        if self.kind == "full_attention":
            y, cache, attentions = self.mixer(h, context, cache)
            return x + y, cache, {"attentions": attentions}
        if self.kind == "linear_attention":
            y, cache = self.mixer(h, context, cache)
            return x + y, cache, {}
        y, router_logits = feed_forward(self.mixer, h, context)
        return x + y, cache, {"router_logits": router_logits}


def mixer(config: NemotronHConfig, kind: str) -> Any:
    """The part that a layer of this kind is."""
    c = config
    heads, kv_heads = c.num_attention_heads, c.num_key_value_heads or c.num_attention_heads
    if kind == "full_attention":
        return Attention(c.hidden_size, heads, kv_heads, c.head_dim, rope=None, dropout=c.attention_dropout)
    if kind == "mlp":
        return MLP(c.hidden_size, c.intermediate_size, c.mlp_hidden_act, bias=c.mlp_bias)
    if kind == "moe":
        return LatentMoE(c)
    if kind != "linear_attention":
        raise ValueError(f"nemotron_h: layers_block_type holds {kind!r}; this family has {', '.join(KINDS.values())}")
    return Mamba2Mixer(
        c.hidden_size,
        heads=c.mamba_num_heads,
        head_dim=c.mamba_head_dim,
        state=c.ssm_state_size,
        groups=c.n_groups,
        kernel=c.conv_kernel,
        chunk=c.chunk_size,
        bias=c.use_bias,
        conv_bias=c.use_conv_bias,
        act=c.mamba_hidden_act,
        norm=GatedRMSNorm(c.mamba_num_heads * c.mamba_head_dim, c.n_groups, c.layer_norm_epsilon),
        limit=(c.time_step_min, math.inf),
        steps=(c.time_step_min, c.time_step_max, c.time_step_floor),
    )


def nemotron_h(config: NemotronHConfig) -> Decoder:
    """The decoder. It has no positions: its states tell the order."""
    c = config
    norm = lambda: RMSNorm(c.hidden_size, c.layer_norm_epsilon)
    layers = [NemotronHBlock(norm(), mixer(c, kind), kind) for kind in c.layers_block_type]
    return Decoder(c, layers, norm(), head_dim=c.head_dim, rope={}, padding=False)


_EXPERT = "{rest}.mixer.experts.{e}."
tasks = decoder_tasks(nemotron_h)
family(
    "nemotron_h",
    config=NemotronHConfig,
    tasks={name: tasks[name] for name in ("causal-lm", "base")},
    architectures={"NemotronHForCausalLM": "causal-lm", "NemotronHModel": "base"},
    names=(
        experts("{rest}.mixer.experts.up_proj", _EXPERT + "up_proj.weight"),
        experts("{rest}.mixer.experts.down_proj", _EXPERT + "down_proj.weight"),
        rename("model.embed_tokens.{tail}", "backbone.embeddings.{tail}"),
        rename("model.norm.{tail}", "backbone.norm_f.{tail}"),
        rename("model.{rest}", "backbone.{rest}"),
        rename("embed_tokens.{tail}", "embeddings.{tail}"),
        rename("norm.{tail}", "norm_f.{tail}"),
    ),
    modules=(
        rename("{rest}embed_tokens.{tail}", "{rest}embeddings.{tail}"),
        rename("model.norm.{tail}", "model.norm_f.{tail}"),
        rename("norm.{tail}", "norm_f.{tail}"),
    ),
    aliases={f"{name}.{{rest}}": (f"backbone.{name}.{{rest}}",) for name in ("embeddings", "layers", "norm_f")},
    # What its state space and its attention never read, and what belongs to layers that predict further tokens.
    ignore=[
        "num_logits_to_keep",
        "use_mamba_kernels",
        "expand",
        "time_step_limit",
        "mamba_proj_bias",
        "mamba_ssm_cache_dtype",
        "attention_bias",
        "sliding_window",
        "n_shared_experts",
        "moe_shared_expert_overlap",
        "num_nextn_predict_layers",
        "mtp_layers_block_type",
        "mtp_hybrid_override_pattern",
        "residual_in_fp32",
        "hidden_dropout",
        "rescale_prenorm_residual",
        "rope_theta",
        "partial_rotary_factor",
        "mamba_state_dim",
    ],
    ignore_tensors=(r"^mtp\.",),
)

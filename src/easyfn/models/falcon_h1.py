"""Falcon-H1 (TII 2025, arXiv 2507.22448): attention and a state space side by side in every layer, scaled by muP factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ..config.fields import Size, head_dim
from ..names.rules import rename
from ..nn import (
    Attention,
    Context,
    Decoder,
    GatedRMSNorm,
    Linear,
    Mamba2Mixer,
    RMSNorm,
    activation,
    layer_cache,
)
from .decoders import attention, decoder, decoder_family, norm
from .hybrids import MambaFields, mamba2_mixer, mamba_width


@dataclass(frozen=True, kw_only=True)
class FalconH1Config(MambaFields):
    """The keys of a Falcon-H1 `config.json`. `ssm_multipliers` are those of gate, x, B, C and time steps."""

    model_type: ClassVar[str] = "falcon_h1"
    vocab_size: Size = 128000
    hidden_size: Size = 4096
    intermediate_size: Size = 14336
    num_hidden_layers: int = 32
    num_attention_heads: Size = 32
    num_key_value_heads: Size | None = 8
    max_position_embeddings: Size = 8192
    rms_norm_eps: float = 1e-5
    mlp_bias: bool = False
    projectors_bias: bool = False
    mamba_d_ssm: Size | None = 1024
    mamba_norm_before_gate: bool = True
    mamba_rms_norm: bool = False
    lm_head_multiplier: float | int = 1.0
    embedding_multiplier: float | int = 1.0
    mlp_multipliers: tuple[float, float] | None = None
    key_multiplier: float | int = 1.0
    attention_in_multiplier: float | int = 1.0
    attention_out_multiplier: float | int = 1.0
    ssm_multipliers: tuple[float, ...] | None = None
    ssm_in_multiplier: float | int = 1.0
    ssm_out_multiplier: float | int = 1.0


def _times(x: jax.Array, factor: float) -> jax.Array:
    return x * jnp.asarray(factor, x.dtype)


class ScaledMLP(eqx.Module):
    """`down(act(gate(x) * scales[0]) * up(x)) * scales[1]`."""

    gate_proj: Linear
    up_proj: Linear
    down_proj: Linear
    act: str = eqx.field(static=True)
    scales: tuple[float, float] = eqx.field(static=True)

    def __init__(self, config: FalconH1Config) -> None:
        c = config
        activation(c.hidden_act)
        self.gate_proj = Linear(c.hidden_size, c.intermediate_size, c.mlp_bias, axes=("mlp", "embed"))
        self.up_proj = Linear(c.hidden_size, c.intermediate_size, c.mlp_bias, axes=("mlp", "embed"))
        self.down_proj = Linear(c.intermediate_size, c.hidden_size, c.mlp_bias, axes=("embed", "mlp"))
        self.act = c.hidden_act
        self.scales = c.mlp_multipliers or (1.0, 1.0)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate = activation(self.act)(_times(self.gate_proj(x), self.scales[0]))
        return _times(self.down_proj(self.up_proj(x) * gate), self.scales[1])


class FalconH1Block(eqx.Module):
    """Both mixers read the same norm and their sum is added; then the MLP."""

    mamba: Mamba2Mixer
    self_attn: Attention
    feed_forward: ScaledMLP
    input_layernorm: RMSNorm
    pre_ff_layernorm: RMSNorm
    config: FalconH1Config = eqx.field(static=True)

    def __init__(self, config: FalconH1Config) -> None:
        c = config
        gated = GatedRMSNorm(mamba_width(c), c.mamba_n_groups, c.rms_norm_eps, norm_first=c.mamba_norm_before_gate)
        self.mamba = mamba2_mixer(
            c,
            gated if c.mamba_rms_norm else None,
            out_bias=c.projectors_bias,
            scales=c.ssm_multipliers or (1.0,) * 5,
        )
        # The factor is of the keys, and scores are linear in them.
        self.self_attn = attention(c, scale=head_dim(c) ** -0.5 * c.key_multiplier)
        self.feed_forward = ScaledMLP(c)
        self.input_layernorm, self.pre_ff_layernorm = norm(c), norm(c)
        self.config = c

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, dict[str, Any]]:
        c, kept = self.config, cache or {"mamba": None, "self_attn": None}
        h = self.input_layernorm(x)
        y, state = self.mamba(_times(h, c.ssm_in_multiplier), context, kept["mamba"])
        z, keys, attentions = self.self_attn(_times(h, c.attention_in_multiplier), context, kept["self_attn"])
        x = x + _times(y, c.ssm_out_multiplier) + _times(z, c.attention_out_multiplier)
        x = x + self.feed_forward(self.pre_ff_layernorm(x))
        return x, None if cache is None else {"mamba": state, "self_attn": keys}, {"attentions": attentions}


@layer_cache.register(FalconH1Block)
def _(block: FalconH1Block, batch_size: int, max_length: int, dtype: Any) -> dict[str, Any]:
    return {name: layer_cache(getattr(block, name), batch_size, max_length, dtype) for name in ("mamba", "self_attn")}


def falcon_h1(c: FalconH1Config) -> Decoder:
    """The decoder."""
    return decoder(c, lambda i: FalconH1Block(c), embed_scale=c.embedding_multiplier)


decoder_family(
    "FalconH1",
    FalconH1Config,
    falcon_h1,
    head={"scale": lambda c: c.lm_head_multiplier},
    classifies=False,
    names=(
        rename("model.norm.{tail}", "model.final_layernorm.{tail}"),
        rename("norm.{tail}", "final_layernorm.{tail}"),
    ),
    ignore=("num_logits_to_keep", "mamba_use_mlp", "attn_layer_indices", "mlp_expansion_factor"),
    ignore_tensors=(r"rotary_emb\.inv_freq$", r"\.mup_vector$"),
)

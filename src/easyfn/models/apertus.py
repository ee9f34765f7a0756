"""Apertus (Swiss AI 2025, arXiv 2509.14233): Llama with norms on queries and keys and a learned activation, xIELU."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ..config.fields import LlamaFields, Size, head_dim
from ..core.frozen import Frozen
from ..core.weight import Slot, Weight, dense, slots
from ..names.rules import rename
from ..nn import MLP, Block, Context, Decoder, Linear, RMSNorm, along_last, declare
from .decoders import attention, decoder, decoder_family, norm


@dataclass(frozen=True, kw_only=True)
class ApertusConfig(LlamaFields):
    """The keys of an Apertus `config.json`."""

    model_type: ClassVar[str] = "apertus"
    hidden_act: str = "xielu"
    max_position_embeddings: Size = 65536
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    rope_parameters: Frozen = Frozen(
        rope_type="llama3",
        rope_theta=12000000.0,
        factor=8.0,
        original_max_position_embeddings=8192,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    )
    pad_token_id: int | None = 3

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        if data.get("rope_parameters") is None and not data.get("rope_scaling"):
            data = {**data, "rope_parameters": dict(ApertusConfig.rope_parameters)}
        return data


class XIELU(eqx.Module):
    """`a x^2 + beta x` above zero and `b (exp(min(x, eps)) - 1 - x) + beta x` below, `a` and `b` learned (Huang and Schlag 2024,
    arXiv 2411.13010)."""

    alpha_p: Weight
    alpha_n: Weight
    beta: Weight
    eps: Weight

    def __init__(self) -> None:
        self.alpha_p, self.alpha_n = declare(1), declare(1)
        self.beta, self.eps = declare(), declare()

    def __call__(self, x: jax.Array) -> jax.Array:
        h = x.astype(jnp.float32)
        p, n, beta, eps = (dense(w).astype(jnp.float32) for w in (self.alpha_p, self.alpha_n, self.beta, self.eps))
        p, n = along_last(jax.nn.softplus(p), h), along_last(beta + jax.nn.softplus(n), h)
        below = (jnp.expm1(jnp.minimum(h, eps)) - h) * n
        return (jnp.where(h > 0, p * h * h, below) + beta * h).astype(x.dtype)


def _inverse_softplus(value: float) -> Callable[..., jax.Array]:
    return lambda key, shape, dtype: jnp.full(shape, math.log(math.expm1(value)), dtype)


@slots.register(XIELU)
def _(_: XIELU) -> dict[str, Slot]:
    fixed = lambda value: lambda key, shape, dtype: jnp.full(shape, value, dtype)
    return {
        "alpha_p": Slot("other", (None,), _inverse_softplus(0.8)),
        "alpha_n": Slot("other", (None,), _inverse_softplus(0.3)),
        "beta": Slot("buffer", (), fixed(0.5)),
        "eps": Slot("buffer", (), fixed(-1e-6)),
    }


class XIELUMLP(eqx.Module):
    """`down(xielu(up(x)))`."""

    up_proj: Linear
    down_proj: Linear
    act_fn: XIELU

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        self.up_proj = Linear(hidden_size, intermediate_size, axes=("mlp", "embed"))
        self.down_proj = Linear(intermediate_size, hidden_size, axes=("embed", "mlp"))
        self.act_fn = XIELU()

    def __call__(self, x: jax.Array, context: Context | None = None) -> jax.Array:
        return self.down_proj(self.act_fn(self.up_proj(x)))


def apertus(c: ApertusConfig) -> Decoder:
    """The decoder: pre-norm layers."""
    sizes = c.hidden_size, c.intermediate_size
    plain = lambda: XIELUMLP(*sizes) if c.hidden_act == "xielu" else MLP(*sizes, c.hidden_act)
    qk_norm = RMSNorm(head_dim(c), c.rms_norm_eps)
    return decoder(c, lambda _: Block(attention(c, qk_norm=qk_norm), plain(), norm(c), norm(c)))


NAMES = (
    rename("{rest}.input_layernorm.weight", "{rest}.attention_layernorm.weight"),
    rename("{rest}.post_attention_layernorm.weight", "{rest}.feedforward_layernorm.weight"),
)


decoder_family("Apertus", ApertusConfig, apertus, tags="score", names=NAMES, classifies=False)

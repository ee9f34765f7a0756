"""DiffLlama (Ye et al. 2024, arXiv 2410.05258): Llama whose heads attend in pairs, one less a learned part of the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..config.fields import LlamaFields, head_dim
from ..core.weight import Slot, Weight, dense, slots
from ..nn import Block, Decoder, Linear, RMSNorm, declare, rotate, self_attention, split_heads
from ..nn.cache.cache import empty_kv, layer_cache
from ..nn.context import Context
from .decoders import decoder, decoder_family, key_heads, mlp, norm


@dataclass(frozen=True, kw_only=True)
class DiffLlamaConfig(LlamaFields):
    """The keys of a DiffLlama `config.json`. `lambda_std_dev` is how far `ef.init` draws the four vectors of each layer."""

    model_type: ClassVar[str] = "diffllama"
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    lambda_std_dev: float | None = 0.1


class DifferentialAttention(eqx.Module):
    """`(softmax(q1 k1) - l softmax(q2 k2)) v`: head `i` of the first half and head `i` of the second are such a pair.

    `l = exp(lambda_q1 . lambda_k1) - exp(lambda_q2 . lambda_k2) + first`, where `first` grows with the depth. Values are
    twice as wide as queries: key head `j` reads values `j` and `j + kv_heads / 2`, as does its partner in the other half.

    So partners are one key head of twice the width here, with a query that is zero in the partner's half: ordinary grouped
    attention with an ordinary cache, in which every key and value lies once.
    """

    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear
    lambda_q1: Weight
    lambda_k1: Weight
    lambda_q2: Weight
    lambda_k2: Weight
    groupnorm: RMSNorm
    num_heads: int = eqx.field(static=True)
    num_kv_heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    spread: float = eqx.field(static=True)

    def __init__(self, config: DiffLlamaConfig) -> None:
        c, dim, groups = config, head_dim(config), key_heads(config)
        if groups % 2 or c.num_attention_heads % groups:
            raise ValueError(
                f"diffllama: num_key_value_heads={groups} must be even, as heads attend in pairs, and divide "
                f"num_attention_heads={c.num_attention_heads}"
            )
        if c.attention_dropout:
            raise ValueError(
                f"diffllama: attention_dropout={c.attention_dropout} is not implemented: what would be dropped of a difference "
                "of two, neither the paper nor transformers says. Set it to 0"
            )
        linear = lambda out, axis: Linear(c.hidden_size, out * dim, c.attention_bias, axes=(axis, "embed"))
        self.q_proj = linear(c.num_attention_heads, "heads")
        self.k_proj = linear(groups, "kv_heads")
        self.v_proj = linear(groups, "kv_heads")
        self.o_proj = Linear(c.num_attention_heads * dim, c.hidden_size, c.attention_bias, axes=("embed", "heads"))
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = (declare(dim) for _ in range(4))
        self.groupnorm = RMSNorm(2 * dim, c.rms_norm_eps, affine=False)
        self.num_heads = c.num_attention_heads
        self.num_kv_heads = groups
        self.head_dim = dim
        self.spread = c.lambda_std_dev or 0.0

    def __call__(
        self, x: Float[Array, "batch seq in_"], context: Context, cache: Any = None
    ) -> tuple[Float[Array, "batch seq out"], Any, Float[Array, "batch heads seq keys"] | None]:
        (batch, length, _), pairs, dim = x.shape, self.num_kv_heads // 2, self.head_dim
        q = split_heads(self.q_proj(x), self.num_heads)
        k, v = (split_heads(part(x), self.num_kv_heads) for part in (self.k_proj, self.v_proj))
        assert context.rope is not None
        q, k = (rotate(part, context.rope["default"]) for part in (q, k))
        wide = lambda part: jnp.concatenate(jnp.split(part, 2, axis=1), axis=-1)  # [batch, pairs, seq, 2 * dim]
        # [batch, pairs, half, heads of a group, seq, 2 * dim], each half in its own part of the width
        q = jnp.swapaxes(q.reshape(batch, 2, pairs, -1, length, dim), 1, 2)
        blank = jnp.zeros_like(q[:, :, 0])
        q = jnp.stack(
            [jnp.concatenate([q[:, :, 0], blank], -1), jnp.concatenate([blank, q[:, :, 1]], -1)], axis=2
        ).reshape(batch, self.num_heads, length, 2 * dim)

        y, cache, weights = self_attention(q, wide(k), wide(v), context, cache, scale=dim**-0.5)
        y = y.reshape(batch, length, pairs, 2, -1, 2 * dim)
        first = 0.8 - 0.6 * jnp.exp(-0.3 * jnp.asarray(context.layer, jnp.float32))
        y = y[:, :, :, 0] - (self._learned() + first).astype(y.dtype) * y[:, :, :, 1]
        y = (1.0 - first).astype(y.dtype) * self.groupnorm(y)
        if weights is not None:  # in the order of the heads
            weights = jnp.swapaxes(weights.reshape(batch, pairs, 2, -1, *weights.shape[2:]), 1, 2).reshape(
                weights.shape
            )
        return self.o_proj(y.reshape(batch, length, -1)), cache, weights

    def _learned(self) -> jax.Array:
        """The part of `l` that is learned, in float32."""
        q1, k1, q2, k2 = (
            dense(w).astype(jnp.float32) for w in (self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2)
        )
        return jnp.exp(jnp.sum(q1 * k1)) - jnp.exp(jnp.sum(q2 * k2))


@slots.register(DifferentialAttention)
def _(layer: DifferentialAttention) -> dict[str, Slot]:
    names = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")
    return dict.fromkeys(names, Slot("other", (None,), layer.spread or "zeros"))


@layer_cache.register(DifferentialAttention)
def _(layer: DifferentialAttention, batch_size: int, max_length: int, dtype: Any) -> Any:
    return empty_kv(batch_size, layer.num_kv_heads // 2, 2 * layer.head_dim, max_length, None, dtype)


def diffllama(c: DiffLlamaConfig) -> Decoder:
    """The decoder: Llama's, with differential attention."""
    return decoder(c, lambda _: Block(DifferentialAttention(c), mlp(c), norm(c), norm(c)))


decoder_family("DiffLlama", DiffLlamaConfig, diffllama, tags="score", answers="transformer")

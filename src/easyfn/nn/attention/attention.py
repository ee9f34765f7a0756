"""Self attention as one core that every layer calls, and the layer of most decoders: projections, norms and rotation."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...core.weight import Slot, Weight, dense, slots
from ..cache.cache import KV, Held, Ring, attend_to, empty_kv, layer_cache
from ..context import Context, Mask, Runtime, in_chunks
from ..linear import Linear, declare
from ..parallel.context import Operands, attend_across, sequence_split
from .core import attend_here, merge_heads, split_heads
from .rope import rotate


def attend(
    q: jax.Array,
    k: Held,
    v: Held,
    mask: Mask | None,
    *,
    scale: float,
    bias: jax.Array | None = None,
    softcap: float | None = None,
    sinks: jax.Array | None = None,
    runtime: Runtime = Runtime(),
    weights: bool = False,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Scaled dot product attention.

    `q`: `(batch, heads, queries, dim)`; `k`, `v`: `(batch, kv_heads, keys, dim)`; `bias`: `(1 or batch, heads, queries,
    keys)`; `sinks`: `(heads,)`, one extra score per head that takes part in the softmax and has no value. Returns
    `(batch, heads, queries, dim)` and, if `weights`, the attention weights `(batch, heads, queries, keys)`.

    When the score matrix has more entries than `runtime.attention_chunk` it is made in slices of queries, and again in
    the backward pass, so memory grows with the number of keys only; and a slice is given no keys that a window or the causal
    order hides from all of it, where queries see their own sequence. On a mesh that splits the sequence, keys are passed
    round between devices, or traded for heads, as `runtime.context_parallel` says; weights are not, so there XLA decides.
    """
    # Blocks, groups and chosen keys are not passed round: there XLA gathers keys.
    plain = mask is None or (mask.query_blocks is None and mask.query_sees is None and mask.everywhere is None)
    if plain and not weights and isinstance(k, jax.Array) and (axes := sequence_split(q, k, runtime)):
        operands = Operands(q, k, v, bias, sinks)
        out = attend_across(operands, mask, key, axes, runtime, scale=scale, softcap=softcap, dropout_rate=dropout_rate)
        return out, None
    return attend_here(
        q,
        k,
        v,
        mask,
        scale=scale,
        bias=bias,
        softcap=softcap,
        sinks=sinks,
        runtime=runtime,
        weights=weights,
        dropout_rate=dropout_rate,
        key=key,
    )


def self_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    context: Context,
    cache: Any = None,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Weight | None = None,
    dropout: float = 0.0,
) -> tuple[jax.Array, Any, jax.Array | None]:
    """Attention of a pass to itself and to what is cached: the one place for cache, mask, bias, dropout and weights.

    A layer's own part is how `q` `(batch, heads, seq, dim)` and `k`, `v` `(batch, kv_heads, seq, dim)` come about. Returns
    the heads side by side `(batch, seq, heads * dim)`, the cache with the new keys in it, and the attention weights
    `(batch, heads, seq, keys)` if the context wants them. `context.bias` is added to the scores.

    ```python
    import equinox as eqx, easyfn as ef

    class MultiQuery(eqx.Module):
        q: ef.nn.Linear
        kv: ef.nn.Linear

        def __call__(self, x, context, cache=None):
            k, v = ef.nn.split_heads(self.kv(x), 2).swapaxes(0, 1)[:, :, None]
            y, cache, weights = ef.nn.self_attention(
                ef.nn.split_heads(self.q(x), 4), k, v, context, cache, scale=0.5
            )
            return y, cache, weights
    ```
    """
    cache, keys, values, mask = attend_to(cache, k, v, context, window)
    out, weights = attend_within(
        context,
        *(q, keys, values, mask),
        scale=scale,
        bias=context.bias,
        softcap=softcap,
        sinks=None if sinks is None else dense(sinks),
        dropout=dropout,
    )
    return out, cache, weights


def attend_within(
    context: Context, q: Any, k: Any, v: Any, mask: Any, *, dropout: float = 0.0, site: int = 0, **more: Any
) -> tuple[jax.Array, jax.Array | None]:
    """`attend` with the choices of a context: the heads side by side, and the weights if it wants them. `site` is the number
    of the layer's part that drops out."""
    out, weights = attend(
        q,
        k,
        v,
        mask,
        runtime=context.runtime,
        weights=context.wants("attentions"),
        dropout_rate=dropout,
        key=None if context.key is None else jax.random.fold_in(context.key, site),
        **more,
    )
    return merge_heads(out), weights


def split_qkv(
    x: Float[Array, "batch seq qkv"], heads: int, kv_heads: int, by_group: bool = False
) -> tuple[Float[Array, "batch seq _"], ...]:
    """Queries `(batch, seq, heads * dim)`, keys and values `(batch, seq, kv_heads * dim)` from one projection of all three.

    They lie one after the other or, `by_group`, each key head beside its queries: the queries of its group, its key, its
    value, and then the next group (GPT-NeoX, Bloom and Falcon).
    """
    dim = x.shape[-1] // (heads + 2 * kv_heads)
    if not by_group:
        return tuple(jnp.split(x, [heads * dim, (heads + kv_heads) * dim], axis=-1))
    group = heads // kv_heads
    parts = jnp.split(x.reshape(*x.shape[:2], kv_heads, group + 2, dim), [group, group + 1], axis=3)
    return tuple(part.reshape(*x.shape[:2], -1) for part in parts)


class Temperature(NamedTuple):
    """Queries grow with their position `p` by `1 + scale * log(1 + floor((p + first) / length))` (Llama 4)."""

    scale: float
    length: float | int
    first: int = 0

    def __call__(self, positions: jax.Array) -> jax.Array:
        """Float32 factors of the shape of `positions`."""
        if self.length == int(self.length):  # a quotient of floats may be a little less than it should be
            steps = ((positions + self.first) // int(self.length)).astype(jnp.float32)
        else:
            steps = jnp.floor((positions.astype(jnp.float32) + self.first) / self.length)
        return 1.0 + self.scale * jnp.log1p(steps)


NORMED = ("rows", "heads", "rotated")
GATES = {"sigmoid": jax.nn.sigmoid, "softplus": jax.nn.softplus}


class Attention(eqx.Module):
    """Multi-head self attention with rotary positions and grouped key heads, as Llama and its kin have it.

    - `qkv_bias`, `out_bias`: biases of the projections. `fused`: queries, keys and values come of one `qkv_proj`, with
      its rows one after the other (`"rows"`) or by key head (`"groups"`, see [`easyfn.nn.split_qkv`][]).
    - `qk_norm`: a norm for both queries and keys, or `(norm of queries, norm of keys)`; `normed` says where it stands: on
      each head before the rotation (`"heads"`), on all heads as one row (`"rows"`), on each head after the rotation
      (`"rotated"`).
    - `v_norm`: a norm of each head of the values; `values_are_keys`: they are the keys before norm and rotation (Gemma 4).
    - `rope`: the entry of `context.rope` to rotate with (`None`: no rotary positions). `interleaved`: pairs are
      neighbours, not halves, of a head.
    - `chunk`: a token sees those of its own chunk of so many tokens (see [`easyfn.nn.in_chunks`][]).
    - `clip`: entries of queries, keys and values are held between `-clip` and `clip`.
    - `scale` of the scores, by default `head_dim ** -0.5`; `softcap` of the scores; `window` in tokens; `sinks`: one
      learned score per head without a value; `temperature`: a factor on queries that grows with the position.
    - `gate`: what comes out is multiplied by this function (`"sigmoid"`, `"softplus"`) of `gate_proj` of what went in, one
      gate for each number or, with `head_gates`, for each head.
    """

    q_proj: Linear | None
    k_proj: Linear | None
    v_proj: Linear | None
    qkv_proj: Linear | None
    o_proj: Linear
    gate_proj: Linear | None
    q_norm: Any
    k_norm: Any
    v_norm: Any
    sinks: Weight | None
    num_heads: int = eqx.field(static=True)
    num_kv_heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    scale: float = eqx.field(static=True)
    window: int | None = eqx.field(static=True)
    softcap: float | None = eqx.field(static=True)
    rope: str | None = eqx.field(static=True)
    dropout: float = eqx.field(static=True)
    normed: str = eqx.field(static=True)
    interleaved: bool = eqx.field(static=True)
    clip: float | None = eqx.field(static=True)
    fused: str | None = eqx.field(static=True)
    temperature: Temperature | None = eqx.field(static=True)
    chunk: int | None = eqx.field(static=True)
    gate: str | None = eqx.field(static=True)

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        qkv_bias: bool = False,
        out_bias: bool = False,
        fused: str | None = None,
        qk_norm: Any = None,
        normed: str = "heads",
        v_norm: Any = None,
        values_are_keys: bool = False,
        scale: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
        sinks: bool = False,
        rope: str | None = "default",
        interleaved: bool = False,
        clip: float | None = None,
        temperature: Temperature | None = None,
        chunk: int | None = None,
        gate: str | None = None,
        head_gates: bool = False,
        dropout: float = 0.0,
    ) -> None:
        if num_heads % num_kv_heads:
            raise ValueError(f"num_attention_heads={num_heads} is no multiple of num_key_value_heads={num_kv_heads}")
        if normed not in NORMED or fused not in (None, "rows", "groups"):
            raise ValueError(
                f"Attention: normed={normed!r} is one of {NORMED}, fused={fused!r} None, 'rows' or 'groups'"
            )
        if gate not in (None, *GATES):
            raise ValueError(f"Attention: gate={gate!r} is None or one of {', '.join(GATES)}")
        queries, keys = num_heads * head_dim, num_kv_heads * head_dim
        apart = lambda size, axis: None if fused else Linear(hidden_size, size, qkv_bias, axes=(axis, "embed"))
        self.q_proj = apart(queries, "heads")
        self.k_proj = apart(keys, "kv_heads")
        self.v_proj = None if values_are_keys else apart(keys, "kv_heads")
        self.qkv_proj = Linear(hidden_size, queries + 2 * keys, qkv_bias, axes=("heads", "embed")) if fused else None
        self.o_proj = Linear(queries, hidden_size, out_bias, axes=("embed", "heads"))
        gates = num_heads if head_gates else queries
        self.gate_proj = Linear(hidden_size, gates, axes=("heads", "embed")) if gate else None
        self.q_norm, self.k_norm = qk_norm if isinstance(qk_norm, tuple) else (qk_norm, qk_norm)
        self.v_norm = v_norm
        self.sinks = declare(num_heads) if sinks else None
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.scale = head_dim**-0.5 if scale is None else scale
        self.window = window
        self.softcap = softcap
        self.rope = rope
        self.dropout = dropout
        self.normed = normed
        self.interleaved = interleaved
        self.clip = clip
        self.fused = fused
        self.temperature = temperature
        self.chunk = chunk
        self.gate = gate

    def __call__(
        self, x: Float[Array, "batch seq in_"], context: Context, cache: Any = None
    ) -> tuple[Float[Array, "batch seq out"], Any, Float[Array, "batch heads seq keys"] | None]:
        q, k, v = self._projected(x)
        if self.normed == "rows":
            q, k = self._normed(q, k)
        if self.clip is not None:
            q, k, v = (jnp.clip(part, -self.clip, self.clip) for part in (q, k, v))
        q, k, v = split_heads(q, self.num_heads), split_heads(k, self.num_kv_heads), split_heads(v, self.num_kv_heads)
        if self.normed == "heads":
            q, k = self._normed(q, k)
        v = v if self.v_norm is None else self.v_norm(v)
        if self.rope is not None:
            assert context.rope is not None
            table = context.rope[self.rope]
            q, k = rotate(q, table, self.interleaved), rotate(k, table, self.interleaved)
        if self.normed == "rotated":
            q, k = self._normed(q, k)
        if self.temperature is not None:
            q = q * self.temperature(context.position_ids)[:, None, :, None].astype(q.dtype)
        if self.chunk is not None:
            context = in_chunks(context, self.chunk)
        out, cache, weights = self_attention(
            q,
            k,
            v,
            context,
            cache,
            scale=self.scale,
            window=self.window,
            softcap=self.softcap,
            sinks=self.sinks,
            dropout=self.dropout,
        )
        return self.o_proj(self._gated(out, x)), cache, weights

    def _gated(self, out: jax.Array, x: jax.Array) -> jax.Array:
        """What attention answers to `x`, each head or each number of it as far as its gate is open."""
        if self.gate is None:
            return out
        assert self.gate_proj is not None
        gates = GATES[self.gate](self.gate_proj(x).astype(jnp.float32)).astype(out.dtype)
        by_head = out.reshape(*out.shape[:2], self.num_heads, -1)
        return (by_head * gates.reshape(*out.shape[:2], self.num_heads, -1)).reshape(out.shape)

    def _projected(self, x: jax.Array) -> tuple[jax.Array, ...]:
        if self.qkv_proj is not None:
            return split_qkv(self.qkv_proj(x), self.num_heads, self.num_kv_heads, self.fused == "groups")
        assert self.q_proj is not None and self.k_proj is not None
        q, k = self.q_proj(x), self.k_proj(x)
        return q, k, k if self.v_proj is None else self.v_proj(x)

    def _normed(self, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        return (q if self.q_norm is None else self.q_norm(q)), (k if self.k_norm is None else self.k_norm(k))


@slots.register(Attention)
def _(layer: Attention) -> dict[str, Slot]:
    return {} if layer.sinks is None else {"sinks": Slot("other", ("heads",), "normal")}


@layer_cache.register(Attention)
def _(layer: Attention, batch_size: int, max_length: int, dtype: Any) -> KV | Ring:
    return empty_kv(batch_size, layer.num_kv_heads, layer.head_dim, max_length, layer.window, dtype)

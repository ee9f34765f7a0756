"""`SharingAttention`: layers that read the keys and values of an earlier layer of their kind (Gemma 3n, Gemma 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax

from ..cache.cache import attend_to, empty_kv, layer_cache
from ..context import Context
from ..linear import Linear
from ..norm import RMSNorm
from .attention import attend
from .core import merge_heads, split_heads
from .rope import rotate


def sharing(c: Any, kinds: Sequence[str]) -> list[str | None]:
    """Of every layer whether it reads another's keys (`reuse`): the last layers do, each those of the last layer of its kind
    before them (`store`)."""
    first = c.num_hidden_layers - c.num_kv_shared_layers
    if not c.num_kv_shared_layers:
        return [None] * len(kinds)
    if first < 1 or set(kinds[first:]) - set(kinds[:first]):
        raise ValueError(
            f"{c.model_type}: num_kv_shared_layers={c.num_kv_shared_layers}: before the last layers there must be one of each "
            f"of their kinds, and there are {', '.join(kinds[: max(first, 0)]) or 'none'}"
        )
    stores = {max(i for i in range(first) if kinds[i] == kind) for kind in set(kinds[first:])}
    return ["reuse" if i >= first else "store" if i in stores else None for i in range(len(kinds))]


class SharingAttention(eqx.Module):
    """Attention with a norm of each head of queries, keys and values, whose scores are not scaled; without a `v_proj` values
    are the keys before norm and rotation.

    `gives`: later layers of the kind `rope` read its keys and values. A layer without a `k_proj` is one of those: it has
    queries only, and keeps nothing in a cache.
    """

    q_proj: Linear
    k_proj: Linear | None
    v_proj: Linear | None
    o_proj: Linear
    q_norm: RMSNorm
    k_norm: RMSNorm | None
    v_norm: RMSNorm | None
    heads: int = eqx.field(static=True)
    groups: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    window: int | None = eqx.field(static=True)
    rope: str = eqx.field(static=True)
    dropout: float = eqx.field(static=True)
    gives: bool = eqx.field(static=True)

    def __init__(
        self,
        c: Any,
        kind: str,
        window: int | None,
        sharing: str | None,
        head_dim: int,
        groups: int,
        *,
        v_proj: bool = True,
    ) -> None:
        if c.num_attention_heads % groups:
            raise ValueError(
                f"{c.model_type}: num_attention_heads={c.num_attention_heads} is no multiple of "
                f"num_key_value_heads={groups}"
            )
        self.heads, self.groups, self.head_dim = c.num_attention_heads, groups, head_dim
        wide = lambda heads, axis: Linear(c.hidden_size, heads * head_dim, c.attention_bias, axes=(axis, "embed"))
        norm = lambda affine=True: RMSNorm(head_dim, c.rms_norm_eps, affine=affine)
        own = sharing != "reuse"
        self.q_proj, self.q_norm = wide(self.heads, "heads"), norm()
        self.k_proj, self.k_norm = (wide(groups, "kv_heads"), norm()) if own else (None, None)
        self.v_proj = wide(groups, "kv_heads") if own and v_proj else None
        self.v_norm = norm(affine=False) if own else None
        self.o_proj = Linear(self.heads * head_dim, c.hidden_size, c.attention_bias, axes=("embed", "heads"))
        self.window, self.rope, self.dropout = window, kind, float(c.attention_dropout or 0.0)
        self.gives = sharing == "store"

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, Any, Any]:
        """Also returns what later layers read: keys, values and their mask, by the kind of layer; `None` for nothing."""
        assert context.rope is not None
        q = rotate(self.q_norm(split_heads(self.q_proj(x), self.heads)), context.rope[self.rope])
        if self.k_proj is None:
            assert context.handed_on is not None
            keys, values, mask = context.handed_on[self.rope]
        else:
            assert self.k_norm is not None and self.v_norm is not None
            k = split_heads(self.k_proj(x), self.groups)
            v = self.v_norm(k if self.v_proj is None else split_heads(self.v_proj(x), self.groups))
            k = rotate(self.k_norm(k), context.rope[self.rope])
            cache, keys, values, mask = attend_to(cache, k, v, context, self.window)
        out, weights = attend(
            q,
            keys,
            values,
            mask,
            scale=1.0,
            runtime=context.runtime,
            weights=context.wants("attentions"),
            dropout_rate=self.dropout,
            key=None if context.key is None else jax.random.fold_in(context.key, 0),
        )
        given = {self.rope: (keys, values, mask)} if self.gives else None
        return self.o_proj(merge_heads(out)), cache, weights, given


@layer_cache.register(SharingAttention)
def _(layer: SharingAttention, batch_size: int, max_length: int, dtype: Any) -> Any:
    if layer.k_proj is None:
        return None
    return empty_kv(batch_size, layer.groups, layer.head_dim, max_length, layer.window, dtype)

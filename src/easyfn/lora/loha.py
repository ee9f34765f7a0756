"""`LoHa`: the entrywise product of two low-rank matrices (Hyeon-Woo et al. 2021, arXiv 2108.06098), beside a frozen
weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ..core.slots import Found
from ..core.tree import Pattern
from ..core.weight import Weight, dense, dot, shape_of
from .adapter import choose, fresh, ranks_and_alphas, register_adapter, uniform
from .apply import put

ROLES = ("linear", "head", "router", "experts")


class LoHa(eqx.Module):
    """The weight `base + scale * (w1_a @ w1_b) * (w2_a @ w2_b)`: rank `r * r` with the parameters of rank `2 r`.

    `w1_a` and `w2_a` have shape `(..., out, rank)`, `w1_b` and `w2_b` `(..., rank, in)`. The change is made as a whole
    at every use, in the dtype of what comes in.
    """

    base: Weight
    w1_a: Any
    w1_b: Any
    w2_a: Any
    w2_b: Any
    scale: float = eqx.field(static=True, default=1.0)

    @property
    def rank(self) -> int:
        return self.w1_b.shape[-2]


def apply_loha(
    model: Any,
    pattern: Pattern = "all-linear",
    *,
    rank: int = 8,
    alpha: int | float = 8,
    key: jax.Array,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, int | float] | None = None,
    layers: int | Sequence[int] | None = None,
    exclude: Pattern | None = None,
    dtype: Any = None,
) -> Any:
    """`model` with a [`LoHa`][easyfn.LoHa] in every weight slot that the pattern selects; a fresh one changes nothing.

    The change is `alpha / rank` times the product; the other arguments are those of [`easyfn.apply_lora`][].

    ```python
    import jax, easyfn as ef
    model = ef.testing.tiny()
    tuned = ef.apply_loha(model, "q_proj", rank=4, key=jax.random.key(1))
    assert tuned.model.layers[0].self_attn.q_proj.weight.rank == 4
    ```
    """
    chosen = choose("apply_loha", model, pattern, layers, exclude, ROLES)
    by_slot = ranks_and_alphas("apply_loha", chosen, rank, alpha, rank_pattern, alpha_pattern)

    def adapter(f: Found) -> LoHa:
        rank, alpha = by_slot[f.path]

        def make(w: Weight, key: jax.Array) -> LoHa:
            *lead, out, into = shape_of(w)
            k1, k2, k3 = jax.random.split(key, 3)
            last = jnp.zeros((*lead, rank, into), jnp.float32)
            shapes = ((out, rank), (rank, into), (out, rank))
            drawn = [uniform(k, *lead, *shape) for k, shape in zip((k1, k2, k3), shapes, strict=True)]
            one_a, one_b, two_a, two_b = (x.astype(dtype or jnp.float32) for x in (*drawn, last))
            return LoHa(w, one_a, one_b, two_a, two_b, scale=alpha / rank)

        return fresh(f, key, make)

    return put(model, {f.path: adapter(f) for f in chosen})


def _delta(w: LoHa, dtype: Any) -> jax.Array:
    pairs = ((w.w1_a, w.w1_b), (w.w2_a, w.w2_b))
    product = lambda a, b: jnp.matmul(a.astype(dtype), b.astype(dtype), precision=lax.Precision.HIGHEST)
    one, two = (product(a, b) for a, b in pairs)
    return one * two * jnp.asarray(w.scale, dtype)


@dot.register(LoHa)
def _(w: LoHa, x: jax.Array, *, dtype: Any = None) -> jax.Array:
    y = dot(w.base, x, dtype=dtype)
    return y + dot(_delta(w, x.dtype), x).astype(y.dtype)


@dense.register(LoHa)
def _(w: LoHa) -> jax.Array:
    base = dense(w.base)
    return (base.astype(jnp.float32) + _delta(w, jnp.float32)).astype(base.dtype)


def _axes(w: LoHa, lead: tuple[Any, ...], out: Any, into: Any) -> dict[str, Any]:
    column, row = (*lead, out, None), (*lead, None, into)
    return {"w1_a": column, "w1_b": row, "w2_a": column, "w2_b": row}


register_adapter(LoHa, _axes, additive=True)

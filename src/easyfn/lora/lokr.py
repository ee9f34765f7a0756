"""`LoKr`: a Kronecker product beside a frozen weight (LyCORIS, Yeh et al. 2023, arXiv 2309.14859)."""

from __future__ import annotations

import math
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


class LoKr(eqx.Module):
    """The weight `base + scale * kron(w1, w2)`, where `out = l * k` and `in = m * n`.

    `w1` has shape `(..., l, m)` and `w2` `(..., k, n)`. Either may be the product of a thin pair instead, `w1_a @ w1_b`
    or `w2_a @ w2_b`, with `rank` columns. The Kronecker product is never made in a forward pass.
    """

    base: Weight
    w1: Any = None
    w1_a: Any = None
    w1_b: Any = None
    w2: Any = None
    w2_a: Any = None
    w2_b: Any = None
    scale: float = eqx.field(static=True, default=1.0)
    rank: int = eqx.field(static=True, default=8)


def apply_lokr(
    model: Any,
    pattern: Pattern = "all-linear",
    *,
    rank: int = 8,
    alpha: int | float = 8,
    key: jax.Array,
    decompose_both: bool = False,
    decompose_factor: int = -1,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, int | float] | None = None,
    layers: int | Sequence[int] | None = None,
    exclude: Pattern | None = None,
    dtype: Any = None,
) -> Any:
    """`model` with a [`LoKr`][easyfn.LoKr] in every weight slot that the pattern selects; a fresh one changes nothing.

    **Arguments**

    - `rank`, `alpha`: the change is `alpha / rank` times the product. A factor whose larger side is more than twice the
      rank is a thin pair (the first only with `decompose_both`), as in PEFT.
    - `decompose_factor`: the size of the first factor's sides, where it divides; by default they are near the root.
    - the others are those of [`easyfn.apply_lora`][].

    ```python
    import jax, easyfn as ef
    model = ef.testing.tiny()
    w = ef.apply_lokr(model, "up_proj", rank=2, key=jax.random.key(1)).model.layers[0].mlp.up_proj.weight
    assert w.w1.shape == (8, 4) and w.w2_a.shape == (8, 2) and w.w2_b.shape == (2, 8)
    ```
    """
    chosen = choose("apply_lokr", model, pattern, layers, exclude, ROLES)
    by_slot = ranks_and_alphas("apply_lokr", chosen, rank, alpha, rank_pattern, alpha_pattern)

    def adapter(f: Found) -> LoKr:
        rank, alpha = by_slot[f.path]

        def make(w: Weight, key: jax.Array) -> LoKr:
            *lead, out, into = shape_of(w)
            keys = dict(zip(("w1_b", "w2", "w2_a", "w2_b"), jax.random.split(key, 4), strict=True))
            made = {
                name: uniform(keys[name], *lead, *shape) if name in keys else jnp.zeros((*lead, *shape), jnp.float32)
                for name, shape in layout(out, into, rank, decompose_both, decompose_factor).items()
            }
            return LoKr(
                w, **{x: y.astype(dtype or jnp.float32) for x, y in made.items()}, scale=alpha / rank, rank=rank
            )

        return fresh(f, key, make)

    return put(model, {f.path: adapter(f) for f in chosen})


def layout(out: int, into: int, rank: int, both: bool, factor: int) -> dict[str, tuple[int, int]]:
    """The arrays of a LoKr on a weight `(out, in)` and their shapes, by PEFT's rule."""
    (left, right), (m, n) = factors(out, factor), factors(into, factor)
    thin = both and rank < max(left, m) / 2
    shapes = {"w1_a": (left, rank), "w1_b": (rank, m)} if thin else {"w1": (left, m)}
    return shapes | ({"w2_a": (right, rank), "w2_b": (rank, n)} if rank < max(right, n) / 2 else {"w2": (right, n)})


def factors(size: int, factor: int = -1) -> tuple[int, int]:
    """`size` as a product of two, the smaller first, as PEFT cuts it: `factor` if it divides, else the nearest to it
    from below, or to the root if it is -1.
    """
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    limit = size if factor == -1 else factor
    best = max(d for d in range(1, min(limit, math.isqrt(size)) + 1) if size % d == 0)
    return best, size // best


@dot.register(LoKr)
def _(w: LoKr, x: jax.Array, *, dtype: Any = None) -> jax.Array:
    y = dot(w.base, x, dtype=dtype)
    first, second = _pair(w, 1), _pair(w, 2)
    grid = x.reshape(*x.shape[:-1], first[-1].shape[-1], second[-1].shape[-1])
    for part in reversed(second):
        grid = dot(part.astype(x.dtype), grid)  # (..., m, k)
    grid = jnp.swapaxes(grid, -1, -2)
    for part in reversed(first):
        grid = dot(part.astype(x.dtype), grid)  # (..., k, l)
    change = jnp.swapaxes(grid, -1, -2).reshape(*x.shape[:-1], -1) * jnp.asarray(w.scale, x.dtype)
    return y + change.astype(y.dtype)


def _pair(w: LoKr, n: int) -> list[Any]:
    """The matrices whose product a factor is, the left one first."""
    whole = getattr(w, f"w{n}")
    return [whole] if whole is not None else [getattr(w, f"w{n}_a"), getattr(w, f"w{n}_b")]


@dense.register(LoKr)
def _(w: LoKr) -> jax.Array:
    base = dense(w.base)
    one, two = ([p.astype(jnp.float32) for p in _pair(w, n)] for n in (1, 2))
    first, second = (
        p[0] if len(p) == 1 else jnp.matmul(p[0], p[1], precision=lax.Precision.HIGHEST) for p in (one, two)
    )
    change = w.scale * jnp.einsum("...lm,...kn->...lkmn", first, second)
    return (base.astype(jnp.float32) + change.reshape(base.shape)).astype(base.dtype)


def _axes(w: LoKr, lead: tuple[Any, ...], out: Any, into: Any) -> dict[str, Any]:
    fields = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")
    return dict.fromkeys(fields, (*lead, None, None))  # no factor has an axis of the weight


register_adapter(LoKr, _axes, additive=True)

"""`VeRA`: two trained vectors around random projections that all layers share (Kopiczko et al. 2023, arXiv
2310.11454).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.slots import Found
from ..core.tree import Pattern
from ..core.weight import Weight, dense, dot, randomized, shape_of
from .adapter import choose, dropped, fresh, register_adapter, scaled
from .apply import put

ROLES = ("linear", "head", "router")


class VeRA(eqx.Module):
    """The weight `base + diag(lambda_b) @ b @ diag(lambda_d) @ a`.

    `a` `(..., rank, in)` and `b` `(..., out, rank)` are frozen, the first columns and rows of one pair for the whole
    model; `lambda_d` `(..., rank, 1)` and `lambda_b` `(..., out, 1)` train. Slots of the same size hold the same
    arrays, so that they cost memory once; a stacked run has its own copy for each layer.
    """

    base: Weight
    a: Any
    b: Any
    lambda_d: Any
    lambda_b: Any
    key: Any = None
    dropout: float = eqx.field(static=True, default=0.0)
    seed: int = eqx.field(static=True, default=0)


def apply_vera(
    model: Any,
    pattern: Pattern = "all-linear",
    *,
    rank: int = 256,
    d_initial: int | float = 0.1,
    dropout: int | float = 0.0,
    projection_prng_key: int = 0,
    layers: int | Sequence[int] | None = None,
    exclude: Pattern | None = None,
    dtype: Any = None,
) -> Any:
    """`model` with a [`VeRA`][easyfn.VeRA] in every weight slot that the pattern selects; a fresh one changes nothing.

    **Arguments**

    - `rank`: of the random projections; it may be large, for they do not train.
    - `d_initial`: the start of `lambda_d`; `lambda_b` starts at zero.
    - `projection_prng_key`: the integer that the projections are drawn with. They are PEFT's, number by number, so a
      file need not hold them.
    - `dropout`: of what enters the adapter; on in `ef.forward(..., key=...)`.
    - `pattern`, `layers`, `exclude`, `dtype`: as for [`easyfn.apply_lora`][].

    ```python
    import easyfn as ef
    model = ef.testing.tiny()
    base, adapter = ef.split_lora(ef.apply_vera(model, "q_proj|v_proj", rank=16))
    assert adapter["model.layers.0.self_attn.v_proj.weight"].lambda_b.shape == (16, 1)
    ```
    """
    if rank < 1:
        raise ValueError(f"apply_vera: rank must be at least 1, not {rank}")
    chosen = choose("apply_vera", model, pattern, layers, exclude, ROLES)
    number = jnp.dtype(dtype or jnp.float32)
    sizes = [shape_of(f.weight)[-2:] for f in chosen]
    whole = projections(rank, max(s[0] for s in sizes), max(s[1] for s in sizes), projection_prng_key)
    shared = {size: parts(whole, size[0], size[1], number) for size in set(sizes)}

    def adapter(f: Found) -> VeRA:
        a, b = shared[tuple(shape_of(f.weight)[-2:])]

        def make(w: Weight, key: None) -> VeRA:
            d = jnp.full((rank, 1), d_initial, number)
            return VeRA(w, a, b, d, jnp.zeros((b.shape[0], 1), number), dropout=dropout, seed=projection_prng_key)

        made = fresh(f, None, make)
        same = made.a.shape == a.shape and type(made.a) is type(a) and made.a.sharding == a.sharding
        return dataclasses.replace(made, a=a, b=b) if same else made

    return put(model, {f.path: adapter(f) for f in chosen})


def projections(rank: int, out: int, into: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """PEFT's `vera_A` `(rank, in)` and `vera_B` `(out, rank)`, float32: what torch's generator draws from the seed."""
    stream = np.random.RandomState(seed)._bit_generator  # torch's CPU generator is the same Mersenne Twister

    def draw(rows: int, columns: int) -> np.ndarray:
        bits = (stream.random_raw(rows * columns) & 0xFFFFFF).astype(np.float64)
        bound = np.float32(math.sqrt(3.0) * (math.sqrt(2.0) / math.sqrt(columns)))
        return (bits * 2.0**-24 * (bound + bound) - bound).astype(np.float32).reshape(rows, columns)

    return draw(rank, into), draw(out, rank)


def parts(whole: tuple[Any, Any], out: int, into: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """The projections of a slot of that size."""
    return jnp.asarray(whole[0][:, :into], dtype), jnp.asarray(whole[1][:out], dtype)


@dot.register(VeRA)
def _(w: VeRA, x: jax.Array, *, dtype: Any = None) -> jax.Array:
    y = dot(w.base, x, dtype=dtype)
    a, b = (lax.stop_gradient(p).astype(x.dtype) for p in (w.a, w.b))
    low = scaled(dot(a, dropped(x, w.dropout, w.key)), w.lambda_d[..., 0])
    return y + scaled(dot(b, low), w.lambda_b[..., 0]).astype(y.dtype)


@dense.register(VeRA)
def _(w: VeRA) -> jax.Array:
    base = dense(w.base)
    a, b, d, scale = (p.astype(jnp.float32) for p in (w.a, w.b, w.lambda_d, w.lambda_b))
    change = jnp.einsum("...or,...ri->...oi", scale * b, d * a, precision=lax.Precision.HIGHEST)
    return (base.astype(jnp.float32) + change).astype(base.dtype)


@randomized.register(VeRA)
def _(w: VeRA, key: jax.Array) -> VeRA:
    return w if w.dropout == 0.0 else dataclasses.replace(w, key=key)


def _axes(w: VeRA, lead: tuple[Any, ...], out: Any, into: Any) -> dict[str, Any]:
    column = (*lead, out, None)
    return {"a": (*lead, None, into), "b": column, "lambda_d": (*lead, None, None), "lambda_b": column}


register_adapter(VeRA, _axes, frozen=("a", "b"), additive=True)

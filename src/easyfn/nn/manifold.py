"""Manifold-constrained hyper-connections (Xie et al. 2026), as DeepSeek-V4 has them: several residual streams,
mixed between layers by matrices whose rows and columns all but add up to one.

What a layer reads of the streams, how much of its answer each takes, and how they mix, are made of the streams themselves, in
float32. Streams are `(batch, seq, streams, embed)`.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ..core.weight import HALF, Slot, Weight, dense, slots
from .linear import along_last, declare
from .norm import RMSNorm


def sinkhorn(weights: jax.Array, steps: int, eps: float) -> jax.Array:
    """Positive matrices `(..., n, n)` with columns that add up to one, and rows that do so the better the more `steps`: each
    divides by the sums of rows and then of columns, the first by those of columns only (Sinkhorn and Knopp 1967).

    ```python
    import jax.numpy as jnp
    from easyfn.nn.manifold import sinkhorn
    mixed = sinkhorn(jnp.array([[1.0, 2.0], [3.0, 1.0]]), 20, 1e-6)
    assert jnp.allclose(mixed.sum(0), 1, atol=1e-4) and jnp.allclose(mixed.sum(1), 1, atol=1e-4)
    ```
    """
    over = lambda m, axis: m / (jnp.sum(m, axis=axis, keepdims=True) + eps)
    # A loop: unrolled, its steps would be most of a deep model's program.
    return lax.scan(lambda m, _: (over(over(m, -1), -2), None), over(weights, -2), None, length=max(steps - 1, 0))[0]


class Streamed(eqx.Module):
    """Embeddings, once for each stream."""

    count: int = eqx.field(static=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x[:, :, None], (*x.shape[:2], self.count, x.shape[-1]))


class ManifoldConnection(eqx.Module):
    """Around one part of a layer: called with the streams, it returns what the part reads, and a function that makes the next
    streams of the part's answer."""

    fn: Weight
    base: Weight
    scale: Weight
    norm: RMSNorm
    steps: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    def __init__(self, count: int, width: int, *, steps: int, eps: float, norm_eps: float) -> None:
        self.fn, self.base, self.scale = (
            declare((2 + count) * count, count * width),
            declare((2 + count) * count),
            declare(3),
        )
        self.norm = RMSNorm(count * width, norm_eps, affine=False)
        self.steps = steps
        self.eps = eps

    def __call__(self, x: jax.Array) -> tuple[jax.Array, Any]:
        count = x.shape[2]
        said = jnp.split(_read(self.norm, self.fn, x), [count, 2 * count], axis=-1)
        base = jnp.split(dense(self.base).astype(jnp.float32), [count, 2 * count])
        scale = dense(self.scale).astype(jnp.float32)
        pre, post, comb = (part * scale[i] + along_last(base[i], part) for i, part in enumerate(said))
        comb = jax.nn.softmax(comb.reshape(*comb.shape[:-1], count, count), axis=-1) + self.eps
        comb = sinkhorn(comb, self.steps, self.eps).astype(x.dtype)
        post = (2 * jax.nn.sigmoid(post)).astype(x.dtype)

        def taken(answer: jax.Array) -> jax.Array:
            mixed = jnp.einsum("bsij,bsid->bsjd", comb, x, preferred_element_type=jnp.float32).astype(x.dtype)
            return post[..., None] * answer[:, :, None] + mixed

        return _collapsed(x, jax.nn.sigmoid(pre) + self.eps), taken


class ManifoldHead(eqx.Module):
    """Behind all layers: the streams become one, which is normed."""

    hc_fn: Weight
    hc_base: Weight
    hc_scale: Weight
    input_norm: RMSNorm
    norm: RMSNorm
    eps: float = eqx.field(static=True)

    def __init__(self, count: int, width: int, norm: RMSNorm, *, eps: float) -> None:
        self.hc_fn, self.hc_base, self.hc_scale = declare(count, count * width), declare(count), declare(1)
        self.input_norm = RMSNorm(count * width, norm.eps, affine=False)
        self.norm = norm
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        said = _read(self.input_norm, self.hc_fn, x)
        scale, base = (along_last(dense(w).astype(jnp.float32), said) for w in (self.hc_scale, self.hc_base))
        return self.norm(_collapsed(x, jax.nn.sigmoid(said * scale + base) + self.eps))


def _read(norm: RMSNorm, weight: Weight, x: jax.Array) -> jax.Array:
    """What is made of all streams of a token together, in float32."""
    flat = norm(x.astype(jnp.float32).reshape(*x.shape[:2], -1))
    w = dense(weight).astype(jnp.float32)
    return lax.dot_general(flat, w, (((2,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def _collapsed(x: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.sum(weights[..., None] * x.astype(jnp.float32), axis=2).astype(x.dtype)


@slots.register(ManifoldConnection)
def _(connection: ManifoldConnection) -> dict[str, Slot]:
    other = lambda rank, init: Slot("other", (None,) * rank, init, HALF)
    return {"fn": other(2, "normal"), "base": other(1, "zeros"), "scale": other(1, "ones")}


@slots.register(ManifoldHead)
def _(head: ManifoldHead) -> dict[str, Slot]:
    other = lambda rank, init: Slot("other", (None,) * rank, init, HALF)
    return {"hc_fn": other(2, "normal"), "hc_base": other(1, "zeros"), "hc_scale": other(1, "ones")}

"""How an adapter starts."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp

from ..core.weight import Weight, dense, requantize, shape_of
from .weight import bound

CHANGES_BASE = ("pissa", "olora")  # and pissa_niter_<n>: the base is no longer the weight that it was
INITS = ("default", "gaussian", "pissa", "pissa_niter_<n>", "olora", "orthogonal")


def start(
    how: str, weight: Weight, role: str, rank: int, scale: float, key: jax.Array
) -> tuple[jax.Array, jax.Array, Weight]:
    """`(a, b, base)` of a fresh adapter on one weight `(..., out, in)`: float32, and the sum `base + scale * b @ a`
    is the weight.
    """
    *lead, out, into = shape_of(weight)
    if how in ("default", "gaussian"):
        shape = (*lead, rank, into)
        b = jnp.zeros((*lead, out, rank), jnp.float32)
        if role == "embedding":  # PEFT: normal beside zero
            return jax.random.normal(key, shape, jnp.float32), b, weight
        if how == "gaussian":
            return jax.random.normal(key, shape, jnp.float32) / rank, b, weight
        return jax.random.uniform(key, shape, jnp.float32, -bound(into), bound(into)), b, weight
    if how == "orthogonal":
        return _orthogonal((*lead, out, into), rank, scale, key, weight)
    full = dense(weight).astype(jnp.float32)
    if rank > min(out, into):
        raise ValueError(
            f"apply_lora: init={how!r} needs a rank of at most {min(out, into)} for a weight {(out, into)}, not {rank}"
        )
    if how == "pissa":
        u, s, vh = jnp.linalg.svd(full, full_matrices=False)
        u, s, vh = u[..., :rank], s[..., :rank], vh[..., :rank, :]
        a, b = roots(u, s, vh, scale)
    elif found := re.fullmatch(r"pissa_niter_(\d+)", how):
        a, b = roots(*_fast_svd(full, rank, int(found[1]), key), scale)
    elif how == "olora":
        q, r = jnp.linalg.qr(full)
        a, b = r[..., :rank, :], q[..., :, :rank]
        return a, b, requantize(weight, full - scale * b @ a)
    else:
        raise ValueError(f"apply_lora: there is no init {how!r}; there are {', '.join(INITS)}")
    return a, b, requantize(weight, full - scale * b @ a)


def roots(u: jax.Array, s: jax.Array, vh: jax.Array, scale: float) -> tuple[jax.Array, jax.Array]:
    root = jnp.sqrt(s / scale)
    return root[..., :, None] * vh, u * root[..., None, :]


def _fast_svd(w: jax.Array, rank: int, steps: int, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Randomized subspace iteration (Halko et al. 2011, algorithm 5.1), as `torch.svd_lowrank` does it."""
    q = jnp.linalg.qr(w @ jax.random.normal(key, (*w.shape[:-2], w.shape[-1], 2 * rank), w.dtype))[0]
    wt = jnp.swapaxes(w, -1, -2)
    for _ in range(steps):
        q = jnp.linalg.qr(w @ jnp.linalg.qr(wt @ q)[0])[0]
    u, s, vh = jnp.linalg.svd(jnp.swapaxes(q, -1, -2) @ w, full_matrices=False)
    return (q @ u)[..., :rank], s[..., :rank], vh[..., :rank, :]


def _orthogonal(
    shape: tuple[int, ...], rank: int, scale: float, key: jax.Array, weight: Any
) -> tuple[jax.Array, jax.Array, Weight]:
    """PEFT's `"orthogonal"`: rows of `a` and columns of `b` from the two halves of one random orthogonal matrix."""
    *lead, out, into = shape
    if rank % 2:
        raise ValueError(f"apply_lora: init='orthogonal' needs an even rank, not {rank}")
    k1, k2, k3 = jax.random.split(key, 3)
    q = jnp.linalg.qr(jax.random.normal(k1, (*lead, rank, rank), jnp.float32))[0]
    odd, even = q[..., 0::2, :], q[..., 1::2, :]
    half = rank // 2
    a = jnp.swapaxes(jax.random.normal(k2, (*lead, into, half), jnp.float32) / 10.0 @ odd, -1, -2)
    b = jax.random.normal(k3, (*lead, out, half), jnp.float32) / 10.0 @ even
    return a, b, weight

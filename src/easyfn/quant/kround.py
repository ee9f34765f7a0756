"""Rounding to llama.cpp's Q4_K: for each group of 32 a scale and a minimum, both in 6 bits, for each 256 two float16."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .kquant import KQuant

LEVELS, STEPS = 15, 20  # of a code; candidates beside the plain one


@jax.jit
def to_q4_k(w: Any) -> KQuant:
    """Rounds a dense array `(..., out, in)` to blocks of Q4_K, as llama.cpp does without an importance matrix.

    Each group takes, of 21 scales, the one whose best line through its entries has the least error, where entries count as
    their size and the root mean square of the group (ggml-quants.c, `quantize_row_q4_K_ref`); a sum in another order can
    decide between two that are as good. Raises `ValueError` where 256 does not divide the row.

    ```python
    import jax, easyfn as ef
    w = ef.quant.to_q4_k(jax.random.normal(jax.random.key(0), (8, 256)))
    assert ef.format_of(w) == "q4_k" and w.codes.shape == (8, 128) and w.scales.shape == (8, 8)
    ```
    """
    if w.shape[-1] % 256:
        raise ValueError(f"Q4_K has blocks of 256 entries, which do not divide rows of {w.shape[-1]}")
    lead = w.shape[:-1]
    x = w.astype(jnp.float32).reshape(*lead, -1, 8, 32)
    scales, mins = _lines(x)
    scale, minimum = (part.max(-1, keepdims=True) / 63 for part in (scales, mins))
    scales, mins = (
        jnp.clip(jnp.round(part * _inverse(whole)), 0, 63) for part, whole in ((scales, scale), (mins, minimum))
    )
    scale, minimum = scale.astype(jnp.float16), minimum.astype(jnp.float16)
    step, least = ((whole.astype(jnp.float32) * part)[..., None] for whole, part in ((scale, scales), (minimum, mins)))
    codes = jnp.where(step > 0, jnp.clip(jnp.round((x + least) / jnp.where(step > 0, step, 1)), 0, LEVELS), 0)
    codes = codes.astype(jnp.uint8).reshape(*lead, -1, 2, 32)  # the planes of a chunk
    flat = lambda part, dtype: part.astype(dtype).reshape(*lead, -1)
    return KQuant(
        codes=flat(codes[..., 0, :] | codes[..., 1, :] << 4, jnp.uint8),
        scale=flat(scale, jnp.float16),
        minimum=flat(minimum, jnp.float16),
        scales=flat(scales, jnp.uint8),
        mins=flat(mins, jnp.uint8),
        kind="Q4_K",
        dtype=jnp.dtype(w.dtype).name,
    )


def _lines(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For each group the scale and the minimum (its size, below zero) of the line that fits it best."""
    weight = jnp.sqrt(jnp.mean(x**2, -1, keepdims=True)) + jnp.abs(x)
    low, high = jnp.minimum(x.min(-1), 0), x.max(-1)
    total = lambda part: jnp.sum(weight * part, -1)
    n, sum_x = total(1.0), total(x)

    def codes_of(inverse: jax.Array, least: jax.Array) -> jax.Array:
        return jnp.clip(jnp.round(inverse[..., None] * (x - least[..., None])), 0, LEVELS)

    def error(codes: jax.Array, scale: jax.Array, least: jax.Array) -> jax.Array:
        return total((scale[..., None] * codes + least[..., None] - x) ** 2)

    def better(k: Any, best: Any) -> Any:
        codes = codes_of((LEVELS - 1 + 0.1 * k) * _inverse(high - best[2]), best[2])  # from the best minimum so far
        sum_c, sum_cc, sum_xc = total(codes), total(codes**2), total(x * codes)
        spread = n * sum_cc - sum_c**2
        safe = jnp.where(spread > 0, spread, 1)
        scale, least = (n * sum_xc - sum_x * sum_c) / safe, (sum_cc * sum_x - sum_c * sum_xc) / safe
        scale = jnp.where(least > 0, sum_xc * _inverse(sum_cc), scale)
        least = jnp.minimum(least, 0)
        found = (error(codes, scale, least), scale, least)
        take = (spread > 0) & (found[0] < best[0])
        return tuple(jnp.where(take, new, old) for new, old in zip(found, best, strict=True))

    width = high - low
    plain = width / LEVELS
    first = (error(codes_of(LEVELS * _inverse(width), low), plain, low), plain, low)
    _, scale, least = lax.fori_loop(0, STEPS + 1, better, first)
    return jnp.where(width > 0, scale, 0), -least


def _inverse(x: jax.Array) -> jax.Array:
    return jnp.where(x > 0, 1 / jnp.where(x > 0, x, 1), 0)

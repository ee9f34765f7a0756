"""AWQ and SmoothQuant: columns scaled before rounding, so that those which matter most lose least."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..core.weight import dense, requantize
from .grouped import Grouped, group_of, grouped
from .product import replace
from .rounding import inverse

_GRID = 20


def awq_scales(w: jax.Array, gram: jax.Array, like: Any) -> Any:
    """`w` in the format of `like`, its columns scaled by a power of what enters them (AWQ, arXiv 2306.00978).

    As in the authors' search, 20 exponents from 0 to 0.95 are tried, and the one is taken with which the output of
    the layer changes least; then, for integer codes in groups, each group's range is cut to what changes its part of the
    output least (down to half). Both errors are exact sums over all inputs, for `gram` `(in, in)` is their `X^T X`.
    The size of an input is its root mean square (theirs is the mean magnitude). `smooth` of the result holds the
    scales; `w`: `(out, in)`.

    ```python
    import jax, jax.numpy as jnp, easyfn as ef
    w, x = jax.random.normal(jax.random.key(0), (16, 64)), jax.random.normal(jax.random.key(1), (256, 64))
    x = x * jnp.where(jnp.arange(64) < 2, 20.0, 1.0)[None]     # two loud inputs
    plain = ef.QuantConfig("int4", 32).encode(w)
    better = ef.quant.awq_scales(w, x.T @ x, plain)
    error = lambda q: jnp.linalg.norm(ef.dot(q, x) - x @ w.T)
    assert error(better) < 0.7 * error(plain)
    ```
    """
    w, gram = w.astype(jnp.float32), gram.astype(jnp.float32)
    size = jnp.sqrt(jnp.diagonal(gram))
    size = jnp.maximum(size, 1e-4 * jnp.maximum(jnp.mean(size), jnp.finfo(jnp.float32).tiny))

    def scales(power: jax.Array) -> jax.Array:
        s = size**power
        return s / jnp.sqrt(jnp.max(s) * jnp.min(s))

    def error(power: jax.Array) -> jax.Array:
        # In float32: the format's own dtype would round what is compared.
        rounded = dense(replace(_with(like, w, scales(power)), dtype="float32"))
        return _output_error(rounded - w, gram)

    powers = jnp.arange(_GRID) / _GRID
    best = scales(powers[jnp.argmin(lax.map(error, powers))])
    found = _with(like, w, best)
    return _clipped(found, w * best[None], gram / (best[:, None] * best[None])) if isinstance(found, Grouped) else found


def smooth_scales(w: jax.Array, peak: jax.Array, like: Any, strength: float = 0.5) -> Any:
    """`w` in the format of `like` with SmoothQuant's scales (arXiv 2211.10438, equation 4).

    Where inputs are rounded too, a part `strength` of the difficulty moves from the inputs, whose largest magnitudes are
    `peak` `(in,)`, to the weight `(out, in)`.
    """
    w = w.astype(jnp.float32)
    top = jnp.maximum(jnp.max(jnp.abs(w), axis=0), 1e-5)
    s = jnp.maximum(peak, 1e-5) ** strength / top ** (1 - strength)
    return _with(like, w, jnp.where(peak > 0, jnp.maximum(s, 1e-5), 1.0))


def _with(like: Any, w: jax.Array, scales: jax.Array) -> Any:
    return requantize(replace(like, smooth=scales[None]), w)


def _output_error(change: jax.Array, gram: jax.Array) -> jax.Array:
    return jnp.sum(jnp.matmul(change, gram, precision=lax.Precision.HIGHEST) * change)


def _clipped(found: Grouped, w: jax.Array, gram: jax.Array) -> Grouped:
    """`found`, the codes of `w`, with each scale made smaller by the factor that serves its group best."""
    out, width = w.shape
    group, bits = group_of(found), found.bits
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if found.zeros is None else (0, 2**bits - 1)
    cut = w.reshape(out, width // group, group)
    blocks = gram.reshape(width // group, group, width // group, group)
    blocks = jnp.moveaxis(jnp.diagonal(blocks, axis1=0, axis2=2), -1, 0)  # each group's inputs with each other
    zeros = 0.0 if found.zeros is None else found.zeros.astype(jnp.float32)[..., None]

    def attempt(factor: jax.Array) -> tuple[jax.Array, jax.Array]:
        scales = (found.scales.astype(jnp.float32) * factor).astype(found.scales.dtype)
        step = scales.astype(jnp.float32)[..., None]
        codes = jnp.clip(jnp.round(cut * inverse(step)) + zeros, low, high)
        change = step * (codes - zeros) - cut
        through = jnp.einsum("ogi,gij->ogj", change, blocks, precision=lax.Precision.HIGHEST)
        return jnp.sum(through * change, -1), scales

    def better(best: Any, factor: jax.Array) -> Any:
        error, scales = attempt(factor)
        keep = error < best[0]
        return (jnp.where(keep, error, best[0]), jnp.where(keep, scales, best[1])), None

    factors = 1.2 - jnp.arange(_GRID * 7 // 10 + 1) / _GRID
    scales = lax.scan(better, attempt(jnp.float32(1)), factors)[0][1]
    step = scales.astype(jnp.float32)[..., None]
    codes = jnp.clip(jnp.round(cut * inverse(step)) + zeros, low, high)
    codes = codes.reshape(w.shape).astype(jnp.int8 if found.zeros is None else jnp.uint8)
    return replace(found, codes=grouped(codes, scales, found.zeros, bits=bits).codes, scales=scales)

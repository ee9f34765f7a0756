"""Rounding to integers in groups: weights once (`round_groups`), the input of a product anew each time (`round_rows`)."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

# Of 4 bits and fewer, the least squared error is often that of a scale which clips the largest entry. In units of the
# scale that just reaches it; five of them cost little and gain 4 to 6 % of the error of a normal matrix.
REACH = (1.0, 17 / 16, 18 / 16, 19 / 16, 20 / 16)


def round_groups(
    w: jax.Array, bits: int, group: int, *, symmetric: bool = True
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Codes `(..., out, in)`, float32 scales `(..., out, in / group)` and, if not symmetric, integer zeros.

    Symmetric: the entry of largest magnitude becomes the lowest code, of which there is one more than of positive ones
    (GGUF's Q4_0); of 4 bits and fewer the best of five scales around that one. Otherwise the least and the greatest
    entry, and zero, are among the levels.

    Raises `ValueError` for a group that does not divide the row.

    ```python
    import jax.numpy as jnp, easyfn as ef
    codes, scales, zeros = ef.quant.round_groups(jnp.array([[-4.0, 1, 2, 3]]), 8, 2)
    assert codes.tolist() == [[-128, 32, -85, -128]] and scales.tolist() == [[4 / 128, -3 / 128]] and zeros is None
    ```
    """
    cut = split_groups(w, group)
    if not symmetric:
        high = 2**bits - 1
        least, most = jnp.minimum(jnp.min(cut, -1, keepdims=True), 0), jnp.maximum(jnp.max(cut, -1, keepdims=True), 0)
        scales = (most - least) / high
        zeros = jnp.clip(jnp.round(-least * inverse(scales)), 0, high)
        codes = jnp.clip(jnp.round(cut * inverse(scales)) + zeros, 0, high)
        return codes.astype(jnp.uint8).reshape(w.shape), scales[..., 0], zeros[..., 0].astype(jnp.uint8)
    low = 2 ** (bits - 1)
    top = jnp.take_along_axis(cut, jnp.argmax(jnp.abs(cut), axis=-1, keepdims=True), axis=-1)
    scales = functools.reduce(
        functools.partial(_better, cut, low), [top / (-low * reach) for reach in (REACH if bits <= 4 else REACH[:1])]
    )
    return _codes(cut, scales, low).astype(jnp.int8).reshape(w.shape), scales[..., 0], None


def _codes(cut: jax.Array, scales: jax.Array, low: int) -> jax.Array:
    return jnp.clip(jnp.round(cut * inverse(scales)), -low, low - 1)


def _better(cut: jax.Array, low: int, one: jax.Array, other: jax.Array) -> jax.Array:
    """Of two scales for each group, the one with less squared error; the first if they are equal."""
    errors = [jnp.sum((_codes(cut, s, low) * s - cut) ** 2, axis=-1, keepdims=True) for s in (one, other)]
    return jnp.where(errors[1] < errors[0], other, one)


def split_groups(w: jax.Array, group: int) -> jax.Array:
    """`w` in float32 as `(..., out, in / group, group)`; a group that does not divide the row is an error."""
    width = w.shape[-1]
    if width % group:
        divisors = [n for n in (16, 32, 64, 128, 256) if width % n == 0]
        raise ValueError(
            f"group_size {group} does not divide rows of {width} entries; "
            + (f"{', '.join(map(str, divisors))} do" if divisors else "neither does any power of two from 16 on")
            + ". Leave such weights out by the pattern, or choose a size that divides"
        )
    return w.astype(jnp.float32).reshape(*w.shape[:-1], width // group, group)


def default_group(width: int) -> int:
    """128, 64 or 32, the largest that divides a row; of other rows the largest even divisor from 16 to 128."""
    for group in (128, 64, 32, *range(126, 15, -2)):
        if width % group == 0:
            return group
    if width <= 128 and width % 2 == 0:
        return width
    raise ValueError(
        f"no even group of 16 to 128 entries divides rows of {width}: leave such weights out by the pattern, or choose "
        "the method 8bit, whose groups are whole rows"
    )


def inverse(scales: jax.Array) -> jax.Array:
    """`1 / scales`, and 0 for the scale of a group of zeros."""
    return jnp.where(scales == 0, 0.0, 1 / jnp.where(scales == 0, 1.0, scales))


def round_rows(rows: jax.Array, activations: str | None) -> jax.Array:
    """`rows` as a product sees them that rounds its input to 255 levels: `"int8"` for each row, `"int8/32"` for each
    32 columns of a row (as llama.cpp does against Q8_0), `None` not at all."""
    codes, steps = row_codes(rows, activations)
    return rows if steps is None else (codes * steps).reshape(rows.shape).astype(rows.dtype)


def row_codes(rows: jax.Array, activations: str | None) -> tuple[jax.Array, Any]:
    """The codes of `round_rows` as whole float32 numbers `(rows, blocks, block)`, and their float32 steps."""
    if activations is None:
        return rows, None
    cut = rows.astype(jnp.float32).reshape(rows.shape[0], -1, 32 if activations == "int8/32" else rows.shape[1])
    steps = jnp.max(jnp.abs(cut), axis=-1, keepdims=True) / 127
    return jnp.round(cut * inverse(steps)), steps

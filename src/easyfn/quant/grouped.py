"""`Grouped`: integer codes with a scale for every group of columns; what int4, Q8_0, GPTQ and AWQ weights are held in."""

from __future__ import annotations

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.weight import axes_of, dense, format_of, requantize, shape_of
from .product import FEW, after, by_blocks, inner, register_format, replace, smoothed
from .rounding import round_groups, round_rows, row_codes
from .thin import Thin, call


class Grouped(eqx.Module):
    """`w = scales * (codes - zeros)`, one scale and one zero for every group of neighbouring columns of a row.

    - `codes`: of 4 bits uint8 `(..., out, in / 2)`, two a byte (see `pack`); of other widths int8 `(..., out, in)`, or
      uint8 where codes of 8 bits have zeros. Read them with `integer_codes`.
    - `scales`: `(..., out, in / group)` in float32, float16 or bfloat16.
    - `zeros`: as `scales`, integers or float32; or `None`: symmetric codes, `-2**(bits - 1)` to `2**(bits - 1) - 1`. With
      zeros the codes run from 0 to `2**bits - 1`.
    - `order`: int32 `(..., 1, in)` or `None`: the codes are those of the columns `order` of the weight (GPTQ's
      act-order: columns sorted by group).
    - `smooth`: float32 `(..., 1, in)` or `None`: the codes are those of the weight times `smooth`, and a product takes its
      input divided by it (SmoothQuant, arXiv 2211.10438; AWQ, arXiv 2306.00978).

    `activations` says how a product rounds its input, anew for every call: `None` not at all, `"int8"` to 255 levels for
    each row, `"int8/32"` for each 32 columns of a row. `name` is the method's name, `dtype` that of the dense array.
    Make one with [`easyfn.quant.grouped`][].
    """

    codes: Any
    scales: Any
    zeros: Any = None
    order: Any = None
    smooth: Any = None
    bits: int = eqx.field(static=True, default=4)
    dtype: str = eqx.field(static=True, default="float32")
    activations: str | None = eqx.field(static=True, default=None)
    name: str = eqx.field(static=True, default="int4")


def grouped(
    codes: Any,
    scales: Any,
    zeros: Any = None,
    *,
    bits: int,
    order: Any = None,
    smooth: Any = None,
    dtype: Any = "float32",
    activations: str | None = None,
    name: str = "int4",
) -> Grouped:
    """A [`Grouped`][easyfn.quant.Grouped] of unpacked codes `(..., out, in)`: integers, signed without `zeros`.

    NumPy arrays stay NumPy arrays. Raises `ValueError` if the groups that `scales` implies do not divide the row.

    ```python
    import jax.numpy as jnp, easyfn as ef
    codes = jnp.arange(-8, 8, dtype=jnp.int8).reshape(2, 8)
    w = ef.quant.grouped(codes, jnp.full((2, 2), 0.5), bits=4)
    assert w.codes.shape == (2, 4) and ef.shape_of(w) == (2, 8)
    assert ef.dense(w)[0].tolist() == [-4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5]
    ```
    """
    width, groups = codes.shape[-1], scales.shape[-1]
    if bits not in (2, 3, 4, 5, 6, 8):
        raise ValueError(f"codes have 2, 3, 4, 5, 6 or 8 bits, not {bits}")
    if width % groups or (bits == 4 and width // groups % 2):
        raise ValueError(f"{groups} groups do not divide a row of {width} entries" + (" evenly" if bits == 4 else ""))
    if bits == 4:
        codes = pack(codes if zeros is not None else codes + 8, groups)
    else:
        codes = codes.astype(np.uint8 if bits == 8 and zeros is not None else np.int8)
    return Grouped(codes, scales, zeros, order, smooth, bits, jnp.dtype(dtype).name, activations, name)


def pack(codes: Any, groups: int) -> Any:
    """Codes 0 to 15 `(..., in)`, two a byte: in each group the first half in the low bits, the second in the high bits.

    GGUF's order in a block of 32. A byte belongs to one group, so that rows can be cut between groups, and the halves are
    contiguous: to interleave even and odd entries costs more than to unpack them.
    """
    pairs = codes.astype(np.uint8).reshape(*codes.shape[:-1], groups, 2, -1)
    return (pairs[..., 0, :] | (pairs[..., 1, :] << 4)).reshape(*codes.shape[:-1], -1)


def group_of(w: Grouped) -> int:
    """How many entries of a row share a scale."""
    return int(shape_of(w)[-1] // w.scales.shape[-1])


def integer_codes(w: Grouped) -> Any:
    """The codes one by one, `(..., out, in)`: what [`easyfn.quant.grouped`][] was given, as int8 (or uint8).

    ```python
    import jax.numpy as jnp, easyfn as ef
    codes = jnp.arange(-8, 8, dtype=jnp.int8).reshape(2, 8)
    assert (ef.quant.integer_codes(ef.quant.grouped(codes, jnp.ones((2, 2)), bits=4)) == codes).all()
    ```
    """
    if w.bits != 4:
        return w.codes
    cut = w.codes.reshape(*w.codes.shape[:-1], w.scales.shape[-1], 1, -1)
    stack = np.concatenate if isinstance(w.codes, np.ndarray) else jnp.concatenate
    codes = stack([cut & 15, cut >> 4], axis=-2).reshape(shape_of(w)).astype(np.int8)
    return codes if w.zeros is not None else codes - np.int8(8)


@shape_of.register(Grouped)
def _(w: Grouped) -> tuple[int, ...]:
    return (*w.codes.shape[:-1], w.codes.shape[-1] * (2 if w.bits == 4 else 1))


@format_of.register(Grouped)
def _(w: Grouped) -> str:
    return f"{w.name}/{group_of(w)}"


@axes_of.register(Grouped)
def _(w: Grouped, axes: tuple[str | None, ...]) -> Any:
    scales = axes if w.scales.shape[-1] > 1 else (*axes[:-1], None)
    return replace(
        w,
        codes=axes,
        scales=scales,
        zeros=None if w.zeros is None else scales,
        order=None if w.order is None else (*axes[:-2], None, None),
        smooth=None if w.smooth is None else (*axes[:-2], None, axes[-1]),
    )


@requantize.register(Grouped)
def _(w: Grouped, new: jax.Array) -> Grouped:
    new = new.astype(jnp.float32)
    if w.smooth is not None:
        new = new * w.smooth
    if w.order is not None:
        new = jnp.take_along_axis(new, jnp.broadcast_to(w.order, new.shape), axis=-1)
    codes, scales, zeros = round_groups(new, w.bits, group_of(w), symmetric=w.zeros is None)
    scales = scales.astype(w.scales.dtype)
    if zeros is not None:
        zeros = zeros.astype(w.zeros.dtype)
    fresh = grouped(codes, scales, zeros, bits=w.bits)
    return replace(w, codes=fresh.codes, scales=scales, zeros=zeros)


def values(w: Grouped) -> jax.Array:
    """`scales * (codes - zeros)`, float32 `(..., out, in)`: the dense weight but for its order and smoothing."""
    cut = integer_codes(w).astype(jnp.float32).reshape(*w.scales.shape, -1)
    if w.zeros is not None:
        cut = cut - w.zeros.astype(jnp.float32)[..., None]
    return (cut * lax.stop_gradient(w.scales).astype(jnp.float32)[..., None]).reshape(shape_of(w))


@dense.register(Grouped)
@functools.partial(jax.jit, inline=True)  # one program where it is called eagerly, nothing of its own inside another
def _(w: Grouped) -> jax.Array:
    full = values(w)
    if w.order is not None:
        full = jnp.take_along_axis(full, jnp.broadcast_to(jnp.argsort(w.order), full.shape), axis=-1)
    if w.smooth is not None:
        full = full / lax.stop_gradient(w.smooth)
    return full.astype(w.dtype)


def _enter(w: Grouped, rows: jax.Array) -> tuple[Grouped, jax.Array]:
    """The product's own input: smoothed, and its columns in the order of the codes."""
    w, rows = smoothed(w, rows)
    if w.order is not None:
        rows = jnp.take(rows, w.order[0], axis=-1, mode="clip", unique_indices=True)
    return replace(w, order=None), rows


def _planes(w: Grouped, dtype: Any) -> list[jax.Array]:
    """`values(w)` in pieces `(out, n)` that need no interleaving: of packed codes those in the low and the high bits."""
    scales = lax.stop_gradient(w.scales).astype(jnp.float32)[..., None]
    codes = w.codes.reshape(*w.scales.shape, -1)
    middle: Any = 0 if w.bits != 4 else 8
    if w.zeros is not None:
        middle = w.zeros.astype(jnp.float32)[..., None]

    def plane(codes: jax.Array, unit: int) -> jax.Array:  # the high bits stay where they are, 16 times too large
        return ((codes.astype(jnp.float32) - unit * middle) * (scales / unit)).astype(dtype).reshape(w.codes.shape)

    return [plane(codes, 1)] if w.bits != 4 else [plane(codes & 15, 1), plane(codes & 240, 16)]


def _halves(w: Grouped, rows: jax.Array) -> list[jax.Array]:
    """The columns of `rows` that belong to each of `_planes(w)`."""
    if w.bits != 4:
        return [rows]
    cut = rows.reshape(rows.shape[0], w.scales.shape[-1], 2, -1)
    return [cut[:, :, half].reshape(rows.shape[0], -1) for half in (0, 1)]


@by_blocks
def _pieces(w: Grouped, rows: jax.Array) -> jax.Array:
    products = [inner(part, plane) for part, plane in zip(_halves(w, rows), _planes(w, rows.dtype), strict=True)]
    return functools.reduce(jnp.add, products)


def _product(w: Grouped, rows: jax.Array) -> jax.Array:
    def split(w: Grouped, rows: jax.Array) -> jax.Array:
        if w.activations is None:
            # A few rows cost nothing beside the unpacking, and to round what is unpacked to 16 bits costs more than it
            # saves.
            return _pieces(w, rows.astype(jnp.float32) if rows.shape[0] <= FEW else rows)
        if rows.shape[0] <= FEW:
            return _pieces(w, round_rows(rows.astype(jnp.float32), w.activations))
        # The input has 8 bits: many rows multiply in bfloat16, half the time of float32 and more exact than that.
        if w.activations == "int8":
            codes, steps = row_codes(rows, w.activations)
            return _pieces(w, codes[:, 0].astype(jnp.bfloat16)) * steps[:, 0]
        return _pieces(w, round_rows(rows.astype(jnp.float32), w.activations).astype(jnp.bfloat16))

    def whole(w: Grouped, rows: jax.Array) -> jax.Array:
        w = after(rows, w)
        return inner(round_rows(rows, w.activations), values(w).astype(rows.dtype))

    return lax.platform_dependent(w, rows, cpu=split, default=whole)


def _table_rows(w: Grouped, ids: jax.Array) -> Grouped:
    keep = {"order": w.order, "smooth": w.smooth}
    parts = replace(w, order=None, smooth=None)
    return replace(jax.tree.map(lambda part: jnp.take(part, ids, axis=0, mode="clip"), parts), **keep)


def _fits(w: Grouped) -> bool:
    return group_of(w) % 32 == 0 and (w.bits == 4 or w.zeros is None)


def _thin(w: Grouped, rows: jax.Array) -> jax.Array:
    if w.activations is not None:
        rows = round_rows(rows.astype(jnp.float32), w.activations)
    if w.bits != 4:
        return call("bytes", shape_of(w), rows, w.codes, w.scales, unit=np.float32(1))
    if w.zeros is None:
        levels, offsets = np.arange(-8, 8, dtype=np.float32), []
    else:
        levels, offsets = np.arange(16, dtype=np.float32), [w.scales.astype(jnp.float32) * w.zeros.astype(jnp.float32)]
    return call("nibbles", shape_of(w), rows, w.codes, w.scales, *offsets, pairs=False, levels=levels)


register_format(Grouped, _product, rows=_table_rows, enter=_enter, thin=Thin(_fits, _thin))

"""`NF4`: bitsandbytes' 4-bit formats, NormalFloat and fp4, bit for bit."""

from __future__ import annotations

import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.weight import axes_of, dense, format_of, requantize, shape_of
from .config import QuantConfig, method
from .product import by_blocks, inner, register_format, replace
from .thin import Thin, call

# fmt: off
LEVELS = {
    # Quantiles of a normal distribution (Dettmers et al. 2023, arXiv 2305.14314), and a 4-bit float, in the order of
    # their codes.
    "nf4": np.array([
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], np.float32),
    "fp4": np.array(
        [0, 0.0625, 8, 12, 4, 6, 2, 3, -0.0, -0.0625, -8, -12, -4, -6, -2, -3], np.float32) / np.float32(12),
}
# fmt: on
NESTED = 256  # scales that share a scale of their own


class NF4(eqx.Module):
    """`w = level[code] * scale`, one scale per `block` entries of the matrix read row by row.

    - `codes`: uint8 `(..., out, in / 2)`, two entries a byte, the first in the high bits: bitsandbytes' order.
    - `scales`: `(..., out, in / block)`, float32; or `(..., 1, blocks)` where a block crosses rows, because `block`
      does not divide `in`. With double quantization they are uint8 codes, and
    - `nested`: float32 `(..., 1, ceil(blocks / 256))` and `offset`: float32 `(..., 1, 1)` complete them.

    `levels` is `"nf4"` or `"fp4"`.

    ```python
    import jax, easyfn as ef
    w = ef.quant.to_nf4(jax.random.normal(jax.random.key(0), (8, 128)))
    assert w.codes.shape == (8, 64) and w.scales.shape == (8, 2)
    assert ef.dense(w).shape == ef.shape_of(w) == (8, 128)
    ```
    """

    codes: Any
    scales: Any
    nested: Any = None
    offset: Any = None
    block: int = eqx.field(static=True, default=64)
    levels: str = eqx.field(static=True, default="nf4")
    dtype: str = eqx.field(static=True, default="float32")


def to_nf4(w: Any, block: int = 64, double_quant: bool = False, levels: str = "nf4") -> NF4:
    """Rounds a dense array `(..., out, in)` to 4 bits, as `bitsandbytes.functional.quantize_4bit` does each matrix.

    Raises `ValueError` for an odd `in`, of which two entries cannot share a byte within a row.
    """
    if w.ndim < 2 or w.shape[-1] % 2:
        raise ValueError(
            f"{levels} packs two entries of a row in a byte: a weight of shape {tuple(w.shape)} has an odd row"
        )
    if block not in (32, 64, 128, 256, 512, 1024, 2048, 4096):
        raise ValueError(f"{levels}: group_size must be 32, 64, 128, ... or 4096, as in bitsandbytes; not {block}")
    lead, (out, width) = w.shape[:-2], w.shape[-2:]
    flat = w.astype(jnp.float32).reshape(*lead, out * width)
    blocks = -(-out * width // block)
    flat = jnp.pad(flat, [(0, 0)] * len(lead) + [(0, blocks * block - out * width)])
    groups = flat.reshape(*lead, blocks, block)
    scales = jnp.max(jnp.abs(groups), axis=-1)
    scaled = jnp.clip(groups * (1.0 / jnp.maximum(scales, 1.2e-38))[..., None], -1, 1)
    codes = _nearest(scaled, LEVELS[levels]).reshape(*lead, -1)[..., : out * width]
    pairs = codes.reshape(*lead, out, width // 2, 2)
    packed = (pairs[..., 0] << 4) | pairs[..., 1]
    shape = (out, width // block) if width % block == 0 else (1, blocks)
    name = jnp.dtype(w.dtype).name
    if not double_quant:
        return NF4(packed, scales.reshape(*lead, *shape), block=block, levels=levels, dtype=name)
    codes8, nested, offset = _nest(scales)
    return NF4(packed, codes8.reshape(*lead, *shape), nested, offset, block, levels, name)


def _nearest(x: jax.Array, levels: np.ndarray) -> jax.Array:
    """The code of the nearest level; halfway between two, the lower one."""
    order = np.argsort(levels, stable=True)
    middles = (levels[order][:-1] + levels[order][1:]) / np.float32(2)
    if len(levels) > 16:
        place = jnp.searchsorted(jnp.asarray(middles), x)
    else:
        place = functools.reduce(jnp.add, [(x > m).astype(jnp.uint8) for m in middles])
    if np.array_equal(order, np.arange(len(levels))):
        return place.astype(jnp.uint8)
    return jnp.asarray(order.astype(np.uint8))[place]


def _linspace(count: int) -> np.ndarray:
    """`torch.linspace(0.1, 1, count)` to the last bit: from both ends, a float32 step, rounded once."""
    low, i = np.float32(0.1), np.arange(count)
    step = np.float64((np.float32(1) - low) / np.float32(count - 1))
    return np.where(i < count // 2, np.float64(low) + step * i, 1 - step * (count - 1 - i)).astype(np.float32)


@functools.cache
def dynamic_map() -> np.ndarray:
    """The 256 levels of bitsandbytes' signed dynamic 8-bit type (Dettmers 2016, arXiv 1511.04561), sorted."""
    data = [0.0, 1.0]
    for i in range(7):
        edges = _linspace(2**i + 1)
        means = (edges[:-1] + edges[1:]) / np.float32(2)
        data += (np.float32(10.0 ** (i - 6)) * means).tolist()
        data += (-np.float32(10.0 ** (i - 6)) * means).tolist()
    return np.sort(np.array(data, np.float32))


def _nest(scales: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Double quantization: scales `(..., blocks)` as 8-bit codes, in blocks of 256 around their mean."""
    offset = jnp.mean(scales, axis=-1, keepdims=True)
    blocks = scales.shape[-1]
    count = -(-blocks // NESTED)
    centred = jnp.pad(scales - offset, [(0, 0)] * (scales.ndim - 1) + [(0, count * NESTED - blocks)])
    groups = centred.reshape(*scales.shape[:-1], count, NESTED)
    nested = jnp.max(jnp.abs(groups), axis=-1)
    scaled = groups * jnp.where(nested > 0, 1.0 / nested, 0.0)[..., None]
    codes = _nearest(scaled, dynamic_map()).reshape(*scales.shape[:-1], -1)[..., :blocks]
    return codes, nested[..., None, :], offset[..., None]


def scales_of(w: NF4) -> jax.Array:
    """The float32 scales, with the shape of `w.scales`."""
    if w.nested is None:
        return lax.stop_gradient(w.scales)
    lead, flat = w.scales.shape[:-2], math.prod(w.scales.shape[-2:])
    values = jnp.asarray(dynamic_map())[w.scales.reshape(*lead, flat)]
    each = jnp.repeat(w.nested[..., 0, :], NESTED, axis=-1)[..., :flat]
    return lax.stop_gradient((values * each + w.offset[..., 0]).reshape(w.scales.shape))


def _level(nibble: jax.Array, levels: jax.Array) -> jax.Array:
    """The level of a 4-bit code by a tree of selects on its bits: a table lookup is twenty times slower on CPU."""

    def go(low: int, width: int) -> Any:
        if width == 1:
            return levels[low]
        half = width // 2
        return jnp.where((nibble & half) != 0, go(low + half, half), go(low, half))

    return go(0, 16)


def planes(w: NF4) -> tuple[jax.Array, jax.Array]:
    """The dense values of the even and of the odd columns, float32 `(..., out, in / 2)` each.

    To interleave them costs eight times as much as to unpack them: a product splits its small input instead.
    """
    scales = scales_of(w)
    # Levels that are constants would be hoisted out of loops, one array for each: so they depend on a scale.
    levels = jnp.asarray(LEVELS[w.levels]) + scales[(0,) * scales.ndim] * 0
    even, odd = _level(w.codes >> 4, levels), _level(w.codes & 15, levels)
    if aligned(w):
        spread = jnp.repeat(scales, w.block // 2, axis=-1)
    else:
        spread = jnp.repeat(scales, w.block // 2, axis=-1)[..., : math.prod(w.codes.shape[-2:])].reshape(w.codes.shape)
    return even * spread, odd * spread


def aligned(w: NF4) -> bool:
    """Whether blocks stay within rows."""
    return w.codes.shape[-1] * 2 == w.scales.shape[-1] * w.block


def _blockwise(name: str, w: Any, cfg: QuantConfig) -> NF4:
    cfg.refuse("block")
    return to_nf4(w, 64 if cfg.group_size is None else cfg.group_size, cfg.double_quant, name)


method("nf4")(functools.partial(_blockwise, "nf4"))
method("fp4")(functools.partial(_blockwise, "fp4"))


@shape_of.register(NF4)
def _(w: NF4) -> tuple[int, ...]:
    return (*w.codes.shape[:-1], w.codes.shape[-1] * 2)


@format_of.register(NF4)
def _(w: NF4) -> str:
    return f"{w.levels}/{w.block}" + ("+dq" if w.nested is not None else "")


@requantize.register(NF4)
def _(w: NF4, new: jax.Array) -> NF4:
    return replace(to_nf4(new, w.block, w.nested is not None, w.levels), dtype=w.dtype)


@axes_of.register(NF4)
def _(w: NF4, axes: tuple[str | None, ...]) -> Any:
    none = (*axes[:-2], None, None)
    return replace(
        w,
        codes=axes,
        scales=axes if aligned(w) else none,
        nested=None if w.nested is None else none,
        offset=None if w.offset is None else none,
    )


@dense.register(NF4)
@functools.partial(jax.jit, inline=True)  # one program where it is called eagerly, nothing of its own inside another
def _(w: NF4) -> jax.Array:
    even, odd = planes(w)
    return jnp.stack([even, odd], axis=-1).reshape(shape_of(w)).astype(w.dtype)


@by_blocks
def _halves(w: NF4, rows: jax.Array) -> jax.Array:
    even, odd = (plane.astype(rows.dtype) for plane in planes(w))
    return inner(rows[:, 0::2], even) + inner(rows[:, 1::2], odd)


def _back(w: NF4, g: jax.Array) -> jax.Array:
    halves = [inner(g, jnp.swapaxes(plane.astype(g.dtype), 0, 1)) for plane in planes(w)]
    return jnp.stack(halves, axis=-1).reshape(g.shape[0], -1)


def _product(w: NF4, rows: jax.Array) -> jax.Array:
    # A few rows cost nothing beside the unpacking, and to round what is unpacked to 16 bits costs more than it saves.
    if rows.shape[0] <= 32:
        rows = rows.astype(jnp.float32)
    # The scales are small: plain ones, so that the packed rows can be cut into blocks.
    return _halves(replace(w, scales=scales_of(w), nested=None, offset=None), rows)


def _table_rows(w: NF4, ids: jax.Array) -> Any:
    if not aligned(w):
        return jnp.take(dense(w), ids, axis=0, mode="clip")
    rows = [jnp.take(part, ids, axis=0, mode="clip") for part in (w.codes, scales_of(w))]
    return replace(w, codes=rows[0], scales=rows[1], nested=None, offset=None)


def _thin(w: NF4, rows: jax.Array) -> jax.Array:
    return call("nibbles", shape_of(w), rows, w.codes, scales_of(w), pairs=True, levels=LEVELS[w.levels])


register_format(NF4, _product, _back, rows=_table_rows, thin=Thin(aligned, _thin))

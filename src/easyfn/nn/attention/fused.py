"""Attention of many queries by a compiled kernel, whose scores never leave the cache of a core: forward, and backward.

XLA on CPU writes the scores of all queries to memory, and reads them for the mask, the maximum, the exponential and the
sum. The kernels of `easyfn-kernels` work on tiles of queries and keys (Dao et al. 2022, 2023), in float32. Derivatives
of higher order, and whatever else is asked of the program, are those of the plain one, see `core/kernels.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad

from ...core.kernels import Kernel, either, kernels
from ..context import Mask, Runtime, scores_at_once
from .scores import scores_of
from .slices import in_slices

FEW = 16  # queries: below, reading keys and values takes the time, and XLA does that as well


def fits(q: jax.Array, k: Any, v: Any, mask: Any) -> bool:
    """Whether the kernel can stand for attention without bias, dropout and weights."""
    if kernels() is None or q.shape[2] < FEW or not (isinstance(k, jax.Array) and isinstance(v, jax.Array)):
        return False
    if not all(jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 8 and x.size for x in (q, k, v)):
        return False
    ordinary = mask is None or (
        type(mask) is Mask and mask.query_blocks is None and mask.query_sees is None and mask.everywhere is None
    )
    return ordinary and jax.typeof(q).sharding.mesh.empty


# `(q, k, v, mask, sinks, scale, softcap, runtime)` to what the queries see.
Plain = Callable[..., jax.Array]


def fused(
    plain: Plain,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: Mask | None,
    sinks: jax.Array | None,
    scale: float,
    softcap: float | None,
    runtime: Runtime,
) -> jax.Array:
    """`plain(q, k, v, mask, sinks, scale, softcap, runtime)`, by the kernel where it can be."""
    if mask is None:
        row, column = (jnp.zeros((1, x.shape[2]), jnp.int32) for x in (q, k))
        mask = Mask(row, row, column, column, False)
    said = (mask.query_slots, mask.query_segments, mask.key_slots, mask.key_segments)
    places = [jnp.atleast_2d(x).astype(jnp.int32) for x in said]
    choices = Choices(plain, scale, softcap, runtime, mask.causal, mask.window, mask.of_itself())
    operands = (*places, q, k, v) if sinks is None else (*places, q, k, v, sinks)
    return either(_ATTEND, choices, *operands)[0]


@dataclasses.dataclass(frozen=True)
class Choices:
    """What is static. The operands are slots and segments of queries, then of keys, `q`, `k`, `v` and, if any, the sinks."""

    plain: Plain
    scale: float
    softcap: float | None
    runtime: Runtime
    causal: bool
    window: int | None
    of_itself: bool

    def mask(self, slots: Any, segments: Any, key_slots: Any, key_segments: Any) -> Mask:
        """The mask again. One row of slots for all rows, as it mostly is, tells slices that slots are columns."""
        row = lambda x: x[0] if x.shape[0] == 1 else x
        queries = row(slots)
        return Mask(
            queries, segments, queries if self.of_itself else row(key_slots), key_segments, self.causal, self.window
        )

    def seen(self, operands: Any) -> jax.Array:
        """What the plain program gives."""
        q, k, v, *sinks = operands[4:]
        mask = self.mask(*operands[:4])
        return self.plain(q, k, v, mask, sinks[0] if sinks else None, self.scale, self.softcap, self.runtime)

    def log_sums(self, operands: Any) -> jax.Array:
        """The logarithm of each query's sum of exponentials, float32 `(batch, heads, queries)`."""
        q, k, v, *sinks = operands[4:]
        group = q.shape[1] // k.shape[1]

        def some(q: Any, k: Any, v: Any, mask: Any, bias: Any, at: Any) -> jax.Array:
            queries = q.reshape(q.shape[0], k.shape[1], group, *q.shape[2:])
            scores = scores_of(queries, k, mask, None, self.scale, self.softcap)
            return jax.nn.logsumexp(scores, axis=-1).reshape(*q.shape[:3], 1)

        chunk = scores_at_once(self.runtime, q.shape[0] * q.shape[1] * k.shape[2])
        sums = in_slices(some, q, k, v, self.mask(*operands[:4]), None, chunk)[..., 0]
        return jnp.logaddexp(sums, _by_head(sinks[0])) if sinks else sums

    def arguments(self) -> dict[str, Any]:
        numbers = {"scale": np.float32(self.scale), "softcap": np.float32(self.softcap or 0.0)}
        return {"causal": self.causal, "window": np.int64(self.window or 0), **numbers}


def _by_head(sinks: jax.Array) -> jax.Array:
    return sinks.astype(jnp.float32)[None, :, None]


def _wide(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(x.astype(jnp.float32) for x in arrays)


def _attend(choices: Choices, *operands: jax.Array) -> list[jax.Array]:
    """The kernel of the forward pass, and the logarithms of its sums."""
    q, k, v, *sinks = operands[4:]
    shapes = (*q.shape[:3], v.shape[3]), q.shape[:3]
    run = jax.ffi.ffi_call("easyfn_attend", [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes])
    out, sums = run(*_wide(q, k, v), *operands[:4], **choices.arguments())
    if sinks:  # one score more, without a value
        sink = _by_head(sinks[0])
        out, sums = out * jax.nn.sigmoid(sums - sink)[..., None], jnp.logaddexp(sums, sink)
    return [out.astype(q.dtype), sums]


def _back(choices: Choices, *operands: jax.Array) -> list[jax.Array]:
    """The kernel of the backward pass, of the operands, what came out, its sums and its cotangent."""
    *values, out, sums, d_out = operands[4:]
    q, k, v, *sinks = values
    less = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1)
    run = jax.ffi.ffi_call("easyfn_attend_back", tuple(jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in (q, k, v)))
    slopes = run(*_wide(q, k, v), *operands[:4], sums, less, *_wide(d_out), **choices.arguments())
    if sinks:
        weight = jnp.exp(_by_head(sinks[0]) - sums)
        slopes = (*slopes, -jnp.sum(weight * less, axis=(0, 2)))
    return [slope.astype(x.dtype) for slope, x in zip(slopes, values, strict=True)]


def _derivative(choices: Choices, operands: Any, tangents: Any) -> Any:
    """What comes out, and its tangent: a linear program of the tangents, whose transpose is the backward pass."""
    out, sums = either(_ATTEND_AND_SUM, choices, *operands)
    given = [ad.instantiate_zeros(t) for t in tangents[4:]]
    return [out], either(_TANGENT, choices, *operands, out, sums, *given)


def _tangent(choices: Choices, *operands: jax.Array) -> list[jax.Array]:
    places, count = operands[:4], (len(operands) - 6) // 2
    values, given = operands[4 : 4 + count], operands[6 + count :]
    return [jax.jvp(lambda *values: choices.seen((*places, *values)), values, given)[1]]


def _transposed(choices: Choices, operands: Any, given: Any) -> list[jax.Array]:
    return either(_BACK, choices, *operands[: 6 + (len(operands) - 6) // 2], *given)


def _plain_back(choices: Choices, *operands: jax.Array) -> list[jax.Array]:
    *values, _, _, d_out = operands[4:]
    return list(jax.vjp(lambda *values: choices.seen((*operands[:4], *values)), *values)[1](d_out))


_ATTEND = Kernel(
    plain=lambda choices, *operands: [choices.seen(operands)],
    call=lambda choices, *operands: _attend(choices, *operands)[:1],
    derivative=_derivative,
)
_ATTEND_AND_SUM = Kernel(lambda choices, *operands: [choices.seen(operands), choices.log_sums(operands)], _attend)
_BACK = Kernel(_plain_back, _back)
_TANGENT = Kernel(_tangent, transposed=_transposed)

"""Products: linear layers reach their weights through the slot, so that any weight format and adapter works."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ....core.tree import is_leaf
from ....core.weight import affine, dense, dot, shape_of
from .table import drawn, torch_op

op = torch_op.register


class Turned:
    """A weight that the module holds as `(in, out)` and the model as `(out, in)`, as slots are."""

    def __init__(self, weight: Any) -> None:
        self.weight = weight


def _common(*xs: Any) -> tuple[Any, ...]:
    dtype = jnp.result_type(*(x.dtype for x in xs))
    return tuple(x.astype(dtype) for x in xs)


def _times(x: Any, scale: Any) -> Any:
    """What is taken 0 times adds nothing, not even what is no number."""
    return x if scale == 1 else jnp.zeros_like(x) if scale == 0 else x * scale


@op("aten.linear.default", weights=(1, 2))
def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    if len(shape_of(weight)) == 1:
        y = jnp.matmul(x, dense(weight))
        return y if bias is None else y + dense(bias)
    if x.ndim == 1:
        return linear(x[None], weight, bias)[0]
    return affine(weight, x, bias)


@op("aten.mm.default", weights=(1,))
def mm(x: Any, other: Any) -> Any:
    if isinstance(other, Turned):
        return dot(other.weight, x)
    return jnp.matmul(*_common(x, as_dense(other)))


@op("aten.addmm.default", weights=(2,))
def addmm(bias: Any, x: Any, other: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    if isinstance(other, Turned) and beta == alpha == 1 and bias.ndim == 1:
        return affine(other.weight, x, bias)
    product = mm(x, other)
    return _times(bias, beta) + _times(product, alpha)


@op("aten.matmul.default", weights=(1,))
def matmul(x: Any, other: Any) -> Any:
    if isinstance(other, Turned) and x.ndim > 1:
        return dot(other.weight, x)
    return jnp.matmul(*_common(x, as_dense(other)))


op("aten.bmm.default", "aten.mv.default", "aten.dot.default")(matmul)


@op("aten.vdot.default")
def vdot(x: Any, other: Any) -> Any:
    return matmul(jnp.conj(x), other)


@op("aten.baddbmm.default")
def baddbmm(x: Any, first: Any, second: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    return _times(x, beta) + _times(matmul(first, second), alpha)


@op("aten.addmv.default")
def addmv(x: Any, matrix: Any, vector: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    return _times(x, beta) + _times(matmul(matrix, vector), alpha)


@op("aten.outer.default", "aten.ger.default")
def outer(x: Any, other: Any) -> Any:
    return x[:, None] * other[None, :]


@op("aten.einsum.default")
def einsum(equation: str, tensors: Sequence[Any], *, path: Any = None) -> Any:
    return jnp.einsum(equation, *_common(*tensors))


@op("aten.linalg_cross.default")
def cross(x: Any, other: Any, *, dim: int = -1) -> Any:
    x, other = jnp.broadcast_arrays(x, other)
    return jnp.cross(x, other, axis=dim)


@op("aten.cross.default")
def cross_of_old(x: Any, other: Any, dim: int | None = None) -> Any:
    """Along the first axis of three where none is named."""
    shape = jnp.broadcast_shapes(x.shape, other.shape)
    return cross(x, other, dim=shape.index(3) if dim is None else dim)


@op("aten._cdist_forward.default", "aten.cdist.default")
def cdist(x: Any, other: Any, p: float = 2.0, *_: Any, **__: Any) -> Any:
    gap = jnp.abs(x[..., :, None, :] - other[..., None, :, :])
    if p == 2:
        return jnp.sqrt(jnp.sum(jnp.square(gap), axis=-1))
    return (
        jnp.sum(gap, axis=-1)
        if p == 1
        else jnp.max(gap, axis=-1)
        if p == float("inf")
        else jnp.sum(gap**p, -1) ** (1 / p)
    )


@op("aten.scaled_dot_product_attention.default")
def attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    *, scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """Softmax in float32. A row that sees nothing is zero, as in torch."""
    drawn(bool(dropout_p))
    lead = jnp.broadcast_shapes(query.shape[:-3], key.shape[:-3]) if query.ndim > 3 else query.shape[:-2]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    group = query.shape[-3] // key.shape[-3] if enable_gqa and query.ndim > 2 else 1
    length, keys = query.shape[-2], key.shape[-2]
    if group > 1:  # the query heads of a group are rows of their key head
        query = query.reshape(*query.shape[:-3], key.shape[-3], group * length, query.shape[-1])
    q, k = _common(query, key)
    scores = jnp.matmul(q, jnp.swapaxes(k, -1, -2), preferred_element_type=jnp.float32) * scale
    if group > 1:
        scores = scores.reshape(*lead, -1, length, keys)
    hidden = None
    if is_causal:
        hidden = ~jnp.tri(length, keys, dtype=bool)
    if attn_mask is not None:
        if attn_mask.dtype == jnp.bool_:
            hidden = ~attn_mask if hidden is None else hidden | ~attn_mask
        else:
            scores = scores + attn_mask.astype(jnp.float32)
    if hidden is not None:
        scores = jnp.where(hidden, -jnp.inf, scores)
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf))
    weight = jnp.exp(scores - jnp.where(jnp.isfinite(top), top, 0))
    total = jnp.sum(weight, axis=-1, keepdims=True)
    weight = (weight / jnp.where(total == 0, 1, total)).astype(value.dtype)
    if group > 1:
        weight = (
            weight.reshape(*lead, -1, group * length, keys)
            if query.ndim == 3
            else weight.reshape(*weight.shape[:-3], key.shape[-3], group * length, keys)
        )
    out = jnp.matmul(weight, value, preferred_element_type=jnp.float32).astype(query.dtype)
    return out if group == 1 else out.reshape(*out.shape[:-3], -1, length, value.shape[-1])


def as_dense(weight: Any) -> Any:
    """A weight slot as an array, for an operator that knows no slots."""
    if isinstance(weight, Turned):
        return jnp.swapaxes(as_dense(weight.weight), -1, -2)
    return weight if is_leaf(weight) else dense(weight)


@op("aten.bilinear.default")
def bilinear(x: Any, other: Any, weight: Any, bias: Any = None) -> Any:
    y = jnp.einsum("...i,oij,...j->...o", x, weight, other)
    return y if bias is None else y + bias


@op("aten._trilinear.default")
def trilinear(
    a: Any, b: Any, c: Any, spread_a: Any, spread_b: Any, spread_c: Any, summed: Sequence[int], _: int = 1
) -> Any:
    """Each array with an axis of 1 where it has none, multiplied and added up."""
    parts = (jnp.expand_dims(x, tuple(axes)) for x, axes in ((a, spread_a), (b, spread_b), (c, spread_c)))
    x, y, z = parts
    return jnp.sum(x * y * z, axis=tuple(summed))


@op("aten._pdist_forward.default", "aten.pdist.default")
def pdist(x: Any, p: float = 2.0) -> Any:
    first, second = jnp.triu_indices(x.shape[0], 1)
    return jnp.linalg.norm(x[first] - x[second], ord=p, axis=-1)


@op("aten.dist.default")
def dist(x: Any, other: Any, p: float = 2.0) -> Any:
    return jnp.linalg.norm((x - other).reshape(-1), ord=p)

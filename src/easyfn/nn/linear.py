"""Linear and Embedding: the layers whose weights quantization, LoRA and sharding change."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ..core.fields import setting
from ..core.weight import Slot, Weight, affine, shape_of, slots, take

Axes = tuple[str | None, ...]


def declare(*shape: int) -> Any:
    """A weight yet to be filled: layers are built abstract, and `init` or `load` brings the numbers."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def pad_token(config: Any) -> int | None:
    """A config's `pad_token_id`, from its field or from what it keeps of `config.json`."""
    return setting(config, "pad_token_id")


def along_last(vector: jax.Array, x: jax.Array) -> jax.Array:
    """A vector with the rank of `x`, to combine with its last axis: rank promotion said explicitly."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


class Linear(eqx.Module):
    """`x @ weight.T + bias`: `x` of shape `(..., in_features)`, `weight` of shape `(out_features, in_features)`.

    `axes` are the logical names of the weight's two axes, `role` says what it is for (`linear`, `head`, `router`).
    `std` is the standard deviation of its initial weights, where it is not the model's.
    """

    weight: Weight
    bias: Weight | None
    axes: Axes = eqx.field(static=True)
    role: str = eqx.field(static=True)
    std: float | None = eqx.field(static=True)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        axes: Axes = (None, None),
        role: str = "linear",
        std: float | None = None,
    ) -> None:
        self.weight = declare(out_features, in_features)
        self.bias = declare(out_features) if bias else None
        self.axes = axes
        self.role = role
        self.std = std

    def __call__(self, x: Float[Array, "*rows in_"], *, dtype: Any = None) -> Float[Array, "*rows out"]:
        return affine(self.weight, x, self.bias, dtype=dtype)


@slots.register(Linear)
def _(linear: Linear) -> dict[str, Slot]:
    return {"weight": Slot(linear.role, linear.axes, _init(linear.std)), "bias": Slot("bias", linear.axes[:1], "zeros")}


class Embedding(eqx.Module):
    """A table of shape `(num_embeddings, embedding_dim)`, indexed by ids; a tied head is `dot(embedding.weight, x)`.

    An id that the table does not have is NaN: in a compiled function nobody can raise, and another row would be a silent
    wrong answer. The row `padding` does not learn from being looked up, as that of torch's `padding_idx`; a negative one
    counts from the end, and one that the table does not have is none.
    """

    weight: Weight
    axes: Axes = eqx.field(static=True)
    std: float | None = eqx.field(static=True)
    padding: int | None = eqx.field(static=True)

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        axes: Axes = ("vocab", "embed"),
        std: float | None = None,
        padding: int | None = None,
    ) -> None:
        self.weight = declare(num_embeddings, embedding_dim)
        self.axes = axes
        self.std = std
        there = padding is not None and -num_embeddings <= padding < num_embeddings
        self.padding = padding % num_embeddings if there and padding is not None else None

    def __call__(self, ids: Int[Array, "*rows"] | None) -> Float[Array, "*rows embed"]:
        rows = take(self.weight, ids)
        if ids is None:
            return rows
        ids = jnp.asarray(ids)
        if self.padding is not None:
            rows = jnp.where((ids == self.padding)[..., None], lax.stop_gradient(rows), rows)
        if not isinstance(ids, jax.core.Tracer):  # `forward` has looked at them
            return rows
        there = (ids >= 0) & (ids < shape_of(self.weight)[0])
        return jnp.where(there[..., None], rows, jnp.asarray(jnp.nan, rows.dtype))


@slots.register(Embedding)
def _(embedding: Embedding) -> dict[str, Slot]:
    return {"weight": Slot("embedding", embedding.axes, _init(embedding.std))}


def _init(std: float | None) -> str | float:
    return "normal" if std is None else std

"""`adopt`: Equinox's own layers exchanged for ones whose weights lie in slots, with the same numbers and the same calls.

Exchanged, because `eqx.nn.Linear` multiplies its array itself: a quantized or adapted weight in its place would have
nobody to multiply it. Norms use their weights entry by entry, so they stay, and only say what they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core.habits import no_path
from ..core.tree import rebuild
from ..core.weight import Slot, Weight, affine, dense, slots, take


class AdoptedLinear(eqx.Module):
    """`eqx.nn.Linear`: `x` of shape `(in_features,)`, or with any leading dimensions, and a `key` that is ignored."""

    weight: Weight
    bias: Weight | None
    in_features: int | str = eqx.field(static=True)
    out_features: int | str = eqx.field(static=True)
    use_bias: bool = eqx.field(static=True)

    def __call__(self, x: jax.Array, *, key: Any = None) -> jax.Array:
        y = affine(self.weight, x[None] if self.in_features == "scalar" else x, self.bias)
        return y[..., 0] if self.out_features == "scalar" else y


class AdoptedEmbedding(eqx.Module):
    """`eqx.nn.Embedding`: an index, or indices of any shape."""

    weight: Weight
    num_embeddings: int = eqx.field(static=True)
    embedding_size: int = eqx.field(static=True)

    def __call__(self, x: Any, *, key: Any = None) -> jax.Array:
        return take(self.weight, jnp.asarray(x))


class AdoptedConv(eqx.Module):
    """`eqx.nn.Conv`: it computes as the layer it was made of, `conv`, which holds no arrays any more."""

    weight: Weight
    bias: Weight | None
    conv: eqx.nn.Conv

    def __call__(self, x: jax.Array, *, key: Any = None) -> jax.Array:
        arrays = (dense(self.weight), None if self.bias is None else dense(self.bias))
        return _with_arrays(self.conv, arrays)(x)


def _with_arrays(conv: eqx.nn.Conv, arrays: tuple[Any, Any]) -> eqx.nn.Conv:
    return eqx.tree_at(lambda c: (c.weight, c.bias), conv, arrays, is_leaf=lambda x: x is None)


def _linear(layer: eqx.nn.Linear) -> AdoptedLinear:
    return AdoptedLinear(layer.weight, layer.bias, layer.in_features, layer.out_features, layer.use_bias)


def _embedding(layer: eqx.nn.Embedding) -> AdoptedEmbedding:
    return AdoptedEmbedding(layer.weight, layer.num_embeddings, layer.embedding_size)


def _conv(layer: eqx.nn.Conv) -> AdoptedConv:
    return AdoptedConv(layer.weight, layer.bias, _with_arrays(layer, (None, None)))


_ADOPTED: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (eqx.nn.Linear, _linear),
    (eqx.nn.Embedding, _embedding),
    (eqx.nn.Conv, _conv),
)


def adopt(model: Any) -> Any:
    """`model` with Equinox's own layers exchanged for ones that every verb reaches, with the same weights and numbers.

    `eqx.nn.Linear`, `Embedding` and `Conv`, wherever they are: in an `eqx.nn.MLP`, in `eqx.nn.MultiheadAttention`, in a
    model of your own or of a package. They are called as before (one example at a time, `key=` and all), and paths stay
    the same. Then `quantize`, `apply_lora`, `merge_lora`, `shard`, `show`, `init` and `trainable` work on it, and
    `ef.save(model, "weights.safetensors")` with [`easyfn.load_params`][].

    Logical axes are `("mlp", "embed")` for matrices `(out, in)` and `("vocab", "embed")` for tables; give
    `ef.ShardingRules(..., indivisible="replicate")` where the mesh does not divide them. Raises `ValueError` for a model
    that has none of these layers.

    ```python
    import equinox as eqx, jax, easyfn as ef
    mlp = eqx.nn.MLP(64, 8, 64, 2, key=jax.random.key(0))
    model = ef.adopt(mlp)
    x = jax.random.normal(jax.random.key(1), (64,))
    assert abs(model(x) - mlp(x)).max() < 1e-5
    small = ef.quantize(model, "8bit")
    assert ef.num_bytes(small) < ef.num_bytes(model) / 2
    tuned = ef.apply_lora(small, "layers", rank=4, key=jax.random.key(2))
    assert tuned(x).shape == (8,)
    ```
    """
    no_path(model)
    count = 0

    def go(node: Any) -> Any:
        nonlocal count
        for kind, make in _ADOPTED:
            if isinstance(node, kind):
                count += 1
                return make(node)
        return node if isinstance(node, AdoptedConv) else rebuild(node, lambda _, child: go(child))

    new = go(model)
    if not count:
        raise ValueError(
            f"adopt: {type(model).__name__} holds no eqx.nn.Linear, Embedding or Conv. A layer of your own is taught by "
            "@ef.slots.register(Layer), and reaches its weights through ef.dot, ef.take or ef.dense"
        )
    return new


@slots.register(AdoptedLinear)
def _(layer: AdoptedLinear) -> dict[str, Slot]:
    return {"weight": Slot("linear", ("mlp", "embed")), "bias": Slot("bias", ("mlp",), "zeros")}


@slots.register(AdoptedEmbedding)
def _(layer: AdoptedEmbedding) -> dict[str, Slot]:
    return {"weight": Slot("embedding", ("vocab", "embed"))}


@slots.register(AdoptedConv)
def _(layer: AdoptedConv) -> dict[str, Slot]:
    rest = (None,) * layer.conv.num_spatial_dims
    return {"weight": Slot("conv", ("mlp", "embed", *rest)), "bias": Slot("bias", ("mlp", *rest), "zeros")}


@slots.register(eqx.nn.LayerNorm, eqx.nn.RMSNorm, eqx.nn.GroupNorm)
def _(norm: Any) -> dict[str, Slot]:
    rank = 0 if norm.weight is None else norm.weight.ndim
    return {"weight": Slot("norm", (None,) * rank, "ones"), "bias": Slot("norm", (None,) * rank, "zeros")}

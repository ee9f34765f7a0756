"""Weights: what may sit in a weight slot, and the only functions that touch it.

A slot holds an array of Hugging Face's layout `(out, in)`, or a small pytree (`Int8`, `NF4`,
`LoRA(base=...)`) that keeps the dense weight's rank, so that stacking, slicing and sharding are tree
maps. Layers reach it through `dot`, `take`, `dense` and `ragged_dot`; never write `x @ self.weight`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from .grouped import grouped_dot
from .halves import product
from .tree import near
from .verb import NotSupported, Verb, verb

Weight = Any  # an array, or a pytree registered with `dot`, `take` and `dense`


class _Facts(NamedTuple):
    role: str
    axes: tuple[str | None, ...]
    init: Any = "normal"
    float32: tuple[str, ...] = ()


class Slot(_Facts):
    """One fact about one field of a layer: what it is for, and the logical names of its axes.

    `role` is one of `linear`, `head`, `router`, `embedding`, `experts`, `conv` (matrices, reached by verbs)
    or `bias`, `norm`, `other` (plain arrays) or `buffer` (an array that belongs to the model and is never trained, decayed,
    quantized or adapted). `init` is `normal`, `zeros`, `ones`, a standard deviation, a function `(key, shape, dtype) ->
    array`, or a `ByLayer` of the layer's number. `float32` names the dtypes of a model in which this array is float32 all the
    same, as transformers loads it (a router's correction bias in bfloat16).

    Axes are `vocab embed heads kv_heads mlp experts norm layers`, or `None`; one of your own has a dot in its name
    (`mine.patches`), and rules say where it goes. Raises `ValueError` for another role or axis: a weight with a misspelt
    one would silently never be quantized, adapted or sharded.
    """

    __slots__ = ()

    def __new__(
        cls, role: str, axes: tuple[str | None, ...], init: Any = "normal", float32: tuple[str, ...] = ()
    ) -> Slot:
        if role not in ROLES:
            raise ValueError(f"Slot: there is no role {role!r}. {near(str(role), ROLES)} Roles: {', '.join(ROLES)}.")
        for axis in axes:
            if axis is not None and axis not in AXES and "." not in str(axis):
                raise ValueError(
                    f"Slot: there is no axis {axis!r}. {near(str(axis), AXES)} Axes: {', '.join(AXES)}, None, or a name of "
                    f"your own with a dot in it, 'mine.{axis}'."
                )
        return super().__new__(cls, role, axes, init, float32)


class ByLayer(NamedTuple):
    """An `init` of a [`easyfn.Slot`][] that depends on where its layer is: `make(number, count, shape, dtype)`, the layer's
    number from 0 and how many there are. So the layer itself need not hold its number, which would keep it from being
    stacked."""

    make: Callable[[int, int, tuple[int, ...], Any], jax.Array]


HALF = ("bfloat16", "float16")  # what `Slot.float32` mostly names
MATRICES = ("linear", "head", "router", "embedding", "experts", "conv")
ROLES = (*MATRICES, "bias", "norm", "other", "buffer")
AXES = ("vocab", "embed", "heads", "kv_heads", "mlp", "experts", "norm", "layers")


class _Slots(Verb[[Any], dict[str, Slot]]):
    """The verb, which looks at what an implementation answers."""

    def __call__(self, node: Any) -> dict[str, Slot]:
        found = super().__call__(node)
        for name in found:
            if not hasattr(node, name):
                fields = list(getattr(type(node), "__dataclass_fields__", ()))
                raise ValueError(
                    f"slots: {type(node).__name__} has no field {name!r}, which its implementation names. "
                    f"{near(name, fields)} Its fields: {', '.join(fields)}."
                )
        return found


def _slots(node: Any) -> dict[str, Slot]:
    """The fields of a layer that hold weights, each with its [`Slot`][easyfn.Slot].

    This is the one fact a new layer tells: `quantize`, `apply_lora`, `shard`, `init`, `show` and `flops`
    follow from it. A node that is not registered has no slots of its own, and verbs look into its children.

    ```python
    import equinox as eqx, easyfn as ef

    class Scale(eqx.Module):
        weight: ef.Weight

    @ef.slots.register(Scale)
    def _(scale):
        return {"weight": ef.Slot("norm", ("embed",), "ones")}
    ```
    """
    return {}


_slots.__name__ = _slots.__qualname__ = "slots"
slots = _Slots(_slots)


@verb
def shape_of(w: Weight) -> tuple[int, ...]:
    """The shape of the dense weight that `w` stands for.

    ```python
    import jax, easyfn as ef
    linear = ef.quantize(ef.init(ef.nn.Linear(64, 8), key=jax.random.key(0)), "nf4")
    assert ef.shape_of(linear.weight) == (8, 64)
    ```
    """
    return tuple(w.shape)


@verb
def format_of(w: Weight) -> str | None:
    """The short name of a weight format, as `show` prints it (`int8`, `nf4/64`).

    `None` for an array and for whatever only wraps weights.

    What answers a name is what `is_quantized` sees and `dequantize` replaces by `dense(w)`.
    """
    return None


@verb
def axes_of(w: Weight, axes: tuple[str | None, ...]) -> Any:
    """A tree like `w` with, for every array, the logical axes of its dimensions.

    Formats keep the rank of the weight, so most answer `axes` for every part; a part whose dimension
    is 1 or divided keeps the name and `shard` checks that it divides.
    """
    return axes


@verb(example="@ef.dense.register({type})\ndef _(w): return ...   # the dense array, shape (out, in)")
def dense(w: Weight) -> Shaped[Array, ...]:
    """The plain array that a weight stands for, shape `(..., out, in)`. Explicit: nothing densifies silently."""
    if not hasattr(w, "ndim"):
        raise _no_weight(dense, w)
    return w


@verb(example="@ef.dot.register({type})\ndef _(w, x, *, dtype=None): return ...   # x @ w.T")
def dot(w: Weight, x: Float[Array, "*rows in_"], *, dtype: Any = None) -> Float[Array, "*rows out"]:
    """`x @ w.T` with float32 accumulation: `x` of shape `(..., in)`, `w` of shape `(out, in)`.

    The result has `dtype`, or else the promoted type of the two. Leading dimensions are flattened, because the
    backward pass of a 3-D matmul is twice as slow in XLA on CPU.

    ```python
    import jax.numpy as jnp, easyfn as ef
    assert ef.dot(jnp.ones((3, 4)), jnp.ones((2, 5, 4))).shape == (2, 5, 3)
    ```
    """
    if not hasattr(w, "ndim"):
        raise _no_weight(dot, w)
    if w.ndim != 2 or x.shape[-1] != w.shape[1]:
        raise ValueError(f"dot: a weight (out, in) of shape {w.shape} does not fit inputs of shape {x.shape}")
    common = jnp.result_type(w.dtype, x.dtype)
    out = dtype or common
    rows, back = flat(x)
    rows, w = rows.astype(common), w.astype(common)
    y = _dot32(rows, w) if common == jnp.float32 else _dot_low(rows, w, jnp.dtype(out))
    return back(y.astype(out))


def _no_weight(verb: Any, w: Any) -> NotSupported:
    """The error for what is no weight: a layer has its weights in fields."""
    if w is None:
        return NotSupported(
            f"ef.{verb.__name__}: there is no weight here but None: a part of a model, as eqx.partition and ef.split make them, "
            "runs when it is whole again, eqx.combine(params, frozen); an embedding or a layer that was left out cannot"
        )
    if slots.knows(type(w)) and (held := [name for name in slots(w) if getattr(w, name, None) is not None]):
        return NotSupported(
            f"ef.{verb.__name__} takes a weight, and {type(w).__name__} is the layer that holds it: give its .{held[0]}, "
            "or call the layer"
        )
    return verb.missing(w, "It is neither an array nor a weight format.")


def flat(x: jax.Array, like: jax.Array | None = None) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """`x` `(..., in)` as rows `(rows, in)`, and the function that gives `(rows, out)` the leading dimensions of `x`.

    Rows come in the order of `x`, or, where a mesh splits the sequence of `(batch, seq, in)` over `sp`, part after part:
    only so each device's rows are its own, and nothing is gathered to flatten. `like` is the array whose order to take.
    """
    shape, parts = x.shape, 1
    like = x if like is None else like
    if x.ndim == 3 and isinstance(like, jax.core.Tracer):
        mesh = jax.typeof(like).sharding.mesh
        parts = mesh.shape["sp"] if "sp" in mesh.auto_axes and shape[1] % mesh.shape["sp"] == 0 else 1
    if parts == 1:
        count = math.prod(shape[:-1])  # which -1 cannot say of a width of 0
        return x.reshape(count, shape[-1]), lambda y: y.reshape(*shape[:-1], y.shape[-1])
    split = x.reshape(shape[0], parts, -1, shape[2])

    def back(y: jax.Array) -> jax.Array:
        return jnp.swapaxes(y.reshape(parts, shape[0], -1, y.shape[-1]), 0, 1).reshape(*shape[:-1], y.shape[-1])

    return jnp.swapaxes(split, 0, 1).reshape(-1, shape[2]), back


def _dot32(rows: jax.Array, w: jax.Array) -> jax.Array:
    if rows.shape[0] <= 16:  # decoding: on CPU the wide operand goes first, up to 1.6 times as fast for 8 rows
        return lax.dot_general(w, rows, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32).T
    return lax.dot_general(rows, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def _thin(rows: jax.Array, w: jax.Array, out: Any) -> jax.Array:
    """Low precision, float32 accumulation; one row is padded to two, because XLA on CPU reads a
    single-row product through a slow vector kernel."""
    single = rows.shape[0] == 1
    if single:
        rows = jnp.concatenate([rows, jnp.zeros_like(rows)])
    y = product(rows, w, (((1,), (1,)), ((), ())))
    return (y[:1] if single else y).astype(out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dot_low(rows: jax.Array, w: jax.Array, out: Any) -> jax.Array:
    # A custom rule, because autodiff would multiply a float32 cotangent with a 16-bit weight: a mixed
    # product, which XLA runs by first converting the whole weight.
    return _thin(rows, w, out)


def _dot_low_forward(rows, w, out):
    return _thin(rows, w, out), (rows, w)


def _dot_low_backward(out, saved, g):
    rows, w = saved
    g = g.astype(rows.dtype)
    dx = product(g, w, (((1,), (0,)), ((), ()))).astype(rows.dtype)
    dw = product(g, rows, (((0,), (0,)), ((), ()))).astype(w.dtype)
    return dx, dw


_dot_low.defvjp(_dot_low_forward, _dot_low_backward)


@verb
def affine(w: Weight, x: Float[Array, "*rows in_"], bias: Any, *, dtype: Any = None) -> Float[Array, "*rows out"]:
    """`dot(w, x) + bias`, where `bias` `(out,)` may be `None`: what a layer with a bias computes, the head included.

    For weights that act on the sum: few do. `dtype` is the result's, as in [`easyfn.dot`][].

    ```python
    import jax.numpy as jnp, easyfn as ef
    assert ef.affine(jnp.ones((2, 3)), jnp.ones((1, 3)), jnp.ones(2)).tolist() == [[4.0, 4.0]]
    ```
    """
    y = dot(w, x, dtype=dtype)
    if bias is None:
        return y
    return y + dense(bias).astype(y.dtype).reshape((1,) * (y.ndim - 1) + shape_of(bias))


@verb(example="@ef.take.register({type})\ndef _(w, ids): return ...   # the rows w[ids]")
def take(w: Weight, ids: Int[Array, ...]) -> Any:
    """Entries of the leading axis: rows of an embedding table, or whole experts of a stacked weight.

    For an array: `w[ids]`. A format answers a dense array for a table `(rows, dim)`. Ids out of range are
    clamped under `jit`; `forward` checks concrete ids, and an `Embedding` answers NaN for them.

    ```python
    import jax.numpy as jnp, easyfn as ef
    assert ef.take(jnp.ones((64, 32)), jnp.array([[1, 2, 3]])).shape == (1, 3, 32)
    ```
    """
    if not hasattr(w, "ndim"):
        raise _no_weight(take, w)
    return jnp.take(_whole_rows(w, ids), ids, axis=0, mode="clip")


def _whole_rows(w: jax.Array, ids: jax.Array) -> jax.Array:
    """A table on a mesh, its rows in one piece: rows cut over `fsdp` would come out cut, and on every device for all ids.

    One token a row (decoding) is looked up in the pieces: they are less to move than the table.
    """
    if not isinstance(w, jax.core.Tracer) or w.ndim != 2 or jnp.ndim(ids) != 2 or ids.shape[1] == 1:
        return w
    mesh = jax.typeof(w).sharding.mesh
    if mesh.empty or len(mesh.auto_axes) < len(mesh.axis_names):
        return w
    rows = NamedSharding(mesh, PartitionSpec(PartitionSpec.UNCONSTRAINED, None))
    return lax.with_sharding_constraint(w, rows)


@verb(example="@ef.ragged_dot.register({type})\ndef _(w, x, group_sizes): return ragged_dot(dense(w), x, group_sizes)")
def ragged_dot(w: Weight, x: Float[Array, "rows in_"], group_sizes: Int[Array, " experts"]) -> Float[Array, "rows out"]:
    """Rows grouped by expert times the weight of their expert, float32 accumulation.

    `w`: `(experts, out, in)`; `x`: `(rows, in)`, sorted by expert; `group_sizes`: `(experts,)`. Returns `(rows, out)`.
    A format whose arrays all have the experts in front needs no rule of its own: each expert's slice goes through `dot`.

    ```python
    import jax.numpy as jnp, easyfn as ef
    out = ef.ragged_dot(jnp.ones((2, 3, 4)), jnp.ones((5, 4)), jnp.array([3, 2]))
    assert out.shape == (5, 3)
    ```
    """
    return grouped_dot(dot, w, x, group_sizes)


@verb(
    example="@ef.requantize.register({type})\ndef _(w, new): return quantize_as(w, new)   # `new` in the format of `w`"
)
def requantize(w: Weight, new: Float[Array, ...]) -> Weight:
    """The dense array `new`, of the shape of `w`, in the format of `w`: what folding an adapter into a weight writes back.

    For an array: `new` in its dtype.
    """
    if not hasattr(w, "ndim"):
        raise requantize.missing(w, "It is neither an array nor a weight format that says how it rounds.")
    return new.astype(w.dtype)


@verb
def randomized(w: Weight, key: jax.Array) -> Weight:
    """`w` with a PRNG key of its own, if it draws random numbers in a training pass (dropout of an adapter).

    `forward(..., key=...)` asks every weight; most have no use for it and are returned as they are.
    """
    return w


@verb
def routed(w: Weight, ids: Int[Array, "*rows"]) -> Weight:
    """`w` in which row `i` of a batch takes the adapter number `ids[i]`, -1 for none, if it holds several by `names`.

    `forward(..., adapter_ids=...)` asks every weight; most have no use for it and are returned as they are.
    """
    return w

"""`observe`: what enters the weights of a model on some data, for formats and adapters that start from it.

A weight that is observed answers as before and holds an accumulator of zeros. The gradient of anything with respect to
that accumulator is, by a rule of its own, the statistic of what came in: so the sums arrive as a gradient does,
through `jit`, scans over stacked layers, sharding and weights that are used twice. Nothing of the real backward pass
is needed for them, and XLA drops it: a data pass costs a forward pass. (With `reached` the real gradient is used as
well: it tells which rows matter.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from ..core.grouped import block_rows, blocks_of
from ..core.slots import Found, select_slots
from ..core.tree import Pattern, expand, replace
from ..core.weight import MATRICES, Weight, axes_of, dense, dot, ragged_dot, shape_of, take
from ..forward.forward import forward
from ..nn.context import Runtime
from ..nn.output import Output

Statistic = Callable[[jax.Array, jax.Array], Any]
Combine = Callable[[jax.Array, jax.Array], jax.Array]


class Observed(eqx.Module):
    """A weight that is watched: `sums` are zeros of the statistic's shapes, with the weight's leading axes."""

    base: Weight
    sums: Any
    mask: Any  # (batch, seq): 1 for what counts; or None
    statistic: Statistic = eqx.field(static=True)
    combine: Combine = eqx.field(static=True, default=jnp.add)
    reached: bool = eqx.field(static=True, default=False)

    @property
    def dtype(self) -> Any:
        return self.base.dtype


def second_moment(rows: Float[Array, "rows features"], counts: Shaped[Array, " rows"]) -> dict[str, Float[Array, ...]]:
    """The statistic `{"square": X^T X, "sum": the sum of the rows, "count": how many}`, float32, of `(in, in)`,
    `(in,)` and `()`.

    ```python
    import jax.numpy as jnp, easyfn as ef
    found = ef.second_moment(jnp.array([[1.0, 2.0], [9.0, 9.0]]), jnp.array([1.0, 0.0]))
    assert found["square"].tolist() == [[1.0, 2.0], [2.0, 4.0]] and found["count"] == 1
    ```
    """
    rows = rows.astype(jnp.float32)
    seen = rows * counts[:, None]
    square = jnp.einsum("ri,rj->ij", seen, rows, precision=jax.lax.Precision.HIGHEST)
    return {"square": square, "sum": jnp.sum(seen, 0), "count": jnp.sum(counts)}


def observe(
    model: Any,
    batches: Iterable[Any],
    statistic: Statistic = second_moment,
    *,
    pattern: Pattern = "all-linear",
    roles: tuple[str, ...] = MATRICES,
    combine: Combine = jnp.add,
    reached: bool = False,
) -> dict[str, Any]:
    """The statistics of what enters the selected weights, summed over the batches, by the path of the slot. (What layers
    answer: `output_hidden_states=True` of [`easyfn.forward`][].)

    - `batches`: token ids `(batch, seq)`, or dicts of what [`easyfn.forward`][] takes. Where the input of a weight has
      the leading shape of the batch's `attention_mask`, padding does not count; nor do tokens whose `labels` are -100.
      Experts see their rows in another order, with the padding: give them batches without.
    - `statistic(rows, counts)`: a tree of float32 arrays made of the inputs `(rows, in)` and of `counts` `(rows,)`,
      1 or 0. It must be additive: that of two batches is the sum of theirs. By default
      [`easyfn.second_moment`][].
    - `combine`: what makes one statistic of two batches' (and of two blocks of an expert's rows), if it is not their
      sum: `jnp.maximum` for the largest inputs. A weight that is used twice in one pass adds all the same.
    - `reached`: a row counts if it is no padding and the model's outputs depend on it, which the gradient tells
      exactly: so padding counts nowhere, in experts, decoders and packed rows neither. Costs a backward pass.

    A stacked run has one entry whose arrays have the layers in front; experts have their number in front. Raises
    `ValueError` without batches, and for a pattern that selects nothing.

    ```python
    import jax, easyfn as ef
    model = ef.testing.tiny()
    seen = ef.observe(model, [jax.numpy.array([[1, 2, 3]])], pattern="down_proj")
    assert seen["model.layers.1.mlp.down_proj.weight"]["square"].shape == (64, 64)
    ```
    """
    found = select_slots("observe", model, pattern, roles)
    zeros = {f.path: _zeros(f, statistic) for f in found}

    # The scores over the vocabulary are dear, and needed only where something of the head is observed.
    body = hasattr(model, "model") and all(
        f.path.startswith("model.") and f.slot.role not in ("head", "embedding") for f in found
    )

    def total(zeros: Any, model: Any, batch: Any, mask: Any) -> jax.Array:
        watched = {}
        for f in find(model):
            own = None if mask is None or reached else jnp.broadcast_to(mask, (*_layers(f), *mask.shape))
            watched[f.path] = Observed(f.weight, zeros[f.path], own, statistic, combine, reached)
        if reached:
            out = forward(replace(model, watched), **batch, runtime=Runtime(remat="full", expert_parallel=None))
            return _dependent(out.replace(logits=None) if body and out.last_hidden_state is not None else out, batch)
        # No statistic is merged between devices by hand: some are sums, some are maxima.
        out = forward(replace(model, watched), **batch, runtime=Runtime(expert_parallel=None))
        floats = (leaf for leaf in jax.tree.leaves(out) if jnp.issubdtype(leaf.dtype, jnp.inexact))
        return sum((jnp.sum(leaf.astype(jnp.float32)) for leaf in floats), jnp.zeros(()))

    def find(model: Any) -> list[Found]:
        return select_slots("observe", model, pattern, roles)

    once = jax.jit(jax.grad(total))
    sums = None
    for batch in batches:
        inputs, mask = _inputs(batch)
        new = once(zeros, model, inputs, mask)
        sums = new if sums is None else jax.tree.map(combine, sums, new)
    if sums is None:
        raise ValueError("observe: there are no batches; give token ids (batch, seq), or dicts of inputs")
    return sums


def _dependent(out: Output, inputs: Mapping[str, Any]) -> jax.Array:
    """A number that depends on every output of every token that is no padding.

    Outputs are multiplied with random signs: their plain sum, or that of their squares, is a constant after a norm.
    """
    two = any(name.startswith("decoder_") for name in inputs)
    total = jnp.zeros(())
    for name, value in vars(out).items():
        side = "decoder_" if two and not name.startswith("encoder_") else ""
        masks = [inputs.get(side + mask) for mask in ("attention_mask", "segment_ids")]
        for leaf in jax.tree.leaves(value):
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                continue
            signs = jax.random.rademacher(jax.random.key(0), leaf.shape, jnp.float32)
            for mask in masks:
                if mask is not None and mask.shape == leaf.shape[:2]:
                    signs = signs * (mask != 0).astype(jnp.float32).reshape(*mask.shape, *[1] * (leaf.ndim - 2))
            # Where nothing counts the output may be infinite, and what a sum of it is nobody asks.
            total = total + jnp.sum(jnp.where(signs == 0, 0.0, leaf.astype(jnp.float32) * signs))
    return total


def _layers(f: Found) -> tuple[int, ...]:
    """The axis of the layers, if the slot is in a stacked run."""
    return () if expand(f.path) == [f.path] else tuple(shape_of(f.weight)[:1])


def _zeros(f: Found, statistic: Statistic) -> Any:
    *lead, _, into = shape_of(f.weight)
    one = jax.eval_shape(
        statistic, jax.ShapeDtypeStruct((1, into), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    )
    return jax.tree.map(lambda leaf: jnp.zeros((*lead, *leaf.shape), jnp.float32), one)


def _inputs(batch: Any) -> tuple[dict[str, Any], Any]:
    """The arguments of `forward`, and which tokens count."""
    given = dict(batch) if isinstance(batch, Mapping) else {"input_ids": batch}
    given = {name: jnp.asarray(value) for name, value in given.items() if value is not None}
    labels = given.pop("labels", None)
    mask = given.get("attention_mask")
    counts = None if mask is None else (mask != 0).astype(jnp.float32)
    if labels is not None:
        marked = (labels != -100).astype(jnp.float32)
        counts = marked if counts is None or counts.shape != marked.shape else counts * marked
    return given, counts


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tap(w: Observed, sums: Any, x: jax.Array, counts: jax.Array, sizes: Any) -> jax.Array:
    """`x`, `(rows, in)`; the cotangent of `sums` is the statistic of `x`, or with `sizes` that of each expert's rows."""
    return x


def _tap_forward(w: Observed, sums: Any, x: jax.Array, counts: jax.Array, sizes: Any) -> Any:
    return x, (x, counts, sizes)


def _tap_backward(w: Observed, saved: Any, g: jax.Array) -> Any:
    x, counts, sizes = saved
    if w.reached:  # nothing depends on a row whose gradient is exactly zero
        counts = counts * jnp.any(g != 0, axis=-1).astype(counts.dtype)
    found = w.statistic(x, counts) if sizes is None else _by_expert(w, x, counts, sizes)
    return found, g, jnp.zeros_like(counts), None


_tap.defvjp(_tap_forward, _tap_backward)


def _by_expert(w: Observed, x: jax.Array, counts: jax.Array, sizes: jax.Array) -> Any:
    """The statistics of rows sorted by expert, in blocks of one expert's rows, as `grouped_dot` multiplies them."""
    size = block_rows(x.shape[0], sizes.shape[0])
    x, counts = jnp.pad(x, ((0, size), (0, 0))), jnp.pad(counts, (0, size))
    number, block = blocks_of(sizes, size)

    def step(i: jax.Array, sums: Any) -> Any:
        expert, start, end = block(i)
        mine = (start + jnp.arange(size) < end).astype(counts.dtype)
        rows = jax.lax.dynamic_slice_in_dim(x, start, size)
        found = w.statistic(rows, jax.lax.dynamic_slice_in_dim(counts, start, size) * mine)
        return jax.tree.map(lambda all, one: all.at[expert].set(w.combine(all[expert], one)), sums, found)

    one = jax.eval_shape(w.statistic, x[:size], counts[:size])
    zeros = jax.tree.map(lambda leaf: jnp.zeros((sizes.shape[0], *leaf.shape), leaf.dtype), one)
    return jax.lax.fori_loop(0, number, step, zeros)


def _watch(w: Observed, x: jax.Array, counts: jax.Array, sizes: Any = None) -> jax.Array:
    only_choices = Observed(None, None, None, w.statistic, w.combine, w.reached)
    return _tap(only_choices, w.sums, x, counts, sizes)


def _counts(w: Observed, x: jax.Array) -> jax.Array:
    if w.mask is not None and w.mask.shape == x.shape[:-1]:
        return w.mask.reshape(-1)
    return jnp.ones((int(np.prod(x.shape[:-1])),), jnp.float32)


@dot.register(Observed)
def _(w: Observed, x: jax.Array, *, dtype: Any = None) -> jax.Array:
    seen = _watch(w, x.reshape(-1, x.shape[-1]), _counts(w, x))
    return dot(w.base, seen.reshape(x.shape), dtype=dtype)


@ragged_dot.register(Observed)
def _(w: Observed, x: jax.Array, group_sizes: jax.Array) -> jax.Array:
    return ragged_dot(w.base, _watch(w, x, jnp.ones((x.shape[0],), jnp.float32), group_sizes), group_sizes)


@take.register(Observed)
def _(w: Observed, ids: jax.Array) -> Any:
    if len(shape_of(w.base)) == 2:  # rows of a table: nothing comes in
        return take(w.base, ids)
    parts = jax.tree.map(lambda leaf: jnp.take(leaf, ids, axis=0, mode="clip"), w.sums)
    return Observed(take(w.base, ids), parts, None, w.statistic, w.combine, w.reached)


@dense.register(Observed)
def _(w: Observed) -> jax.Array:
    return dense(w.base)


@shape_of.register(Observed)
def _(w: Observed) -> tuple[int, ...]:
    return shape_of(w.base)


@axes_of.register(Observed)
def _(w: Observed, axes: tuple[str | None, ...]) -> Any:
    sums = jax.tree.map(lambda leaf: (*axes[:-2], *[None] * (leaf.ndim - len(axes) + 2)), w.sums)
    mask = None if w.mask is None else (None,) * w.mask.ndim
    return Observed(axes_of(w.base, axes), sums, mask, w.statistic, w.combine, w.reached)

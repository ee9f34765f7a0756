"""`Opaque`: a weight that nobody can look into, to find layers that reach past the verbs."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax

import easyfn as ef


class Opaque(eqx.Module):
    """A weight with no rules but `dot`, `take`, `ragged_dot` and the shape: no array attribute, no `dense`.

    ```python
    import easyfn as ef, jax.numpy as jnp
    from easyfn.testing import Opaque
    assert ef.dot(Opaque(jnp.ones((4, 2))), jnp.ones((1, 2))).shape == (1, 4)
    ```
    """

    hidden: jax.Array


@ef.shape_of.register(Opaque)
def _(w: Opaque) -> tuple[int, ...]:
    return ef.shape_of(w.hidden)


@ef.dot.register(Opaque)
def _(w: Opaque, x: jax.Array, *, dtype: Any = None) -> jax.Array:
    return ef.dot(w.hidden, x, dtype=dtype)


@ef.take.register(Opaque)
def _(w: Opaque, ids: jax.Array) -> Any:
    rows = ef.take(w.hidden, ids)
    return rows if len(ef.shape_of(w)) == 2 else Opaque(rows)  # whole experts remain a weight


@ef.ragged_dot.register(Opaque)
def _(w: Opaque, x: jax.Array, group_sizes: jax.Array) -> jax.Array:
    return ef.ragged_dot(w.hidden, x, group_sizes)


@ef.dense.register(Opaque)
def _(w: Opaque) -> jax.Array:
    raise AssertionError("a layer asked for the dense array of a weight that it should reach through dot or take")

"""Optimizers for 16-bit weights: float32 moments, stochastic rounding, master weights.

Each is an optax optimizer around another one, for any loop that ends in `optax.apply_updates`.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from ..core.dtype import to_dtype

Wrapped: TypeAlias = optax.GradientTransformationExtraArgs


class Float32Moments(NamedTuple):
    inner: Any


class StochasticRounding(NamedTuple):
    steps: jax.Array
    inner: Any


class MasterWeights(NamedTuple):
    master: Any
    inner: Any


KINDS = (Float32Moments, StochasticRounding, MasterWeights)


def float32_moments(optimizer: Any) -> Wrapped:
    """`optimizer` with its arithmetic and its state in float32 on weights of 16 bits.

    Optax keeps Adam's second moment in the weights' dtype whatever `mu_dtype` says, and bfloat16 is too coarse for it:
    at `b2=0.999` a step moves it by a thousandth, and the dtype has steps of 1/256, so it stands still.

    The new weights are rounded to the nearest: updates below 1/256 of a weight are lost still. Where learning rates are that
    small, take [`easyfn.stochastic_rounding`][] or [`easyfn.master_weights`][], which do this too.

    ```python
    import jax, jax.numpy as jnp, optax, easyfn as ef
    weights = jnp.ones(4, jnp.bfloat16)
    optimizer = ef.float32_moments(optax.adam(1e-1))
    updates, state = optimizer.update(weights, optimizer.init(weights), weights)
    assert optax.apply_updates(weights, updates).dtype == jnp.bfloat16
    ```
    """
    inner = optax.with_extra_args_support(optimizer)

    def update(gradients: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        updates, after = inner.update(wide(gradients), state.inner, wide(params), **extra)
        return updates, Float32Moments(after)

    return Wrapped(lambda params: Float32Moments(inner.init(wide(params))), update)


def stochastic_rounding(optimizer: Any, *, key: jax.Array) -> Wrapped:
    """`optimizer` in float32, and new 16-bit weights rounded up or down at random, so that they are right on average.

    A weight between two numbers of its dtype becomes the nearer one with the greater probability (Gupta et al. 2015, arXiv
    1502.02551, section 3.2). Small updates add up over the steps, and no other copy of the weights is kept. The numbers
    drawn depend on `key` and on the count of steps, so a run resumes exactly. Outermost but for `ef.guard` and `ef.ema`:
    it needs the whole update.

    ```python
    import jax, jax.numpy as jnp, optax, easyfn as ef
    weights = jnp.ones(1000, jnp.bfloat16)
    optimizer = ef.stochastic_rounding(optax.sgd(1e-3), key=jax.random.key(0))
    updates, _ = optimizer.update(jnp.ones_like(weights), optimizer.init(weights), weights)
    assert abs(optax.apply_updates(weights, updates).astype(float).mean() - 0.999) < 3e-4  # the nearest is 1.0
    ```
    """
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> Any:
        return StochasticRounding(jnp.zeros((), jnp.int32), inner.init(wide(params)))

    def update(gradients: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        _needed(params, "stochastic_rounding")
        updates, after = inner.update(wide(gradients), state.inner, wide(params), **extra)
        leaves, form = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.fold_in(key, state.steps), max(len(leaves), 1))
        moved = [_drawn(p, u, k) for p, u, k in zip(leaves, jax.tree.leaves(updates), keys, strict=False)]
        return jax.tree.unflatten(form, moved), StochasticRounding(state.steps + 1, after)

    return Wrapped(init, update)


def master_weights(optimizer: Any) -> Wrapped:
    """`optimizer` on float32 copies of 16-bit weights, which its state keeps; the weights are those, rounded.

    What is learned is what float32 weights with a cast inside the step would learn, for the same memory of the state and
    two bytes a weight more. Outermost but for `ef.guard` and `ef.ema`.

    ```python
    import jax.numpy as jnp, optax, easyfn as ef
    weights = jnp.ones(4, jnp.bfloat16)
    optimizer = ef.master_weights(optax.sgd(1e-3))
    state = optimizer.init(weights)
    for _ in range(10):  # none of which would move the rounded weight alone
        updates, state = optimizer.update(jnp.ones_like(weights), state, weights)
        weights = optax.apply_updates(weights, updates)
    assert weights[0] == jnp.bfloat16(0.99)
    ```
    """
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> Any:
        return MasterWeights(wide(params), inner.init(wide(params)))

    def update(gradients: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        _needed(params, "master_weights")
        updates, after = inner.update(wide(gradients), state.inner, state.master, **extra)
        master = optax.apply_updates(state.master, updates)
        moved = jax.tree.map(lambda p, m: _difference(m.astype(p.dtype), p), params, master)
        return moved, MasterWeights(master, after)

    return Wrapped(init, update)


def wide(tree: Any) -> Any:
    """16-bit floats as float32."""

    def one(leaf: Any) -> Any:
        return to_dtype(leaf, jnp.float32) if narrow(leaf) else leaf

    return jax.tree.map(one, tree)


def narrow(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and bool(jnp.issubdtype(dtype, jnp.floating)) and jnp.dtype(dtype).itemsize < 4


def holds(opt_state: Any) -> bool:
    """Whether one of these optimizers made this state, or a part of it."""
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, KINDS))
    return any(isinstance(leaf, KINDS) for leaf in leaves)


def _needed(params: Any, name: str) -> None:
    if params is None:
        raise ValueError(f"{name} needs the weights: optimizer.update(gradients, state, params)")


def _difference(new: jax.Array, old: jax.Array) -> jax.Array:
    """What `optax.apply_updates` adds to `old` to make `new`, of the same dtype.

    Of 16 bits it is taken and added in float32, then rounded: exactly `new`, but for one less than 2^-13 (bfloat16:
    2^-16) of `old`, of which bits below 2^-24 of `old` may be lost. Of float32 it is the difference, rounded as any.
    """
    return new.astype(jnp.float32) - old.astype(jnp.float32) if narrow(old) else new - old


def _drawn(param: jax.Array, update: jax.Array, key: jax.Array) -> jax.Array:
    if not narrow(param):
        return update
    wanted = param.astype(jnp.float32) + update
    near = wanted.astype(param.dtype)
    error = wanted - near.astype(jnp.float32)
    side = jnp.where(error > 0, jnp.inf, -jnp.inf).astype(param.dtype)
    other = jnp.nextafter(near, side)
    gap = jnp.abs(other.astype(jnp.float32) - near.astype(jnp.float32))
    chance = jax.random.uniform(key, param.shape)
    taken = jnp.isfinite(other) & (chance * gap < jnp.abs(error))
    return _difference(jnp.where(taken, other, near), param)

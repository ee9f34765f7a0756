"""Weights of 16 bits learn what float32 weights learn, and `to_state` says when they would not."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import easyfn as ef
from cases import CASES

KEY = jax.random.key(0)
WAYS = {
    "float32_moments": ef.float32_moments,
    "stochastic_rounding": functools.partial(ef.stochastic_rounding, key=KEY),
    "master_weights": ef.master_weights,
}


def learned(dtype, rate, wrap=lambda optimizer: optimizer):
    """The squared error, from 1, of a linear model after 4000 steps of Adam with noise in the answers; gradients are large at
    first, as those of networks are."""
    optimizer = wrap(optax.adam(rate))
    right = jax.random.normal(KEY, (32,))

    def step(carry, n):
        weights, state = carry
        keys = jax.random.split(jax.random.fold_in(KEY, n))
        x = jax.random.normal(keys[0], (16, 32)) * jnp.where(n < 20, 10.0, 1.0)
        noise = 0.5 * jax.random.normal(keys[1], (16,))

        def loss(w):
            return jnp.mean(jnp.square(x @ (w.astype(jnp.float32) - right) - noise))

        updates, state = optimizer.update(jax.grad(loss)(weights), state, weights)
        return (optax.apply_updates(weights, updates), state), None

    start = jnp.zeros(32, dtype)
    run = jax.jit(lambda s: jax.lax.scan(step, (s, optimizer.init(s)), jnp.arange(4000))[0][0])
    return float(jnp.mean(jnp.square(run(start).astype(jnp.float32) - right)))


def test_each_way_reaches_the_float32_loss():
    whole, stalled = learned(jnp.float32, 1e-2), learned(jnp.bfloat16, 1e-2)
    assert whole < 0.01 and stalled > 0.5, (whole, stalled)
    for name in ("stochastic_rounding", "master_weights"):
        assert learned(jnp.bfloat16, 1e-2, WAYS[name]) < whole + 0.005, name
    assert learned(jnp.float16, 1e-2, ef.master_weights) < whole + 0.005
    moments = learned(jnp.bfloat16, 1e-2, ef.float32_moments)
    assert whole + 0.1 < moments < 0.5 * stalled  # updates are lost still, as its docstring says


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_rounding_is_right_on_average(dtype):
    weights = jnp.linspace(-2, 2, 4096).astype(dtype)
    updates = jax.random.normal(KEY, (4096,)) * 1e-4
    optimizer = ef.stochastic_rounding(optax.sgd(1.0), key=KEY)
    state = optimizer.init(weights)
    change, state = optimizer.update(-updates, state, weights)
    after = optax.apply_updates(weights, change)
    assert after.dtype == dtype and int(state.steps) == 1
    moved = np.asarray(after, np.float64) - np.asarray(weights, np.float64)
    near = np.abs(np.asarray(jnp.nextafter(jnp.abs(weights), jnp.inf) - jnp.abs(weights), np.float64)) + 1e-3
    assert (np.abs(moved - updates) <= near).all()  # never further than the next number
    assert abs(moved.mean() - float(updates.mean())) < 4 * moved.std() / 64
    assert jnp.isnan(optimizer.update(weights * jnp.nan, state, weights)[0]).all()


def test_to_state_warns_and_the_ways_are_silent():
    half = {"w": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(3)}
    with pytest.warns(UserWarning, match=r"1 of 2 .*w is bfloat16.*master_weights.*stochastic_rounding"):
        ef.to_state(half, optax.adam(1e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for wrap in WAYS.values():
            ef.to_state(half, optax.MultiSteps(wrap(optax.adam(1e-3)), 2))
        ef.to_state(jax.eval_shape(lambda: half), optax.adam(1e-3))
        ef.to_state(half, optax.adam(1e-3), trainable="b")


def test_masters_on_a_mesh_lie_where_the_weights_do_and_are_saved(tmp_path):
    half = ef.shard(ef.cast(CASES["llama"].model(), jnp.bfloat16), "fsdp", ef.make_mesh())
    state = ef.to_state(half, ef.master_weights(optax.sgd(1e-3)))
    weights, masters = ef.params(state.params), ef.params(state.opt_state.master)
    assert weights.keys() == masters.keys()
    for path, leaf in weights.items():
        assert leaf.sharding == masters[path].sharding and masters[path].dtype == jnp.float32
        np.testing.assert_array_equal(leaf, masters[path].astype(jnp.bfloat16))
    ef.save_state(state, tmp_path)
    again = ef.load_state(state, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.opt_state.master, state.opt_state.master)

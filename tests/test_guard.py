"""Guards, loss scaling, averages and groups: optax optimizers, in `train_step` and in a loop of one's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import easyfn as ef
from cases import CASES

IDS = np.random.default_rng(0).integers(1, 97, (4, 9))


def fresh():
    return jax.tree.map(jnp.array, CASES["llama"].model())


def risky(model, batch, key=None):
    """The loss times a number of the batch."""
    loss, metrics = ef.compute_loss(model, {"input_ids": batch["input_ids"]})
    return loss * batch["factor"], metrics


def test_bad_steps_change_nothing_and_are_told():
    """One program: a step that is not finite, one that is far too long, and good ones, with an average over all of it."""
    optimizer = ef.ema(ef.guard(optax.adam(1e-3), spike=10.0, after=2), decay=0.5)
    state = ef.to_state(fresh(), optimizer)
    step = jax.jit(functools.partial(ef.train_step, loss=risky))
    skipped, mean = [], jax.tree.map(jnp.copy, state.params)
    for factor in (1.0, 1.0, 1.0, float("nan"), 1e4, float("inf"), 1.0):
        before = state
        state, metrics = step(state, {"input_ids": IDS, "factor": jnp.asarray(factor)})
        skipped.append(int(metrics["skipped"]))
        if skipped[-1]:
            for a, b in ((before.params, state.params), (before.opt_state.inner.inner, state.opt_state.inner.inner)):
                jax.tree.map(np.testing.assert_array_equal, a, b)
        mean = jax.tree.map(lambda m, p: 0.5 * m + 0.5 * p, mean, state.params)
    assert skipped == [0, 0, 0, 1, 1, 1, 0] and int(state.step) == 7
    told = ef.guard_state(state)
    assert int(told.skipped) == 3 and int(told.in_a_row) == 0 and float(told.norm) > 0
    averaged = ef.params(ef.ema_model(state))
    for path, leaf in ef.params(mean).items():
        np.testing.assert_allclose(averaged[path], leaf, atol=1e-6, err_msg=path)


@pytest.mark.quick("train", "guards")
def test_a_jump_that_stays_becomes_usual():
    optimizer = ef.guard(optax.sgd(0.0), spike=2.0, after=3, decay=0.5)
    update = jax.jit(lambda g, s: optimizer.update(g, s, g)[1])
    state = optimizer.init(jnp.ones(2))
    for n in range(24):
        state = update(jnp.ones(2) * (1.0 if n < 4 else 100.0), state)
    assert 0 < int(state.skipped) < 20 and int(state.in_a_row) == 0


def test_float16_learns_with_a_scaled_loss():
    """A loss so small that its float16 gradients would vanish; a scale that overflows is halved until it does not."""

    def small(model, batch, key=None):
        loss, metrics = ef.compute_loss(model, batch)
        return 1e-7 * loss, metrics

    batch = {"input_ids": IDS}
    step = jax.jit(functools.partial(ef.train_step, loss=small, compute_dtype=jnp.float16))
    exact, _ = jax.jit(functools.partial(ef.train_step, loss=small))(ef.to_state(fresh(), optax.sgd(1e5)), batch)
    state = ef.to_state(fresh(), ef.guard(optax.sgd(1e5), loss_scale=2.0**60, grow_after=3))
    scales = []
    while not scales or ef.guard_state(state).in_a_row:
        state, metrics = step(state, batch)
        scales.append(float(metrics["loss_scale"]))
        assert len(scales) < 40
    assert scales[0] == 2.0**60 and scales[-1] < 2.0**50 and int(ef.guard_state(state).skipped) == len(scales) - 1
    move = lambda s: (
        ef.params(s.params)["model.layers.1.mlp.up_proj.weight"]
        - ef.params(fresh())["model.layers.1.mlp.up_proj.weight"]
    )
    far = lambda s: float(jnp.linalg.norm(move(s) - move(exact)) / jnp.linalg.norm(move(exact)))
    assert far(state) < 0.02
    for _ in range(2):
        state, metrics = step(state, batch)
    assert float(ef.guard_state(state).scale) == 2 * scales[-1]


def test_in_a_loop_of_your_own():
    optimizer = ef.guard(ef.master_weights(optax.sgd(0.5)), loss_scale=2.0**10)
    weights = jnp.ones(3, jnp.float16)

    @jax.jit
    def step(weights, state, x):
        loss = lambda w: jnp.sum(jnp.square(w * x).astype(jnp.float32))
        value, slope = jax.value_and_grad(lambda w: ef.guard_state(state).scale * loss(w))(weights)
        updates, state = optimizer.update(slope, state, weights, value=value)
        return optax.apply_updates(weights, updates), state

    weights, state = step(weights, optimizer.init(weights), jnp.full(3, 0.5, jnp.float16))
    np.testing.assert_array_equal(weights, np.full(3, 0.75, np.float16))
    weights, state = step(weights, state, jnp.full(3, jnp.nan, jnp.float16))
    assert (weights == 0.75).all() and float(state.scale) == 512


def test_groups():
    model = ef.apply_lora(fresh(), "q_proj|v_proj", rank=2, key=jax.random.key(1))
    optimizer = ef.groups({r"layers\.0": None, r"\.b$": optax.sgd(1.0), ".*": optax.adam(1e-2)})
    state = ef.to_state(model, optimizer)
    after, _ = jax.jit(ef.train_step)(state, {"input_ids": IDS})
    before, moved = ef.params(state.params), ef.params(after.params)
    for path, leaf in moved.items():
        same = bool((leaf == before[path]).all())  # b starts at zero, so a has no gradient in the first step
        assert same == ("layers.0" in path or path.endswith(".a")), path
    with pytest.raises(ValueError, match=r"no pattern fits .*a; '\.\*'"):
        ef.to_state(model, ef.groups({r"\.b$": optax.sgd(1.0)}))
    with pytest.raises(ValueError, match="matches nothing"):
        ef.to_state(model, ef.groups({"mlp": optax.sgd(1.0), ".*": None}))
    with pytest.raises(ValueError, match=r"no averages.*ef\.ema"):
        ef.ema_model(state)

"""The block loop of the experts against a plain loop: forward and backward, arrays and formats, empty groups."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef
from easyfn.core.grouped import block_rows


def plain(w, x, sizes):
    group = np.repeat(np.arange(len(sizes)), sizes)
    return jnp.concatenate([x[n : n + 1] @ w[g].T for n, g in enumerate(group)])


SIZES = ([5, 0, 1, 7], [0, 0, 0, 13], [13, 0, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0], [40, 17, 0, 50])


@pytest.mark.thinned("sizes of groups of one product")
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_ragged_dot_and_its_gradient(sizes, key):
    rows = sum(sizes)
    w, x, g = (
        jax.random.normal(jax.random.fold_in(key, n), s) for n, s in enumerate([(4, 6, 5), (rows, 5), (rows, 6)])
    )
    got, pull = jax.vjp(lambda w, x: ef.ragged_dot(w, x, jnp.array(sizes)), w, x)
    want, pull_plain = jax.vjp(lambda w, x: plain(w, x, sizes), w, x)
    np.testing.assert_allclose(got, want, atol=1e-5)
    for a, b in zip(pull(g), pull_plain(g), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_ragged_dot_under_jit_and_vmap(key):
    w, x = jax.random.normal(key, (4, 6, 5)), jax.random.normal(key, (2, 9, 5))
    sizes = jnp.array([[2, 0, 3, 4], [0, 9, 0, 0]])
    got = jax.jit(jax.vmap(ef.ragged_dot, in_axes=(None, 0, 0)))(w, x, sizes)
    for n in range(2):
        np.testing.assert_allclose(got[n], plain(w, x[n], np.asarray(sizes[n])), atol=1e-5)


class Scaled(eqx.Module):
    """A toy format: int8 with a scale per row, and no rule for `ragged_dot`."""

    q: jax.Array
    scale: jax.Array


def test_a_format_needs_no_rule_of_its_own(key):
    known = ef.dot.knows(Scaled)
    if not known:

        @ef.dot.register(Scaled)
        def _(w, x, *, dtype=None):
            return ef.dot(w.q.astype(x.dtype), x) * w.scale.T

    q = jax.random.randint(key, (4, 6, 5), -9, 9, jnp.int8)
    w = Scaled(q, jax.random.uniform(key, (4, 6, 1)))
    x = jax.random.normal(key, (9, 5))
    sizes = [4, 0, 3, 2]
    got, pull = jax.vjp(lambda x: ef.ragged_dot(w, x, jnp.array(sizes)), x)
    dense = q.astype(jnp.float32) * w.scale
    want, pull_plain = jax.vjp(lambda x: plain(dense, x, sizes), x)
    np.testing.assert_allclose(got, want, atol=1e-5)
    np.testing.assert_allclose(pull(jnp.ones_like(got))[0], pull_plain(jnp.ones_like(got))[0], atol=1e-4)
    train, frozen = eqx.partition(w, eqx.is_inexact_array)
    scales = jax.grad(lambda t: jnp.sum(ef.ragged_dot(eqx.combine(t, frozen), x, jnp.array(sizes))))(train)
    by_hand = jax.grad(lambda s: jnp.sum(plain(q.astype(jnp.float32) * s, x, sizes)))(w.scale)
    np.testing.assert_allclose(scales.scale, by_hand, atol=1e-4)


@pytest.mark.quick("nn", "grouped products of experts")
def test_blocks_follow_the_rows_per_expert():
    assert [block_rows(rows, 8) for rows in (2, 16, 64, 1024, 10**6)] == [1, 2, 8, 128, 128]


def test_bfloat16_sums_in_float32(key):
    w = jax.random.normal(key, (2, 8, 16)).astype(jnp.bfloat16)
    x = jax.random.normal(key, (300, 16)).astype(jnp.bfloat16)
    got = jax.grad(lambda w: jnp.sum(ef.ragged_dot(w, x, jnp.array([290, 10])).astype(jnp.float32)))(w)
    f32 = jnp.float32
    want = jax.grad(lambda w: jnp.sum(plain(w, x.astype(f32), [290, 10])))(w.astype(f32))
    np.testing.assert_allclose(got.astype(f32), want, rtol=1e-2, atol=0.05)


def test_routing_says_what_is_wrong():
    with pytest.raises(ValueError, match="5 experts, and there are 4"):
        ef.nn.Router(8, 4, 5)


def test_jitter_only_with_a_key(key):
    config = ef.models.MixtralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
        router_jitter_noise=0.5,
    )
    model = ef.init(config, key=key)
    ids = jnp.arange(6)[None]
    plain, again = ef.forward(model, ids).logits, ef.forward(model, ids).logits
    noisy = ef.forward(model, ids, key=key).logits
    assert jnp.array_equal(plain, again) and not jnp.array_equal(plain, noisy)

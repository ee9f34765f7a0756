"""Attention over a split sequence is attention: the same numbers and gradients, and no device holds all keys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef
from easyfn.nn import Mask, Runtime, attend

ROWS, HEADS, TOKENS, DIM = 2, 8, 24, 6
SEGMENTS = {
    "one document": np.ones((ROWS, TOKENS), np.int32),
    "packed": np.repeat(np.array([[1, 1, 2, 3, 3, 3], [1, 2, 2, 2, 2, 3]]), 4, axis=1).astype(np.int32),
    "padded": np.stack([np.arange(TOKENS) >= 7, np.arange(TOKENS) < 13]).astype(np.int32),
}


def mask_of(segments, *, causal=True, window=None, slots=None):
    slots = jnp.arange(TOKENS) if slots is None else slots
    return Mask(slots, jnp.asarray(segments), slots, jnp.asarray(segments), causal, window)


def operands(kv: int, *, keys: int = TOKENS):
    shapes = [(ROWS, HEADS, TOKENS, DIM), (ROWS, kv, keys, DIM), (ROWS, kv, keys, DIM)]
    return [jax.random.normal(jax.random.key(n), shape) for n, shape in enumerate(shapes)]


def checked(kind, arrays, mask, *, mesh=None, limit=2**24, **options):
    """The output and the gradients of `attend`, on a mesh and on one device."""
    mesh = mesh or ef.make_mesh(fsdp=2, tp=1, sp=4)

    def loss(arrays, runtime):
        named = dict(zip(("q", "k", "v", "bias", "sinks"), arrays, strict=False))
        out, _ = attend(mask=mask, runtime=runtime, scale=0.4, **named, **options)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size, dtype=jnp.float32).reshape(out.shape))), out

    grad = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    (_, want), slopes = grad(arrays, Runtime(context_parallel=None))
    there = [jax.device_put(x, jax.NamedSharding(mesh, ef.P())) for x in arrays]
    (_, got), there_slopes = grad(there, Runtime(context_parallel=kind, attention_chunk=limit))
    np.testing.assert_allclose(got, want, atol=1e-5)
    for a, b in zip(there_slopes, slopes, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("kind", ["ring", "all_to_all"])
@pytest.mark.parametrize(
    "segments, options",
    [
        ("packed", {}),
        ("packed", {"window": 5}),
        ("padded", {"window": 7}),
        ("padded", {"causal": False}),
        ("one document", {"causal": False, "window": 4}),
    ],
)
def test_masks(kind, segments, options):
    checked(kind, operands(kv=2), mask_of(SEGMENTS[segments], **options))


@pytest.mark.parametrize("kind", ["ring", "all_to_all"])
@pytest.mark.parametrize("kv, limit", [(8, 2**24), (4, 700), (1, 300)])
def test_heads_bias_sinks_and_soft_cap(kind, kv, limit):
    """Also in slices of queries that do not divide, and with each row's slots its own."""
    bias = jax.random.normal(jax.random.key(7), (1, HEADS, TOKENS, TOKENS))
    sinks = jax.random.normal(jax.random.key(8), (HEADS,))
    slots = jnp.arange(TOKENS)[None] + jnp.array([[0], [3]])
    arrays = [*operands(kv), bias, sinks]
    checked(kind, arrays, mask_of(SEGMENTS["packed"], slots=slots), limit=limit, softcap=2.0)


@pytest.mark.parametrize("kind", ["ring", "all_to_all"])
def test_keys_of_another_length_and_no_mask(kind):
    checked(kind, operands(kv=4, keys=8), None)


@pytest.mark.parametrize("kind", ["ring", "all_to_all"])
def test_rows_and_heads_stay_split(kind):
    """Beside `fsdp` and `tp`, which split rows and heads: with a bias and sinks of each head."""
    bias = jax.random.normal(jax.random.key(7), (ROWS, HEADS, TOKENS, TOKENS))
    sinks = jax.random.normal(jax.random.key(8), (HEADS,))
    mesh = ef.make_mesh(fsdp=2, tp=2, sp=2)
    checked(kind, [*operands(4), bias, sinks], mask_of(SEGMENTS["packed"]), mesh=mesh)


def test_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="6 heads on 2 key heads.*'ring'"):
        checked("all_to_all", [x[:, :6] if x.shape[1] == 8 else x for x in operands(2)], None)
    with pytest.raises(ValueError, match="context_parallel is None, 'ring'"):
        Runtime(context_parallel="rings")

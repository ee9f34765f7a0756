"""Attention over a split sequence is attention: the same numbers and gradients, and no device holds all keys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
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


@pytest.mark.thinned("masks are terms that combine, each tested alone on one device")
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


@pytest.mark.thinned("numbers of heads of one program")
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


@pytest.mark.quick("nn", "attention over a split sequence")
def test_heads_that_do_not_divide():
    with pytest.raises(ValueError, match=r"6 heads on 2 key heads.*'ring'"):
        checked("all_to_all", [x[:, :6] if x.shape[1] == 8 else x for x in operands(2)], None)
    with pytest.raises(ValueError, match="context_parallel is None, 'ring'"):
        Runtime(context_parallel="rings")


@pytest.fixture(scope="module")
def long():
    config = ef.models.LlamaConfig(
        vocab_size=72, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=20,
    )  # fmt: skip
    return ef.stack(ef.abstract(config, dtype="float32"))


def sent_in_a_step(model, kind):
    """What a step of training sends where rows, heads and sequence are split, each in two."""
    from test_collectives import sent

    mesh = ef.make_mesh(fsdp=2, tp=2, sp=2)
    state = ef.to_state(ef.shard(model, None, mesh), optax.sgd(0.1))
    ids = jax.ShapeDtypeStruct((4, 32), jnp.int32, sharding=ef.data_sharding(mesh))
    step = functools.partial(ef.train_step, runtime=Runtime(context_parallel=kind, remat="full"))
    return sent(jax.jit(step, donate_argnums=0).lower(state, {"input_ids": ids}).compile())


def test_the_ring_gathers_neither_keys_nor_activations(long):
    """Blocks of keys, values and their gradients go round; hidden states stay with their tokens in every layer."""
    moved = sent_in_a_step(long, "ring")
    assert ("collective-permute", (2, 1, 16, 20)) in moved  # rows, key heads and tokens of one device
    assert not gathered_tokens(moved)


def test_all_to_all_trades_each_device_its_share(long):
    moved = sent_in_a_step(long, "all_to_all")
    assert {shape for kind, shape in moved if kind == "all-to-all"} == {(2, 1, 1, 1, 16, 20)}
    assert not gathered_tokens(moved)


def gathered_tokens(moved):
    """What is gathered along the sequence and is wider than a number for each token."""
    return [s for kind, s in moved if kind == "all-gather" and {16, 32} & set(s) and np.prod(s) > 2 * 32]


@pytest.mark.parametrize("kind", ["ring", "all_to_all"])
def test_dropout_is_the_same_in_both_passes(kind):
    """A loss that is linear in the values has the gradient that its own output says."""
    mesh = ef.make_mesh(fsdp=2, tp=1, sp=4)
    q, k, v = (jax.device_put(x, jax.NamedSharding(mesh, ef.P())) for x in operands(kv=4))

    @jax.jit
    def total(v, key):
        options = dict(scale=0.4, dropout_rate=0.5, key=key, runtime=Runtime(context_parallel=kind))
        return jnp.sum(attend(q, k, v, mask_of(SEGMENTS["packed"]), **options)[0] ** 2) / 2

    key = jax.random.key(3)
    value, slope = jax.value_and_grad(total)(v, key)
    np.testing.assert_allclose(jnp.vdot(slope, v), 2 * value, rtol=1e-5)
    assert total(v, key) == value and total(v, jax.random.key(4)) != value

"""Recurrences over a sequence: in parallel as token by token, whatever the padding and the documents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef
from cases import CASES, VOCAB
from easyfn.models.rwkv import weighted_mean

SEGMENTS = jnp.array([[1, 1, 0, 1, 2, 2, 0, 0, 2, 2, 3, 3, 3], [0, 0, 0, 5, 5, 5, 5, 5, 5, 5, 0, 0, 0]])
BEFORE = jnp.array([1, 0])  # row 0 goes on with the document of the state


def drawn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def delta(segments, before, state, at, chunk, channels=False):
    real = segments > 0
    documents = ef.nn.Documents.of(segments, before)
    keys = drawn(2, 13, 3, 5, seed=1)
    keys = keys / jnp.linalg.norm(keys, axis=-1, keepdims=True)
    g = jnp.where(real[..., None], -jnp.abs(drawn(2, 13, 3, seed=3)[:, at]), 0.0)
    beta = jnp.where(real[..., None], jax.nn.sigmoid(drawn(2, 13, 3, seed=4)[:, at]) * 2, 0.0)
    inputs = (drawn(2, 13, 3, 5)[:, at], keys[:, at], drawn(2, 13, 3, 4, seed=2)[:, at], g, beta, documents, state)
    if channels:  # a decay for each channel of the keys
        g = jnp.where(real[..., None, None], -jnp.abs(drawn(2, 13, 3, 5, seed=3)[:, at]), 0.0)
        inputs = (*inputs[:3], g, *inputs[4:])
    in_chunks = ef.nn.channel_delta_chunks if channels else ef.nn.delta_chunks
    y, state = ef.nn.delta_step(*inputs) if chunk == 1 else in_chunks(*inputs, chunk=chunk)
    return y, state, documents.last


def channels(*args):
    return delta(*args, channels=True)


def memory(segments, before, state, at, chunk):
    documents, real = ef.nn.Documents.of(segments, before), (segments > 0)[..., None]
    gate = jnp.where(real, 3 * drawn(2, 13, 3, seed=3)[:, at], -1e38)
    forget = jnp.where(real, jax.nn.log_sigmoid(drawn(2, 13, 3, seed=4)[:, at]), 0.0)
    state = state.at[..., -1].set(state[..., :1, -1])  # one exponent for the rows of a head
    inputs = (drawn(2, 13, 3, 5)[:, at], drawn(2, 13, 3, 5, seed=1)[:, at], drawn(2, 13, 3, 4, seed=2)[:, at])
    y, state = ef.nn.matrix_memory(*inputs, gate, forget, documents, state, chunk=chunk)
    return y, state, documents.last


def mean(segments, before, state, at, chunk):
    documents = ef.nn.Documents.of(segments, before)
    state = state.at[..., 1].set(jnp.abs(state[..., 1]))  # weights
    inputs = (-jnp.exp(drawn(4)), drawn(4, seed=1), 3 * drawn(2, 13, 4, seed=2)[:, at], drawn(2, 13, 4, seed=3)[:, at])
    y, state = weighted_mean(*inputs, documents, state)
    return y, state, documents.last


def selective(segments, before, state, at, chunk):
    documents = ef.nn.Documents.of(segments, before)
    dt = jnp.where((segments > 0)[..., None], jax.nn.softplus(drawn(2, 13, 4, seed=1)[:, at]), 0.0)
    a = -jnp.exp(drawn(4, 5, seed=2))
    inputs = (drawn(2, 13, 4)[:, at], dt, a, drawn(2, 13, 5, seed=3)[:, at], drawn(2, 13, 5, seed=4)[:, at])
    y, state = ef.nn.selective_scan(*inputs, documents, state, chunk=chunk)
    return y, state, documents.last


RULES = [
    (delta, (2, 3, 5, 4)),
    (channels, (2, 3, 5, 4)),
    (memory, (2, 3, 5, 6)),
    (mean, (2, 4, 3)),
    (selective, (2, 4, 5)),
]


@pytest.mark.parametrize(("rule", "shape"), RULES)
@pytest.mark.parametrize("chunk", [4, 64])
def test_in_chunks_is_token_by_token(rule, shape, chunk):
    first = drawn(*shape, seed=9)
    got, last, _ = rule(SEGMENTS, BEFORE, first, slice(None), chunk)
    state, before, found = first, BEFORE, []
    for t in range(13):
        y, state, before = rule(SEGMENTS[:, t : t + 1], before, state, slice(t, t + 1), 1)
        found.append(y)
    real = np.asarray(SEGMENTS) > 0
    np.testing.assert_allclose(np.asarray(got)[real], np.asarray(jnp.concatenate(found, 1))[real], atol=2e-5)
    np.testing.assert_allclose(last, state, atol=2e-5)


@pytest.mark.quick("nn", "recurrences in chunks")
def test_a_state_does_not_see_padding_and_begins_anew_with_a_document():
    first = drawn(2, 3, 5, 4, seed=9)
    _, last, _ = delta(SEGMENTS, BEFORE, first, slice(None), 4)
    _, other, _ = delta(SEGMENTS, BEFORE, first * 100, slice(None), 4)
    np.testing.assert_array_equal(last, other)  # both rows end in documents of their own
    nothing = jnp.zeros_like(SEGMENTS)
    np.testing.assert_allclose(delta(nothing, BEFORE, first, slice(None), 4)[1], first, atol=1e-6)


@pytest.mark.parametrize("name", ["qwen3_next", "lfm2", "mamba2"])
def test_what_cannot_be_taken_back_is_said(name):
    model = CASES[name].model()
    with pytest.raises(ValueError, match="recurrent state, which cannot take back"):
        ef.generate(model, np.array([[5, 6, 7]]), max_new_tokens=4, prompt_lookup_num_tokens=2)


def test_states_run_in_beams_and_in_the_engine():
    """A hybrid: pages for its attention, states by row."""
    model = CASES["qwen3_next"].model()
    prompts = [list(np.random.default_rng(n).integers(3, VOCAB, n)) for n in (5, 9)]
    alone = [
        ef.generate(model, np.array([p]), max_new_tokens=4, eos_token_id=-1).sequences[0, len(p) :] for p in prompts
    ]
    with ef.Engine(model, max_batch_size=2, page_size=4, max_model_length=24, prefill_chunk=4) as engine:
        made = engine.run(prompts, max_new_tokens=4, eos_token_id=-1)
    for one, prompt, want in zip(made, prompts, alone, strict=True):
        assert np.asarray(one.sequences)[0, len(prompt) :].tolist() == want.tolist()
    beams = ef.generate(model, np.array([prompts[0]]), max_new_tokens=4, num_beams=3, eos_token_id=-1)
    assert beams.sequences.shape == (1, 9)


@pytest.mark.parametrize("projections", ["two", "four", "all"])
def test_a_delta_net_decodes_as_it_reads(projections):
    layer = ef.nn.GatedDeltaNet(
        24, key_heads=2, value_heads=4, key_dim=6, value_dim=5, kernel=3, projections=projections, beta=2.0
    )
    layer = jax.tree.map(lambda x: x + 0.1, ef.init(layer, key=jax.random.key(0)))
    x, segments = drawn(2, 9, 24), jnp.ones((2, 9), jnp.int32)
    context = lambda at: ef.nn.Context(segments[:, at], segments[:, at], jnp.arange(9)[at], jnp.arange(9)[at])
    whole, _ = layer(x, context(slice(None)))
    cache, found = ef.nn.layer_cache(layer, 2, 9, jnp.float32), []
    for at in (slice(0, 5), *(slice(t, t + 1) for t in range(5, 9))):
        y, cache = layer(x[:, at], context(at), cache)
        found.append(y)
    np.testing.assert_allclose(jnp.concatenate(found, axis=1), whole, atol=2e-5)

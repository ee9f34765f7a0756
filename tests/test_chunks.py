"""Attention in chunks: every document on its own, padding in none; and queries that grow with their position."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import easyfn as ef
from cases import SMALL, reference, tokens
from easyfn.nn.cache.cache import order_of


def cut(segments, size):
    segments = jnp.array([segments])
    context = ef.nn.Context(
        jnp.zeros_like(segments), segments, jnp.arange(segments.shape[1]), jnp.arange(segments.shape[1])
    )
    return np.asarray(ef.nn.in_chunks(context, size).segment_ids)[0]


def groups(ids):
    """Which places are together: the first place of each."""
    return [None if i == 0 else list(ids).index(i) for i in ids]


@pytest.mark.quick("nn", "chunked attention")
def test_documents_are_cut_and_padding_is_in_none():
    assert groups(cut([1, 1, 1, 1, 1], 2)) == [0, 0, 2, 2, 4]
    assert groups(cut([0, 1, 1, 1, 0], 2)) == [None, 1, 1, 3, None]
    assert groups(cut([1, 1, 1, 2, 2, 2], 2)) == [0, 0, 2, 3, 3, 5]
    assert groups(cut([1, 0, 0, 1, 1], 2)) == [0, None, None, 0, 4]


def test_a_cache_is_cut_as_a_whole():
    held = jnp.array([[0, 1, 1, 1, 1, 0, 0]])
    context = ef.nn.Context(
        jnp.array([[3]]), jnp.array([[1]]), jnp.array([4]), jnp.array([[3]]), cached_segment_ids=held
    )
    made = ef.nn.in_chunks(context, 3)
    assert groups(np.asarray(made.cached_segment_ids)[0]) == [None, 1, 1, 1, 4, None, None]
    assert made.segment_ids[0, 0] == made.cached_segment_ids[0, 4]


def test_queries_without_rotation_grow():
    """Without padding: transformers counts it as positions, and so its answers depend on it."""
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    more = {"attention_chunk_size": 4, "no_rope_layers": [1, 0], "floor_scale": 3, "attn_scale": 0.7, "moe_layers": []}
    sizes = {**SMALL, "head_dim": 16, "num_hidden_layers": 2, "intermediate_size_mlp": 36}
    module = reference(Llama4ForCausalLM, Llama4TextConfig(**sizes, **more, num_local_experts=2))
    ids, _ = tokens(2, pad=False)
    with torch.no_grad():
        want = module(torch.tensor(ids)).logits.numpy()
    model = ef.from_torch(module)
    np.testing.assert_allclose(ef.forward(model, ids).logits, want, atol=1e-4)
    flat = ef.from_torch(
        reference(
            Llama4ForCausalLM, Llama4TextConfig(**sizes, **more, num_local_experts=2, attn_temperature_tuning=False)
        )
    )
    assert np.abs(np.asarray(ef.forward(flat, ids).logits) - want).max() > 1e-3


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 7])
def test_slices_of_long_sequences_are_the_whole(window, causal):
    """Padding on the left and within rows, packed rows: a slice leaves out only what none of its queries sees."""
    length, random = 67, np.random.RandomState(0)
    q, k, v = (jnp.asarray(random.randn(2, heads, length, 8), jnp.float32) for heads in (4, 2, 2))
    bias = jnp.asarray(random.randn(1, 4, length, length), jnp.float32)
    rows = {
        "left": np.arange(length)[None] >= np.array([[5], [0]]),
        "within": random.rand(2, length) > 0.3,
        "packed": np.sort(random.randint(1, 4, (2, length)), axis=1),
    }

    @functools.partial(jax.jit, static_argnums=2)
    def run(segments, q, chunk):
        places = jnp.arange(length) if window is None else order_of(segments)
        mask = ef.nn.Mask(places, segments, places, segments, causal, window)
        runtime = ef.Runtime(attention_chunk=chunk)
        whole = lambda q: jnp.where((segments > 0)[:, None, :, None], attend(q, mask, runtime), 0)
        return whole(q), jax.grad(lambda q: jnp.sum(jnp.sin(whole(q))))(q)

    def attend(q, mask, runtime):
        return ef.nn.attend(q, k, v, mask, scale=0.3, bias=bias, runtime=runtime)[0]

    for name, segments in rows.items():
        segments = jnp.asarray(segments, jnp.int32)
        for want, got in zip(run(segments, q, 2**24), run(segments, q, 1500), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-5, err_msg=name)

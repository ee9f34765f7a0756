"""The paged cache: the same numbers as any other, in place, and as large as was asked."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef
from cases import CASES, tokens

TABLE = np.array([[5, 0, 7, -1], [2, 3, 1, -1], [9, 8, 4, 6]])


def filled(model, **sizes):
    cache = ef.init_paged_cache(model, page_size=4, num_pages=10, max_model_length=16, batch_size=3, **sizes)
    return dataclasses.replace(cache, table=jnp.asarray(TABLE, jnp.int32))


@pytest.mark.parametrize("name", ["llama", "llama stacked", "gemma3"])
def test_pages_are_a_cache(name):
    """Prompts padded on either side, then token by token, and several at once: as without a cache."""
    model = CASES[name.split()[0]].model()
    model = ef.stack(model) if "stacked" in name else model
    ids, mask = tokens(3, 11)
    whole = ef.forward(model, ids, attention_mask=mask).logits
    out = ef.forward(model, ids[:, :6], attention_mask=mask[:, :6], cache=filled(model), fresh=True)
    found = [out.logits]
    for at, end in ((6, 7), (7, 11)):
        out = ef.forward(model, ids[:, at:end], attention_mask=mask[:, at:end], cache=out.cache)
        found.append(out.logits)
    seen = mask[..., None] > 0
    np.testing.assert_allclose(np.where(seen, jnp.concatenate(found, 1), 0), np.where(seen, whole, 0), atol=2e-5)
    assert out.cache.length.tolist() == [11, 11, 11]


@pytest.mark.parametrize("stacked", [False, True])
def test_a_step_copies_no_pages(stacked):
    model = CASES["llama"].model()
    model = ef.stack(model) if stacked else model
    cache = ef.init_paged_cache(model, page_size=4, num_pages=3000, max_model_length=16, batch_size=3)
    step = jax.jit(lambda model, token, cache: ef.decode_step(model, token, cache), donate_argnums=2)
    memory = step.lower(model, jnp.array([7, 8, 9]), cache).compile().memory_analysis()
    pages = sum(leaf.nbytes for leaf in jax.tree.leaves(cache.layers))
    assert memory.alias_size_in_bytes >= pages
    assert memory.temp_size_in_bytes < pages / 20


@pytest.mark.quick("nn", "pages write nothing without a page")
def test_rows_without_a_page_write_nothing():
    model = CASES["llama"].model()
    cache = dataclasses.replace(filled(model), table=jnp.asarray(np.where(TABLE == 2, -1, TABLE), jnp.int32))
    out = ef.forward(model, tokens(3, 4, pad=False)[0], cache=cache)
    written = [page for page in range(10) if np.asarray(out.cache.layers[0].k[page]).any()]
    assert written == [5, 9]
    with pytest.raises(ValueError, match="same pages"):
        ef.fork(cache, 2)


def test_sizes():
    model = CASES["llama"].model()
    every = ef.init_paged_cache(model, page_size=16, max_model_length=40, batch_size=2)
    assert every.layers[0].k.shape == (6, 2, 16, 16) and every.table.shape == (2, 3)
    part = ef.init_paged_cache(model, memory_fraction=1e-4, max_model_length=64, dtype=jnp.bfloat16)
    assert part.layers[0].k.dtype == jnp.bfloat16 and part.layers[0].k.shape[0] > 10
    with pytest.raises(ValueError, match="say a thing twice"):
        ef.init_paged_cache(model, num_pages=3, memory_fraction=0.1)
    with pytest.raises(ValueError, match="holds no page"):
        ef.init_paged_cache(model, memory_fraction=1e-12)
    with pytest.raises(ValueError, match="learned 64 positions"):
        ef.init_paged_cache(CASES["gpt2"].model(), max_model_length=65)
    with pytest.raises(ValueError, match="max_model_length= is needed"):
        ef.init_paged_cache(CASES["mamba2"].model())
    abstract = ef.init_paged_cache(ef.abstract(model.config), num_pages=3, max_model_length=16)
    assert abstract.layers[0].k.shape[0] == 3

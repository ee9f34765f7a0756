"""Attention to chosen keys: in slices, stacked and in pages it is the same choice."""

import dataclasses

import jax
import numpy as np
import pytest

import easyfn as ef
from cases import tokens
from easyfn.models.glm_moe_dsa import GlmMoeDsaConfig

CONFIG = GlmMoeDsaConfig(
    **{
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 40,
        "moe_intermediate_size": 16,
        "num_hidden_layers": 4,
    },
    **{"num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 12, "v_head_dim": 8},
    **{"qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "n_routed_experts": 4, "num_experts_per_tok": 2},
    **{"index_topk": 5, "index_head_dim": 8, "index_n_heads": 7, "indexer_types": ("full", "shared") * 2},
    first_k_dense_replace=0,
)


@pytest.fixture(scope="module")
def model():
    return jax.tree.map(lambda x: 3 * x, ef.init(CONFIG, key=jax.random.key(0)))


def test_slices_and_stacks(model):
    ids, mask = tokens(length=24)
    want = ef.forward(model, ids, attention_mask=mask).logits
    everything = ef.forward(
        ef.init(dataclasses.replace(CONFIG, index_topk=64), key=jax.random.key(0)), ids, attention_mask=mask
    )
    assert np.abs(want - everything.logits).max() > 1e-2  # there is a choice
    sliced = ef.forward(model, ids, attention_mask=mask, runtime=ef.nn.Runtime(attention_chunk=500)).logits
    np.testing.assert_allclose(sliced[mask > 0], want[mask > 0], atol=1e-5)
    stacked = ef.stack(model)
    assert len(stacked.model.layers) == 1
    np.testing.assert_allclose(ef.forward(stacked, ids, attention_mask=mask).logits, want, atol=1e-5)
    got, expected = (ef.generate(m, ids, attention_mask=mask, max_new_tokens=6).sequences for m in (stacked, model))
    np.testing.assert_array_equal(got, expected)


def test_in_pages(model):
    prompts = [list(map(int, np.random.RandomState(n).randint(3, 97, n))) for n in (9, 14)]
    engine = ef.Engine(model, max_batch_size=2, max_model_length=32, page_size=4, prefill_chunk=8)
    requests = [engine.submit(p, max_new_tokens=6) for p in prompts]
    while not all(request.done for request in requests):
        engine.step()
    for prompt, request in zip(prompts, requests, strict=True):
        want = ef.generate(model, np.array([prompt]), max_new_tokens=6).sequences[0, len(prompt) :]
        np.testing.assert_array_equal(request.tokens, want)


@pytest.mark.quick("nn", "an indexer chooses keys")
def test_the_first_layer_has_nothing_to_share():
    with pytest.raises(
        ValueError, match="indexer_types says full or shared of each of 4 layers, and full of the first"
    ):
        ef.abstract(dataclasses.replace(CONFIG, indexer_types=("shared",) * 4))

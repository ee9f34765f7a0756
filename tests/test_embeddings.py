"""Embeddings are looked at, exchanged and resized without touching the old model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef
from cases import CASES, IMAGES
from easyfn.registry.family import build


def config(tied):
    return ef.models.LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )


IDS = np.array([[1, 2, 3]])


@pytest.mark.parametrize("tied", [True, False])
def test_exchange(tied, key):
    model = ef.init(config(tied), key=key)
    before = ef.forward(model, IDS).logits
    head = ef.output_embeddings(model)
    assert (head is ef.input_embeddings(model)) == tied
    other = ef.with_output_embeddings(model, 2 * head.weight)
    after = ef.forward(other, IDS).logits
    np.testing.assert_array_equal(ef.forward(model, IDS).logits, before)  # the old model is as it was
    if not tied:
        np.testing.assert_allclose(after, 2 * before, rtol=1e-5)
        same = ef.with_input_embeddings(model, ef.input_embeddings(model))
        np.testing.assert_array_equal(ef.forward(same, IDS).logits, before)
    with pytest.raises(ValueError, match="resize_embeddings"):
        ef.with_input_embeddings(model, jnp.ones((3, 32)))
    with pytest.raises(TypeError, match="array for its weight"):
        ef.with_input_embeddings(model, "table")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("make", [lambda c, k: ef.init(c, key=k), lambda c, k: build(c)])
def test_resize(tied, make, key):
    model = make(config(tied), key)
    assert ef.resize_embeddings(model, None, pad_to_multiple_of=96).config.vocab_size == 96
    bigger = ef.resize_embeddings(model, 45, pad_to_multiple_of=8, key=key)
    assert bigger.config.vocab_size == bigger.model.config.vocab_size == 48
    assert ef.input_embeddings(bigger).weight.shape == (48, 32)
    smaller = ef.resize_embeddings(bigger, 40)
    assert jax.tree.structure(smaller) == jax.tree.structure(model)
    if isinstance(ef.input_embeddings(model).weight, jax.Array):
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), smaller, model)
        np.testing.assert_allclose(ef.forward(bigger, IDS).logits[..., :40], ef.forward(model, IDS).logits, atol=1e-6)
        assert ef.forward(bigger, np.array([[47]])).logits.shape == (1, 1, 48)
    with pytest.raises(ValueError, match="is none"):
        ef.resize_embeddings(model, 0)


def test_decoder_and_encoder(key):
    model = ef.init(config(False), key=key)
    assert ef.decoder(model) is model.model
    double = jax.tree.map(lambda x: 2 * x, model.model)
    assert ef.with_decoder(model, double).model.norm.weight[0] == 2
    with pytest.raises(ef.NotSupported, match="It has no encoder"):
        ef.encoder(model)
    with pytest.raises(ValueError, match="another structure"):
        ef.with_decoder(model, model.model.norm)


def test_numpy_sizes_and_arrays_become_what_a_model_holds(key):
    model = ef.resize_embeddings(ef.init(config(True), key=key), np.int64(50))
    assert type(model.config.vocab_size) is int
    other = ef.with_input_embeddings(model, np.zeros((50, 32)))
    again = ef.with_params(model, {"model.norm.weight": [2.0] * 32})
    table = ef.init(ef.nn.Embedding(8, 4), key=key)
    assert ef.resize_embeddings(table, 9).weight.shape == (9, 4)  # a layer without a config
    for leaf in (other.model.embed_tokens.weight, again.model.norm.weight):
        assert isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32


def test_encoder_and_decoder_of_heads():
    def support(name):
        return {part: ef.supports(CASES[name].model(), part) for part in ("encoder", "decoder", "encode")}

    none = {"encoder": False, "decoder": False, "encode": False}
    assert support("llama-classifier") == none | {"decoder": True}
    assert support("bert") == none | {"encoder": True}  # its head's `decoder` is an output layer
    assert support("t5") == {"encoder": True, "decoder": True, "encode": True}
    assert not ef.supports(CASES["bert-base"].model(), "output_embeddings")
    assert ef.task(CASES["t5-encoder"].model()) == "encoder"


@pytest.mark.parametrize("name", ["llava", "marian"])
def test_resize_changes_the_config_that_has_the_vocabulary(name):
    """Inside a `text_config`, and the decoder's own."""
    config = ef.from_torch((CASES | IMAGES)[name].torch()).config
    model = ef.resize_embeddings(ef.abstract(config), 120)
    assert model.config.vocab_size == 120 and getattr(model.config, "decoder_vocab_size", 120) == 120
    assert ef.input_embeddings(model).weight.shape[0] == 120
    again = ef.abstract(model.config)
    assert jax.tree.structure(again) == jax.tree.structure(model)

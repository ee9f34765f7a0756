"""Stacking is a transform: the same numbers, and its inverse gives back the same model."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef
from easyfn.core.stack import segments
from easyfn.registry.family import build


@pytest.mark.quick("core", "runs of layers are found")
@pytest.mark.parametrize(
    "kinds, expected",
    [
        ("a" * 32, [(0, 1, 32)]),
        ("ab" * 13, [(0, 2, 13)]),
        ("aaaaab" * 10 + "aa", [(0, 6, 10), (60, 1, 2)]),
        ("aaa" + "b" * 58, [(0, 1, 3), (3, 1, 58)]),
        ("a" + "b" * 31, [(0, 1, 1), (1, 1, 31)]),
        ("abc", [(0, 1, 1), (1, 1, 1), (2, 1, 1)]),
        ("aaab" * 12, [(0, 4, 12)]),
    ],
)
def test_segments(kinds, expected):
    assert segments(list(kinds)) == expected


def llama(layers=5):
    return ef.models.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
    )


@pytest.mark.quick("core", "layers alike are one scanned layer, with the same numbers")
def test_stacked_model_is_the_same_model(key):
    model = ef.init(llama(), key=key)
    stacked = ef.stack(model)
    assert len(stacked.model.layers) == 1
    ids = np.arange(12).reshape(2, 6)
    wanted = {"output_hidden_states": True, "output_attentions": True}
    a, b = ef.forward(model, ids, **wanted), ef.forward(stacked, ids, **wanted)
    np.testing.assert_allclose(a.logits, b.logits, atol=1e-5)
    assert len(b.hidden_states) == 6 and len(b.attentions) == 5
    for x, y in zip(a.hidden_states + a.attentions, b.hidden_states + b.attentions, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)
    back = ef.unstack(stacked)
    assert jax.tree.structure(back) == jax.tree.structure(model)
    assert all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), back, model)))


def test_stacked_model_decodes_with_a_cache(key):
    model = ef.init(llama(), key=key)
    stacked = ef.stack(model)
    ids = np.arange(12).reshape(2, 6)
    first = ef.forward(stacked, ids[:, :4], cache=ef.init_cache(stacked, 2, 8))
    second = ef.forward(stacked, ids[:, 4:], cache=first.cache)
    np.testing.assert_allclose(second.logits, ef.forward(model, ids).logits[:, 4:], atol=1e-5)


@pytest.mark.quick("core", "abstract models stack")
def test_stack_works_on_abstract_models():
    stacked = ef.stack(build(llama()))
    paths = ef.shapes(stacked)
    assert paths["model.layers.0:5:1.self_attn.q_proj.weight"] == (5, 48, 32)
    assert jax.tree.structure(ef.unstack(stacked)) == jax.tree.structure(build(llama()))


@pytest.mark.parametrize("remat", [None, "full", "dots"])
def test_remat_changes_no_gradient(key, remat):
    model = ef.stack(ef.init(llama(3), key=key))
    ids = np.arange(12).reshape(2, 6)

    def loss(model, runtime):
        return jnp.mean(jnp.square(ef.forward(model, ids, runtime=runtime).logits))

    plain = jax.grad(loss)(model, ef.Runtime())
    other = jax.grad(loss)(model, ef.Runtime(remat=remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain, other)


def test_treescope_draws_what_a_stack_holds(monkeypatch):
    """By treescope's own function, of a module that stands for it: it draws dataclasses by itself, and a stack is none."""
    import types

    module = types.ModuleType("treescope")
    module.repr_lib = types.SimpleNamespace(render_object_constructor=lambda *said: said)
    monkeypatch.setitem(sys.modules, "treescope", module)
    (run,) = ef.stack(ef.testing.tiny()).model.layers
    assert run.__treescope_repr__(".layers[0]", "renderer") == (
        type(run),
        {"blocks": run.blocks, "repeats": 2, "start": 0},
        ".layers[0]",
        "renderer",
    )


def test_stages_that_are_alike(key):
    """What a model calls by itself, and not by `fold`, may be alike and so in a run: stages, convolutions over samples."""
    sizes = {"hidden_sizes": (8, 8, 8, 8), "depths": (1, 2, 2, 2), "num_channels": 3, "image_size": 64}
    model = ef.init(ef.models.ConvNextConfig(**sizes), key=key)
    pixels = jax.random.normal(key, (2, 3, 64, 64))
    stacked = ef.stack(model)
    assert len(stacked.stages) < 4
    run = jax.jit(lambda m: ef.forward(m, pixel_values=pixels).last_hidden_state)
    np.testing.assert_allclose(run(stacked), run(model), atol=1e-5)
    assert jax.tree.structure(ef.unstack(stacked)) == jax.tree.structure(model)

"""`show` and its kin: on every form of a model."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef
from cases import CASES, COMPOSED, in_test_all, names

CONFIG = ef.models.LlamaConfig(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)


@pytest.fixture(scope="module")
def model():
    return ef.init(CONFIG, key=jax.random.key(0))


def row(model, word):
    (found,) = [r for r in ef.show(model).rows if word in r.path]
    return found


@pytest.mark.quick("inspect", "equal layers are one line")
def test_equal_layers_are_one_line(model):
    q = row(model, "q_proj")
    assert q.path == "model.layers.0-2.self_attn.q_proj.weight" and len(q.paths) == 3
    assert q.shape == (64, 64) and q.format == "float32" and q.axes == ("heads", "embed")
    assert q.params == q.trainable == 3 * 64 * 64 and q.bytes == 4 * q.params
    text = str(ef.show(model))
    assert len(text.splitlines()) < 20 and "64 x 64" in text and "heads, embed" in text
    odd = ef.cast(model, jnp.bfloat16, r"layers\.1\..*q_proj")
    assert {r.path for r in ef.show(odd).rows if "q_proj" in r.path} == {
        "model.layers.0,2.self_attn.q_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
    }


@pytest.mark.quick("inspect", "every array is counted once")
def test_every_array_is_counted_once(model):
    for made in (model, ef.stack(model), jax.eval_shape(lambda: model)):
        rows = ef.show(made).rows
        assert sum(r.bytes for r in rows) == ef.num_bytes(made) == sum(x.size * 4 for x in jax.tree.leaves(made))
        assert sum(r.params for r in rows) == ef.num_params(made) == ef.num_params(model)
    assert row(jax.eval_shape(lambda: model), "q_proj").placement == "abstract"
    assert row(ef.stack(model), "q_proj").shape == (3, 64, 64)


def test_quantized_and_adapted(model):
    quantized = ef.quantize(model, ef.QuantConfig("nf4"))
    assert ef.num_params(quantized) == ef.num_params(model)
    assert ef.num_bytes(quantized) < 0.4 * ef.num_bytes(model)
    assert row(quantized, "q_proj").format == "nf4/64" and row(quantized, "q_proj").trainable == 0
    adapted = ef.apply_lora(quantized, "q_proj", rank=2, key=jax.random.key(0))
    assert row(adapted, "q_proj").format == "LoRA on nf4/64"
    assert row(adapted, "q_proj").trainable == ef.num_params(adapted, trainable_only=True) == 3 * 2 * (64 + 64)
    assert ef.num_params(adapted) == ef.num_params(model)
    assert set(ef.show(adapted).totals()) == {"float32", "nf4/64", "LoRA on nf4/64"}


def test_placement_and_mesh(model):
    assert ef.mesh_of(model) is None
    mesh = ef.make_mesh(fsdp=4, tp=2)
    placed = ef.shard(model, mesh=mesh)
    assert ef.mesh_of(placed) == mesh
    assert "fsdp" in row(placed, "q_proj").placement and "tp" in row(placed, "q_proj").placement
    both = eqx.tree_at(lambda m: m.lm_head, placed, ef.shard(model, mesh=ef.make_mesh(fsdp=8)).lm_head)
    with pytest.raises(ValueError, match="2 meshes"):
        ef.mesh_of(both)


def test_html_is_escaped(model):
    page = ef.show(model)._repr_html_()
    assert page.count("<tr>") == len(ef.show(model).rows) + 1
    assert "&lt;b&gt;" in ef.show({"<b>": jnp.ones(2)})._repr_html_()


@pytest.mark.quick("inspect", "each kind of family is shown")
def test_any_pytree():
    table = ef.show({"a": jnp.ones((2, 3), jnp.int8), "b": [np.ones(4)]})
    assert [r.path for r in table.rows] == ["a", "b.0"] and table.totals()["int8"] == (6, 6)
    assert ef.num_bytes({"k": jnp.ones(3, jnp.int4)}) == 2
    assert str(ef.show({}))


@pytest.mark.parametrize("name", in_test_all(COMPOSED, names(variant=False)))
def test_every_family(name):
    case = CASES[name]
    model = case.model()
    weights = {n: p.numel() for n, p in case.torch().named_parameters()}  # ERNIE holds its buffer as a parameter
    assert ef.num_params(model) == sum(size for n, size in weights.items() if "correction_bias" not in n)
    assert ef.task(model) == case.task
    assert ef.model_type(model) == case.torch().config.model_type
    assert ef.supports(model, "generate") == case.generates
    card = ef.model_card(model, name="tiny")
    assert card.startswith("---\nlibrary_name: easyfn") and f"| task | {case.task} |" in card
    assert str(ef.num_params(model))[0] in str(ef.show(model))


def test_supports(model):
    assert ef.supports(model, ef.forward) and ef.supports(model, "quantize") and ef.supports(model, "compute_loss")
    assert not ef.supports(model.model, "generate") and not ef.supports({"a": jnp.ones(2)}, "quantize")
    with pytest.raises(ValueError, match=r"no verb 'generat'.*generate"):
        ef.supports(model, "generat")


def test_classifier_says_its_task():
    config = dataclasses.replace(CONFIG, num_labels=3)
    made = ef.init(config, key=jax.random.key(0), task="sequence-classification")
    assert ef.task(made) == "sequence-classification" and not ef.supports(made, "generate")
    assert "pipeline_tag: text-classification" in ef.model_card(made)

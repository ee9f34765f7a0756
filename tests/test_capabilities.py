"""What docs/capabilities.md promises and no other file of tests holds."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef

CONFIG = ef.models.LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
IDS = np.array([[1, 2, 3, 4]])


@pytest.fixture(scope="module")
def model():
    return ef.init(CONFIG, key=jax.random.key(0))


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_precision(model):
    def products(model):
        text = str(jax.make_jaxpr(lambda m: ef.forward(m, jnp.asarray(IDS)).logits)(model))
        return text.count("dot_general["), text.count("Precision.HIGHEST")

    assert products(model)[1] == 0
    with jax.default_matmul_precision("highest"):
        count, highest = products(model)
    assert highest == 2 * count > 0  # both operands of every product


def test_device(model, tmp_path):
    device = jax.devices()[3]
    ef.save(model, tmp_path)
    with jax.default_device(device):
        loaded = ef.load(tmp_path)
    assert {d for leaf in jax.tree.leaves(loaded) for d in leaf.devices()} == {device}
    loaded = ef.load(tmp_path, mesh=ef.make_mesh(devices=[device]))
    assert {d for leaf in jax.tree.leaves(loaded) for d in leaf.devices()} == {device}


@pytest.mark.quick("core", "a verb refuses a second rule and teaches")
def test_facts(model):
    from transformers import LlamaForCausalLM

    assert ef.families()["llama"].config is type(model.config)
    assert ef.families()["gpt2"].prefix == "transformer"
    assert ef.torch_class(model) is LlamaForCausalLM


def test_signatures():
    assert list(inspect.signature(ef.quantize).parameters) == ["model", "cfg"]
    assert "attention_mask" in inspect.signature(ef.forward).parameters
    assert inspect.getdoc(ef.forward) and ef.forward.__name__ == "forward"


def test_unknown_inputs_are_refused(model):
    with pytest.raises(TypeError, match="pixel_values"):
        ef.forward(model, IDS, pixel_values=jnp.zeros((1, 3, 8, 8)))


@pytest.mark.quick("core", "the pure function of a model")
def test_pure(model):
    apply, params = ef.pure(model)
    assert set(params) == set(ef.params(model))
    got = jax.jit(apply)(params, input_ids=jnp.asarray(IDS)).logits
    np.testing.assert_allclose(got, ef.forward(model, IDS).logits, atol=1e-5)


@pytest.mark.quick("core", "paths, patterns and near misses")
def test_parameters_apart_and_together(model):
    params = ef.params(model)
    assert ef.shapes(model) == {path: leaf.shape for path, leaf in params.items()}
    zeros = ef.with_params(model, {path: jnp.zeros_like(leaf) for path, leaf in params.items()})
    assert all(not leaf.any() for leaf in jax.tree.leaves(zeros))
    same(ef.with_params(zeros, params), model)
    same(ef.combine(*ef.split(model)), model)
    tuned = ef.apply_lora(model, key=jax.random.key(1))
    trains, frozen = ef.split(tuned, ef.trainable(tuned))
    assert len(jax.tree.leaves(trains)) == 2 * 14 and len(jax.tree.leaves(frozen)) == len(params)
    same(ef.combine(trains, frozen), tuned)
    with pytest.raises(KeyError, match="lm_heat"):
        ef.with_params(model, {"lm_heat.weight": params["lm_head.weight"]})
    with pytest.raises(ValueError, match="shape"):
        ef.with_params(model, {"lm_head.weight": jnp.zeros((3, 3))})


@pytest.mark.quick("core", "one dtype everywhere")
def test_dtypes(model):
    assert ef.dtype_of(model) == jnp.float32
    assert ef.dtype_of(ef.half(model)) == jnp.float16
    assert ef.dtype_of(ef.float32(ef.half(model))) == jnp.float32
    mixed = ef.cast(model, jnp.bfloat16, r"mlp")
    assert mixed.model.layers[0].mlp.up_proj.weight.dtype == jnp.bfloat16
    assert mixed.model.norm.weight.dtype == jnp.float32
    with pytest.raises(ValueError, match="mlp"):
        ef.cast(model, jnp.bfloat16, "mpl")
    with pytest.raises(ValueError, match="quantize"):
        ef.cast(model, jnp.int8)


def test_placements(model):
    mesh = ef.make_mesh(fsdp=4, tp=2)
    rules = ef.default_rules(model)
    sharded = ef.shard(model, rules, mesh)
    wanted = jax.tree.leaves(ef.named_shardings(model, rules, mesh))
    for (path, leaf), sharding in zip(ef.params(sharded).items(), wanted, strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim), path
    rows = jax.sharding.NamedSharding(mesh, ef.P("fsdp"))
    cache = ef.init_cache(sharded, 4, 8)
    places = jax.tree.map(lambda leaf: rows if leaf.ndim else jax.sharding.NamedSharding(mesh, ef.P()), cache)
    cache = jax.device_put(cache, places)
    out = jax.jit(ef.forward)(sharded, jnp.tile(IDS, (4, 1)), cache=cache)
    assert not out.cache.layers[0].k.sharding.is_fully_replicated
    np.testing.assert_allclose(out.logits[:1], ef.forward(model, IDS).logits, atol=1e-5)


def test_load_with_rules(model, tmp_path):
    ef.save(model, tmp_path)
    rules = ef.ShardingRules({"embed": "fsdp"}, {"q_proj": ef.P("tp", None)})
    loaded = ef.load(tmp_path, mesh=ef.make_mesh(fsdp=4, tp=2), rules=rules)
    attention = loaded.model.layers[0].self_attn
    assert attention.q_proj.weight.sharding.spec in (ef.P("tp"), ef.P("tp", None))
    assert attention.k_proj.weight.sharding.spec == ef.P(None, "fsdp")
    same(ef.to_state_dict(loaded), ef.to_state_dict(model))


def test_loss_beside_outputs(model):
    out = ef.forward(model, IDS, output_attentions=True, output_hidden_states=True)
    loss, _ = ef.loss_from_logits(out.logits, IDS)
    np.testing.assert_allclose(loss, ef.compute_loss(model, {"input_ids": IDS})[0], rtol=1e-5)
    assert len(out.attentions) == 2

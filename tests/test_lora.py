"""LoRA as a weight: the laws that adapters keep on any model, without files."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import easyfn as ef
from easyfn.nn import Embedding, Linear
from easyfn.registry.family import build

CONFIG = ef.models.LlamaConfig(
    vocab_size=62,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=16,
    attention_bias=True,
)
IDS = np.random.RandomState(0).randint(0, 62, (2, 7))


@pytest.fixture(scope="module")
def model():
    return ef.init(CONFIG, key=jax.random.key(0))


@eqx.filter_jit
def _run(model, ids):
    return ef.forward(model, ids).logits


def run(model):
    return np.asarray(_run(model, jnp.asarray(IDS)))


def noisy(model, seed=7, size=0.05):
    """The model with every adapter array moved away from its start, by the path of the single layer."""
    base, adapter = ef.split_lora(model)

    def move(path, leaf):
        own = jax.random.fold_in(jax.random.key(seed), hash(path) % 2**31)
        return leaf + size * jax.random.normal(own, leaf.shape, leaf.dtype)

    return ef.join_lora(base, {p: jax.tree.map(lambda x, p=p: move(f"{p}{x.shape}", x), w) for p, w in adapter.items()})


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x is y or bool(jnp.array_equal(x, y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.quick("lora", "fresh adapters change nothing")
@pytest.mark.parametrize("options", [{}, {"rslora": True}, {"init": "gaussian"}, {"dropout": 0.5}], ids=str)
def test_a_fresh_adapter_changes_nothing_bit_for_bit(model, key, options):
    np.testing.assert_array_equal(run(ef.apply_lora(model, key=key, **options)), run(model))


@pytest.mark.thinned("starts of one arithmetic")
@pytest.mark.parametrize(
    "options",
    [{"dora": True}, {"init": "pissa"}, {"init": "pissa_niter_4"}, {"init": "olora"}, {"init": "orthogonal"}],
    ids=str,
)
def test_starts_that_round_change_nothing_but_rounding(model, key, options):
    np.testing.assert_allclose(run(ef.apply_lora(model, rank=4, key=key, **options)), run(model), atol=2e-6)


@pytest.mark.quick("lora", "PiSSA starts at the largest directions")
def test_pissa_takes_the_largest_directions(model, key):
    w = model.model.layers[0].mlp.up_proj.weight
    tuned = ef.apply_lora(model, "up_proj", rank=4, key=key, init="pissa").model.layers[0].mlp.up_proj.weight
    left = jnp.linalg.svd(ef.dense(tuned.base), compute_uv=False)
    np.testing.assert_allclose(left[0], jnp.linalg.svd(w, compute_uv=False)[4], rtol=1e-4)


def test_the_start_is_pefts(model, key):
    w = ef.apply_lora(model, "up_proj", rank=8, alpha=4, key=key).model.layers[1].mlp.up_proj.weight
    assert w.a.shape == (8, 32) and w.b.shape == (64, 8) and w.scale == 0.5
    assert float(jnp.abs(w.a).max()) <= 1 / math.sqrt(32)
    assert float(jnp.std(w.a)) == pytest.approx(1 / math.sqrt(3 * 32), rel=0.1)
    assert not jnp.any(w.b)
    assert (
        ef.apply_lora(model, "up_proj", rank=16, alpha=8, rslora=True, key=key).model.layers[1].mlp.up_proj.weight.scale
        == 2.0
    )


def test_every_slot_draws_from_its_own_key(model, key):
    _, adapter = ef.split_lora(ef.apply_lora(model, "up_proj|gate_proj", key=key))
    drawn = [np.asarray(w.a) for w in adapter.values()]
    assert len(drawn) == 6
    assert len({a.tobytes() for a in drawn}) == 6
    _, again = ef.split_lora(ef.apply_lora(model, "up_proj", key=key))
    for path, w in again.items():
        np.testing.assert_array_equal(w.a, adapter[path].a)


@pytest.mark.quick("lora", "targets")
def test_all_linear_is_every_linear_layer_but_the_head(model, key):
    _, adapter = ef.split_lora(ef.apply_lora(model, key=key))
    assert len(adapter) == 3 * 7 and not any("lm_head" in p or "embed" in p for p in adapter)
    _, adapter = ef.split_lora(ef.apply_lora(model, "lm_head|embed_tokens", key=key))
    assert sorted(adapter) == ["lm_head.weight", "model.embed_tokens.weight"]


def test_all_linear_leaves_a_classification_head_alone(key):
    model = build(dataclasses.replace(CONFIG, num_hidden_layers=1), "sequence-classification")
    _, adapter = ef.split_lora(ef.apply_lora(model, key=key))
    assert len(adapter) == 7


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("pattern", ["all-linear", "lm_head|embed_tokens|q_proj"])
def test_merged_equals_unmerged(model, key, pattern, dora):
    tuned = noisy(ef.apply_lora(model, pattern, rank=3, key=key, dora=dora))
    merged = ef.merge_lora(tuned)
    assert jax.tree.structure(merged) == jax.tree.structure(model)
    assert np.abs(run(tuned) - run(model)).max() > 1e-2
    np.testing.assert_allclose(run(merged), run(tuned), atol=1e-5)


@pytest.mark.quick("lora", "and come off")
def test_remove_and_split_give_back_the_same_arrays(model, key):
    tuned = ef.apply_lora(model, key=key)
    assert all(a is b for a, b in zip(jax.tree.leaves(ef.remove_lora(tuned)), jax.tree.leaves(model), strict=True))
    base, adapter = ef.split_lora(tuned)
    assert same(base, model)
    assert same(ef.join_lora(base, adapter), tuned)
    assert not ef.has_lora(base) and ef.has_lora(tuned)
    assert len(jax.tree.leaves(adapter)) == 2 * 21


@pytest.mark.parametrize("dora", [False, True])
def test_gradients_reach_exactly_the_adapter(model, key, dora):
    tuned = noisy(ef.apply_lora(model, rank=2, key=key, dora=dora))
    train, frozen = eqx.partition(tuned, ef.trainable(tuned))
    assert len(jax.tree.leaves(train)) == (63 if dora else 42)

    def loss(train):
        return jnp.mean(ef.forward(eqx.combine(train, frozen), IDS).logits ** 2)

    grads = eqx.filter_jit(jax.grad(loss))(train)
    assert jax.tree.structure(grads) == jax.tree.structure(train)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(grads))
    base, adapter = ef.split_lora(tuned)
    alone = jax.jit(jax.grad(lambda a: jnp.mean(ef.forward(ef.join_lora(base, a), IDS).logits ** 2)))(adapter)
    for path, w in alone.items():
        np.testing.assert_allclose(w.a, ef.params(grads)[f"{path}.a"], rtol=1e-4, atol=1e-7)
    assert len(jax.tree.leaves(optax.adam(1e-3).init(adapter))) == 2 * len(jax.tree.leaves(adapter)) + 1


def test_no_gradient_of_a_frozen_weight_is_computed(model, key):
    """The matrix products of the step: no result has the shape of a frozen weight."""
    tuned = ef.apply_lora(model, rank=3, key=key)
    base, adapter = ef.split_lora(tuned)

    def step(base, adapter):
        return jax.grad(lambda a: jnp.mean(ef.forward(ef.join_lora(base, a), IDS).logits ** 2))(adapter)

    full = lambda base, _: jax.grad(lambda m: jnp.mean(ef.forward(m, IDS).logits ** 2))(base)
    shapes = {(64, 32), (32, 64), (96, 32), (32, 96)}
    assert not products(jax.make_jaxpr(step)(base, adapter)) & shapes
    assert products(jax.make_jaxpr(full)(base, adapter)) & shapes  # or the count above would prove nothing


def products(jaxpr):
    found = set()
    for eqn in jaxpr.jaxpr.eqns if hasattr(jaxpr, "jaxpr") else jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            found.add(tuple(eqn.outvars[0].aval.shape))
        for value in eqn.params.values():
            for sub in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(sub, "eqns") or hasattr(sub, "jaxpr"):
                    found |= products(sub)
    return found


def test_swapping_adapters_compiles_once(model, key):
    base, one = ef.split_lora(ef.apply_lora(model, key=key))
    _, two = ef.split_lora(noisy(ef.apply_lora(model, key=jax.random.key(5))))
    count, jnp_ids = 0, jnp.asarray(IDS)  # a constant of the jitted function, as notebooks have it

    @jax.jit
    def logits(base, adapter):
        nonlocal count
        count += 1
        return ef.forward(ef.join_lora(base, adapter), jnp_ids).logits

    assert float(jnp.abs(logits(base, one) - logits(base, two)).max()) > 1e-3
    assert count == 1


def test_dropout_needs_a_key_and_is_different_everywhere(model, key):
    tuned = noisy(ef.apply_lora(model, rank=2, key=key, dropout=0.5))
    none = noisy(ef.apply_lora(model, rank=2, key=key))
    np.testing.assert_array_equal(run(tuned), run(none))
    k1, k2 = jax.random.split(key)
    go = eqx.filter_jit(lambda m, k: ef.forward(m, IDS, key=k).logits)
    first = go(tuned, k1)
    np.testing.assert_array_equal(first, go(tuned, k1))
    assert float(jnp.abs(first - go(tuned, k2)).max()) > 1e-4
    stacked = eqx.filter_jit(lambda m, k: ef.forward(m, IDS, key=k).logits)(ef.stack(tuned), k1)
    np.testing.assert_allclose(stacked, first, atol=1e-5)


# --- in any order with the other transforms


@pytest.mark.quick("lora", "stacked and listed")
def test_stack_and_apply_commute(model, key):
    one = ef.stack(ef.apply_lora(model, "mlp|q_proj", key=key))
    two = ef.apply_lora(ef.stack(model), "mlp|q_proj", key=key)
    assert same(one, two)
    tuned = noisy(two)
    np.testing.assert_allclose(run(tuned), run(ef.unstack(tuned)), atol=1e-5)
    np.testing.assert_allclose(run(ef.merge_lora(tuned)), run(tuned), atol=1e-5)
    assert same(ef.remove_lora(two), ef.stack(model))


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_fits_its_base_listed_and_stacked(model, key, dora):
    listed, stacked = ef.apply_lora(model, key=key, dora=dora), ef.apply_lora(ef.stack(model), key=key, dora=dora)
    _, a = ef.split_lora(listed)
    _, b = ef.split_lora(stacked)
    assert len(b) == 7
    if not dora:
        assert same(ef.join_lora(ef.stack(model), a), stacked)
        assert same(ef.join_lora(model, b), listed)
    np.testing.assert_allclose(run(ef.join_lora(model, b)), run(listed), atol=1e-5)


@pytest.mark.parametrize("init", ["default", "pissa"])
def test_abstract_models_take_adapters(model, key, init):
    abstract = build(CONFIG, "causal-lm")
    for shape in (abstract, ef.stack(abstract)):
        tuned = ef.apply_lora(shape, key=key, dora=True, init=init)
        concrete = ef.apply_lora(model if shape is abstract else ef.stack(model), key=key, dora=True, init=init)
        assert ef.shapes(tuned) == ef.shapes(concrete)
        assert ef.shapes(ef.merge_lora(tuned)) == ef.shapes(shape)
        assert ef.shapes(ef.split_lora(tuned)[0]) == ef.shapes(shape)


def test_sharded_models_keep_their_places(model, key):
    mesh = ef.make_mesh(fsdp=2, tp=2, dp=2)
    sharded = ef.shard(model, None, mesh)
    tuned = ef.apply_lora(sharded, key=key)
    up = tuned.model.layers[0].mlp.up_proj.weight
    spec = up.base.sharding.spec
    assert up.a.sharding.mesh == mesh and up.b.sharding.spec[0] == spec[0]
    want = ef.apply_lora(model, key=key)
    np.testing.assert_allclose(run(tuned), run(want), atol=1e-5)
    np.testing.assert_allclose(run(ef.shard(noisy(want), None, mesh)), run(noisy(want)), atol=1e-5)
    np.testing.assert_allclose(run(ef.merge_lora(noisy(tuned))), run(noisy(want)), atol=1e-5)


@pytest.mark.parametrize("method", ["nf4", "8bit"])
def test_quantized_models(model, key, method):
    small = ef.quantize(model, ef.QuantConfig(method, group_size=32) if method == "nf4" else method)
    tuned = ef.apply_lora(small, key=key, rank=4)
    np.testing.assert_allclose(run(tuned), run(small), atol=1e-5)  # XLA fuses the two programs differently
    assert same(ef.remove_lora(tuned), small)
    tuned = noisy(tuned, size=0.2)
    np.testing.assert_allclose(run(ef.stack(tuned)), run(tuned), atol=1e-4)
    exact = ef.merge_lora(tuned, dequantize=True)
    assert not ef.is_quantized(exact)
    np.testing.assert_allclose(run(exact), run(tuned), atol=2e-4)
    merged, errors = ef.merge_lora(tuned, report=True)
    assert jax.tree.structure(merged) == jax.tree.structure(small)
    assert len(errors) == 21 and all(0 < e < 0.5 for e in errors.values())
    train = [p for p, t in ef.params(jax.tree.map(np.asarray, ef.trainable(tuned))).items() if t]
    assert train and all(p.endswith((".a", ".b")) for p in train)


@pytest.mark.parametrize("stacked", [False, True])
def test_quantize_and_apply_lora_commute(model, key, stacked):
    model = ef.stack(model) if stacked else model
    first = ef.apply_lora(ef.quantize(model, "nf4"), "q_proj|up_proj", key=key)
    later = ef.quantize(ef.apply_lora(model, "q_proj|up_proj", key=key), "nf4")
    assert same(first, later)
    assert same(ef.remove_lora(later), ef.quantize(model, "nf4"))
    with pytest.raises(ValueError, match="quantized already"):
        ef.quantize(later, "nf4")
    with pytest.raises(ValueError, match=r"Call ef\.fake_quantize before you add adapters"):
        ef.fake_quantize(ef.apply_lora(model, "q_proj", key=key), "int4")


def test_cast_reaches_adapter_and_base(model, key):
    low = ef.cast(ef.apply_lora(model, key=key), jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(low)} == {jnp.dtype(jnp.bfloat16)}
    half = ef.apply_lora(ef.cast(model, jnp.bfloat16), key=key)
    assert half.model.layers[0].mlp.up_proj.weight.a.dtype == jnp.float32
    assert ef.forward(half, IDS).logits.dtype == jnp.bfloat16
    assert ef.dtype_of(half) == jnp.bfloat16


# --- patterns


def test_rank_and_alpha_patterns_and_layers(model, key):
    tuned = ef.apply_lora(
        model,
        "q_proj|v_proj",
        rank=2,
        alpha=4,
        rank_pattern={r"layers\.1\..*q_proj": 5},
        alpha_pattern={"v_proj": 8},
        key=key,
    )
    _, adapter = ef.split_lora(tuned)
    assert {p: (w.rank, w.scale) for p, w in adapter.items() if "layers.1" in p} == {
        "model.layers.1.self_attn.q_proj.weight": (5, 4 / 5),
        "model.layers.1.self_attn.v_proj.weight": (2, 4.0),
    }
    _, some = ef.split_lora(ef.apply_lora(model, layers=[0, 2], exclude="mlp", key=key))
    assert len(some) == 8 and not any("layers.1." in p or "mlp" in p for p in some)


@pytest.mark.quick("lora", "wrong uses")
def test_wrong_uses_say_what_to_do(model, key):
    with pytest.raises(ValueError, match=r"q_porj.*q_proj"):
        ef.apply_lora(model, "q_porj", key=key)
    with pytest.raises(ValueError, match="adapter already"):
        ef.apply_lora(ef.apply_lora(model, key=key), "q_proj", key=key)
    with pytest.raises(ValueError, match="fits none"):
        ef.apply_lora(model, "q_proj", rank_pattern={"up_proj": 4}, key=key)
    with pytest.raises(ValueError, match="no init 'best'"):
        ef.apply_lora(model, init="best", key=key)
    with pytest.raises(ValueError, match="rank must be"):
        ef.apply_lora(model, rank=0, key=key)
    with pytest.raises(ValueError, match="dropout"):
        ef.apply_lora(model, dropout=1.0, key=key)
    with pytest.raises(ValueError, match="unstack"):
        ef.apply_lora(ef.stack(model), "q_proj", layers=1, key=key)
    for verb in (ef.merge_lora, ef.split_lora, ef.remove_lora):
        with pytest.raises(ValueError, match="no adapter"):
            verb(model)
    _, adapter = ef.split_lora(ef.apply_lora(model, key=key))
    with pytest.raises(KeyError, match=r"layers\.2"):
        ef.join_lora(build(dataclasses.replace(CONFIG, num_hidden_layers=2), "causal-lm"), adapter)
    with pytest.raises(ValueError, match="do not fit"):
        ef.join_lora(build(dataclasses.replace(CONFIG, intermediate_size=96), "causal-lm"), adapter)


# --- the weight alone


def _experts(key, dora=False):
    base = jax.random.normal(key, (3, 5, 4))
    a, b = jax.random.normal(key, (3, 2, 4)), jax.random.normal(key, (3, 5, 2))
    w = ef.LoRA(base, a, b, scale=0.7)
    return dataclasses.replace(w, magnitude=jnp.full((3, 5, 1), 1.3)) if dora else w


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_on_experts(key, dora):
    w = _experts(key, dora)
    x = jax.random.normal(key, (6, 4))
    sizes = jnp.array([1, 3, 2])
    np.testing.assert_allclose(ef.ragged_dot(w, x, sizes), ef.ragged_dot(ef.dense(w), x, sizes), atol=1e-5)
    ids = jnp.array([2, 0])
    np.testing.assert_allclose(ef.dense(ef.take(w, ids)), ef.dense(w)[ids], atol=1e-6)
    one = jax.tree.map(lambda leaf: leaf[1], w)
    np.testing.assert_allclose(ef.dot(one, x), x @ ef.dense(w)[1].T, atol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_on_an_embedding_look_up_and_multiply(key, dora):
    table = eqx.tree_at(lambda e: e.weight, Embedding(7, 4), jax.random.normal(key, (7, 4)))
    tuned = ef.apply_lora(table, "weight", rank=2, key=key, dora=dora)
    w = dataclasses.replace(tuned.weight, b=jax.random.normal(key, (7, 2)))
    ids = jnp.array([[0, 6, 3]])
    np.testing.assert_allclose(ef.take(w, ids), ef.dense(w)[ids], atol=1e-5)
    x = jax.random.normal(key, (2, 4))
    np.testing.assert_allclose(ef.dot(w, x), x @ ef.dense(w).T, atol=1e-5)


def test_a_single_layer_is_a_model_too(key):
    layer = eqx.tree_at(lambda n: n.weight, Linear(4, 6), jax.random.normal(key, (6, 4)))
    tuned = ef.apply_lora(layer, key=key, rank=2)
    x = jax.random.normal(key, (3, 4))
    np.testing.assert_array_equal(tuned(x), layer(x))

"""What PEFT trains besides `a` and `b`: whole weights, biases, rows of a table; and a pytree in any slot."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef
from cases import CASES, kinds, tokens
from easyfn.core.tree import replace


class Wrapped(eqx.Module):
    """A weight that only says what it stands for: it has no `shape`, no `dtype`, no `astype`."""

    inner: ef.Weight


@ef.dense.register(Wrapped)
def _(w):
    return w.inner


@ef.dot.register(Wrapped)
def _(w, x, *, dtype=None):
    return ef.dot(w.inner, x, dtype=dtype)


@ef.take.register(Wrapped)
def _(w, ids):
    return ef.take(w.inner, ids)


@ef.ragged_dot.register(Wrapped)
def _(w, x, group_sizes):
    return ef.ragged_dot(w.inner, x, group_sizes)


@ef.shape_of.register(Wrapped)
def _(w):
    return ef.shape_of(w.inner)


@pytest.mark.thinned("pytrees in one kind of slot")
@pytest.mark.parametrize(
    "name",
    [
        *kinds(),
        *(
            n
            for n, c in CASES.items()
            if c.variant and c.task not in ("causal-lm", "multiple-choice") and c.family in ("bert", "t5", "llama")
        ),
    ],
)
def test_a_pytree_may_sit_in_every_slot(name):
    """The program is the same one, whatever role the slot has: `dense` of an array costs nothing."""
    case = CASES[name]
    ids = jnp.asarray(tokens(pad=False)[0])
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if case.encoder_decoder else {})}
    model = case.model()
    found = ef.find_slots(model)
    wrapped = replace(model, {f.path: Wrapped(f.weight) for f in found})
    assert {"norm"} < {f.slot.role for f in ef.find_slots(wrapped)} and len(ef.find_slots(wrapped)) == len(found)
    program = lambda m: str(jax.make_jaxpr(lambda m: eqx.filter(ef.forward(m, **inputs), eqx.is_array))(m))
    assert program(wrapped) == program(model)


# --- what trains beside `a` and `b`

CONFIG = ef.models.LlamaConfig(
    vocab_size=62,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=16,
    attention_bias=True,
)
IDS = jnp.asarray(np.random.RandomState(0).randint(0, 62, (2, 7)))
ALL = {
    "modules_to_save": ["norm", "lm_head"],
    "bias": "all",
    "lora_bias": True,
    "trainable_token_indices": [60, 3, int(IDS[0, 0])],
}


@pytest.fixture(scope="module")
def model():
    made = ef.init(CONFIG, key=jax.random.key(0))
    noise = {p: 0.1 * jax.random.normal(jax.random.key(n), x.shape) for n, (p, x) in enumerate(ef.params(made).items())}
    return jax.tree.map(lambda x, n: x + n, made, ef.with_params(made, noise))


@pytest.fixture(scope="module")
def fresh(model):
    return ef.apply_lora(model, "q_proj|o_proj", rank=2, key=jax.random.key(1), **ALL)


@pytest.fixture(scope="module")
def tuned(fresh):
    base, adapter = ef.split_lora(fresh)
    leaves, treedef = jax.tree.flatten(adapter)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    moved = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return ef.join_lora(base, treedef.unflatten(moved))


@eqx.filter_jit
def run(model):
    return ef.forward(model, IDS).logits


def equal(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b))
    )


def test_fresh_ones_change_nothing_and_come_off(model, fresh):
    np.testing.assert_array_equal(run(fresh), run(model))
    again = ef.remove_lora(fresh)
    assert all(a is b for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(model), strict=True))
    head = fresh.lm_head.weight
    assert isinstance(head, ef.Full) and head.value.unsafe_buffer_pointer() != head.base.unsafe_buffer_pointer()
    assert isinstance(fresh.model.layers[1].self_attn.v_proj.bias, ef.Full)
    assert isinstance(fresh.model.embed_tokens.weight, ef.Rows)
    assert isinstance(fresh.model.layers[0].input_layernorm.weight, ef.Full)


def test_merged_equals_unmerged_and_gradients_reach_exactly_these(model, tuned):
    assert float(jnp.abs(run(tuned) - run(model)).max()) > 1e-2
    merged = ef.merge_lora(tuned)
    assert jax.tree.structure(merged) == jax.tree.structure(model)
    np.testing.assert_allclose(run(merged), run(tuned), atol=1e-5)
    base, adapter = ef.split_lora(tuned)
    assert equal(ef.join_lora(base, adapter), tuned) and equal(base, model)
    train, frozen = eqx.partition(tuned, ef.trainable(tuned))
    assert len(jax.tree.leaves(train)) == len(jax.tree.leaves(adapter))
    grads = eqx.filter_jit(jax.grad(lambda t: jnp.mean(ef.forward(eqx.combine(t, frozen), IDS).logits ** 2)))(train)
    dead = [p for p, g in ef.params(grads).items() if not float(jnp.abs(g).max()) > 0]
    assert not dead


def test_stacked_and_sharded_in_any_order(model, fresh, tuned):
    two = ef.apply_lora(ef.stack(model), "q_proj|o_proj", rank=2, key=jax.random.key(1), **ALL)
    assert equal(ef.stack(fresh), two)
    np.testing.assert_allclose(run(ef.stack(tuned)), run(tuned), atol=1e-5)
    assert equal(ef.merge_lora(ef.stack(tuned)), ef.stack(ef.merge_lora(tuned)))
    mesh = ef.make_mesh(fsdp=2, tp=2, dp=2)
    placed = ef.shard(tuned, None, mesh)
    np.testing.assert_allclose(run(placed), run(tuned), atol=1e-5)
    made = ef.apply_lora(ef.shard(model, None, mesh), "q_proj|o_proj", rank=2, key=jax.random.key(1), **ALL)
    assert made.lm_head.weight.value.sharding == made.lm_head.weight.base.sharding
    abstract = ef.apply_lora(ef.abstract(CONFIG), "q_proj|o_proj", rank=2, key=jax.random.key(1), **ALL)
    assert ef.shapes(abstract) == ef.shapes(fresh)


def test_merging_and_unmerging_are_inverses(model):
    tuned = ef.apply_lora(model, "q_proj|o_proj", rank=2, key=jax.random.key(1), init="orthogonal", lora_bias=True)
    tuned = eqx.tree_at(lambda m: [m.model.layers[0].self_attn.q_proj.weight.bias], tuned, [jnp.full((96, 1), 0.3)])
    _, adapter = ef.split_lora(tuned)
    merged = ef.merge_lora(tuned)
    bias = lambda m: m.model.layers[0].self_attn.q_proj.bias
    np.testing.assert_allclose(bias(merged), bias(model) + 0.3 * 16 / 2, atol=1e-5)
    for a, b in ((merged, model), (ef.stack(merged), ef.stack(model))):
        again = ef.unmerge_lora(a, adapter)
        for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(b), strict=True):
            np.testing.assert_allclose(x, y, atol=2e-6)
    for options in ({"dora": True}, {"modules_to_save": "norm"}, {"trainable_token_indices": [1]}):
        other = ef.apply_lora(model, "q_proj", key=jax.random.key(1), **options)
        with pytest.raises(ValueError, match=r"cannot be taken out again.*Keep the base"):
            ef.unmerge_lora(ef.merge_lora(other), ef.split_lora(other)[1])


@pytest.mark.parametrize("put_on", [ef.apply_loha, ef.apply_lokr, ef.apply_vera])
def test_other_adapters_that_add_come_out_again(put_on, key):
    linear = ef.init(ef.nn.Linear(12, 8), key=key)
    keys = {} if put_on is ef.apply_vera else {"key": key}
    base, adapter = ef.split_lora(put_on(linear, "weight", rank=2, **keys))
    adapter = jax.tree.map(lambda x: x + 0.3, adapter)
    merged = ef.merge_lora(ef.join_lora(base, adapter))
    assert float(jnp.abs(merged.weight - linear.weight).max()) > 1e-2
    np.testing.assert_allclose(ef.unmerge_lora(merged, adapter).weight, linear.weight, atol=1e-5)


def test_on_a_quantized_base_values_are_dense(model):
    small = ef.quantize(model, ef.QuantConfig("8bit", pattern="proj|lm_head|embed_tokens"))
    tuned = ef.apply_lora(
        small, "q_proj", rank=2, key=jax.random.key(1), modules_to_save="lm_head", trainable_token_indices=[1, 9]
    )
    head = tuned.lm_head.weight
    np.testing.assert_array_equal(head.value, ef.dense(small.lm_head.weight))
    assert ef.is_quantized(head) and not ef.is_quantized(head.value)
    np.testing.assert_allclose(run(tuned), run(small), atol=2e-2)
    assert equal(ef.remove_lora(tuned), small)
    merged, errors = ef.merge_lora(tuned, report=True)
    assert jax.tree.structure(merged) == jax.tree.structure(small) and len(errors) == 4


def test_a_tied_head_follows(key):
    tied = ef.init(dataclasses.replace(CONFIG, tie_word_embeddings=True), key=key)
    for options in ({"trainable_token_indices": [5]}, {"modules_to_save": "embed_tokens"}):
        tuned = ef.apply_lora(tied, "q_proj", key=key, **options)
        moved = eqx.tree_at(lambda m: m.model.embed_tokens.weight.value, tuned, replace_fn=lambda v: v + 1.0)
        hidden = jnp.ones((1, 32))
        change = ef.nn.head_logits(moved, hidden) - ef.nn.head_logits(tied, hidden)
        np.testing.assert_allclose(change[0, 5], 32.0, rtol=1e-5)
        assert int((jnp.abs(change) > 1e-6).sum()) == (1 if "trainable_token_indices" in options else 62)
        ids = jnp.array([[5, 6]])
        np.testing.assert_allclose(
            ef.take(moved.model.embed_tokens.weight, ids), ef.dense(moved.model.embed_tokens.weight)[ids]
        )


def test_bfloat16_models_compute_in_bfloat16(model, key):
    half = ef.cast(model, jnp.bfloat16)
    tuned = ef.apply_lora(half, "q_proj", rank=2, key=key, **ALL)
    assert tuned.lm_head.weight.value.dtype == jnp.float32
    logits = run(tuned)
    assert logits.dtype == jnp.bfloat16
    np.testing.assert_array_equal(logits, run(half))
    assert {x.dtype for x in jax.tree.leaves(ef.cast(tuned, jnp.float32))} == {jnp.dtype(jnp.float32)}


@pytest.mark.quick("lora", "patterns of layers")
def test_layers_pattern(model, key):
    _, adapter = ef.split_lora(ef.apply_lora(model, "q_proj", layers=1, layers_pattern="layers", key=key))
    assert list(adapter) == ["model.layers.1.self_attn.q_proj.weight"]
    with pytest.raises(ValueError, match=r"no slot.*layers \[1\]"):
        ef.apply_lora(model, "q_proj", layers=1, layers_pattern="blocks", key=key)


def test_wrong_uses_say_what_to_do(model, key):
    tune = lambda pattern="q_proj", **more: ef.apply_lora(model, pattern, key=key, **more)
    with pytest.raises(ValueError, match="'none', 'all' or 'lora_only'"):
        tune(bias="some")
    with pytest.raises(ValueError, match=r"norms.*norm"):
        tune(modules_to_save="norms")
    with pytest.raises(ValueError, match="not in PEFT"):
        tune(lora_bias=True, dora=True)
    with pytest.raises(ValueError, match="role 'embedding'"):
        tune("embed_tokens", lora_bias=True)
    for rows in ([62], [-1], [1, 1], []):
        with pytest.raises(ValueError, match="no different rows of a table of 62"):
            tune(trainable_token_indices=rows)
    with pytest.raises(ValueError, match="name it too"):
        tune(modules_to_save="embed_tokens", trainable_token_indices=[1])
    with pytest.raises(ValueError, match="say which with layers"):
        tune(layers_pattern="layers")
    with pytest.raises(ValueError, match="none to take it"):
        ef.merge_lora(tune("up_proj", lora_bias=True))
    sizes = {"num_heads": 8, "head_dim": 8, "hidden_size": 32, "vocab_size": 9, "num_hidden_layers": 1, "n_groups": 1}
    mamba = ef.abstract(ef.models.Mamba2Config(**sizes))
    for pattern in ("conv1d", "in_proj|conv1d", ["in_proj", "conv1d"]):
        with pytest.raises(ValueError, match="modules_to_save"):
            ef.apply_lora(mamba, pattern, key=key)
    assert ef.has_lora(ef.apply_lora(mamba, "mixer", key=key, modules_to_save="conv1d"))


# --- DoRA as PEFT computes it


def _weight(key, columns):
    k1, k2, k3, k4 = jax.random.split(key, 4)
    shape = (1, 4) if columns else (6, 1)
    return ef.LoRA(
        jax.random.normal(k1, (6, 4)),
        jax.random.normal(k2, (2, 4)),
        jax.random.normal(k3, (6, 2)),
        jax.random.uniform(k4, shape, minval=0.5),
        scale=0.7,
    )


@pytest.mark.parametrize("columns", [False, True])
def test_dora_sets_the_norms_of_rows_or_of_columns(key, columns):
    w = _weight(key, columns)
    whole = np.asarray(w.base + 0.7 * w.b @ w.a)
    want = whole / np.linalg.norm(whole, axis=0 if columns else 1, keepdims=True) * np.asarray(w.magnitude)
    np.testing.assert_allclose(ef.dense(w), want, rtol=1e-5)
    x, ids = jax.random.normal(key, (3, 4)), jnp.array([[5, 0]])
    np.testing.assert_allclose(ef.dot(w, x), x @ want.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ef.take(w, ids), want[ids], rtol=1e-4, atol=1e-5)


def test_dora_with_dropout_drops_only_what_the_adapter_changes(key):
    w = dataclasses.replace(_weight(key, False), dropout=0.5, key=key)
    x = jax.random.normal(key, (3, 4))
    kept = jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x / 0.5, 0.0)
    plain = dataclasses.replace(w, key=None, magnitude=None)
    gain = (ef.dense(dataclasses.replace(w, key=None)) / ef.dense(plain))[:, 0]
    want = x @ w.base.T + (gain - 1)[None] * (kept @ w.base.T) + gain[None] * 0.7 * (kept @ w.a.T @ w.b.T)
    np.testing.assert_allclose(ef.dot(w, x), want, rtol=1e-4, atol=1e-5)

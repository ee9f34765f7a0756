"""Training: the same trajectory as torch, any optimizer, exactly the trainable leaves, resumed exactly."""

import dataclasses
import functools
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import easyfn as ef
from cases import CASES

NAME = "llama"


def batches(count=5):
    rng = np.random.default_rng(0)
    for _ in range(count):
        ids = rng.integers(1, 97, (4, 9))  # torch gives the row of the padding token no gradient
        mask = np.ones((4, 9), int)
        mask[1, 6:] = 0
        labels = np.where((rng.random((4, 9)) < 0.3) | (mask == 0), -100, ids)
        yield {"input_ids": ids, "attention_mask": mask, "labels": labels}


def fresh():
    return jax.tree.map(jnp.array, CASES[NAME].model())  # a copy: steps donate their input


step = jax.jit(ef.train_step, donate_argnums=0)


@pytest.mark.quick("train", "the trajectory of torch")
def test_five_steps_of_adamw_are_torchs():
    net = CASES[NAME].make().requires_grad_(True)
    theirs = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.01, eps=1e-6)
    state = ef.to_state(fresh(), optax.adamw(1e-3, weight_decay=0.01, eps=1e-6))
    for batch in batches():
        out = net(**{k: torch.tensor(v) for k, v in batch.items()})
        theirs.zero_grad()
        out.loss.backward()
        theirs.step()
        state, metrics = step(state, batch)
        np.testing.assert_allclose(metrics["loss"], out.loss.item(), rtol=1e-4)
    assert int(state.step) == 5
    final = dict(net.named_parameters())
    for path, leaf in ef.params(state.model).items():
        np.testing.assert_allclose(leaf, final[path].detach().numpy(), atol=1e-4, err_msg=path)


def test_your_own_loop():
    optimizer = optax.adam(1e-2)
    params, frozen = eqx.partition(fresh(), ef.trainable(fresh()))
    opt_state = optimizer.init(params)

    @jax.jit
    def update(params, opt_state, batch):
        loss = lambda p: ef.compute_loss(eqx.combine(p, frozen), batch)
        (value, _), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    batch = next(batches())
    losses = []
    for _ in range(5):
        params, opt_state, value = update(params, opt_state, batch)
        losses.append(float(value))
    assert losses[-1] < losses[0] - 0.5


def test_only_what_is_chosen_trains_and_has_optimizer_state():
    model = fresh()
    state = ef.to_state(model, optax.adamw(1e-2), trainable=r"layers\.1\..*proj")
    chosen = set(ef.params(state.params))
    assert chosen and all("layers.1." in path and "proj" in path for path in chosen)
    moments = ef.params(state.opt_state[0].mu)
    assert set(moments) == chosen
    before = {path: np.array(leaf) for path, leaf in ef.params(model).items()}
    state, _ = step(state, next(batches()))
    after = ef.params(state.model)
    changed = {path for path in after if not np.array_equal(before[path], after[path])}
    assert changed == chosen
    with pytest.raises(ValueError, match="matches nothing"):
        ef.to_state(fresh(), optax.sgd(1.0), trainable=["norm", "no_such_layer"])


@pytest.mark.quick("train", "integers do not train")
def test_integers_are_refused_and_left_alone():
    class Counted(eqx.Module):
        model: eqx.Module
        seen: jax.Array

    counted = Counted(fresh(), jnp.arange(3))
    with pytest.raises(ValueError, match=r"seen is an array of int32"):
        ef.to_state(counted, optax.sgd(0.1), trainable=jax.tree.map(lambda _: True, counted))
    state = ef.to_state(counted, optax.sgd(0.1))
    loss = lambda m, batch, key=None: ef.compute_loss(m.model, batch, key=key)
    state, metrics = jax.jit(functools.partial(ef.train_step, loss=loss))(state, next(batches()))
    np.testing.assert_array_equal(state.model.seen, np.arange(3))
    assert metrics["grad_norm"] > 0


OPTIMIZERS = {
    "multi_transform": lambda: optax.multi_transform(
        {"matrix": optax.adafactor(1e-2), "vector": optax.sgd(1e-2)},
        lambda p: jax.tree.map(lambda x: "matrix" if x.ndim > 1 else "vector", p),
    ),
    "masked": lambda: optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.masked(optax.add_decayed_weights(0.1), lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
        optax.sgd(optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, 10)),
    ),
    "plateau": lambda: optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau()),
    "accumulating": lambda: optax.MultiSteps(optax.adamw(1e-2), 2),
    "hyperparams": lambda: optax.inject_hyperparams(optax.lion)(learning_rate=1e-3),
}


@pytest.mark.thinned("optimizers that are optax's")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer(name):
    import optax.contrib  # noqa: F401

    state = ef.to_state(fresh(), OPTIMIZERS[name]())
    batch, losses = next(batches()), []
    for _ in range(4):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]


@pytest.mark.quick("train", "steps accumulate")
def test_accumulated_step_is_the_whole_step():
    batch = next(batches())
    small = jax.jit(functools.partial(ef.train_step, accumulate=2))
    one, a = jax.jit(ef.train_step)(ef.to_state(fresh(), optimizer := optax.sgd(0.1)), batch)
    two, b = small(ef.to_state(fresh(), optimizer), batch)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-5, err_msg=name)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), one.params, two.params)
    with pytest.raises(ValueError, match="accumulate=3"):
        ef.train_step(ef.to_state(fresh(), optimizer), batch, accumulate=3)


def test_inputs_that_are_not_rows_are_not_cut():
    """Images follow each other whatever row they are of; positions of several axes have their rows behind those."""

    class Model(eqx.Module):
        weight: jax.Array

    @ef.inputs.register(Model)
    def _(model):
        fields = {"position_ids": ef.Input("index"), "pixel_values": ef.Input("image", ("images", 3, 4, 4))}
        return ef.Inputs(fields, ("position_ids",))

    def loss(model, batch, *, key):
        seen = batch["position_ids"]
        return jnp.sum(jnp.mean(model.weight * jnp.arange(1, 4)[:, None, None] * seen, axis=(1, 2))), {}

    state = ef.to_state(Model(jnp.ones(())), optax.sgd(0.1))
    small = functools.partial(ef.train_step, loss=loss, accumulate=3)
    batch = {"position_ids": jnp.arange(36.0).reshape(3, 6, 2)}
    np.testing.assert_allclose(
        small(state, batch)[0].params.weight, ef.train_step(state, batch, loss)[0].params.weight, rtol=1e-6
    )
    for name in ("pixel_values", "chosen_pixel_values"):
        with pytest.raises(ValueError, match=rf"'{name}'\] is \(images, 3, 4, 4\), which are not rows.*MultiSteps"):
            small(state, {**batch, name: jnp.zeros((6, 3, 4, 4))})


def test_mixed_precision_keeps_float32_masters():
    state = ef.to_state(fresh(), optax.adam(1e-3))
    half = jax.jit(functools.partial(ef.train_step, compute_dtype=jnp.bfloat16))
    after, metrics = half(state, next(batches()))
    assert ef.dtype_of(after.params) == jnp.float32
    np.testing.assert_allclose(metrics["loss"], step(state, next(batches()))[1]["loss"], rtol=2e-2)


def test_donation_reuses_every_byte_of_the_state():
    state = jax.eval_shape(lambda m: ef.to_state(m, optax.adam(1e-3)), CASES[NAME].model())
    memory = jax.jit(ef.train_step, donate_argnums=0).lower(state, next(batches())).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= 3 * ef.num_bytes(CASES[NAME].model())


def test_no_array_is_donated_twice():
    state = ef.to_state(fresh(), optax.lbfgs(memory_size=2))  # keeps the parameters themselves
    held = [id(leaf) for leaf in jax.tree.leaves(state)]
    assert len(set(held)) == len(held)


def test_abstract_state():
    model = jax.eval_shape(lambda m: m, CASES[NAME].model())
    state = ef.to_state(model, optax.adam(1e-3))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state))


def test_resume_is_exact(tmp_path):
    optimizer = optax.adamw(optax.linear_schedule(1e-2, 1e-3, 5))
    state = ef.to_state(fresh(), optimizer)
    run = list(batches())
    for batch in run[:2]:
        state, _ = step(state, batch)
    assert ef.save_state(state, tmp_path).name == "2"
    for batch in run[2:]:
        state, _ = step(state, batch)
    blank = jax.eval_shape(lambda m: ef.to_state(m, optimizer), fresh())
    for like in (ef.to_state(fresh(), optimizer), blank):
        resumed = ef.load_state(like, tmp_path)
        assert int(resumed.step) == 2
    for batch in run[2:]:
        resumed, _ = step(resumed, batch)
    jax.tree.map(np.testing.assert_array_equal, state, resumed)
    ef.save_state(state, tmp_path, keep=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["5"]
    with pytest.raises(FileExistsError):
        ef.save_state(state, tmp_path)
    with pytest.raises(FileNotFoundError, match="no step 2"):
        ef.load_state(blank, tmp_path, step=2)
    with pytest.raises(ValueError, match=r"unexpected: opt_state\.0\.mu"):
        ef.load_state(ef.to_state(fresh(), optax.sgd(0.1)), tmp_path)


def test_sharded_state_stays_where_it_is(tmp_path):
    mesh = ef.make_mesh(fsdp=4, tp=2)
    rules = dataclasses.replace(ef.default_rules(fresh()), indivisible="replicate")
    optimizer, batch = optax.adamw(1e-2), next(batches())
    split = lambda model: ef.to_state(ef.shard(model, rules, mesh), optimizer)
    state, start = split(fresh()), split(fresh())
    update = jax.jit(lambda state, batch: ef.train_step(state, batch), donate_argnums=0)
    alone = ef.to_state(fresh(), optimizer)
    for _ in range(2):
        state, metrics = update(state, batch)
        alone, same = step(alone, batch)
    assert update._cache_size() == 1  # the second step finds what the first expected
    np.testing.assert_allclose(metrics["loss"], same["loss"], rtol=1e-4)
    ef.save_state(state, tmp_path)
    blank = split(jax.eval_shape(fresh))
    for other in (start, ef.load_state(blank, tmp_path)):
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
            assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
    jax.tree.map(np.testing.assert_array_equal, state, ef.load_state(blank, tmp_path))


def test_prng_keys_are_saved_too(tmp_path):
    tree = {"key": jax.random.key(3), "seen": jnp.arange(2)}
    ef.save_state(tree, tmp_path, step=0)
    back = ef.load_state(jax.eval_shape(lambda: tree), tmp_path)
    np.testing.assert_array_equal(jax.random.bits(back["key"]), jax.random.bits(tree["key"]))


def test_without_orbax_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r"easyfn\[train\]"):
        ef.save_state({"a": jnp.ones(1)}, tmp_path, step=1)


def test_reduction_none_is_refused():
    with pytest.raises(ValueError, match="one number"):
        ef.train_step(ef.to_state(fresh(), optax.sgd(0.1)), next(batches()), loss=ef.LossConfig(reduction="none"))

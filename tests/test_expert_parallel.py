"""Experts on several devices are the same experts: no token is dropped, whatever the router says, in any format."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import easyfn as ef
from easyfn.nn import Experts, Runtime
from easyfn.testing import Case, laws

ROWS, TOKENS, EMBED, EXPERTS, K = 8, 12, 32, 8, 2
MESHES = {"ep": {"fsdp": 1, "ep": 8}, "mixed": {"fsdp": 2, "ep": 2, "tp": 2}, "sequence": {"fsdp": 1, "ep": 4, "sp": 2}}
FORMATS = {
    "dense": lambda m, key: m,
    "8bit": lambda m, key: ef.quantize(m, "8bit"),
    "nf4": lambda m, key: ef.quantize(m, "nf4"),
    "lora": lambda m, key: shaken(ef.apply_lora(m, "all-linear", rank=2, key=key)),
    "qlora": lambda m, key: shaken(ef.apply_lora(FORMATS["nf4"](m, key), "all-linear", rank=2, key=key)),
}

CONFIG = ef.models.MixtralConfig(
    vocab_size=64, hidden_size=EMBED, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, num_local_experts=EXPERTS, num_experts_per_tok=K,
)  # fmt: skip


def shaken(model):
    """Adapters that are not neutral."""
    return jax.tree.map(lambda x: x + 0.1 if x.dtype == jnp.float32 else x, model)


@pytest.fixture(scope="module")
def layer():
    return ef.init(Experts(EXPERTS, EMBED, 32), key=jax.random.key(0))


def routed(kind: str):
    """Tokens, their experts and the weights of these."""
    keys = jax.random.split(jax.random.key(1), 3)
    x = jax.random.normal(keys[0], (ROWS, TOKENS, EMBED))
    weights, chosen = ef.nn.route(jax.random.normal(keys[1], (ROWS, TOKENS, EXPERTS)), K)
    if kind == "all to one device":
        chosen = jnp.broadcast_to(jnp.array([EXPERTS - 1, EXPERTS - 2]), chosen.shape)
    if kind == "half to one":
        chosen = jnp.where(jnp.arange(TOKENS)[None, :, None] < 6, chosen % 2, chosen)
    return x, chosen, weights


def measured(runtime, layer, x, chosen, weights):
    train, frozen = eqx.partition(layer, ef.trainable(layer))

    def loss(train, x, weights):
        y = eqx.combine(train, frozen)(x, chosen, weights, runtime)
        return jnp.sum(y * jnp.sin(jnp.arange(y.size, dtype=jnp.float32).reshape(y.shape))), y

    (_, y), slopes = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(train, x, weights)
    return y, jax.tree.leaves(slopes)


@functools.cache
def step(runtime):
    return jax.jit(functools.partial(measured, runtime))


def agree(layer, inputs, mesh, rules=None):
    want = step(Runtime(expert_parallel=None))(layer, *inputs)
    mesh = ef.make_mesh(**MESHES[mesh])
    rules = rules or dataclasses.replace(ef.default_rules(layer), indivisible="replicate")
    got = step(Runtime())(ef.shard(layer, rules, mesh), *ef.shard_batch(inputs, mesh))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), got, want)


@pytest.mark.thinned("loads and meshes of one exchange")
@pytest.mark.parametrize("kind", ["even", "half to one", "all to one device"])
@pytest.mark.parametrize("mesh", MESHES)
def test_no_token_is_dropped(layer, mesh, kind):
    agree(layer, routed(kind), mesh)


@pytest.mark.parametrize("form", ["8bit", "nf4", "lora", "qlora"])
def test_formats(layer, form):
    agree(FORMATS[form](layer, jax.random.key(2)), routed("half to one"), "mixed")


@pytest.mark.parametrize("shape", [(4, 1), (3, 5)])
def test_few_tokens_and_rows_that_do_not_divide(layer, shape):
    """They stay where they are, and every device answers for its experts."""
    x, chosen, weights = (a[: shape[0], : shape[1]] for a in routed("even"))
    want = step(Runtime(expert_parallel=None))(layer, x, chosen, weights)
    got = step(Runtime())(ef.shard(layer, None, ef.make_mesh(**MESHES["mixed"])), x, chosen, weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), got, want)


def program(mesh, train: bool):
    from test_collectives import sent

    model = ef.shard(ef.abstract(CONFIG, dtype="float32"), None, mesh)
    ids = jax.ShapeDtypeStruct((ROWS, TOKENS), jnp.int32, sharding=ef.data_sharding(mesh))
    if train:
        state = ef.to_state(model, optax.adamw(1e-3))
        return sent(jax.jit(ef.train_step, donate_argnums=0).lower(state, {"input_ids": ids}).compile())
    return sent(jax.jit(lambda m, x: ef.forward(m, x).logits).lower(model, ids).compile())


def test_tokens_travel_and_experts_stay():
    """No device ever receives the matrix of another's expert: what moves are rows of tokens."""
    moved = program(ef.make_mesh(fsdp=1, ep=8), train=True)
    assert any(kind == "all-to-all" for kind, _ in moved)
    matrices = [(kind, shape) for kind, shape in moved if len(shape) >= 2 and set(shape[-2:]) in ({96, 32}, {32, 48})]
    assert not matrices, matrices


def test_beside_fsdp_a_device_gathers_only_its_own_experts():
    moved = program(ef.make_mesh(fsdp=2, ep=4), train=False)
    assert any(kind == "all-to-all" for kind, _ in moved)
    gathered = {shape for kind, shape in moved if kind == "all-gather" and len(shape) == 3}
    assert gathered == {(EXPERTS // 4, 96, 32), (EXPERTS // 4, 32, 48)}


def test_where_only_rows_are_split_each_device_multiplies_its_own():
    moved = program(ef.make_mesh(fsdp=8), train=False)
    weights = {(EXPERTS, 96, EMBED), (EXPERTS, EMBED, 48), (EXPERTS, EMBED)}
    rows = [shape for _, shape in moved if shape[:1] in ((ROWS,), (ROWS * TOKENS,), (ROWS * TOKENS * K,))]
    assert not [shape for shape in rows if shape[-1] in (EMBED, EXPERTS) and shape not in weights], rows


def test_a_model_of_them_keeps_the_law():
    make = lambda key: ef.stack(ef.init(CONFIG, key=key))
    laws.shard_changes_nothing(Case(make=make, mesh={"fsdp": 2, "ep": 2, "sp": 2}, quantization=("nf4",)))

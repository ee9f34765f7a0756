"""Sharding changes where numbers live, never the numbers; misfits are told, all at once."""

import dataclasses
import sys
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cases
import easyfn as ef
from easyfn.registry.family import build
from easyfn.testing import laws
from test_laws import case

CONFIG = ef.models.LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=8,
)


@pytest.fixture(scope="module")
def model():
    return ef.init(CONFIG, key=jax.random.key(0))


@pytest.fixture(scope="module")
def expected(model):
    ids = np.arange(8 * 6).reshape(8, 6) % 64
    return ids, np.asarray(ef.forward(model, ids).logits)


@pytest.mark.thinned("the law shard_changes_nothing, on more meshes")
@pytest.mark.parametrize(
    "mesh, rules",
    [
        (dict(), None),
        (dict(fsdp=1, tp=8), "tp"),
        (dict(dp=2, fsdp=2, tp=2), None),
        (dict(dp=2, fsdp=4), "fsdp"),
        (dict(fsdp=2, tp=2, sp=2), "tp_sp"),
        (dict(dp=8, fsdp=1), "replicated"),
    ],
)
def test_sharded_is_the_same_model(model, expected, mesh, rules):
    ids, logits = expected
    mesh = ef.make_mesh(**mesh)
    sharded = ef.shard(model, rules, mesh)
    batch = ef.shard_batch({"input_ids": jnp.asarray(ids)}, mesh)
    out = jax.jit(lambda m, b: ef.forward(m, **b).logits)(sharded, batch)
    np.testing.assert_allclose(out, logits, atol=1e-5)
    whole = ef.fully_gather(sharded)
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(whole))
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(ef.gather(sharded)))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), whole, model)


@pytest.mark.quick("sharding", "which axis goes where")
def test_specs_say_which_axis_goes_where(model):
    mesh = ef.make_mesh(dp=2, fsdp=2, tp=2)
    specs = ef.partition_specs(model, None, mesh)
    attention = specs.model.layers[0].self_attn
    assert attention.q_proj.weight == ef.P("tp", "fsdp")
    assert attention.o_proj.weight == ef.P("fsdp", "tp")
    assert specs.model.embed_tokens.weight == ef.P("tp", "fsdp")
    stacked = ef.partition_specs(ef.stack(model), None, mesh)
    assert stacked.model.layers[0].blocks[0].self_attn.q_proj.weight == ef.P(None, "tp", "fsdp")


@pytest.mark.quick("sharding", "the report")
def test_report_tells_what_is_replicated_and_why(model):
    _, report = ef.shard(model, "tp", ef.make_mesh(fsdp=1, tp=8), report=True)
    assert any("norm" in p.path for p in report.replicated)
    assert all(p.why for p in report.replicated)
    assert "norm.weight" in str(report)


def test_fully_shard_splits_everything_that_divides(model):
    sharded = ef.fully_shard(model)
    for path, leaf in ef.params(sharded).items():
        if any(size % 8 == 0 for size in leaf.shape):
            assert not leaf.is_fully_replicated, path


@pytest.mark.quick("sharding", "abstract models")
def test_abstract_models_are_sharded_without_a_byte():
    sharded = ef.shard(build(CONFIG), "fsdp_tp", ef.make_mesh(fsdp=4, tp=2))
    leaf = sharded.model.layers[0].mlp.up_proj.weight
    assert isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding.spec == ef.P("tp", "fsdp")


def test_shard_and_gather_functions_are_inverses(model):
    mesh = ef.make_mesh()
    there = jax.tree.map(lambda f, x: f(x), ef.shard_fns(model, None, mesh), model)
    back = jax.tree.map(lambda f, x: f(x), ef.gather_fns(model, None, mesh), there)
    assert not there.model.embed_tokens.weight.is_fully_replicated
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), back, model)


@pytest.mark.quick("sharding", "misfits are told together")
def test_sizes_that_do_not_divide_are_told_together():
    config = ef.models.LlamaConfig(
        vocab_size=61,
        hidden_size=30,
        intermediate_size=62,
        num_hidden_layers=1,
        num_attention_heads=3,
        num_key_value_heads=3,
    )
    with pytest.raises(ef.ShardingError, match=r"(?s)embed_tokens.*vocab.*61.*tp=8.*q_proj.*indivisible"):
        ef.shard(build(config), "tp", ef.make_mesh(fsdp=1, tp=8))
    rules = ef.ShardingRules({"vocab": "tp", "mlp": "tp"}, indivisible="replicate")
    _, report = ef.shard(build(config), rules, ef.make_mesh(fsdp=1, tp=8), report=True)
    assert any("61" in p.why for p in report.replicated)


@pytest.mark.quick("sharding", "bad rules and meshes")
@pytest.mark.parametrize(
    "rules, message",
    [
        (ef.ShardingRules({"embedd": "tp"}), "embedd.*Near misses: embed"),
        (ef.ShardingRules({"embed": "model"}), "mesh axis 'model'.*dp, fsdp"),
        (ef.ShardingRules({"embed": "tp", "mlp": "tp"}), "'tp' would split two axes"),
        (ef.ShardingRules({}, {"q_porj": ef.P("tp")}), "q_porj.*matches no weight"),
        ("tpp", "unknown rules 'tpp'.*Near misses"),
    ],
)
def test_bad_rules(model, rules, message):
    with pytest.raises(ef.ShardingError, match=message):
        ef.shard(model, rules, ef.make_mesh(fsdp=1, tp=8))


@pytest.mark.quick("sharding", "path rules")
def test_path_rules_win(model):
    rules = ef.ShardingRules({"embed": "fsdp"}, {r"layers\.1\..*up_proj": ef.P("fsdp", None)})
    specs = ef.partition_specs(model, rules, ef.make_mesh())
    assert specs.model.layers[0].mlp.up_proj.weight == ef.P(None, "fsdp")
    assert specs.model.layers[1].mlp.up_proj.weight == ef.P("fsdp")


@pytest.mark.parametrize(
    "sizes, message",
    [
        (dict(dp=-1), "only one axis"),
        (dict(fsdp=3), "needs 3 devices"),
        (dict(dp=3), "cannot be split"),
        (dict(tp=0), "positive"),
    ],
)
def test_bad_meshes(sizes, message):
    with pytest.raises(ef.ShardingError, match=message):
        ef.make_mesh(**sizes)


def test_batches_that_do_not_divide():
    with pytest.raises(ef.ShardingError, match="6 rows"):
        ef.shard_batch({"input_ids": jnp.zeros((6, 4), int)}, ef.make_mesh())


def test_a_deep_sharded_model_is_quantized_without_a_deadlock():
    """XLA on CPU deadlocks when 32 computations with collectives are queued; here are 56, each of several."""
    deep = ef.init(dataclasses.replace(CONFIG, hidden_size=64, num_hidden_layers=8), key=jax.random.key(0))
    sharded = ef.shard(deep, None, ef.make_mesh(dp=2, fsdp=2, tp=2))
    for _ in range(3):
        small = ef.quantize(sharded, "8bit")
    jax.tree.map(np.testing.assert_array_equal, ef.fully_gather(small), ef.quantize(deep, "8bit"))


def test_a_family_has_rules_of_its_own(model):
    @dataclasses.dataclass(frozen=True)
    class Config(ef.models.LlamaConfig):
        pass

    @ef.default_rules.register(Config)
    def _(config):
        return ef.ShardingRules({"mlp": "fsdp"})

    own = types.SimpleNamespace(config=Config(**vars(CONFIG)))  # as any model has one
    assert ef.default_rules(own).axes == {"mlp": "fsdp"}
    assert ef.default_rules(model).axes["embed"] == "fsdp"


def places(tree) -> dict[str, tuple[int, ...]]:
    """The shape of one device's part of every array."""
    return {path: x.sharding.shard_shape(x.shape) for path, x in ef.params(tree).items()}


@pytest.mark.parametrize("stacked", [False, True])
def test_optimizer_and_cache_lie_where_the_model_does(model, stacked):
    mesh = ef.make_mesh(fsdp=2, tp=4)
    split = ef.shard(ef.stack(model) if stacked else model, None, mesh)
    state = ef.to_state(split, optax.adamw(1e-3))
    moments = state.opt_state[0]
    assert places(moments.mu) == places(moments.nu) == places(split)
    cache = ef.init_cache(split, 6, 16)
    keys = jax.tree.leaves(cache.layers)[0]
    whole = keys.shape
    assert keys.sharding.shard_shape(whole) == (*whole[:-4], 3, 1, 16, 8)  # rows over fsdp, key heads over tp
    odd = jax.tree.leaves(ef.init_cache(split, 5, 16).layers)[0]
    assert odd.sharding.shard_shape(odd.shape)[-4:] == (5, 1, 16, 8)  # five rows do not divide


def test_a_loop_over_tokens_keeps_the_cache_where_it_is(model):
    """Prefill and loop are one program: the cache in it is split, and no token gathers it."""
    mesh = ef.make_mesh(dp=2, fsdp=2, tp=2)

    def tokens(model, ids):
        return ef.generate(model, ids, max_new_tokens=9).sequences

    split = ef.shard(model, None, mesh)
    text = jax.jit(tokens).lower(split, jnp.ones((8, 6), jnp.int32)).compile().as_text()
    assert "f32[2,2,15,8]" in text and "f32[8,4,15,8]" not in text and "f32[2,4,15,8]" not in text
    gathered = [line for line in text.splitlines() if "all-gather(" in line and "15,8]" in line]
    assert not gathered


MIXES = [
    {"fsdp": 2, "ep": 2, "tp": 2},
    {"fsdp": 2, "tp": 2, "sp": 2},
    {"dp": 2, "fsdp": 2, "tp": 2},
    {"fsdp": 1, "tp": 4, "sp": 2},  # more than the key heads of most
    {"fsdp": 8},
    {"fsdp": 2, "sp": 4},
]
FAMILIES = cases.kinds()


@pytest.mark.thinned("the law shard_changes_nothing, on one more mesh")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_on_a_mix_of_axes(family):
    """Answers, gradients, generated tokens and adapters on quantized weights, of stacked layers: those of one device."""
    known, mesh = case(family), MIXES[FAMILIES.index(family) % len(MIXES)]
    stacked = dataclasses.replace(known, make=lambda key: ef.stack(known.model), mesh=mesh, quantization=("nf4",))
    laws.shard_changes_nothing(stacked)


@pytest.mark.parametrize("where", ["nn", "torch"])
@pytest.mark.parametrize(
    ("mesh", "groups"), [({"dp": 2, "tp": 4}, 16), ({"dp": 2, "fsdp": 2, "tp": 2}, 4), ({"dp": 8}, 4)]
)
def test_a_grouped_convolution_has_its_gradient(where, mesh, groups):
    """Which XLA's partitioner adds up over devices that hold the same rows: findings/, jax-grouped-convolution-..."""
    from easyfn.io.torch.ops.layers import conv
    from easyfn.nn.conv import convolve

    random = np.random.RandomState(0)
    x, weight = (random.randn(*size).astype(np.float32) for size in ((8, 9, 16), (16, 16 // groups, 3)))
    ours = lambda w, x: convolve(x, w, (1,), (1,), groups)
    theirs = lambda w, x: conv(x.swapaxes(1, 2), w, None, 1, 1, 1, groups)
    run = ours if where == "nn" else theirs
    slope = jax.jit(jax.grad(lambda w, x: jnp.sum(jnp.tanh(run(w, x)))))
    on = ef.make_mesh(**mesh)
    split = jax.device_put(x, jax.NamedSharding(on, jax.P(tuple(a for a in mesh if a != "tp"))))
    whole = jax.device_put(weight, jax.NamedSharding(on, jax.P()))
    np.testing.assert_allclose(slope(whole, split), slope(weight, x), rtol=1e-4, atol=1e-4)

"""Integer formats: int4, a4q, a8q, a8bit, and training that knows of the rounding."""

import dataclasses
import functools

import equinox as eqx
import gguf
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cases
import easyfn as ef
import formats
from easyfn import quant
from easyfn.quant.rounding import round_rows
from easyfn.testing import Case, laws
from formats import matrix

CONFIG = ef.models.LlamaConfig(
    vocab_size=48,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
# The relative error of a normal matrix in each format: no format may silently get worse.
BOUNDS = {
    ef.QuantConfig("int4"): 0.0985,
    ef.QuantConfig("int4", 64): 0.0915,
    ef.QuantConfig("int4", 32): 0.0835,
    ef.QuantConfig("a4q", 32): 0.0835,
    ef.QuantConfig("a8q"): 0.0055,
    ef.QuantConfig("a8bit"): 0.0075,
}
METHODS = ("int4", "a4q", "a8q", "a8bit")
every_method = pytest.mark.parametrize("method", METHODS)
# What rounding the input to 8 bits may cost, of the largest result.
INPUT = 0.015


def off(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    return np.abs(a - b).max() / np.abs(b).max()


def encoded(method, *shape):
    return formats.encoded(ef.QuantConfig(method), *shape)


@pytest.fixture(scope="module")
def model():
    return ef.init(CONFIG, key=jax.random.key(0))


@pytest.mark.thinned("widths of one format stand side by side")
@pytest.mark.parametrize("cfg", BOUNDS, ids=lambda c: f"{c.method}-{c.group_size}")
def test_error_of_a_normal_matrix(cfg):
    w = matrix(128, 256)
    q = jax.jit(cfg.encode)(w)
    error = jnp.linalg.norm(ef.dense(q) - w) / jnp.linalg.norm(w)
    assert BOUNDS[cfg] * 0.9 < error < BOUNDS[cfg]
    assert ef.shape_of(q) == (128, 256) and ef.format_of(q).startswith(cfg.method)
    assert all(part.ndim == 2 for part in jax.tree.leaves(q))
    if cfg.method != "a8q":  # whose scales are float16, half a step away from the codes' own
        again = ef.requantize(q, ef.dense(q))
        assert off(ef.dense(again), ef.dense(q)) < 1e-3  # the grid stays where it is


@pytest.mark.quick("quant", "integers")
def test_a8q_is_q8_0_bit_by_bit():
    rng = np.random.default_rng(0)
    w = (rng.standard_normal((130, 256)) * 10 ** rng.uniform(-6, 3, (130, 1))).astype(np.float32)
    w[3], w[5, :64] = 0, 0
    w[7] = np.round(w[7] * 50) / 100  # halves
    q = jax.jit(ef.QuantConfig("a8q").encode)(w)
    blocks = gguf.quants.quantize(w, gguf.GGMLQuantizationType.Q8_0).reshape(130, 8, 34)
    np.testing.assert_array_equal(q.scales, blocks[..., :2].copy().view(np.float16)[..., 0])
    np.testing.assert_array_equal(q.codes, blocks[..., 2:].copy().view(np.int8).reshape(130, 256))
    np.testing.assert_array_equal(
        ef.dense(q), gguf.quants.dequantize(blocks.reshape(130, -1), gguf.GGMLQuantizationType.Q8_0)
    )


@every_method
def test_dot_is_dense_of_the_rounded_input(method):
    q = encoded(method, 24, 256)
    for rows in (1, 5, 40):
        x = matrix(rows, 256, seed=1)
        seen = round_rows(x, q.activations)
        assert (seen == x).all() == (method == "int4") and off(seen, x) < 0.005
        want = seen @ ef.dense(q).T
        assert off(ef.dot(q, x), want) < (4e-3 if q.activations and rows > 16 else 1e-5)
        assert off(ef.dot(q, x), x @ ef.dense(q).T) < (INPUT if q.activations else 1e-5)
        half = ef.dot(ef.cast(q, jnp.bfloat16), x.astype(jnp.bfloat16))
        assert half.dtype == jnp.bfloat16 and off(half, want) < 0.02
    assert (ef.dot(q, jnp.zeros((2, 256))) == 0).all()  # a row of zeros has no largest entry


@every_method
def test_gradient_of_the_input_is_that_of_the_dense_weight(method):
    q, x, v = encoded(method, 24, 256), matrix(2, 3, 256, seed=1), matrix(2, 3, 24, seed=2)
    value, pull = jax.vjp(jax.jit(functools.partial(ef.dot, q)), x)
    assert off(pull(v)[0], v @ ef.dense(q)) < 1e-6
    seen = round_rows(x.reshape(6, 256), q.activations).reshape(x.shape)
    assert off(value, seen @ ef.dense(q).T) < 1e-6  # exact where a gradient is taken
    assert not any(jax.tree.leaves(ef.trainable(q)))


def test_a8bit_of_other_hardware():
    """The product in bfloat16 is the integer product: both are exact."""
    q, x = encoded("a8bit", 24, 256), matrix(3, 256, seed=1)
    assert off(quant.int8._codes(q, x), quant.int8._digits(q, x, 1)) < 1e-6


def test_8bit_is_exact_where_a_gradient_is_taken():
    q, x = encoded("8bit", 24, 256), matrix(3, 256, seed=1)
    want = x @ ef.dense(q).T
    assert 1e-6 < off(ef.dot(q, x), want) < 1e-4
    assert off(jax.vjp(functools.partial(ef.dot, q), x)[0], want) < 1e-6


@every_method
def test_take_experts_and_axes(method):
    table, ids = encoded(method, 10, 128), jnp.array([[1, 9], [0, 1]])
    assert off(ef.take(table, ids), ef.dense(table)[ids]) < 1e-6
    experts = encoded(method, 3, 8, 128)
    assert ef.shape_of(experts) == (3, 8, 128) and all(p.ndim == 3 for p in jax.tree.leaves(experts))
    assert eqx.tree_equal(jax.tree.map(lambda p: p[1], experts), ef.QuantConfig(method).encode(matrix(3, 8, 128)[1]))
    x, sizes = matrix(7, 128, seed=1), jnp.array([3, 0, 4])
    want = ef.ragged_dot(ef.dense(experts), round_rows(x, experts.activations), sizes)
    assert off(ef.ragged_dot(experts, x, sizes), want) < 1e-4
    named = jax.tree.leaves(ef.axes_of(table, ("mlp", "embed")), is_leaf=lambda a: isinstance(a, tuple))
    assert [len(a) for a in named] == [p.ndim for p in jax.tree.leaves(table)]


@pytest.mark.thinned("settings of one product that combine")
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_order_and_smoothing(bits, symmetric):
    w, order = matrix(12, 128), jax.random.permutation(jax.random.key(2), 128)[None].astype(jnp.int32)
    smooth = jnp.exp(matrix(1, 128, seed=3))
    codes, scales, zeros = quant.round_groups((w * smooth)[:, order[0]], bits, 32, symmetric=symmetric)
    q = quant.grouped(codes, scales, zeros, bits=bits, order=order, smooth=smooth)
    assert (quant.integer_codes(q) == codes).all()
    assert isinstance(quant.integer_codes(jax.tree.map(np.asarray, q)), np.ndarray)
    plain = codes.astype(jnp.float32) - (0 if symmetric else jnp.repeat(zeros, 32, -1).astype(jnp.float32))
    plain = (plain * jnp.repeat(scales, 32, -1))[:, jnp.argsort(order[0])] / smooth
    assert off(ef.dense(q), plain) < 1e-6
    assert jnp.linalg.norm((plain - w) * smooth) < {2: 0.6, 3: 0.3, 4: 0.15, 5: 0.08}.get(bits, 0.05) * jnp.linalg.norm(
        w * smooth
    )
    x = matrix(3, 128, seed=1)
    y, pull = jax.vjp(functools.partial(ef.dot, q), x)
    assert off(y, x @ plain.T) < 1e-5 and off(pull(y)[0], y @ plain) < 1e-5
    assert off(ef.take(q, jnp.array([[3, 5]])), plain[jnp.array([[3, 5]])]) < 1e-6
    assert jax.tree.structure(ef.requantize(q, plain)) == jax.tree.structure(q)
    experts = jax.tree.map(lambda a, b: jnp.stack([a, b]), q, ef.requantize(q, -w))
    assert off(ef.ragged_dot(experts, x, jnp.array([3, 0])), x @ plain.T) < 1e-5


def test_smoothing_of_int8():
    w, smooth, x = matrix(8, 64), jnp.exp(matrix(1, 64, seed=3)), matrix(3, 64, seed=1)
    q = eqx.tree_at(lambda q: q.smooth, quant.to_int8(w * smooth, "int8"), smooth, is_leaf=lambda v: v is None)
    assert off(ef.dense(q) * smooth, w * smooth) < 0.01
    want = round_rows(x / smooth, "int8") @ (ef.dense(q) * smooth).T
    y, pull = jax.vjp(functools.partial(ef.dot, q), x)
    assert off(y, want) < 1e-5 and off(pull(y)[0], y @ ef.dense(q)) < 1e-5
    assert ef.take(q, jnp.array([1])).shape == (1, 64) and ef.axes_of(q, ("a", "b")).smooth == (None, "b")
    assert off(ef.dense(ef.requantize(q, w)), ef.dense(q)) < 1e-6


@every_method
def test_a_model_of_it(model, method):
    ids = jnp.arange(10).reshape(2, 5)
    small = ef.quantize(model, method)
    stacked = ef.quantize(ef.stack(model), method)
    assert eqx.tree_equal(stacked, ef.stack(small))
    assert eqx.tree_equal(jax.jit(lambda m: ef.quantize(m, method))(model), small)
    abstract = ef.quantize(jax.eval_shape(lambda: model), method)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), abstract) == jax.tree.map(lambda a: (a.shape, a.dtype), small)
    logits = ef.forward(small, ids).logits
    assert off(ef.forward(stacked, ids).logits, logits) < 1e-5
    assert ef.flops(small, 2, 8) == ef.flops(model, 2, 8) and ef.num_params(small) == ef.num_params(model)
    assert off(logits, ef.forward(ef.dequantize(small), ids).logits) < (1e-5 if method == "int4" else 0.03)
    sharded = ef.fully_gather(ef.quantize(ef.fully_shard(model), method))
    jax.tree.map(np.testing.assert_array_equal, sharded, small)


@pytest.mark.parametrize(("name", "method"), [("mamba2", "int4"), ("mixtral", "a4q"), ("bert", "a8bit")])
def test_other_families_keep_the_law(name, method):
    laws.quantize_is_close(Case(name=name, make=lambda key: cases.CASES[name].model(), quantization=(method,)))


@pytest.mark.parametrize("method", ["8bit", "int4", "nf4", "a8q"])
def test_a_step_of_qlora_over_stacked_layers_holds_no_dense_copy(method):
    """XLA may not unpack all layers at once, nor hoist the unpacking out of the scan."""
    config = dataclasses.replace(CONFIG, hidden_size=256, intermediate_size=1024, num_hidden_layers=6)
    dense = 4 * 6 * (3 * 256 * 256 + 3 * 256 * 1024)  # float32 bytes of the linear layers
    small = ef.stack(ef.quantize(ef.abstract(config), method))
    adapted = jax.eval_shape(lambda m: ef.apply_lora(m, rank=4, key=jax.random.key(0)), small)
    params, rest = ef.split(adapted, ef.trainable(adapted))

    def step(params, rest, ids):
        return jax.grad(lambda p: ef.compute_loss(ef.combine(p, rest), {"input_ids": ids})[0])(params)

    compiled = jax.jit(step).lower(params, rest, jax.ShapeDtypeStruct((1, 8), jnp.int32)).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert temporary < 0.3 * dense, temporary / dense


def test_default_groups_and_what_does_not_fit(model):
    assert [quant.rounding.default_group(n) for n in (4096, 192, 96, 24, 100, 1400)] == [128, 64, 32, 24, 100, 100]
    for which, cfg, words in [
        (
            model,
            ef.QuantConfig("int4", 48),
            r"layers\.0\.self_attn\.q_proj.*48 does not divide rows of 64.*16, 32, 64 do",
        ),
        (model, ef.QuantConfig("a8q", 64), "blocks of 32"),
        (model, ef.QuantConfig("a8bit", 64), "has no group_size"),
        (model, ef.QuantConfig("int4", double_quant=True), "has no double_quant"),
        (ef.init(ef.nn.Linear(65, 4), key=jax.random.key(0)), ef.QuantConfig("int4"), "no even group.*8bit"),
        (ef.init(ef.nn.Linear(65, 4), key=jax.random.key(0)), ef.QuantConfig("int4", 13), "must be even"),
        (
            ef.init(ef.nn.Linear(40, 4), key=jax.random.key(0)),
            ef.QuantConfig("a8q"),
            "a8q has blocks of 32.*rows of 40",
        ),
    ]:
        with pytest.raises(ValueError, match=words):
            ef.quantize(which, cfg)
        with pytest.raises(ValueError, match=words):
            ef.fake_quantize(which, cfg)
    with pytest.raises(ValueError, match="3 groups do not divide a row of 8"):
        quant.grouped(np.zeros((2, 8), np.int8), np.ones((2, 3)), bits=8)
    with pytest.raises(ValueError, match="not 7"):
        quant.grouped(np.zeros((2, 8), np.int8), np.ones((2, 2)), bits=7)


# --- quantization-aware training


@pytest.mark.parametrize("method", ["int4", "a4q", "a8bit"])
def test_straight_through(method):
    """Forward is the real format; the gradient is that of the dense product of what the product saw."""
    base, x, v = matrix(8, 64), matrix(2, 3, 64, seed=1), matrix(2, 3, 8, seed=2)
    fake = quant.Fake(base, ef.QuantConfig(method))
    real = fake.cfg.encode(base)
    y, pull = jax.vjp(jax.jit(ef.dot), fake, x)
    assert off(y, ef.dot(real, x)) < 1e-4
    d_fake, dx = pull(v)
    seen = round_rows(x.reshape(6, 64), real.activations)
    assert off(d_fake.base, v.reshape(6, 8).T @ seen) < 1e-6 and off(dx, v @ ef.dense(real)) < 1e-6
    assert off(jax.grad(lambda w: jnp.vdot(ef.dense(w), base))(fake).base, base) < 1e-6
    assert (ef.take(fake, jnp.array([3, 1])) == ef.dense(real)[jnp.array([3, 1])]).all()
    low = ef.cast(fake, jnp.bfloat16)
    assert low.base.dtype == jnp.bfloat16 and ef.dot(low, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    experts = quant.Fake(matrix(2, 8, 64), fake.cfg)
    sizes, rows = jnp.array([2, 4]), x.reshape(6, 64)
    d_experts = jax.grad(lambda w: jnp.vdot(ef.ragged_dot(w, rows, sizes), v.reshape(6, 8)))(experts).base
    assert off(d_experts[1], v.reshape(6, 8)[2:].T @ seen[2:]) < 1e-5


def test_quantization_aware_training(model):
    cfg = ef.QuantConfig("int4", 32)
    aware = ef.fake_quantize(ef.stack(model), cfg)
    assert ef.is_quantized(aware) and ef.num_params(aware) == ef.num_params(model)
    params, rest = eqx.partition(aware, ef.trainable(aware))
    assert len(jax.tree.leaves(params)) == len(jax.tree.leaves(ef.stack(model)))
    batch = {"input_ids": jax.random.randint(jax.random.key(5), (4, 12), 0, 48)}
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(lambda p: ef.compute_loss(eqx.combine(p, rest), batch)[0])(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, losses = optimizer.init(params), []
    for _ in range(8):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0]
    trained = eqx.combine(params, rest)
    final = ef.quantize(trained, cfg)
    logits = jax.jit(lambda m: ef.forward(m, batch["input_ids"]).logits)
    assert ef.format_of(ef.unstack(final).model.layers[0].mlp.up_proj.weight) == "int4/32"
    assert off(logits(final), logits(trained)) < 1e-5
    assert off(logits(ef.dequantize(trained)), logits(trained)) < 1e-5
    rounded = ef.compute_loss(ef.quantize(eqx.combine(params, rest), cfg), batch)[0]
    assert abs(float(rounded) - float(ef.compute_loss(trained, batch)[0])) < 1e-4
    with pytest.raises(ValueError, match=r"was trained for QuantConfig.*int4.*group_size=32"):
        ef.quantize(trained, "int4")
    with pytest.raises(ValueError, match=r"fake_quantize: .*is quantized already \(fake int4/32\)"):
        ef.fake_quantize(aware, cfg)
    adapted = ef.apply_lora(aware, rank=2, key=jax.random.key(1))
    assert sum(jax.tree.leaves(ef.trainable(adapted))) == 2 * 7

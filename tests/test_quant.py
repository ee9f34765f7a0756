"""Weight formats: exact against bitsandbytes' numbers elsewhere; here what every format owes the verbs, and "
"quantize itself."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import easyfn as ef
from cases import CASES
from easyfn import quant
from formats import check_tables_and_experts, check_vmap_scan_and_gradient, close, encoded, matrix

CONFIG = ef.models.LlamaConfig(
    vocab_size=48,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)
# The relative error of a normal matrix in each format: no format may silently get worse.
BOUNDS = {
    ef.QuantConfig("8bit"): 0.0075,
    ef.QuantConfig("nf4"): 0.094,
    ef.QuantConfig("nf4", double_quant=True): 0.095,
    ef.QuantConfig("nf4", 32): 0.088,
    ef.QuantConfig("nf4", 128): 0.102,
    ef.QuantConfig("fp4"): 0.128,
}
FORMATS = [ef.QuantConfig("8bit"), ef.QuantConfig("nf4"), ef.QuantConfig("nf4", 32, double_quant=True)]
every_format = pytest.mark.parametrize("cfg", FORMATS, ids=lambda c: f"{c.method}-{c.group_size}-{c.double_quant}")


@pytest.fixture(scope="module")
def model():
    return ef.init(CONFIG, key=jax.random.key(0))


@pytest.mark.thinned("widths of one format stand side by side")
@pytest.mark.quick("quant", "each format is near the dense weight")
@pytest.mark.parametrize("cfg", BOUNDS, ids=str)
def test_error_of_a_normal_matrix(cfg):
    w = matrix(128, 256)
    q = jax.jit(cfg.encode)(w)
    error = jnp.linalg.norm(ef.dense(q) - w) / jnp.linalg.norm(w)
    assert BOUNDS[cfg] * 0.9 < error < BOUNDS[cfg]
    assert ef.shape_of(q) == (128, 256) and ef.format_of(q)
    assert all(part.ndim == 2 for part in jax.tree.leaves(q))


@every_format
@pytest.mark.parametrize("rows", [1, 40])
def test_dot_agrees_with_dense(cfg, rows):
    q, x = encoded(cfg, 24, 128), matrix(rows, 128, seed=1)
    close(ef.dot(q, x), x @ ef.dense(q).T)
    close(jax.jit(ef.dot)(q, x[:, None]), (x @ ef.dense(q).T)[:, None])
    low = ef.dot(q, x.astype(jnp.bfloat16))
    assert low.dtype == jnp.float32  # the weight stands for a float32 one
    half = ef.dot(ef.cast(q, jnp.bfloat16), x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    close(half, x @ ef.dense(q).T, 0.02)


@every_format
def test_take_and_ragged_dot_and_rows(cfg):
    check_tables_and_experts(cfg, 10, 8, 128)


@every_format
def test_transforms_of_dot(cfg):
    check_vmap_scan_and_gradient(cfg, 8, 128)
    one, x = encoded(cfg, 8, 128), matrix(5, 128, seed=1)
    plain = jax.grad(lambda x: jnp.sum(jnp.sin(x @ ef.dense(one).T)))(x)
    for transform in (lambda f: jax.jit(jax.grad(f)), lambda f: jax.jit(jax.grad(jax.checkpoint(f)))):
        close(
            transform(lambda x: jnp.sum(jnp.sin(ef.dot(one, x))))(x), plain, 1e-3
        )  # the sine amplifies 4e-5 of the largest product


@pytest.mark.quick("quant", "nothing of a format trains")
@every_format
def test_nothing_of_a_format_trains(cfg):
    q, x = encoded(cfg, 8, 128), matrix(4, 128, seed=1)
    assert not any(jax.tree.leaves(ef.trainable(q)))
    floats, rest = eqx.partition(q, eqx.is_inexact_array)
    loss = lambda floats, x: (
        jnp.sum(ef.dot(eqx.combine(floats, rest), x) ** 2) + jnp.sum(ef.dense(eqx.combine(floats, rest)))
    )
    assert all((g == 0).all() for g in jax.tree.leaves(jax.grad(loss)(floats, x)))


@every_format
def test_cast_changes_the_arithmetic_only(cfg):
    q = encoded(cfg, 8, 128)
    low = ef.cast(q, jnp.bfloat16)
    assert ef.dense(low).dtype == jnp.bfloat16 and ef.dtype_of(low) == jnp.bfloat16
    for a, b in zip(jax.tree.leaves(q), jax.tree.leaves(low), strict=True):
        assert a is b


@every_format
def test_axes_name_every_part(cfg):
    q = encoded(cfg, 8, 128)
    axes = ef.axes_of(q, ("mlp", "embed"))
    named = jax.tree.leaves(axes, is_leaf=lambda a: isinstance(a, tuple))
    assert [len(a) for a in named] == [p.ndim for p in jax.tree.leaves(q)]


@pytest.mark.quick("quant", "blocks cross rows")
def test_blocks_that_cross_rows():
    w = matrix(5, 40)
    q = quant.to_nf4(w)
    assert q.scales.shape == (1, 4)
    flat = jnp.pad(w.reshape(-1), (0, 56)).reshape(4, 64)
    alone = ef.dense(quant.to_nf4(flat)).reshape(-1)[:200].reshape(5, 40)
    close(ef.dense(q), alone, 1e-6)
    close(ef.dot(q, matrix(3, 40, seed=1)), matrix(3, 40, seed=1) @ alone.T, 1e-5)
    two = quant.to_nf4(jnp.stack([w, 2 * w]), double_quant=True)
    assert two.codes.shape == (2, 5, 20) and two.scales.shape == (2, 1, 4) and two.offset.shape == (2, 1, 1)
    close(ef.dense(two)[1], ef.dense(quant.to_nf4(2 * w, double_quant=True)), 1e-6)


@pytest.mark.parametrize("cfg", ["8bit", ef.QuantConfig("nf4", double_quant=True)], ids=["8bit", "nf4"])
def test_quantize_a_model(model, cfg):
    ids = jnp.arange(10).reshape(2, 5)
    small = ef.quantize(model, cfg)
    assert ef.is_quantized(small) and not ef.is_quantized(model)
    assert not ef.is_quantized(small.lm_head) and not ef.is_quantized(small.model.embed_tokens)
    plain = ef.dequantize(small)
    assert not ef.is_quantized(plain)
    logits = ef.forward(small, ids).logits
    close(logits, ef.forward(plain, ids).logits)
    # quantize . stack = stack . quantize
    stacked = ef.quantize(ef.stack(model), cfg)
    assert eqx.tree_equal(stacked, ef.stack(small))
    close(ef.forward(stacked, ids).logits, logits)
    # abstract, and under jit
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), small)
    abstract = ef.quantize(jax.eval_shape(lambda: model), cfg)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), abstract) == shapes
    assert not ef.is_quantized(ef.dequantize(abstract))
    traced = jax.jit(lambda m: ef.quantize(m, cfg))(model)
    assert eqx.tree_equal(traced, small)


def test_formats_side_by_side(model):
    cfg = [
        ef.QuantConfig("8bit", pattern="q_proj|lm_head"),
        ef.QuantConfig("nf4", 32),
        ef.QuantConfig("8bit", pattern="embed_tokens"),
    ]
    small = ef.quantize(model, cfg)
    formats = {p: ef.format_of(n) for p, n in [(f.path, f.weight) for f in ef.find_slots(small)]}
    assert formats["model.layers.1.self_attn.q_proj.weight"] == formats["lm_head.weight"] == "int8"
    assert formats["model.layers.1.self_attn.k_proj.weight"] == "nf4/32"
    assert formats["model.embed_tokens.weight"] == "int8"
    assert formats["model.norm.weight"] is None


def test_only_a_name_reaches_heads_and_embeddings(model):
    everything = ef.quantize(model, ef.QuantConfig("8bit", pattern=".*"))
    assert not ef.is_quantized(everything.lm_head) and not ef.is_quantized(everything.model.embed_tokens)
    assert ef.is_quantized(everything.model.layers[0].mlp.up_proj)
    assert ef.is_quantized(ef.quantize(model, ef.QuantConfig("8bit", pattern="lm_head")).lm_head)
    assert ef.is_quantized(
        ef.quantize(model, ef.QuantConfig("8bit", pattern=lambda path, w: "embed" in path)).model.embed_tokens
    )
    both = ef.quantize(model, ef.QuantConfig("8bit", pattern=["all-linear", "lm_head"]))
    assert ef.is_quantized(both.lm_head) and ef.is_quantized(both.model.layers[0].mlp.up_proj)
    assert not ef.is_quantized(both.model.embed_tokens)
    with pytest.raises(ValueError, match="must be named"):
        ef.quantize(model, ef.QuantConfig("8bit", pattern=r"^\w+\.weight$"))


def bad(model, path, value):
    return ef.with_params(model, {path: ef.params(model)[path].at[0, 0].set(value)})


@pytest.mark.quick("quant", "refusals")
def test_refusals(model):
    small = ef.quantize(model, ef.QuantConfig("8bit", pattern="q_proj"))
    broken = {
        i: bad(model, f"model.layers.{i}.mlp.up_proj.weight", value) for i, value in ((1, jnp.nan), (2, -jnp.inf))
    }
    many = [ef.QuantConfig("nf4"), ef.QuantConfig("8bit", pattern="q_proj")]
    for which, cfg, words in [
        (model, "5bit", "unknown quantization method '5bit'.*nf4"),
        (model, [], "empty list"),
        (model, ef.QuantConfig("nf4", pattern="norm"), "matches nothing"),
        (model, ef.QuantConfig("nf4", pattern="q_prj"), r"matches nothing.*q_proj"),
        (model, ef.QuantConfig("nf4", group_size=48), r"layers\.0\.self_attn\.q_proj.*group_size must be"),
        (model, ef.QuantConfig("8bit", group_size=64), "has no group_size"),
        (model, ef.QuantConfig("8bit", double_quant=True), "has no double_quant"),
        (small, "nf4", r"layers\.0\.self_attn\.q_proj\.weight is quantized already \(int8\)"),
        (broken[1], "nf4", r"NaN or infinite.*layers\.1\.mlp\.up_proj"),
        (broken[2], "8bit", r"NaN or infinite.*layers\.2\.mlp\.up_proj"),
        (model, many, "is unused"),
    ]:
        with pytest.raises(ValueError, match=words):
            ef.quantize(which, cfg)
    with pytest.raises(ValueError, match="no weight of this model is quantized"):
        ef.dequantize(model)
    with pytest.raises(ValueError, match="group_size must be a positive"):
        ef.QuantConfig("nf4", group_size=0)
    with pytest.raises(ValueError, match="odd row"):
        quant.to_nf4(jnp.ones((4, 7)))
    with pytest.raises(ValueError, match="does not fit"):
        ef.dot(quant.to_int8(jnp.ones((4, 8))), jnp.ones((2, 7)))


def test_memory_of_a_training_step_holds_no_dense_copy():
    """Layers unrolled and stacked: XLA may neither unpack all layers at once nor hoist the unpacking out of the "
    "scan."""
    config = ef.models.LlamaConfig(
        vocab_size=32,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    model = ef.abstract(config)
    dense = 4 * 4 * (4 * 256 * 256 + 3 * 256 * 1024)  # float32 bytes of the linear layers
    for method in ("8bit", "nf4"):
        for arrange in (lambda m: m, ef.stack):
            small = ef.quantize(arrange(model), method)

            def step(x, small):
                return jax.grad(lambda x: jnp.sum(ef.forward(small, inputs_embeds=x).logits ** 2))(x)

            compiled = jax.jit(step).lower(jax.ShapeDtypeStruct((1, 4, 256), jnp.float32), small).compile()
            temporary = compiled.memory_analysis().temp_size_in_bytes
            assert temporary < 0.4 * dense, (method, arrange, temporary / dense)


def test_cast_by_pattern_reaches_quantized_weights_and_adapters(key):
    layer = ef.apply_lora(ef.quantize({"q_proj": ef.init(ef.nn.Linear(64, 8), key=key)}, "nf4"), rank=2, key=key)
    adapter = ef.cast(layer, jnp.bfloat16, r"\.a$|\.b$")["q_proj"].weight
    assert adapter.a.dtype == adapter.b.dtype == jnp.bfloat16 and adapter.base.dtype == "float32"
    whole = ef.cast(layer, jnp.bfloat16, r"q_proj\.weight$")["q_proj"].weight
    assert whole.a.dtype == jnp.bfloat16 and whole.base.dtype == "bfloat16"
    with pytest.raises(ValueError, match=r"Near misses: q_proj\.weight"):
        ef.cast(ef.remove_lora(layer), jnp.bfloat16, "qproj")


@pytest.mark.parametrize("pattern", ["q_porj", "q_porj|v_porj", ["layers.0.self_attn.q_porj"], r"\.q_prj\."])
def test_a_misspelt_pattern_shows_near_misses(pattern):
    with pytest.raises(ValueError, match=r"Near misses: \S*self_attn\.q_proj\.weight"):
        ef.quantize(CASES["llama"].model(), ef.QuantConfig("nf4", pattern=pattern))

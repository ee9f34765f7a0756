"""fp8, mxfp4, mxfp8, nvfp4: every code and scale as the real libraries make them, and what a format owes the verbs."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef
from easyfn import quant
from formats import check_tables_and_experts, check_vmap_scan_and_gradient, close, encoded, matrix

Q = ef.QuantConfig
# The relative error of a normal matrix in each format: no format may silently get worse.
BOUNDS = {
    Q("fp8"): 0.0268,
    Q("fp8", block="tensor"): 0.0268,
    Q("fp8", block="128x128"): 0.0268,
    Q("mxfp4"): 0.1165,
    Q("mxfp8"): 0.0268,
    Q("nvfp4"): 0.0965,
}
every_format = pytest.mark.parametrize("cfg", BOUNDS, ids=lambda c: c.method + (f"-{c.block}" if c.block else ""))
CONFIG = ef.models.LlamaConfig(
    vocab_size=48,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
_logits = jax.jit(lambda model, ids: ef.forward(model, ids).logits)


def bits(array):
    """Arrays of torch or JAX, 8-bit floats as their bytes."""
    if hasattr(array, "detach"):
        torch = pytest.importorskip("torch")
        return (array.view(torch.uint8) if array.dtype == torch.float8_e4m3fn else array).numpy()
    return np.asarray(array)


@functools.cache
def awkward():
    """Rows of very different sizes; a row, and half of another, of zeros."""
    rng = np.random.default_rng(0)
    w = (rng.standard_normal((192, 256)) * rng.uniform(0.001, 30, (192, 1))).astype(np.float32)
    w[1] = w[3, :64] = w[128:, :128] = 0
    return w


@pytest.mark.thinned("formats of one table of codes")
@pytest.mark.parametrize(
    "scheme, cfg",
    [
        ("FP8_DYNAMIC", Q("fp8")),
        ("FP8", Q("fp8", block="tensor")),
        ("MXFP4A16", Q("mxfp4")),
        ("MXFP8A16", Q("mxfp8")),
        ("NVFP4A16", Q("nvfp4")),
    ],
)
def test_every_code_and_scale_of_compressed_tensors(scheme, cfg):
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme
    from compressed_tensors.quantization.utils.helpers import calculate_qparams, generate_gparam

    scheme = preset_name_to_scheme(scheme, ["Linear"])
    args, w = scheme.weights, torch.tensor(awkward())
    cut = w.unflatten(-1, (-1, args.group_size)) if args.group_size else w if args.strategy == "channel" else w.view(-1)
    low, high = cut.amin(-1), cut.amax(-1)
    if args.strategy != "tensor" and not args.group_size:
        low, high = low[:, None], high[:, None]
    total = generate_gparam(w.amin(), w.amax()) if args.strategy == "tensor_group" else None
    scales, zeros = calculate_qparams(low, high, args, total)
    given = {"weight": w, "weight_scale": scales, "weight_zero_point": zeros}
    name = infer_module_format(torch.nn.Linear, scheme).value
    theirs = BaseCompressor.get_value_from_registry(name).compress(
        given | ({} if total is None else {"weight_global_scale": total}), scheme
    )
    ours = jax.jit(cfg.encode)(awkward())
    assert np.array_equal(bits(ours.codes), bits(theirs.get("weight_packed", theirs.get("weight"))))
    assert np.array_equal(bits(ours.scales).reshape(-1), bits(theirs["weight_scale"]).reshape(-1))
    if total is not None:
        assert ours.divisor.shape == (1, 1) and float(ours.divisor[0, 0]) == float(total)
    else:
        back = BaseCompressor.get_value_from_registry(name).decompress(theirs, scheme)["weight"]
        assert np.array_equal(np.asarray(ef.dense(ours)), back.float().numpy())


def test_every_code_and_scale_of_transformers_fp8():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from types import SimpleNamespace

    from transformers import FineGrainedFP8Config
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

    quantizer = SimpleNamespace(quantization_config=FineGrainedFP8Config())
    w = np.pad(awkward(), ((0, 64), (0, 0)), mode="reflect")
    theirs = Fp8Quantize(quantizer).convert({"a.weight": torch.tensor(w)})
    ours = jax.jit(Q("fp8", block="128x128").encode)(w)
    assert ours.scales.shape == (2, 2)
    assert np.array_equal(bits(ours.codes), bits(theirs["a.weight"]))
    assert np.array_equal(bits(ours.scales), bits(theirs["a.weight_scale_inv"]))
    back = Fp8Dequantize(quantizer)._dequantize_one(*theirs.values())
    assert np.array_equal(np.asarray(ef.dense(ours)), back.numpy())


def test_mxfp4_is_that_of_gpt_oss():
    torch = pytest.importorskip("torch")
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    ours = encoded(Q("mxfp4"), 3, 16, 96)
    blocks = torch.tensor(np.asarray(ours.codes).reshape(3, 16, 3, 16))
    theirs = mxfp4.convert_moe_packed_tensors(blocks, torch.tensor(np.asarray(ours.scales)), dtype=torch.float32)
    assert np.array_equal(np.asarray(ef.dense(ours)), theirs.numpy().swapaxes(1, 2))


@pytest.mark.quick("quant", "floats of 8 and 4 bits")
def test_every_byte_is_its_float():
    every = jnp.arange(256, dtype=jnp.uint8)
    e4m3 = jax.lax.bitcast_convert_type(every, jnp.float8_e4m3fn)
    eight = quant.Micro(every[None], jnp.full((1, 8), 127, jnp.uint8), kind="mxfp8")
    assert np.array_equal(ef.dense(eight)[0], np.asarray(e4m3).astype(np.float32), equal_nan=True)
    four = quant.Micro(every[None], jnp.full((1, 16), 128, jnp.uint8), kind="mxfp4")
    levels = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    assert np.array_equal(
        ef.dense(four)[0].reshape(256, 2), 2 * np.stack([np.tile(levels, 16), np.repeat(levels, 16)], 1)
    )


@every_format
def test_error_of_a_normal_matrix(cfg):
    w = matrix(130, 256)
    q = jax.jit(cfg.encode)(w)
    error = jnp.linalg.norm(ef.dense(q) - w) / jnp.linalg.norm(w)
    assert BOUNDS[cfg] * 0.95 < error < BOUNDS[cfg]
    assert ef.shape_of(q) == (130, 256) and ef.format_of(q)
    assert all(part.ndim == 2 for part in jax.tree.leaves(q))


@every_format
@pytest.mark.parametrize("rows", [1, 40])
def test_dot_agrees_with_dense(cfg, rows):
    q, x = encoded(cfg, 130, 160), matrix(rows, 160, seed=1)
    close(jax.jit(ef.dot)(q, x[:, None]), (x @ ef.dense(q).T)[:, None])
    half = ef.dot(ef.cast(q, jnp.bfloat16), x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    close(half, x @ ef.dense(q).T, 0.02)


@every_format
def test_take_and_ragged_dot_and_rows(cfg):
    check_tables_and_experts(cfg, 130, 130, 160)


@every_format
def test_transforms_of_dot(cfg):
    check_vmap_scan_and_gradient(cfg, 130, 160)


@every_format
def test_parts(cfg):
    """Nothing of a format trains, a cast changes the arithmetic only, every part has its axes."""
    q, x = encoded(cfg, 130, 160), matrix(4, 160, seed=1)
    assert not any(jax.tree.leaves(ef.trainable(q)))
    floats, rest = eqx.partition(q, lambda part: part.dtype == jnp.float32)
    loss = lambda floats: (
        jnp.sum(ef.dot(eqx.combine(floats, rest), x) ** 2) + jnp.sum(ef.dense(eqx.combine(floats, rest)))
    )
    assert all((g == 0).all() for g in jax.tree.leaves(jax.grad(loss)(floats)))
    low = ef.cast(q, jnp.bfloat16)
    assert ef.dense(low).dtype == jnp.bfloat16 and ef.dtype_of(low) == jnp.bfloat16
    assert all(a is b for a, b in zip(jax.tree.leaves(q), jax.tree.leaves(low), strict=True))
    named = jax.tree.leaves(ef.axes_of(q, ("mlp", "embed")), is_leaf=lambda a: isinstance(a, tuple))
    assert [len(a) for a in named] == [p.ndim for p in jax.tree.leaves(q)]
    again = ef.requantize(q, ef.dense(q) * 2)
    close(ef.dense(again), 2 * ef.dense(q), 1e-6)


@pytest.mark.parametrize(
    "cfg",
    [pytest.param(Q("fp8", block="128x128"), id="fp8"), pytest.param(Q("nvfp4"), id="nvfp4")],
)
def test_quantize_a_model(cfg, key):
    model, ids = ef.init(CONFIG, key=key), jnp.arange(10).reshape(2, 5)
    small = ef.quantize(model, [cfg, Q(cfg.method, pattern="embed_tokens")])
    plain = ef.dequantize(small)
    logits = _logits(small, ids)
    close(logits, _logits(plain, ids))
    stacked = ef.quantize(ef.stack(model), [cfg, Q(cfg.method, pattern="embed_tokens")])
    assert eqx.tree_equal(stacked, ef.stack(small))
    close(_logits(stacked, ids), logits)
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), ef.quantize(model, cfg))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), ef.quantize(jax.eval_shape(lambda: model), cfg)) == shapes
    split = ef.shard(
        small, ef.ShardingRules({"mlp": "tp", "embed": "fsdp"}, indivisible="replicate"), ef.make_mesh(tp=2)
    )
    close(_logits(split, ids), logits)
    adapted = ef.apply_lora(small, "q_proj", rank=2, key=key)
    merged = ef.merge_lora(adapted)
    assert ef.format_of(merged.model.layers[0].self_attn.q_proj.weight) == ef.format_of(encoded(cfg, 130, 160))
    assert jax.tree.structure(merged) == jax.tree.structure(small)


def test_a_product_in_blocks_of_rows(monkeypatch):
    """A large weight is unpacked a block at a time, also where its scales have fewer rows than it."""
    monkeypatch.setattr(quant.product, "BLOCK", 1 << 12)
    x = matrix(3, 160, seed=1)
    for cfg in BOUNDS:
        q = encoded(cfg, 128, 160)
        run = jax.jit(jax.value_and_grad(lambda x, q=q: jnp.vdot(ef.dot(q, x), jnp.ones((3, 128)))))
        (value, grad), dense = run(x), ef.dense(q)
        assert "while" in run.lower(x).as_text()
        close(value, jnp.vdot(x @ dense.T, jnp.ones((3, 128))))
        close(grad, jnp.ones((3, 128)) @ dense)


def test_memory_of_a_training_step_holds_no_dense_copy():
    config = ef.models.LlamaConfig(
        vocab_size=32,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    dense = 4 * 4 * (4 * 256 * 256 + 3 * 256 * 1024)  # float32 bytes of the linear layers
    for method in ("fp8", "mxfp4"):
        for arrange in (lambda m: m, ef.stack):
            small = ef.quantize(arrange(ef.abstract(config)), method)

            def step(x, small):
                return jax.grad(lambda x: jnp.sum(ef.forward(small, inputs_embeds=x).logits ** 2))(x)

            compiled = jax.jit(step).lower(jax.ShapeDtypeStruct((1, 4, 256), jnp.float32), small).compile()
            temporary = compiled.memory_analysis().temp_size_in_bytes
            assert temporary < 0.4 * dense, (method, arrange, temporary / dense)


def test_rounded_activations():
    """As `compressed_tensors` rounds them: for each row, for each 128 columns, or with the scale of the checkpoint."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils.helpers import compute_dynamic_scales_and_zp

    base, x = encoded(Q("fp8"), 24, 256), np.array(matrix(6, 256, seed=1))
    x[2] = 0
    dynamic = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": True}
    for name, args, static in [
        ("token", QuantizationArgs(**dynamic, strategy="token"), None),
        ("token/128", QuantizationArgs(**dynamic, strategy="group", group_size=128), None),
        ("static", QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy="tensor"), 0.004),
    ]:
        given = torch.tensor(x)
        if static is None:
            scale, zero = compute_dynamic_scales_and_zp(given[None], args, None)
            rounded = fake_quantize(given[None], scale, zero, args)[0].numpy()
        else:
            rounded = fake_quantize(given, torch.tensor([static]), None, args).numpy()
        point = None if static is None else jnp.full((1, 1), static)
        w = quant.FP8(base.codes, base.scales, point, base.block, name)
        close(jax.jit(ef.dot)(w, x), rounded @ np.asarray(ef.dense(w)).T, 1e-5)
        assert ef.format_of(w) == f"fp8/channel+a8/{name}"
        grad = jax.grad(lambda x, w=w: jnp.sum(ef.dot(w, x)))(jnp.asarray(x))
        close(grad, jnp.ones((6, 24)) @ ef.dense(w), 1e-5)  # straight through the rounding


def test_refusals(key):
    linear = ef.init(ef.nn.Linear(48, 8), key=key)
    for cfg, words in [
        (Q("mxfp4"), "mxfp4: blocks of 32 do not divide rows of 48"),
        (Q("mxfp8", group_size=16), "has no group_size"),
        (Q("nvfp4", block="channel"), "has no block"),
        (Q("8bit", block="channel"), "has no block"),
        (Q("nf4", block="channel"), "has no block"),
        (Q("fp8", block="64x64"), "block must be one of 'tensor', 'channel', '128x128'"),
        (Q("fp8", double_quant=True), "has no double_quant"),
    ]:
        with pytest.raises(ValueError, match=words):
            ef.quantize(linear, cfg)
    with pytest.raises(ValueError, match="NaN"):
        ef.quantize(eqx.tree_at(lambda m: m.weight, linear, linear.weight.at[0, 0].set(jnp.nan)), "fp8")

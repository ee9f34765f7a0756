"""The compiled kernels: built once for their source, then the same numbers as without them, and what goes without them."""

import fcntl
import hashlib
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef
from easyfn.core import kernels as standing
from easyfn.core.weight import dot
from easyfn.nn.context import Mask
from easyfn.quant import thin
from easyfn.quant.kquant import BLOCKS, from_blocks
from easyfn.quant.product import FEW

ROOT = Path(__file__).parent.parent
OUT, COLUMNS = 24, 512
INSTRUCTIONS = ("avx512", "avx2", "plain")


@pytest.fixture(scope="module")
def package():
    """`easyfn_kernels` as its own build makes it, kept for as long as its source is the same."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        pytest.skip(f"no C++ compiler ({compiler}) to build easyfn-kernels with")
    files = sorted(
        p for p in (ROOT / "kernels").rglob("*") if p.suffix in (".cc", ".inc", ".py") and "build" not in p.parts
    )
    source = hashlib.sha256(b"".join([jax.__version__.encode(), *(p.read_bytes() for p in files)])).hexdigest()[:16]
    folder = ROOT / ".cache" / "kernels" / source
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            words = ["setup.py", "-q", "build", "--build-lib", f"{folder}-new", "--build-temp", f"{folder}-objects"]
            subprocess.run([sys.executable, *words], cwd=ROOT / "kernels", check=True, capture_output=True)
            os.rename(f"{folder}-new", folder)
    sys.path.insert(0, str(folder))
    standing._package.cache_clear()
    importlib.invalidate_caches()
    yield importlib.import_module("easyfn_kernels")
    sys.path.remove(str(folder))
    sys.modules.pop("easyfn_kernels")
    standing._package.cache_clear()


@pytest.fixture(scope="module")
def weights():
    random = np.random.RandomState(0)
    dense = jnp.asarray(random.randn(OUT, COLUMNS), jnp.float32)
    layer = ef.with_params(ef.nn.Linear(COLUMNS, OUT), {"weight": dense})
    made = {}
    for method in ("8bit", "a8bit", "int4", "a4q", "a8q", "nf4", "fp4"):
        made[method] = ef.quantize(layer, method).weight
    made["nf4 double"] = ef.quantize(layer, ef.QuantConfig("nf4", group_size=128, double_quant=True)).weight
    codes = random.randint(0, 16, (OUT, COLUMNS)).astype(np.uint8)
    scales, zeros = (jnp.asarray(random.rand(OUT, COLUMNS // 64), jnp.bfloat16) for _ in range(2))
    made["int4 zeros"] = ef.quant.grouped(jnp.asarray(codes), scales, zeros * 16, bits=4)
    made["5 bits"] = ef.quant.grouped(jnp.asarray(codes.astype(np.int8) - 8), scales, bits=5)
    for kind, block in BLOCKS.items():
        size = sum(count for _, count in block.parts)
        w = from_blocks(random.randint(0, 256, (OUT, COLUMNS // block.entries * size)).astype(np.uint8), kind)
        # From subnormal to large: the kernels read float16 by themselves.
        scale = (10.0 ** random.uniform(-6, 1, w.scale.shape)).astype(np.float16)
        made[kind] = jax.tree.map(lambda part, s=scale: jnp.asarray(s if part.dtype == s.dtype else part), w)
    return made


PLAIN = ("a8bit", "Q5_1")  # one int8 digit is multiplied as integers; blocks of 4 entries fill no vector


def product(w, x):
    """The lowered program's text and the numbers of a fresh `dot`."""
    lowered = jax.jit(lambda w, x: dot(w, x)).lower(w, x)
    return lowered.as_text(), np.asarray(lowered.compile()(w, x), np.float32)


def without(monkeypatch, run):
    with monkeypatch.context() as m:
        m.setenv("EASYFN_KERNELS", "0")
        return run()


@pytest.mark.quick("quant", "what compiled kernels multiply is what the plain path multiplies", rows=["avx512"])
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_the_same_numbers(package, weights, monkeypatch, instructions):
    if not package.use(instructions):
        pytest.skip(f"this processor has no {instructions}")
    assert ef.quant.kernels() == instructions
    x = jax.random.normal(jax.random.key(1), (5, COLUMNS))  # a panel of four rows, and one

    def all_of_them(weights, x):
        return {name: dot(w, x) for name, w in weights.items()}

    lowered = jax.jit(lambda *args: all_of_them(*args)).lower(weights, x)
    assert lowered.as_text().count("@easyfn_") == len(weights) - len(PLAIN)
    ours = lowered.compile()(weights, x)
    theirs = without(monkeypatch, lambda: jax.jit(lambda *args: all_of_them(*args))(weights, x))
    for name in weights:
        # The plain path of int8 takes the input as two digits of 8 bits, which is 4e-5 off.
        exact = np.asarray(x, np.float64) @ np.asarray(ef.dense(weights[name]), np.float64).T
        expected = exact if name == "8bit" else np.asarray(theirs[name], np.float64)
        assert np.abs(ours[name] - expected).max() < 1e-5 * np.abs(expected).max(), name
    package.use(INSTRUCTIONS[0]) or package.use(INSTRUCTIONS[1])


def test_one_row_of_bfloat16(package, weights, monkeypatch):
    x = jax.random.normal(jax.random.key(2), (1, 1, COLUMNS), jnp.bfloat16)
    w = ef.cast(weights["nf4"], jnp.bfloat16)
    text, ours = product(w, x)
    assert "@easyfn_nibbles" in text
    plain, theirs = without(monkeypatch, lambda: product(w, x))
    assert "@easyfn" not in plain
    np.testing.assert_allclose(ours, theirs, rtol=1e-2)  # both round to bfloat16, sums of another order


def test_gradients_and_vmap(package, weights, monkeypatch):
    w, x = weights["Q4_K"], jax.random.normal(jax.random.key(3), (3, 2, COLUMNS))

    def both(w, x):
        mapped = jax.vmap(lambda x: dot(w, x))(x)
        many = jax.vmap(dot)(jax.tree.map(lambda part: jnp.stack([part] * 3), w), x)
        slope = jax.grad(lambda x: jnp.sum(jnp.sin(dot(w, x[0]) / 100)))(x)
        return mapped, many, slope, jax.lax.scan(lambda total, x: (total + dot(w, x), None), mapped[0], x)[0]

    ours = jax.jit(lambda *args: both(*args))(w, x)
    theirs = without(monkeypatch, lambda: jax.jit(lambda *args: both(*args))(w, x))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_what_goes_without(package, weights):
    w, x = weights["nf4"], jnp.ones((2, COLUMNS))
    assert "@easyfn" in product(w, x)[0]
    assert "@easyfn" not in product(w, jnp.ones((FEW + 1, COLUMNS)))[0]
    assert "@easyfn" not in product(ef.quant.to_nf4(jnp.ones((3, 96))), jnp.ones((2, 96)))[0]  # blocks cross rows
    mesh = jax.make_mesh((2,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.device_put(w, jax.NamedSharding(mesh, jax.P("a", None)))
    x2 = jax.device_put(x, jax.NamedSharding(mesh, jax.P()))
    assert "@easyfn" not in jax.jit(lambda w, x: dot(w, x)).lower(split, x2).as_text()
    with jax.set_mesh(mesh):
        assert "@easyfn" not in product(w, x)[0]
    assert "@easyfn" not in jax.export.export(jax.jit(lambda w, x: dot(w, x)))(w, x).mlir_module()


def test_operations_are_counted_through_a_kernel(package, weights):
    x = jax.ShapeDtypeStruct((2, COLUMNS), jnp.float32)
    assert ef.count_flops(dot, weights["Q6_K"], x) == 2 * 2 * COLUMNS * OUT


def test_wrong_shapes_are_errors(package):
    """Handlers read nothing that they were not given, whoever calls them."""
    f32, u8 = (lambda *shape: jnp.ones(shape, jnp.float32)), (lambda *shape: jnp.ones(shape, jnp.uint8))
    f16, none = (lambda *shape: jnp.ones(shape, jnp.float16)), u8(0, 0)
    levels = np.arange(16, dtype=np.float32)
    nibbles = dict(pairs=True, levels=levels)
    kind = dict(kind=np.int64(4))
    wrong = {
        "codes has the shape": ("nibbles", [u8(8, 31), f32(8, 1)], nibbles),
        "scales have the shape": ("nibbles", [u8(8, 32), f32(8, 4)], nibbles),
        "scales has the shape": ("nibbles", [u8(8, 32), f32(7, 1)], nibbles),
        "scales are not float32": ("nibbles", [u8(8, 32), u8(8, 1)], nibbles),
        "offsets has the shape": ("nibbles", [u8(8, 32), f32(8, 1), f32(8, 2)], nibbles),
        "15 levels": ("nibbles", [u8(8, 32), f32(8, 1)], dict(pairs=True, levels=levels[:15])),
        "expected (8, 64)": ("bytes", [jnp.ones((8, 63), jnp.int8), f32(8, 1)], dict(unit=np.float32(1))),
        "not whole blocks": ("blocks", [u8(8, 128), none, u8(8, 8), u8(8, 8), f16(8, 1), f16(8, 1)], kind),
        "no kind Q9_K": ("blocks", [u8(8, 0), none, none, none, f16(0, 0), f16(0, 0)], dict(kind=np.int64(9))),
    }
    for message, (target, operands, attributes) in wrong.items():
        with pytest.raises(jax.errors.JaxRuntimeError) as error:
            thin.call(target, (8, 64), f32(2, 64), *operands, **attributes)
        assert message in str(error.value)
    whole = [u8(8, 128), none, u8(8, 8), u8(8, 8), f16(8, 1), f16(8, 1)]
    for place, name in enumerate(("codes", "high", "scales", "mins", "scale", "minimum")):
        operands = [*whole[:place], jnp.ones((8, 3), whole[place].dtype), *whole[place + 1 :]]
        with pytest.raises(jax.errors.JaxRuntimeError, match=rf"{name} has the shape \(8, 3\)"):
            thin.call("blocks", (8, 256), f32(2, 256), *operands, **kind)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"result has the shape \(2, 9\), expected \(2, 8\)"):
        thin.call("blocks", (9, 256), f32(2, 256), *whole, **kind)


def test_a_library_that_does_not_load_says_what_to_do(monkeypatch, tmp_path):
    (tmp_path / "easyfn_kernels.py").write_text("def register(): raise OSError('no such symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "easyfn_kernels", raising=False)
    standing._package.cache_clear()
    with pytest.raises(ImportError, match=r"no such symbol.*pip install ./kernels.*EASYFN_KERNELS=0"):
        ef.quant.kernels()
    without(monkeypatch, lambda: ef.quant.kernels())
    standing._package.cache_clear()
    sys.modules.pop("easyfn_kernels")


def operands(heads=6, kv=2, queries=60, keys=60, dim=20, values=12, batch=2, dtype=jnp.float32):
    random = np.random.RandomState(1)
    shapes = (batch, heads, queries, dim), (batch, kv, keys, dim), (batch, kv, keys, values), (heads,)
    return [jnp.asarray(random.randn(*shape), dtype) for shape in shapes]


def attention(segments=None, causal=True, window=None, softcap=None, scale=0.3):
    """A function of `q`, `k`, `v` and perhaps sinks; rows with padding count their places without it, as decoders do."""

    def run(q, k, v, sinks=None):
        if segments is None:
            places = jnp.arange(k.shape[2])
            own, others = jnp.ones((1, q.shape[2]), int), jnp.ones((1, k.shape[2]), int)
            mask = Mask(places[-q.shape[2] :], own, places, others, causal, window)
        else:
            given = jnp.asarray(segments)
            places = jnp.cumsum(given > 0, axis=1) - 1
            mask = Mask(places, given, places, given, causal, window)
        return ef.nn.attend(q, k, v, mask, scale=scale, softcap=softcap, sinks=sinks)[0]

    return run


PADDED = np.array([[0] * 9 + [1] * 30 + [2] * 21, [1] * 50 + [0] * 10])
ATTENTION = {
    "causal, packed, padded, a window": (dict(segments=PADDED, window=7), {}, 4),
    "sinks, softcap": (dict(softcap=2.0), {}, 4),
    "an encoder, shorter than a vector": (dict(causal=False, window=11), dict(queries=17, keys=17, dim=3, values=5), 3),
    "after a cache, one key head": (dict(), dict(kv=1, queries=49, keys=97, dim=16, values=16), 3),
    "nothing seen by some": (dict(segments=PADDED * (np.arange(60) > 20), window=3), {}, 3),
    "no mask at all": (None, dict(queries=16, keys=33), 3),
}


@pytest.fixture(scope="module")
def exact(package):
    """Results and gradients of the plain program, in the cases of `ATTENTION`."""
    with pytest.MonkeyPatch.context() as m:
        m.setenv("EASYFN_KERNELS", "0")
        return {name: run_case(name) for name in ATTENTION}


def run_case(name):
    choices, shapes, count = ATTENTION[name]
    run = attention(**choices) if choices is not None else lambda *x: ef.nn.attend(*x, None, scale=0.3)[0]
    args = operands(**shapes)[:count]

    def loss(*x):
        y = run(*x)
        return jnp.sum(jnp.sin(y)), y

    lowered = jax.jit(jax.value_and_grad(loss, tuple(range(count)), has_aux=True)).lower(*args)
    return lowered.as_text().count("@easyfn_attend"), lowered.compile()(*args)


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_attention_is_the_plain_one(package, exact, instructions):
    if not package.use(instructions):
        pytest.skip(f"this processor has no {instructions}")
    for name, (none, theirs) in exact.items():
        count, ours = run_case(name)
        assert (none, count) == (0, 2), name  # forward and backward
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5 * (1e-2 + np.abs(b).max()), err_msg=name)
    package.use(INSTRUCTIONS[0]) or package.use(INSTRUCTIONS[1])


def test_derivatives_of_attention(package, monkeypatch):
    """Forward, twice, mapped, and again in the backward pass: rules of its own, or the plain program's."""
    run = attention(segments=PADDED[:1, :40], window=7)
    args = operands(queries=40, keys=40, batch=1)
    loss = lambda *x: jnp.sum(jnp.sin(run(*x)))
    slope = lambda x: jax.grad(loss, (0, 1, 2, 3))(*x)

    def all_of_them(*args):
        small = tuple(x / 10 for x in args)
        return {
            "jvp": jax.jvp(loss, args, small),
            "hessian": jax.jvp(slope, (args,), (small,)),
            "slope of jvp": jax.grad(lambda x: jax.jvp(loss, x, small)[1])(args),
            "remat": jax.grad(jax.checkpoint(loss))(*args),
            "linearize": jax.linearize(loss, *args)[1](*small),
            "mapped": jax.vmap(lambda q: jax.grad(loss)(q, *args[1:]))(jnp.stack([args[0], args[0] / 2])),
            "of sinks alone": jax.grad(loss, 3)(*args),
        }

    ours = jax.jit(lambda *args: all_of_them(*args))(*args)
    theirs = without(monkeypatch, lambda: jax.jit(lambda *args: all_of_them(*args))(*args))
    for name, expected in theirs.items():
        for a, b in zip(jax.tree.leaves(ours[name]), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, atol=3e-5 * np.abs(b).max(), err_msg=name)


def test_attention_in_bfloat16_and_what_goes_without(package, monkeypatch):
    def text(run, *args):
        return jax.jit(lambda *x: run(*x)).lower(*args).as_text()

    run, (q, k, v, _) = attention(), operands()
    assert "@easyfn_attend" in text(run, q, k, v)
    assert "@easyfn" not in text(run, q[:, :, :15], k, v)  # few queries
    assert "@easyfn" not in text(
        lambda *x: ef.nn.attend(*x, None, scale=1.0, bias=jnp.ones((1, 6, 60, 60)))[0], q, k, v
    )
    assert "@easyfn" not in text(lambda *x: ef.nn.attend(*x, None, scale=1.0, weights=True)[0], q, k, v)
    assert "@easyfn" not in jax.export.export(jax.jit(lambda *x: run(*x)))(q, k, v).mlir_module()
    mesh = jax.make_mesh((2,), ("dp",), axis_types=(jax.sharding.AxisType.Auto,))
    split = [jax.device_put(x, jax.NamedSharding(mesh, jax.P("dp"))) for x in (q, k, v)]
    assert "@easyfn" not in text(run, *split)
    small = operands(dtype=jnp.bfloat16)[:3]
    ours, theirs = (
        jax.jit(lambda *x: run(*x))(*small),
        without(monkeypatch, lambda: jax.jit(lambda *x: run(*x))(*small)),
    )
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(ours.astype(jnp.float32), theirs.astype(jnp.float32), atol=2e-2)
    model = ef.testing.tiny()
    count = lambda: (ef.flops(model, 1, 32), ef.flops(model, 1, 32, training=True))
    assert count() == without(monkeypatch, count)


def test_attention_of_wrong_shapes_is_an_error(package):
    f32, i32 = (lambda *shape: jnp.ones(shape, jnp.float32)), (lambda *shape: jnp.ones(shape, jnp.int32))
    right = [f32(2, 6, 20, 8), f32(2, 3, 30, 8), f32(2, 3, 30, 4), i32(1, 20), i32(2, 20), i32(1, 30), i32(2, 30)]
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 6, 20, 4), (2, 6, 20))]
    choices = dict(causal=True, window=np.int64(0), scale=np.float32(1), softcap=np.float32(0))
    wrong = {
        0: (f32(2, 7, 20, 8), "7 heads are no multiple of 3 key heads"),
        1: (f32(2, 3, 30, 9), r"k has the shape \(2, 3, 30, 9\), expected \(2, 3, 30, 8\)"),
        2: (f32(2, 3, 0, 4), "expected"),
        3: (i32(1, 21), r"slots has the shape \(1, 21\), expected \(1, 20\)"),
        4: (i32(3, 20), r"segments has the shape \(3, 20\), expected \(2, 20\)"),
        6: (i32(2, 31), r"segments has the shape \(2, 31\), expected \(2, 30\)"),
    }
    for place, (bad, message) in wrong.items():
        with pytest.raises(jax.errors.JaxRuntimeError, match=message):
            jax.ffi.ffi_call("easyfn_attend", shapes)(*right[:place], bad, *right[place + 1 :], **choices)
    with pytest.raises(jax.errors.JaxRuntimeError, match="no window of -1"):
        jax.ffi.ffi_call("easyfn_attend", shapes)(*right, **{**choices, "window": np.int64(-1)})
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"d_out has the shape \(2, 6, 20, 5\)"):
        more = [f32(2, 6, 20), f32(2, 6, 20), f32(2, 6, 20, 5)]
        slopes = [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in right[:3]]
        jax.ffi.ffi_call("easyfn_attend_back", slopes)(*right, *more, **choices)

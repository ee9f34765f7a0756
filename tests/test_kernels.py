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
from easyfn.core.weight import dot
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
    thin._package.cache_clear()
    importlib.invalidate_caches()
    yield importlib.import_module("easyfn_kernels")
    sys.path.remove(str(folder))
    sys.modules.pop("easyfn_kernels")
    thin._package.cache_clear()


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
    thin._package.cache_clear()
    with pytest.raises(ImportError, match=r"no such symbol.*pip install ./kernels.*EASYFN_KERNELS=0"):
        ef.quant.kernels()
    without(monkeypatch, lambda: ef.quant.kernels())
    thin._package.cache_clear()
    sys.modules.pop("easyfn_kernels")

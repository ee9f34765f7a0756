"""Products of 16-bit floats: as they are, or written as float32 first where that is faster."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef
from easyfn.core import halves

CONTRACT = (((1,), (1,)), ((), ()))


@pytest.fixture(params=["0", "1"])
def told(request, monkeypatch):
    monkeypatch.setenv(halves.FLAG, request.param)
    return request.param == "1"


def operands(rows, dtype=jnp.bfloat16):
    keys = jax.random.split(jax.random.key(0))
    return tuple(jax.random.normal(k, (n, 96), dtype) for k, n in zip(keys, (rows, 160), strict=True))


@pytest.mark.quick("core", "a product of halves is exact")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("rows", [1, 127, 128])
def test_both_forms_sum_exact_products_in_float32(told, rows, dtype):
    a, b = operands(rows, dtype)
    found = jax.jit(lambda a, b: halves.product(a, b, CONTRACT))(a, b)
    exact = np.asarray(a, np.float64) @ np.asarray(b, np.float64).T
    assert found.dtype == jnp.float32 and np.abs(found - exact).max() < 1e-4


def test_derivatives_both_ways_and_vmap(told):
    a, b = operands(128)
    f = lambda a, b: jnp.sum(jnp.sin(halves.product(a, b, CONTRACT)))
    whole = lambda a, b: jnp.sum(jnp.sin(a.astype(jnp.float32) @ b.astype(jnp.float32).T))
    got, want = (jax.jit(jax.grad(g, (0, 1)))(a, b) for g in (f, whole))
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(np.asarray(x, np.float32), np.asarray(y, np.float32), atol=0.05, rtol=0.02)
    np.testing.assert_allclose(jax.jvp(f, (a, b), (a, b))[1], jax.jvp(whole, (a, b), (a, b))[1], rtol=1e-2)
    many = jax.vmap(lambda a: halves.product(a, b, CONTRACT))(jnp.stack([a, -a]))
    np.testing.assert_allclose(many[1], -many[0])


def test_an_accelerator_is_given_no_copy_in_float32(monkeypatch):
    monkeypatch.setenv(halves.FLAG, "1")
    weight, x = operands(256)

    def text(platform):
        return jax.jit(lambda w, x: ef.dot(w, x)).trace(weight, x).lower(lowering_platforms=(platform,)).as_text()

    assert "tensor<256x96xf32>" in text("cpu") and "tensor<256x96xf32>" not in text("cuda")


def test_what_is_measured_is_a_ratio_and_the_flag_is_checked(monkeypatch):
    monkeypatch.setenv(halves.FLAG, "yes")
    with pytest.raises(ValueError, match=r"EASYFN_WIDEN='yes'.*0, 1 or not there"):
        ef.nn.product_form(jnp.bfloat16)
    monkeypatch.delenv(halves.FLAG)
    # Inside of a trace, where a product is met first.
    jax.jit(lambda x: x * halves.widens(x.dtype.name))(jnp.ones(2, jnp.bfloat16))
    assert 0 < halves.ratio("bfloat16") < 100 and halves.ratio("bfloat16") == halves.ratio("bfloat16")
    assert ef.nn.product_form(jnp.bfloat16) == ("float32" if halves.ratio("bfloat16") < 0.95 else "bfloat16")
    assert ef.nn.product_form("float32") == "float32"

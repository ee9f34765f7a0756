"""`Fake`: a float weight that computes as if it were quantized; quantization-aware training with it."""

from __future__ import annotations

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core.dtype import cast
from ..core.weight import axes_of, dense, dot, format_of, requantize, shape_of, take
from .config import QuantConfig
from .product import replace
from .rounding import round_rows


class Fake(eqx.Module):
    """A float array `base` `(..., out, in)` that stands for `cfg.encode(base)`, rounded anew for every product.

    The gradient of a product goes to `base` as if the rounding were not there: the straight-through estimator (Bengio et
    al. 2013, arXiv 1308.3432). Made by [`easyfn.fake_quantize`][].

    ```python
    import jax, jax.numpy as jnp, easyfn as ef
    base, x = jax.random.normal(jax.random.key(0), (8, 64)), jnp.ones((3, 64))
    w = ef.quant.Fake(base, ef.QuantConfig("int4", 32))
    assert (ef.dot(w, x) == ef.dot(ef.quant.to_int4(base, 32), x)).all()
    assert jnp.allclose(jax.grad(lambda w: ef.dot(w, x).sum())(w).base, 3.0)  # as of x @ base.T
    ```
    """

    base: Any
    cfg: QuantConfig = eqx.field(static=True)


@shape_of.register(Fake)
def _(w: Fake) -> tuple[int, ...]:
    return tuple(w.base.shape)


@format_of.register(Fake)
def _(w: Fake) -> str:
    return f"fake {w.cfg.method}" + (f"/{w.cfg.group_size}" if w.cfg.group_size else "")


@axes_of.register(Fake)
def _(w: Fake, axes: tuple[str | None, ...]) -> Any:
    return replace(w, base=axes)


@cast.register(Fake)
def _(w: Fake, dtype: Any, pattern: Any = None) -> Fake:
    return replace(w, base=cast(w.base, dtype))


@requantize.register(Fake)
def _(w: Fake, new: jax.Array) -> Fake:
    return replace(w, base=new.astype(w.base.dtype))


@dense.register(Fake)
def _(w: Fake) -> jax.Array:
    return _straight(dense(w.cfg.encode(w.base)), w.base)


@take.register(Fake)
def _(w: Fake, ids: jax.Array) -> Any:
    if len(w.base.shape) > 2:
        return replace(w, base=take(w.base, ids))
    return take(dense(w), ids)


@dot.register(Fake)
def _(w: Fake, x: jax.Array, *, dtype: Any = None) -> jax.Array:
    return _product(w.cfg, dtype and jnp.dtype(dtype).name, w.base, x)


@jax.custom_jvp
def _straight(rounded: jax.Array, base: jax.Array) -> jax.Array:
    """`rounded`, with the derivative of `base`."""
    return rounded


@_straight.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return primals[0], tangents[1].astype(primals[0].dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(cfg: QuantConfig, dtype: str | None, base: jax.Array, x: jax.Array) -> jax.Array:
    return dot(cfg.encode(base), x, dtype=dtype)


def _forward(cfg: QuantConfig, dtype: str | None, base: jax.Array, x: jax.Array) -> Any:
    return _product(cfg, dtype, base, x), (base, x)


def _backward(cfg: QuantConfig, dtype: str | None, saved: Any, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    base, x = saved
    weight = cfg.encode(base)
    (dx,) = jax.vjp(lambda x: dot(weight, x, dtype=dtype), x)[1](g)
    seen = round_rows(x.reshape(-1, x.shape[-1]), getattr(weight, "activations", None)).reshape(x.shape)
    (d_base,) = jax.vjp(lambda base: dot(base, seen, dtype=dtype), base)[1](g)
    return d_base, dx


_product.defvjp(_forward, _backward)

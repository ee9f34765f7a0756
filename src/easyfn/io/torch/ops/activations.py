"""Activations, the softmax and dropout."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from .table import default_of, drawn, kind, torch_op

op = torch_op.register


@op("aten.gelu.default")
def gelu(x: Any, *, approximate: str = "none") -> Any:
    return jax.nn.gelu(x, approximate=approximate == "tanh")


@op("aten.elu.default")
def elu(x: Any, alpha: Any = 1, scale: Any = 1, input_scale: Any = 1) -> Any:
    return scale * jnp.where(x > 0, x, alpha * jnp.expm1(jnp.minimum(x, 0) * input_scale))


@op("aten.celu.default")
def celu(x: Any, alpha: Any = 1) -> Any:
    return elu(x, alpha, 1, 1 / alpha)


@op("aten.leaky_relu.default")
def leaky_relu(x: Any, negative_slope: Any = 0.01) -> Any:
    return jnp.where(x > 0, x, x * negative_slope)


@op("aten.rrelu.default")
def rrelu(x: Any, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False) -> Any:
    """As in eval mode: the slope in the middle of those that training draws."""
    drawn(training)
    return leaky_relu(x, (lower + upper) / 2)


@op("aten.prelu.default", "aten._prelu_kernel.default")
def prelu(x: Any, weight: Any) -> Any:
    if weight.ndim == 1 and weight.size > 1 and x.ndim > 1:
        weight = weight.reshape(1, -1, *([1] * (x.ndim - 2)))
    return jnp.where(x > 0, x, weight * x)


@op("aten.softplus.default")
def softplus(x: Any, beta: Any = 1, threshold: Any = 20) -> Any:
    return jnp.where(x * beta > threshold, x, jax.nn.softplus(x * beta) / beta)


@op("aten.threshold.default")
def threshold(x: Any, threshold: Any, value: Any) -> Any:
    return jnp.where(x <= threshold, jnp.asarray(value, x.dtype), x)


@op("aten.glu.default")
def glu(x: Any, dim: int = -1) -> Any:
    return jax.nn.glu(x, axis=dim)


def _softmax(function: Any) -> Any:
    def run(x: Any, dim: int, dtype: Any = None) -> Any:
        half = isinstance(dtype, bool)  # `_softmax` says "half to float" there
        wanted = (
            (jnp.float32 if dtype else x.dtype)
            if half
            else (dtype or (x.dtype if kind(x.dtype) >= 2 else default_of(2)))
        )
        h = x.astype(jnp.promote_types(wanted, jnp.float32))
        return function(h, axis=dim).astype(wanted) if x.ndim else function(h[None], axis=0)[0].astype(wanted)

    return run


op("aten._softmax.default", "aten.softmax.int")(_softmax(jax.nn.softmax))
op("aten._log_softmax.default", "aten.log_softmax.int")(_softmax(jax.nn.log_softmax))


@op("aten._safe_softmax.default")
def safe_softmax(x: Any, dim: int, dtype: Any = None) -> Any:
    """Rows that see nothing are zero."""
    out = _softmax(jax.nn.softmax)(x, dim, dtype)
    return jnp.where(jnp.all(x == -jnp.inf, axis=dim, keepdims=True), jnp.zeros((), out.dtype), out)


@op("aten.dropout.default", "aten.feature_dropout.default", "aten.alpha_dropout.default")
def dropout(x: Any, p: float, train: bool) -> Any:
    drawn(bool(train and p))
    return x


@op("aten.native_dropout.default")
def native_dropout(x: Any, p: float, train: bool | None) -> Any:
    return dropout(x, p, bool(train)), jnp.ones(x.shape, bool)

"""Operators on entries: arithmetic, comparisons, functions of one argument, activations."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy import special

from .table import default_of, drawn, floating, kind, promoted, together, torch_op

op = torch_op.register
_function: Any


def _sign(x: Any) -> Any:
    """0 where it is not a number."""
    if x.dtype == jnp.bool_:
        return x
    return jnp.where(x != x, jnp.zeros((), x.dtype), jnp.sign(x))


for _name, _function in {
    "exp": jnp.exp,
    "exp2": jnp.exp2,
    "expm1": jnp.expm1,
    "log": jnp.log,
    "log2": jnp.log2,
    "log10": jnp.log10,
    "log1p": jnp.log1p,
    "sqrt": jnp.sqrt,
    "rsqrt": lax.rsqrt,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "tan": jnp.tan,
    "asin": jnp.arcsin,
    "acos": jnp.arccos,
    "atan": jnp.arctan,
    "sinh": jnp.sinh,
    "cosh": jnp.cosh,
    "tanh": jnp.tanh,
    "asinh": jnp.arcsinh,
    "acosh": jnp.arccosh,
    "atanh": jnp.arctanh,
    "sigmoid": jax.nn.sigmoid,
    "erf": lax.erf,
    "erfc": lax.erfc,
    "erfinv": lax.erf_inv,
    "lgamma": lax.lgamma,
    "digamma": lambda x: jnp.where(x == 0, jnp.copysign(jnp.inf, -x), lax.digamma(x)),
    "reciprocal": lambda x: 1 / x,
    "i0": special.i0,
    "special_i0": special.i0,
    "special_i0e": special.i0e,
    "special_i1": special.i1,
    "special_i1e": special.i1e,
    "silu": jax.nn.silu,
    "mish": lambda x: x * jnp.tanh(jax.nn.softplus(x)),
    "log_sigmoid": jax.nn.log_sigmoid,
    "selu": jax.nn.selu,
    "deg2rad": jnp.deg2rad,
    "sinc": jnp.sinc,
}.items():
    op(f"aten.{_name}.default")(lambda x, _f=_function: _f(floating(x)))

for _name, _function in {
    "abs": lambda x: x if x.dtype == jnp.bool_ else jnp.abs(x),
    "neg": jnp.negative,
    "sign": lambda x: _sign(x),
    "sgn": lambda x: _sign(x),
    "square": jnp.square,
    "bitwise_not": jnp.bitwise_not,
    "logical_not": jnp.logical_not,
    "isnan": jnp.isnan,
    "isinf": jnp.isinf,
    "isfinite": jnp.isfinite,
    "isposinf": jnp.isposinf,
    "isneginf": jnp.isneginf,
    "signbit": lambda x: jnp.signbit(x) if kind(x.dtype) == 2 else x < 0,
    "relu": lambda x: jnp.where(x > 0, x, jnp.where(x != x, x, jnp.zeros((), x.dtype))),
    "relu6": lambda x: jnp.clip(x, 0, 6),
    "real": jnp.real,
    "imag": jnp.imag,
    "conj_physical": jnp.conj,
    "_conj": jnp.conj,
    "angle": lambda x: (
        jnp.angle(x) if kind(x.dtype) == 3 else jnp.where(x == 0, 0, jnp.angle(floating(x)))
    ),  # of -0.0 too
    "resolve_conj": lambda x: x,
    "hardsigmoid": lambda x: jnp.clip(x + 3, 0, 6) / 6,
    "hardswish": lambda x: x * (jnp.clip(x + 3, 0, 6) / 6),
}.items():
    op(f"aten.{_name}.default")(lambda x, _f=_function: _f(jnp.asarray(x)))

for _name, _function in {"floor": jnp.floor, "ceil": jnp.ceil, "trunc": jnp.trunc, "round": jnp.round}.items():
    op(f"aten.{_name}.default")(lambda x, _f=_function: _f(x) if kind(x.dtype) >= 2 else x)


@op("aten.frac.default")
def frac(x: Any) -> Any:
    return x - jnp.trunc(x)


@op("aten.round.decimals")
def round_decimals(x: Any, *, decimals: int = 0) -> Any:
    return jnp.round(x, decimals) if kind(x.dtype) >= 2 else x


@op("aten.complex.default")
def complex_(real: Any, imag: Any) -> Any:
    return lax.complex(real, imag)


@op("aten.polar.default")
def polar(size: Any, angle: Any) -> Any:
    return lax.complex(size * jnp.cos(angle), size * jnp.sin(angle))


# ---- two arguments


def _scaled(other: Any, alpha: Any) -> Any:
    return other if isinstance(alpha, int) and alpha == 1 else other * alpha


@op("aten.add.Tensor", "aten.add.Scalar")
def add(x: Any, other: Any, alpha: Any = 1) -> Any:
    x, other = together(x, other)
    return x + _scaled(other, alpha)


@op("aten.sub.Tensor", "aten.sub.Scalar")
def sub(x: Any, other: Any, alpha: Any = 1) -> Any:
    x, other = together(x, other)
    return x - _scaled(other, alpha)


@op("aten.rsub.Scalar", "aten.rsub.Tensor")
def rsub(x: Any, other: Any, alpha: Any = 1) -> Any:
    return sub(other, x, alpha)


@op("aten.mul.Tensor", "aten.mul.Scalar")
def mul(x: Any, other: Any) -> Any:
    x, other = together(x, other)
    return x * other


@op("aten.div.Tensor", "aten.div.Scalar", "aten.true_divide.Tensor")
def div(x: Any, other: Any) -> Any:
    x, other = together(x, other)
    return floating(x) / floating(other)


@op("aten.div.Tensor_mode", "aten.div.Scalar_mode")
def div_mode(x: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
    if rounding_mode is None:
        return div(x, other)
    x, other = together(x, other)
    if rounding_mode == "floor":
        return x // other if kind(x.dtype) == 1 else _floor_float(x, other)
    if rounding_mode == "trunc":
        return lax.div(*jnp.broadcast_arrays(x, other)) if kind(x.dtype) == 1 else jnp.trunc(x / other)
    raise ValueError(f"rounding_mode={rounding_mode!r} is none of torch's")


def _floor_float(x: jax.Array, other: jax.Array) -> jax.Array:
    """The rounded quotient as C's `fmod` makes it, which is what torch takes; by zero, the plain quotient."""
    rest = lax.rem(*jnp.broadcast_arrays(x, other))
    quotient = (x - rest) / other
    quotient = jnp.where((rest != 0) & ((other < 0) != (rest < 0)), quotient - 1, quotient)
    near = jnp.floor(quotient)
    near = jnp.where(quotient - near > 0.5, near + 1, near)
    return jnp.where(other == 0, x / other, jnp.where(quotient != 0, near, jnp.zeros_like(near)))


@op("aten.floor_divide.default", "aten.floor_divide.Scalar")
def floor_divide(x: Any, other: Any) -> Any:
    return div_mode(x, other, rounding_mode="floor")


@op("aten.remainder.Tensor", "aten.remainder.Scalar", "aten.remainder.Scalar_Tensor")
def remainder(x: Any, other: Any) -> Any:
    return jnp.remainder(*together(x, other))


@op("aten.fmod.Tensor", "aten.fmod.Scalar")
def fmod(x: Any, other: Any) -> Any:
    return lax.rem(*jnp.broadcast_arrays(*together(x, other)))


@op("aten.pow.Tensor_Scalar", "aten.pow.Tensor_Tensor", "aten.pow.Scalar", "aten.float_power.Tensor_Scalar")
def power(x: Any, exponent: Any) -> Any:
    dtype = promoted(x, exponent)
    base = jnp.asarray(x).astype(dtype)
    whole = isinstance(exponent, (int, float)) and float(exponent).is_integer() and abs(exponent) < 128
    if whole and (kind(dtype) >= 2 or exponent >= 0):
        return lax.integer_pow(base, int(exponent))
    if isinstance(exponent, float) and exponent == 0.5:
        return jnp.sqrt(base)
    return jnp.power(base, jnp.asarray(exponent).astype(dtype))


_COMPARED = ("Tensor", "Scalar")
_BITS = ("Tensor", "Scalar", "Scalar_Tensor")
_SHIFTED = ("Tensor", "Tensor_Scalar", "Scalar_Tensor")
for _name, _forms, _function in (
    ("maximum", ("default",), jnp.maximum),
    ("minimum", ("default",), jnp.minimum),
    ("fmax", ("default",), jnp.fmax),
    ("fmin", ("default",), jnp.fmin),
    ("bitwise_and", _BITS, jnp.bitwise_and),
    ("bitwise_or", _BITS, jnp.bitwise_or),
    ("bitwise_xor", _BITS, jnp.bitwise_xor),
    ("bitwise_left_shift", _SHIFTED, jnp.left_shift),
    ("bitwise_right_shift", _SHIFTED, jnp.right_shift),
    ("__and__", _COMPARED, jnp.bitwise_and),
    ("__or__", _COMPARED, jnp.bitwise_or),
    ("__xor__", _COMPARED, jnp.bitwise_xor),
    ("__lshift__", _COMPARED, jnp.left_shift),
    ("__rshift__", _COMPARED, jnp.right_shift),
    ("eq", _COMPARED, jnp.equal),
    ("ne", _COMPARED, jnp.not_equal),
    ("lt", _COMPARED, jnp.less),
    ("le", _COMPARED, jnp.less_equal),
    ("gt", _COMPARED, jnp.greater),
    ("ge", _COMPARED, jnp.greater_equal),
):
    op(*(f"aten.{_name}.{form}" for form in _forms))(lambda x, other, _f=_function: _f(*together(x, other)))
op("aten.max.other")(lambda x, other: jnp.maximum(*together(x, other)))
op("aten.min.other")(lambda x, other: jnp.minimum(*together(x, other)))

for _name, _function in {
    "logical_and": jnp.logical_and,
    "logical_or": jnp.logical_or,
    "logical_xor": jnp.logical_xor,
}.items():
    op(f"aten.{_name}.default")(lambda x, other, _f=_function: _f(x, other))

for _name, _forms, _function in (
    ("atan2", ("default",), jnp.arctan2),
    ("hypot", ("default",), jnp.hypot),
    ("copysign", ("Tensor", "Scalar"), jnp.copysign),
    ("xlogy", ("Tensor", "Scalar_Self", "Scalar_Other"), special.xlogy),
    ("logaddexp", ("default",), jnp.logaddexp),
):
    op(*(f"aten.{_name}.{form}" for form in _forms))(
        lambda x, other, _f=_function: _f(*(floating(v) for v in together(x, other)))
    )

for _name, _function in {"gcd": jnp.gcd, "lcm": jnp.lcm, "nextafter": jnp.nextafter}.items():
    op(f"aten.{_name}.default")(lambda x, other, _f=_function: _f(*together(x, other)))


@op("aten.ldexp.Tensor")
def ldexp(x: Any, power: Any) -> Any:
    return floating(x) * jnp.exp2(floating(power))


# ---- three


@op("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar")
def where(condition: Any, x: Any, other: Any) -> Any:
    return jnp.where(condition, *together(x, other))


@op("aten.clamp.default", "aten.clamp.Tensor", "aten.clip.default")
def clamp(x: Any, min: Any = None, max: Any = None) -> Any:
    dtype = promoted(x, min, max)
    x = jnp.asarray(x).astype(dtype)
    x = x if min is None else jnp.maximum(x, jnp.asarray(min).astype(dtype))
    return x if max is None else jnp.minimum(x, jnp.asarray(max).astype(dtype))


@op("aten.clamp_min.default", "aten.clamp_min.Tensor")
def clamp_min(x: Any, min: Any) -> Any:
    return clamp(x, min)


@op("aten.clamp_max.default", "aten.clamp_max.Tensor")
def clamp_max(x: Any, max: Any) -> Any:
    return clamp(x, None, max)


@op("aten.hardtanh.default")
def hardtanh(x: Any, min_val: Any = -1, max_val: Any = 1) -> Any:
    return jnp.clip(x, jnp.asarray(min_val, x.dtype), jnp.asarray(max_val, x.dtype))


@op("aten.lerp.Scalar", "aten.lerp.Tensor")
def lerp(start: Any, end: Any, weight: Any) -> Any:
    return start + jnp.asarray(weight, start.dtype) * (end - start)


@op("aten.addcmul.default")
def addcmul(x: Any, first: Any, second: Any, *, value: Any = 1) -> Any:
    x, first, second = together(x, first, second)
    return x + _scaled(first * second, value)


@op("aten.addcdiv.default")
def addcdiv(x: Any, first: Any, second: Any, *, value: Any = 1) -> Any:
    x, first, second = together(x, first, second)
    return x + _scaled(first / second, value)


@op("aten.nan_to_num.default")
def nan_to_num(x: Any, nan: float | None = None, posinf: float | None = None, neginf: float | None = None) -> Any:
    return jnp.nan_to_num(x, nan=0.0 if nan is None else nan, posinf=posinf, neginf=neginf)


# ---- activations


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

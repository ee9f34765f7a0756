"""Operators on entries: arithmetic, comparisons, functions of one argument, activations."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy import special

from .table import dtype_named, floating, fractions, kind, promoted, together, torch_op

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
    "digamma": lambda x: jnp.where(x == 0, -jnp.copysign(jnp.inf, x), lax.digamma(x)),
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
    x, other = fractions(x, other)
    return x / other if kind(x.dtype) == 3 else quotient(x, other)


@jax.custom_jvp
def quotient(x: jax.Array, other: jax.Array) -> jax.Array:
    """`x / other`, exact where it is whole.

    XLA multiplies by `1 / other` where `other` is broadcast: 41 / 41 is then a little less than 1, and its floor 0.
    """
    near = x / other
    whole = jnp.round(near)
    return jnp.where(whole * other == x, whole, near)


@quotient.defjvp
def _(values: Any, tangents: Any) -> Any:
    return quotient(*values), jax.jvp(lambda x, other: x / other, values, tangents)[1]


@op("aten.div.Tensor_mode", "aten.div.Scalar_mode")
def div_mode(x: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
    if rounding_mode is None:
        return div(x, other)
    x, other = together(x, other)
    if rounding_mode == "floor":
        return x // other if kind(x.dtype) == 1 else _floor_float(x, other)
    if rounding_mode == "trunc":
        if kind(x.dtype) == 1:
            return lax.div(*jnp.broadcast_arrays(x, other))
        return jnp.trunc(quotient(x, other))
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


@op("aten.pow.Tensor_Scalar", "aten.pow.Tensor_Tensor", "aten.pow.Scalar")
def power(x: Any, exponent: Any) -> Any:
    dtype = promoted(x, exponent)
    base = jnp.asarray(x).astype(dtype)
    whole = isinstance(exponent, (int, float)) and float(exponent).is_integer() and abs(exponent) < 128
    if whole and (kind(dtype) >= 2 or exponent >= 0):
        return lax.integer_pow(base, int(exponent))
    if isinstance(exponent, float) and abs(exponent) == 0.5 and kind(dtype) == 2:
        return jnp.sqrt(base) if exponent > 0 else 1 / jnp.sqrt(base)
    return jnp.power(base, jnp.asarray(exponent).astype(dtype))


@op("aten.float_power.Tensor_Scalar")
def float_power(x: Any, exponent: Any) -> Any:
    return power(x.astype(dtype_named("complex128" if kind(x.dtype) == 3 else "float64")), exponent)


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
    op(*(f"aten.{_name}.{form}" for form in _forms))(lambda x, other, _f=_function: _f(*fractions(x, other)))

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
    weight = jnp.asarray(weight, start.dtype)
    return jnp.where(jnp.abs(weight) < 0.5, start + weight * (end - start), end - (end - start) * (1 - weight))


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

"""Operators of matrices: inverses, determinants and the decompositions. Signs of vectors are as JAX finds them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy import linalg

from .table import torch_op

op = torch_op.register


def _across(x: Any) -> Any:
    return jnp.swapaxes(x, -1, -2).conj()


def _told(result: Any) -> Any:
    """With a 0 for each matrix where it worked out; where not, a 1, and not the column where torch's went wrong."""
    return result, (~jnp.isfinite(result).all(axis=(-1, -2))).astype(jnp.int32)


@op("aten.linalg_inv.default", "aten.inverse.default")
def inv(x: Any) -> Any:
    return jnp.linalg.inv(x)


@op("aten.linalg_inv_ex.default")
def inv_ex(x: Any, *, check_errors: bool = False) -> Any:
    return _told(jnp.linalg.inv(x))


@op("aten.linalg_det.default", "aten.det.default")
def det(x: Any) -> Any:
    return jnp.linalg.det(x)


@op("aten._linalg_det.default")
def det_with_parts(x: Any) -> Any:
    return jnp.linalg.det(x), None, None


@op("aten.linalg_slogdet.default", "aten.slogdet.default")
def slogdet(x: Any) -> Any:
    return tuple(jnp.linalg.slogdet(x))


@op("aten._linalg_slogdet.default")
def slogdet_with_parts(x: Any) -> Any:
    return (*slogdet(x), None, None)


@op("aten.logdet.default")
def logdet(x: Any) -> Any:
    sign, size = jnp.linalg.slogdet(x)
    return jnp.where(sign < 0, jnp.nan, size)


@op("aten.linalg_solve.default")
def solve(a: Any, b: Any, *, left: bool = True) -> Any:
    vector = b.ndim == 1 or (a.ndim - 1 == b.ndim and b.shape == a.shape[:-1])
    if vector:
        return jnp.linalg.solve(a, b[..., None])[..., 0]
    return jnp.linalg.solve(a, b) if left else _across(jnp.linalg.solve(_across(a), _across(b)))


@op("aten.linalg_solve_triangular.default")
def solve_triangular(a: Any, b: Any, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Any:
    lead = jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (jnp.broadcast_to(x, (*lead, *x.shape[-2:])) for x in (a, b))
    return jax.lax.linalg.triangular_solve(a, b, left_side=left, lower=not upper, unit_diagonal=unitriangular)


@op("aten.linalg_cholesky.default", "aten.cholesky.default")
def cholesky(x: Any, upper: bool = False) -> Any:
    lower = jnp.linalg.cholesky(x, symmetrize_input=False)
    return _across(lower) if upper else lower


@op("aten.linalg_cholesky_ex.default")
def cholesky_ex(x: Any, *, upper: bool = False, check_errors: bool = False) -> Any:
    return _told(cholesky(x, upper))


@op("aten.cholesky_solve.default")
def cholesky_solve(b: Any, factor: Any, upper: bool = False) -> Any:
    return linalg.cho_solve((factor, not upper), b)


@op("aten.linalg_eigh.default", "aten._linalg_eigh.default")
def eigh(x: Any, triangle: str = "L", compute_v: bool = True) -> Any:
    return tuple(jnp.linalg.eigh(x, UPLO=triangle.upper(), symmetrize_input=False))


@op("aten.linalg_eigvalsh.default")
def eigvalsh(x: Any, triangle: str = "L") -> Any:
    return eigh(x, triangle)[0]


@op("aten.linalg_svd.default")
def svd(x: Any, full_matrices: bool = True, **_: Any) -> Any:
    return tuple(jnp.linalg.svd(x, full_matrices=full_matrices))


@op("aten._linalg_svd.default")
def svd_reduced(x: Any, full_matrices: bool = False, compute_uv: bool = True, **_: Any) -> Any:
    if not compute_uv:
        none = jnp.zeros((0,), x.dtype)
        return none, svdvals(x), none
    return svd(x, full_matrices)


@op("aten.svd.default")
def svd_of_old(x: Any, some: bool = True, compute_uv: bool = True) -> Any:
    u, s, v = jnp.linalg.svd(x, full_matrices=not some)
    return u, s, _across(v)


@op("aten.linalg_svdvals.default")
def svdvals(x: Any, **_: Any) -> Any:
    return jnp.linalg.svd(x, compute_uv=False)


@op("aten.linalg_qr.default", "aten.qr.default")
def qr(x: Any, mode: str | bool = "reduced") -> Any:
    if mode == "r":
        return jnp.zeros((0,), x.dtype), jnp.linalg.qr(x, mode="r")
    return tuple(jnp.linalg.qr(x, mode=mode if isinstance(mode, str) else "reduced" if mode else "complete"))


@op("aten.linalg_matrix_exp.default", "aten.matrix_exp.default")
def matrix_exp(x: Any) -> Any:
    return linalg.expm(x)


@op(
    "aten.linalg_pinv.default",
    "aten.linalg_pinv.atol_rtol_tensor",
    "aten.linalg_pinv.atol_rtol_float",
)
def pinv(x: Any, rcond: Any = None, hermitian: bool = False, *, atol: Any = None, rtol: Any = None) -> Any:
    """Without what is smaller than both limits: `atol`, and `rtol` of the largest singular value."""
    u, s, v = jnp.linalg.svd(x, full_matrices=False)
    rtol = rcond if rtol is None else rtol
    if rtol is None:
        rtol = 0.0 if atol is not None else max(x.shape[-2:]) * float(jnp.finfo(x.dtype).eps)
    last = lambda limit: jnp.asarray(limit, s.dtype)[..., None]
    least = jnp.maximum(last(0.0 if atol is None else atol), last(rtol) * s[..., :1])
    inverse = jnp.where(s > least, 1 / jnp.where(s > least, s, 1), 0)
    return _across(v) @ (inverse[..., None] * _across(u))


@op("aten.pinverse.default")
def pinverse(x: Any, rcond: float = 1e-15) -> Any:
    return pinv(x, rcond)

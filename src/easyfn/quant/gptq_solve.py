"""GPTQ: rounding one column at a time, each error made up for by the columns that follow (arXiv 2210.17323)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .grouped import Grouped, group_of, grouped
from .rounding import inverse as reciprocal, round_groups

_BLOCK = 128  # columns whose errors reach the columns after the block in one product


def gptq_codes(
    w: jax.Array, gram: jax.Array, like: Grouped, *, act_order: bool = False, damping: float = 0.01
) -> Grouped:
    """The codes, in the format of `like`, with which the output of `w` changes least for inputs of which `gram` is
    `X^T X`.

    Algorithm 1 of the paper: columns are rounded in order (with `act_order` those of the largest inputs first), and what
    a column loses is spread over the ones not yet rounded, by the inverse of the Hessian, of which a Cholesky factor is all
    that is needed. A group's scale is chosen from its columns as they stand when it is reached. `damping`, a part of the
    Hessian's mean diagonal, is added to it, ten times as much wherever the factor is not finite.

    `w`: `(out, in)`; `gram`: `(in, in)`, up to a factor. An input that was never seen has no say: its column is rounded
    to nearest, not dropped as in the authors' code.

    ```python
    import jax, jax.numpy as jnp, easyfn as ef
    w, x = jax.random.normal(jax.random.key(0), (16, 64)), jax.random.normal(jax.random.key(1), (256, 8))
    x = x @ jax.random.normal(jax.random.key(2), (8, 64))     # inputs that go together
    plain = ef.QuantConfig("int4", 32).encode(w)
    better = ef.quant.gptq_codes(w, x.T @ x, plain)
    error = lambda q: jnp.linalg.norm(ef.dot(q, x) - x @ w.T)
    assert error(better) < 0.5 * error(plain)
    ```
    """
    if like.smooth is not None or like.order is not None:
        raise ValueError("gptq: the format to write in has an order or smoothing of its own")
    w = w.astype(jnp.float32)
    order = jnp.argsort(-jnp.diagonal(gram), stable=True) if act_order else None
    if order is not None:
        w, gram = w[:, order], gram[order][:, order]
    symmetric = like.zeros is None
    codes, scales, zeros = _round(w, _factor(gram, damping), like.bits, group_of(like), symmetric, like.scales.dtype)
    return grouped(
        codes,
        scales,
        None if symmetric else zeros.astype(like.zeros.dtype),
        bits=like.bits,
        order=None if order is None else order.astype(jnp.int32)[None],
        dtype=like.dtype,
        activations=like.activations,
        name=like.name,
    )


def _factor(gram: jax.Array, damping: float) -> jax.Array:
    """The upper triangular `U` with `U^T U` the inverse of the damped Hessian.

    Of the Hessian read backwards, `C C^T`, so that the inverse is never made: `U` is the inverse of `C` read backwards.
    """
    diagonal = jnp.diagonal(gram)
    mean = jnp.sum(diagonal) / jnp.maximum(jnp.sum(diagonal > 0), 1)
    mean = jnp.where(mean > 0, mean, 1.0)
    gram = gram + jnp.diag(jnp.where(diagonal > 0, 0.0, mean))
    eye = jnp.eye(gram.shape[0], dtype=jnp.float32)

    def attempt(damping: jax.Array) -> jax.Array:
        lower = lax.linalg.cholesky((gram + damping * mean * eye)[::-1, ::-1], symmetrize_input=False)
        return lax.linalg.triangular_solve(lower, eye, left_side=True, lower=True)[::-1, ::-1]

    def broken(state: Any) -> jax.Array:
        return ~jnp.all(jnp.isfinite(state[1])) & (state[0] < 1e4)

    start = jnp.float32(damping)
    return lax.while_loop(broken, lambda state: (10 * state[0], attempt(10 * state[0])), (start, attempt(start)))[1]


def _round(
    w: jax.Array, factor: jax.Array, bits: int, group: int, symmetric: bool, dtype: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Codes `(out, in)`, scales and zeros `(out, in / group)`."""
    out, width = w.shape
    size = next(n for n in range(min(_BLOCK, group), 0, -1) if group % n == 0)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)

    def one_group(rest: jax.Array, number: jax.Array) -> Any:
        """`rest` is the weight transposed, with all that earlier columns left to make up for."""
        mine = lax.dynamic_slice_in_dim(rest, number * group, group).T
        _, scale, zero = round_groups(mine, bits, group, symmetric=symmetric)
        scale = scale[:, 0].astype(dtype)
        zero = jnp.zeros(out) if zero is None else zero[:, 0].astype(jnp.float32)
        step = scale.astype(jnp.float32)
        inverse = reciprocal(step)

        def one_block(rest: jax.Array, block: jax.Array) -> Any:
            start = number * group + block * size
            rows = lax.dynamic_slice_in_dim(factor, start, size)
            within = lax.dynamic_slice_in_dim(rows, start, size, axis=1)

            def column(j: jax.Array, state: Any) -> Any:
                here, errors, codes = state
                code = jnp.clip(jnp.round(here[j] * inverse) + zero, low, high)
                error = (here[j] - step * (code - zero)) / within[j, j]
                here = here - within[j][:, None] * error[None]
                return here, errors.at[j].set(error), codes.at[j].set(code.astype(codes.dtype))

            here = lax.dynamic_slice_in_dim(rest, start, size)
            codes = jnp.zeros((size, out), jnp.int8 if symmetric else jnp.uint8)
            _, errors, codes = lax.fori_loop(0, size, column, (here, jnp.zeros_like(here), codes))
            rest = rest - jnp.matmul(rows.T, errors, precision=lax.Precision.HIGHEST)
            return rest, codes

        rest, codes = lax.scan(one_block, rest, jnp.arange(group // size))
        return rest, (codes, scale, zero)

    _, (codes, scales, zeros) = lax.scan(one_group, w.T, jnp.arange(width // group))
    return codes.reshape(width, out).T, scales.T, zeros.T

"""Products of two arrays of 16-bit floats, in the form that the processor at hand multiplies fastest.

XLA on CPU sums products of bfloat16 in float32 by instructions that some processors have. Where they are missing, or slow, a
product of many rows takes half as long again as the same in float32, and writing both operands as float32 first is cheaper;
one of few rows is bound by reading the weight and stays as it is. Both forms are exact products with sums in float32.
Accelerators are never given the second one.
"""

from __future__ import annotations

import functools
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

FLAG = "EASYFN_WIDEN"
MANY = 128  # rows and columns of a result: below, writing the operands anew costs what the faster product saves
_TRY = (256, 512, 1024)  # rows, in, out of the products that are timed: some 5 ms each


def product(a: jax.Array, b: jax.Array, dims: Any) -> jax.Array:
    """`lax.dot_general(a, b, dims)` of two arrays of one dtype, in float32."""
    plain = functools.partial(lax.dot_general, dimension_numbers=dims, preferred_element_type=jnp.float32)
    if (
        a.dtype.itemsize != 2
        or min(_free(a, *_axes(dims, 0)), _free(b, *_axes(dims, 1))) < MANY
        or not widens(a.dtype.name)
    ):
        return plain(a, b)
    wide = lambda a, b: plain(a.astype(jnp.float32), b.astype(jnp.float32))
    return lax.platform_dependent(a, b, cpu=wide, default=plain)


def product_form(dtype: Any) -> str:
    """The dtype in which products of many rows of 16 bits are made here: their own, or `"float32"` on a CPU that so is faster.

    Measured once in a process, at the first such product, in some 0.2 s. `EASYFN_WIDEN=0` or `1` in the environment says
    it instead, which makes the last bits of results the same in all processes. Several processes of one program
    must agree, so nothing is measured there, and it is their own.

    ```python
    import easyfn as ef
    assert ef.nn.product_form("bfloat16") in ("bfloat16", "float32")
    ```
    """
    name = jnp.dtype(dtype).name
    return "float32" if jnp.dtype(dtype).itemsize == 2 and widens(name) else name


def widens(dtype: str) -> bool:
    told = os.environ.get(FLAG)
    if told in ("0", "1"):
        return told == "1" and jax.default_backend() == "cpu"
    if told is not None:
        raise ValueError(f"{FLAG}={told!r} in the environment: it is 0, 1 or not there")
    if jax.default_backend() != "cpu" or jax.process_count() > 1:
        return False
    return ratio(dtype) < 0.95


@functools.cache
def ratio(dtype: str) -> float:
    """The time of a product of many rows whose operands are written as float32 first, over that of the product as it is."""
    # A thread has none of the caller's trace, mesh or settings.
    with ThreadPoolExecutor(1) as apart:
        return apart.submit(_measured, dtype).result()


def _measured(dtype: str) -> float:
    rows, within, out = _TRY
    device = jax.local_devices(backend="cpu")[0]
    a, b = (jax.device_put(jnp.ones((n, within), dtype), device) for n in (rows, out))
    contract = (((1,), (1,)), ((), ()))
    plain = jax.jit(lambda a, b: lax.dot_general(a, b, contract, preferred_element_type=jnp.float32))
    wide = jax.jit(lambda a, b: lax.dot_general(a.astype(jnp.float32), b.astype(jnp.float32), contract))
    best = {plain: float("inf"), wide: float("inf")}
    for _ in range(6):  # the first compiles
        for form in best:
            start = time.perf_counter()
            jax.block_until_ready(form(a, b))
            best[form] = min(best[form], time.perf_counter() - start)
    return best[wide] / best[plain]


def _axes(dims: Any, side: int) -> tuple[Any, Any]:
    return dims[0][side], dims[1][side]


def _free(x: jax.Array, contracted: Any, batched: Any) -> int:
    """Rows of one operand: its entries beside those that are summed over and those of a batch."""
    size = 1
    for axis, n in enumerate(x.shape):
        size *= 1 if axis in contracted or axis in batched else n
    return size

"""The table of operators: what a node of a program runs, by the name that torch gives the operator."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

F = TypeVar("F", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Operator:
    """A function of JAX arrays for an operator of torch; `weights` are the arguments that it takes as weight slots."""

    function: Callable[..., Any]
    weights: tuple[int, ...] = ()


class Operators:
    """The operators that [`easyfn.from_torch`][] knows, by their names in torch (`aten.add.Tensor`).

    ```python
    import jax.numpy as jnp, easyfn as ef

    @ef.torch_op.register("mine.twice.default")
    def twice(x):
        return 2 * x

    assert "mine.twice.default" in ef.torch_op
    ```
    """

    def __init__(self) -> None:
        self._table: dict[str, Operator] = {}

    def register(self, *names: str, weights: tuple[int, ...] = (), override: bool = False) -> Callable[[F], F]:
        """Teaches operators by name; use as a decorator of a function with the operator's own arguments.

        Tensors come as JAX arrays, dtypes as JAX dtypes, sizes as integers; layouts, devices and memory formats are left
        out. `weights` are the numbers of the arguments that come as weight slots, for [`easyfn.dot`][] and
        [`easyfn.take`][]: others come dense. Raises `ValueError` for a name that is taken unless `override` is set.
        """
        for name in names:
            if name in self._table and not override:
                raise ValueError(f"torch_op: {name!r} is registered already; pass override=True to replace it")

        def decorate(function: F) -> F:
            for name in names:
                self._table[name] = Operator(function, weights)
            return function

        return decorate

    def __contains__(self, name: object) -> bool:
        return name in self._table

    def __getitem__(self, name: str) -> Operator:
        return self._table[name]

    def names(self) -> list[str]:
        return sorted(self._table)

    def __repr__(self) -> str:
        return f"<torch_op: {len(self._table)} operators>"


torch_op = Operators()


def drawn(random: bool) -> None:
    """Refuses an operator that would draw random numbers: dropout that is on though the module is in eval mode."""
    if random:
        raise ValueError("the module drops out at random in eval mode too, which no program does: give it a rate of 0")


# ---- dtypes as torch has them


def dtype_named(name: str) -> np.dtype[Any]:
    """The dtype JAX computes with where torch says `int64`, `float64`, ...: 32 bits unless JAX has 64 enabled."""
    return np.dtype(jax.dtypes.canonicalize_dtype({"bool": "bool_"}.get(name, name)))


def kind(dtype: Any) -> int:
    """Torch's categories: 0 boolean, 1 integer, 2 floating, 3 complex."""
    if dtype == jnp.bool_:
        return 0
    if jnp.issubdtype(dtype, jnp.integer):
        return 1
    return 3 if jnp.issubdtype(dtype, jnp.complexfloating) else 2


def default_of(category: int) -> np.dtype[Any]:
    return dtype_named(("bool", "int64", "float32", "complex64")[category])


def promoted(*values: Any) -> np.dtype[Any]:
    """The common dtype of torch's rules: arrays with axes first, then those without, Python's numbers last.

    A later group counts only if its category (boolean, integer, floating, complex) is a higher one.
    """
    groups: list[np.dtype[Any] | None] = [None, None, None]
    for value in values:
        if value is None:
            continue
        if hasattr(value, "dtype"):
            group, dtype = (0 if value.ndim else 1), np.dtype(value.dtype)
        else:
            category = (
                0
                if isinstance(value, bool)
                else 1
                if isinstance(value, int)
                else 3
                if isinstance(value, complex)
                else 2
            )
            group, dtype = 2, default_of(category)
        old = groups[group]
        groups[group] = dtype if old is None else np.dtype(jnp.promote_types(old, dtype))
    result: np.dtype[Any] | None = None
    for dtype in groups:
        if dtype is None:
            continue
        if result is None or (kind(dtype) > kind(result)):
            wide = result is not None and kind(dtype) == 3 and kind(result) == 2
            result = np.dtype(jnp.promote_types(result, jnp.complex64)) if wide and result is not None else dtype
    return default_of(2) if result is None else result


def together(*values: Any) -> tuple[jax.Array, ...]:
    """The values as arrays of their common dtype."""
    dtype = promoted(*values)
    return tuple(jnp.asarray(v).astype(dtype) for v in values)


def fractions(*values: Any) -> tuple[jax.Array, ...]:
    """The values as arrays of their common dtype, in which whole numbers are float32: -1 beside bytes is no 255."""
    dtype = promoted(*values)
    dtype = dtype if kind(dtype) >= 2 else default_of(2)
    return tuple(jnp.asarray(v).astype(dtype) for v in values)


def floating(x: Any) -> jax.Array:
    """Integers and booleans as float32, as torch does in front of `exp` and the like."""
    x = jnp.asarray(x)
    return x if kind(x.dtype) >= 2 else x.astype(default_of(2))


def axis_of(dim: int, ndim: int) -> int:
    """A dimension counted from the front; torch allows 0 and -1 for arrays without any."""
    limit = max(ndim, 1)
    if not -limit <= dim < limit:
        raise IndexError(f"dimension {dim} of an array with {ndim}")
    return dim % limit


def axes_of_dims(dim: Any, ndim: int) -> tuple[int, ...]:
    """Dimensions to reduce: one, several, or all (`None` or an empty list)."""
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return tuple(range(ndim))
    dims = dim if isinstance(dim, (list, tuple)) else [dim]
    return tuple(axis_of(d, ndim) for d in dims) if ndim else ()

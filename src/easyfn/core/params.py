"""A model as a flat dict of arrays, and back."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .habits import no_path
from .slots import find_slots
from .tree import leaves, near, replace


def params(model: Any) -> dict[str, Any]:
    """Every array of a model by its dotted path, in the order of the model.

    ```python
    import jax.numpy as jnp, easyfn as ef
    assert list(ef.params({"a": jnp.ones(2), "b": (jnp.ones(3),)})) == ["a", "b.0"]
    ```
    """
    return leaves(model)


def with_params(model: Any, new: dict[str, Any]) -> Any:
    """`model` with the arrays of `new` in their places. Paths that `new` does not name are kept.

    Raises `KeyError` for a path that the model does not have, and `ValueError` for another shape.

    ```python
    import jax, easyfn as ef
    model = ef.testing.tiny()
    new = ef.with_params(model, {"model.norm.weight": jax.numpy.zeros(32)})
    assert not new.model.norm.weight.any() and model.model.norm.weight.all()
    ```
    """
    old = leaves(model)
    new = {path: as_leaf(value) for path, value in new.items()}
    for path, value in new.items():
        if path not in old:
            raise KeyError(f"with_params: no array at {path!r}. {_tied(model, path)}{near(path, old)}")
        if value is not None and tuple(value.shape) != tuple(old[path].shape):
            raise ValueError(
                f"with_params: {path} has shape {tuple(old[path].shape)}, the new array {tuple(value.shape)}"
            )
    return replace(model, new)


def _tied(model: Any, path: str) -> str:
    """What is said of a head that a model has no array for."""
    tables = [found.path for found in find_slots(model, ("embedding",))]
    return (
        f"It is None here: a tied head is the embedding, {tables[0]!r}. "
        if getattr(model, path.split(".")[0], 0) is None and tables
        else ""
    )


def as_leaf(value: Any) -> Any:
    """A value for the place of an array: NumPy's and lists become JAX arrays, other leaves stay what they are."""
    return jnp.asarray(value) if isinstance(value, (np.ndarray, np.generic, list, tuple, float, int)) else value


def shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every array by its dotted path.

    ```python
    import easyfn as ef
    model = ef.testing.tiny()
    assert ef.shapes(model)["model.norm.weight"] == (32,)
    ```
    """
    return {path: tuple(leaf.shape) for path, leaf in leaves(model).items()}


def split(model: Any, which: Any = eqx.is_array) -> tuple[Any, Any]:
    """Two models in one: where `which` (a predicate or a boolean tree) holds, and the rest; holes are `None`.

    The same as `eqx.partition`; `ef.split(model, ef.trainable(model))` is the usual call.

    ```python
    import jax, easyfn as ef
    model = ef.testing.tiny()
    adapted = ef.apply_lora(model, key=jax.random.key(1))
    trains, frozen = ef.split(adapted, ef.trainable(adapted))
    adapted = ef.combine(trains, frozen)
    ```
    """
    no_path(model)
    return eqx.partition(model, which)


def combine(*models: Any) -> Any:
    """The inverse of [`easyfn.split`][]."""
    return eqx.combine(*models)


def abstract_of(model: Any) -> Any:
    """The model with `jax.ShapeDtypeStruct` leaves, shardings kept."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))

    return jax.tree.map(one, model)

"""Adapters folded into their weights for good, and taken out again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..core.habits import taught
from ..core.slots import find_slots, map_slots
from ..core.trainable import is_adapter
from ..core.tree import expand, is_abstract, lift, near
from ..core.weight import Slot, Weight, dense, requantize, shape_of
from .adapter import change, gain, shift
from .apply import apply_lora, fit, no_adapter, put, walk


@taught
def merge_lora(model: Any, *, dequantize: bool = False, report: bool = False) -> Any:
    """The model with every adapter folded into its weight, for good.

    A plain weight keeps its dtype; the sum is made in float32. A quantized weight is rounded again by its own format,
    which loses a little of the change; with `dequantize=True` it becomes a plain array. With `report=True` returns
    `(model, errors)`: per slot the norm of what rounding lost over the norm of the change. Its inverse is
    [`easyfn.unmerge_lora`][]. Raises `ValueError` if there is no adapter, and for a `lora_bias` on a layer that has no
    bias to fold it into.

    ```python
    import jax, easyfn as ef
    model = ef.testing.tiny()
    merged = ef.merge_lora(ef.apply_lora(model, key=jax.random.key(1)))
    assert jax.tree.structure(merged) == jax.tree.structure(model)
    ```
    """
    errors: dict[str, float] = {}
    count = 0

    def fold(w: Any) -> tuple[Weight, jax.Array | None]:
        exact = dense(dataclasses.replace(w, base=dense(w.base).astype(jnp.float32)))
        merged = exact.astype(dense(w.base).dtype) if dequantize else requantize(w.base, exact)
        if not report:
            return merged, None
        lost = jnp.linalg.norm(dense(merged).astype(jnp.float32) - exact)
        return merged, lost / jnp.maximum(jnp.linalg.norm(exact - dense(w.base).astype(jnp.float32)), 1e-30)

    def merge(path: str, w: Any) -> Any:
        nonlocal count
        count += 1
        stacked = expand(path) != [path]
        merged, error = lift(jax.vmap(fold) if stacked else fold)(w)
        if report:
            errors[path] = float("nan") if is_abstract(error) else float(jnp.max(error))
        return merged

    merged = walk(model, merge)
    if not count:
        raise no_adapter("merge_lora")
    merged = _with_biases(
        "merge_lora", merged, [(f.layer, f.weight) for f in find_slots(model) if is_adapter(f.weight)]
    )
    return (merged, errors) if report else merged


def _with_biases(verb: str, model: Any, adapters: list[tuple[str, Any]], sign: float = 1.0) -> Any:
    """`model` with its biases scaled and shifted as the adapters on the weights of their layers say."""
    gains = {layer: by for layer, w in adapters if (by := gain(w)) is not None}
    shifts = {layer: by for layer, w in adapters if (by := shift(w)) is not None}
    if not gains and not shifts:
        return model
    biases = {f.layer: f.path for f in find_slots(model, ("bias",))}
    if homeless := [layer for layer in shifts if layer not in biases]:
        raise ValueError(f"{verb}: the adapter of {homeless[0]} has a bias (lora_bias), and the layer none to take it")
    layers = {path: layer for layer, path in biases.items() if layer in gains or layer in shifts}

    def move(path: str, slot: Slot, weight: Any) -> Any:
        if path not in layers:
            return weight
        by, more = gains.get(layers[path]), shifts.get(layers[path])

        def moved(weight: Any, by: Any, more: Any) -> Any:
            new = dense(weight).astype(jnp.float32)
            new = new if by is None else new * by[..., 0]
            return requantize(weight, new if more is None else new + sign * more[..., 0])

        return lift(moved)(weight, by, more)

    return map_slots(apply_lora, model, move)


def unmerge_lora(model: Any, adapter: Mapping[str, Any]) -> Any:
    """The model before `adapter` was folded into it: the inverse of [`easyfn.merge_lora`][], to float32 rounding.

    `adapter` is what [`easyfn.split_lora`][] gave. A quantized weight is rounded once more. Raises `ValueError` for
    adapters whose change cannot be told from the sum: DoRA, IA3, weights and rows trained as a whole; keep the base
    of those (`ef.split_lora` gives it, and it costs nothing).

    ```python
    import jax, easyfn as ef
    model = ef.apply_lora(ef.testing.tiny(), key=jax.random.key(1), init="orthogonal")
    base, adapter = ef.split_lora(model)
    again = ef.unmerge_lora(ef.merge_lora(model), adapter)
    assert jax.numpy.allclose(again.model.layers[0].mlp.up_proj.weight, base.model.layers[0].mlp.up_proj.weight, atol=1e-6)
    ```
    """
    found = {f.path: f for f in find_slots(model)}
    fitted = fit(dict(adapter), list(found))
    new = {}
    for path, part in fitted.items():
        if path not in found:
            raise KeyError(f"unmerge_lora: the model has no weight at {path!r}. {near(path, found)}")

        def take_out(weight: Weight, part: Any) -> Weight:
            zeros = jnp.zeros(shape_of(weight), jnp.float32)
            return requantize(weight, dense(weight).astype(jnp.float32) - change(dataclasses.replace(part, base=zeros)))

        try:
            new[path] = lift(jax.vmap(take_out) if expand(path) != [path] else take_out)(found[path].weight, part)
        except ValueError as error:
            raise ValueError(
                f"unmerge_lora: {path} cannot be taken out again: {error}. Keep the base: base, adapter = "
                "ef.split_lora(model)"
            ) from None
    merged = put(model, new)
    return _with_biases("unmerge_lora", merged, [(found[path].layer, part) for path, part in fitted.items()], -1.0)

"""`adapter_ids`: which adapter each row of a batch takes, given to the weights that hold several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .slots import find_slots
from .tree import near, replace
from .weight import routed

BASE = "__base__"  # PEFT's word for a row without an adapter


def by_row(model: Any, adapter_ids: Any, rows: int | None = None) -> Any:
    """`model` in which row `i` of a batch takes the adapter `adapter_ids[i]`: names, or numbers in the order of names,
    -1, `None` or `"__base__"` for no adapter. `rows` is what the batch has.

    A batch of a multiple of the ids' rows (beams, several answers to one prompt) has each row's copies together.
    """
    found = [f for f in find_slots(model) if routed.knows(type(f.weight))]
    if not found:
        raise ValueError(
            "adapter_ids: the model does not hold several adapters. Put them in: "
            "ef.with_adapters(base, {'name': adapter, ...})"
        )
    ids = numbers(adapter_ids, found[0].weight.names)
    if rows is not None and ids.shape[0] != rows:
        raise ValueError(f"adapter_ids are {ids.shape[0]}, and the batch has {rows} rows: one id for each")
    return replace(model, {f.path: routed(f.weight, ids) for f in found})


def of_batch(model: Any, inputs: Mapping[str, Any], rows: int) -> tuple[Any, dict[str, Any]]:
    """`model` with each row's adapter, and the inputs of a batch without the `adapter_ids` that say which.

    For losses that run the head apart from the rest: the head takes them too.
    """
    rest = {name: value for name, value in inputs.items() if name != "adapter_ids"}
    return (by_row(model, inputs["adapter_ids"], rows) if "adapter_ids" in inputs else model), rest


def numbers(adapter_ids: Any, names: tuple[str, ...]) -> jax.Array:
    """Names or numbers of adapters as int32 `(rows,)`."""
    if isinstance(adapter_ids, str) or not isinstance(adapter_ids, (Sequence, np.ndarray, jax.Array)):
        raise TypeError(
            f"adapter_ids are names or numbers, one for each row of the batch, not {adapter_ids!r}; one adapter for all "
            "rows: ef.use_adapter(model, name)"
        )
    if not isinstance(adapter_ids, jax.Array):
        adapter_ids = np.asarray([number(x, names) for x in adapter_ids], np.int32)
    if adapter_ids.ndim != 1 or not adapter_ids.size or not np.issubdtype(adapter_ids.dtype, np.integer):
        raise ValueError(
            f"adapter_ids are integers (rows,), not {adapter_ids.dtype} of shape {tuple(adapter_ids.shape)}"
        )
    if not isinstance(adapter_ids, jax.core.Tracer):
        for i in np.asarray(adapter_ids):
            number(i, names)
    return jnp.asarray(adapter_ids, jnp.int32)


def number(which: Any, names: tuple[str, ...]) -> int:
    """The number of one adapter, -1 for the base."""
    if which is None or (isinstance(which, str) and which == BASE):
        return -1
    if isinstance(which, str):
        if which not in names:
            raise KeyError(f"there is no adapter {which!r}; there are {', '.join(names)}. {near(which, names)}")
        return names.index(which)
    if isinstance(which, (int, np.integer)) and -1 <= which < len(names):
        return int(which)
    raise ValueError(f"there is no adapter {which!r}: numbers are 0 to {len(names) - 1}, and -1 for the base")

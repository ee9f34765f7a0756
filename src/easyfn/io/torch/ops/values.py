"""Operators whose result has as many entries as values say, told how many; and the checks that it is so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp

from .table import default_of, torch_op

op = torch_op.register


@op("easyfn.nonzero.default")
def nonzero(x: Any, size: int) -> Any:
    """The places of what is not 0, and whether there are `size` of them."""
    found = jnp.stack(jnp.nonzero(x, size=size), axis=-1) if x.ndim else jnp.zeros((size, 0))
    return found.astype(default_of(1)), jnp.sum(x != 0) == size


@op("easyfn.index_by_mask.default")
def index_by_mask(x: Any, indices: Sequence[Any], size: int) -> Any:
    """`x[mask]`: a mask is the places of its true entries, one index for each of its axes."""
    full: list[Any] = []
    fits = jnp.asarray(True)
    for i in indices:
        if i is not None and i.dtype in (jnp.bool_, jnp.uint8):
            full += list(jnp.nonzero(i, size=size))
            fits = fits & (jnp.sum(i != 0) == size)
        else:
            full.append(slice(None) if i is None else i)
    return x[tuple(full)], fits


@op("easyfn.masked_select.default")
def masked_select(x: Any, mask: Any, size: int) -> Any:
    x, mask = jnp.broadcast_arrays(x, mask)
    return index_by_mask(x, [mask], size)


@op("easyfn.repeat_interleave.default")
def repeat_interleave(repeats: Any, size: int) -> Any:
    places = jnp.arange(repeats.shape[0], dtype=default_of(1))
    return jnp.repeat(places, repeats, total_repeat_length=size), jnp.sum(repeats) == size


@op("easyfn.repeat_interleave_of.default")
def repeat_interleave_of(x: Any, repeats: Any, dim: int | None, size: int) -> Any:
    x = x.reshape(-1) if dim is None else x
    repeats = jnp.broadcast_to(repeats, (x.shape[dim or 0],))
    return jnp.repeat(x, repeats, axis=dim or 0, total_repeat_length=size), jnp.sum(repeats) == size


@op("easyfn.checked.default")
def checked(results: Sequence[Any], holds: Sequence[Any], places: Sequence[str]) -> Any:
    """The results of a program, if all that it took as its example did still holds."""
    wrong = ~jnp.stack([jnp.asarray(h).astype(bool).reshape(()) for h in holds])
    words = [
        f"a program does what its module did for the example it was converted with, and here the module would do "
        f"something else: {place}. Convert it again with an example for which it does what this call needs"
        for place in places
    ]
    return eqx.branched_error_if(list(results), wrong.any(), jnp.argmax(wrong), words)

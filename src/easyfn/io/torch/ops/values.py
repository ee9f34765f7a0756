"""What values decide: as in the example of a program, and the checks that it is so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp

from .table import default_of, torch_op

op = torch_op.register


@op("easyfn.places.default")
def places(x: Any, size: int) -> Any:
    """The places of what is not 0, of which there should be `size`; a check of the program says whether there are."""
    found = jnp.nonzero(x, size=size) if x.ndim else ()
    return jnp.stack(found, axis=-1).astype(default_of(1)) if found else jnp.zeros((size, 0), default_of(1))


@op("easyfn.power_fits.default")
def power_fits(x: Any, exponent: Any) -> Any:
    """Whether powers of integers are what 64 bits would give, in which torch computes them."""
    if default_of(1).itemsize == 8:
        return jnp.asarray(True)
    return jnp.all(jnp.abs(jnp.asarray(x, jnp.float32)) ** jnp.asarray(exponent, jnp.float32) < 2.0**31)


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

"""Arrays in public signatures: `Int[Array, "batch seq"] | Host | None`.

The shapes of JAX's arrays, tracers included, stand in jaxtyping's words, which the tests have beartype check. What else
may be given is a `Host`: the function makes an array of it, and its own errors say what it takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax

if TYPE_CHECKING:
    Host = Any
else:

    class _NotJax(type):
        def __instancecheck__(cls, value: Any) -> bool:
            return not isinstance(value, jax.Array)

    class Host(metaclass=_NotJax):
        """No array of JAX's: one of NumPy's or torch's, numbers in lists, a shape without numbers."""

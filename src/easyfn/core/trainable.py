"""`trainable`: which arrays a training step changes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from .tree import is_leaf, nodes, rebuild
from .verb import verb
from .weight import slots


@verb
def is_adapter(node: Any) -> bool:
    """Whether a node is an adapter on a frozen weight (a `LoRA`): where there is one, only adapters train."""
    return False


@verb
def trainable(model: Any) -> Any:
    """The boolean tree of a model's trainable arrays, for `eqx.partition`, `optax.masked` and friends.

    With adapters: their arrays and nothing else. Without: every floating point array that is not part of a quantized weight
    and no buffer (a slot of that role: a router's correction bias, running statistics).

    ```python
    import equinox as eqx, easyfn as ef
    model = ef.testing.tiny()
    train, frozen = eqx.partition(model, ef.trainable(model))
    ```
    """
    frozen = any(is_adapter(node) for _, node in nodes(model))

    def go(node: Any) -> Any:
        if trainable.knows(type(node)):
            return trainable.which(type(node))(node)
        if is_leaf(node):
            return not frozen and hasattr(node, "dtype") and bool(jnp.issubdtype(node.dtype, jnp.floating))
        buffers = {name for name, slot in slots(node).items() if slot.role == "buffer"}
        return rebuild(node, lambda name, child: jax.tree.map(lambda _: False, child) if name in buffers else go(child))

    return go(model)

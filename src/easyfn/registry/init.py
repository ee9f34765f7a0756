"""`init`: random weights, from what each layer says of its slots."""

from __future__ import annotations

import re
import zlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core.habits import taught
from ..core.slots import dtype_in
from ..core.tree import at, is_abstract, layers_in, leaves, nodes, replace
from ..core.weight import ByLayer, Slot, slots
from .family import build


@taught
def init(config: Any, *, key: jax.Array, dtype: Any = jnp.float32, task: str | None = None) -> Any:
    """A model with random weights: of a config, or of an abstract model or layer.

    Matrices are normal with the config's `initializer_range` (0.02 if it has none), norms are neutral, biases zero, unless a
    layer says otherwise in its `slots`. Every array has a random stream of its own, named by its path: adding a layer does
    not change the others.

    ```python
    import jax, easyfn as ef
    model = ef.testing.tiny()
    layer = ef.init(ef.nn.Linear(4, 8), key=jax.random.key(1))
    ```
    """
    if isinstance(config, eqx.Module):
        if task is not None:
            raise ValueError("init: a task chooses what to build from a config; this is a model already")
        model, config = config, getattr(config, "config", None)
    else:
        model = build(config, task, key)
    std = getattr(config, "initializer_range", None)
    if std is None:
        std = (getattr(config, "extra", None) or {}).get("initializer_range", 0.02)
    return fill(model, key, std=float(std), dtype=dtype)


def fill(model: Any, key: jax.Array, *, std: float = 0.02, dtype: Any = None, only: Any = None) -> Any:
    """`model` with its abstract leaves filled at random; concrete ones are cast to `dtype` (if given) and kept.

    `only`: the paths to fill; other abstract leaves stay as they are.
    """
    found: dict[str, Slot] = {}
    for path, node in nodes(model):
        for name, slot in slots(node).items():
            found[f"{path}.{name}" if path else name] = slot
    new: dict[str, Any] = {}
    own_dtype = None if dtype is None else dtype_in(model, dtype)
    for path, leaf in leaves(model).items():
        if only is not None and path not in only:
            continue
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        wanted = own_dtype(path) if own_dtype is not None and floating else leaf.dtype
        if not is_abstract(leaf):
            new[path] = leaf.astype(wanted)
            continue
        slot = found.get(path, Slot("other", ()))
        own = jax.random.fold_in(key, zlib.crc32(path.encode()))
        if isinstance(slot.init, ByLayer):
            new[path] = _by_layer(slot.init, model, path, tuple(leaf.shape), wanted)
        else:
            new[path] = _draw(slot.init, own, tuple(leaf.shape), wanted, std)
    return replace(model, new)


def _by_layer(how: ByLayer, model: Any, path: str, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """The array at `path`, or those of the layers of a stacked run. A layer alone is the first of one."""
    found = re.search(r"(?:^|\.)(\d+)(?::(\d+):(\d+))?(?=\.|$)", path)
    if found is None:
        return how.make(0, 1, shape, dtype)
    count = sum(layers_in(part) for part in at(model, path[: found.start()]))
    if found[2] is None:
        return how.make(int(found[1]), count, shape, dtype)
    numbers = range(*map(int, found.groups()))
    return jnp.stack([how.make(number, count, shape[1:], dtype) for number in numbers])


def _draw(how: Any, key: jax.Array, shape: tuple[int, ...], dtype: Any, std: float) -> jax.Array:
    if how == "zeros":
        return jnp.zeros(shape, dtype)
    if how == "ones":
        return jnp.ones(shape, dtype)
    if how == "normal" or isinstance(how, float):
        scale = std if how == "normal" else how
        return (jax.random.normal(key, shape, jnp.float32) * scale).astype(dtype)
    return how(key, shape, dtype)

"""The dtype of a model is the dtype of its arrays."""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from .habits import no_path
from .slots import dtype_in
from .tree import Pattern, is_leaf, join, matches, nothing_matched, rebuild
from .verb import verb
from .weight import format_of


@verb
def cast(model: Any, dtype: Any, pattern: Pattern | None = None) -> Any:
    """`model` with its floating point arrays in `dtype`: all of them, or those whose path the pattern selects.

    Without a pattern, what transformers loads in float32 whatever it is asked for (a router's correction bias, DeepSeek's
    routers) is in float32, as after `ef.load(path, dtype=...)`: the [`easyfn.Slot`][] of such an array names the dtypes.
    Integer arrays and the parts of a quantized weight stay as they are: their dtypes are their format's. Differentiable, so
    that `ef.cast(params, jnp.bfloat16)` inside a training step is mixed precision with float32 masters.

    ```python
    import jax, jax.numpy as jnp, easyfn as ef
    assert ef.cast({"w": jnp.ones(3)}, jnp.bfloat16)["w"].dtype == jnp.bfloat16
    ```
    """
    no_path(model)
    dtype = float_dtype(dtype)
    wanted = dtype_in(model, dtype) if pattern is None else lambda path: dtype
    seen: list[str] = []
    hit: list[str] = []

    def go(path: str, node: Any) -> Any:
        if cast.knows(type(node)) and (pattern is None or matches(pattern, path, node)):
            hit.append(path)
            return cast.which(type(node))(node, wanted(path))
        if format_of(node) is not None:
            seen.append(path)
            return node
        if not is_leaf(node):
            return rebuild(node, lambda name, child: go(join(path, name), child))
        if not hasattr(node, "dtype") or not jnp.issubdtype(node.dtype, jnp.floating):
            return node
        seen.append(path)
        if pattern is not None and not matches(pattern, path, node):
            return node
        hit.append(path)
        return to_dtype(node, wanted(path))

    new = go("", model)
    if pattern is not None and not hit:
        raise nothing_matched("cast", pattern, seen)
    return new


def by_name(dtype: Any) -> np.dtype[Any]:
    """The numpy dtype of a name, a JAX or numpy dtype, or a torch dtype."""
    name = str(dtype).removeprefix("torch.") if type(dtype).__module__ == "torch" else dtype
    if isinstance(name, str) and hasattr(ml_dtypes, name):
        return np.dtype(getattr(ml_dtypes, name))
    return jnp.dtype(name)


def float_dtype(dtype: Any) -> np.dtype[Any]:
    """The dtype that the floating point arrays of a model shall have; integers come from `ef.quantize`."""
    try:
        found = by_name(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise ValueError(
            f"dtype={dtype!r} is no floating point dtype: give 'float32', 'bfloat16' or 'float16', None to keep each "
            "array's own while loading; integers are for ef.quantize (quantize= of ef.load)"
        )
    return found


def to_dtype(leaf: Any, dtype: Any) -> Any:
    """One array, concrete, traced or abstract, in another dtype."""
    if leaf.dtype == dtype:
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)
    return leaf.astype(dtype)


def half(model: Any) -> Any:
    """`ef.cast(model, jnp.float16)`."""
    return cast(model, jnp.float16)


def float32(model: Any) -> Any:
    """`ef.cast(model, jnp.float32)`."""
    return cast(model, jnp.float32)


def dtype_of(model: Any) -> Any:
    """The dtype in which a model computes: that of most of its plain floating point entries.

    A quantized model answers with the dtype of what is left unquantized.

    ```python
    import easyfn as ef
    model = ef.testing.tiny()
    assert ef.dtype_of(model) == "float32" and ef.dtype_of(ef.half(model)) == "float16"
    ```
    """
    no_path(model)
    counts: Counter[Any] = Counter()

    def go(node: Any) -> Any:
        if cast.knows(type(node)):
            inner = getattr(node, "dtype", None)
            if inner is not None:
                counts[jnp.dtype(inner)] += 1
            return node
        if is_leaf(node):
            if hasattr(node, "dtype") and jnp.issubdtype(node.dtype, jnp.floating):
                counts[jnp.dtype(node.dtype)] += node.size
            return node
        return rebuild(node, lambda _, child: go(child))

    go(model)
    if not counts:
        raise ValueError("dtype_of: the model has no floating point arrays")
    return counts.most_common(1)[0][0]

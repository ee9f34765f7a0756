"""Decisions by values (`if x.sum() > 0`, `.item()`, `x[mask]`): a program takes them as the example did, and checks in each
call that they are still right."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

# An operator with as many entries in its result as values say -> ours, which is told how many, and what counts them.
SIZED = {
    "aten.nonzero.default": "easyfn.nonzero.default",
    "aten.index.Tensor": "easyfn.index_by_mask.default",
    "aten.masked_select.default": "easyfn.masked_select.default",
    "aten.repeat_interleave.Tensor": "easyfn.repeat_interleave.default",
    "aten.repeat_interleave.self_Tensor": "easyfn.repeat_interleave_of.default",
}
SCALARS = ("aten.item.default", "aten._local_scalar_dense.default")


@contextlib.contextmanager
def of_the_example(torch: Any) -> Iterator[None]:
    """`torch.export` with the numbers of the example beside its shapes: it runs the module once more to have them."""
    import torch._functorch.config as config

    with config.patch(fake_tensor_propagate_real_tensors=True):
        yield


def asked_for(error: Exception) -> bool:
    """Whether an export failed because the module decides by values."""
    words = f"{type(error).__name__}: {error}"
    return any(w in words for w in ("DataDependent", "data-dependent", "DynamicOutputShape"))


def sizes_by_values(torch: Any, program: Any) -> bool:
    """Whether an array of a program has as many entries as values say."""
    for node in program.graph.nodes:
        value = node.meta.get("val")
        for tensor in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(tensor, torch.Tensor) and any(is_free(torch, size) for size in tensor.shape):
                return True
    return False


def is_free(torch: Any, size: Any) -> bool:
    """Whether a size depends on values."""
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    return isinstance(size, torch.SymInt) and bool(free_unbacked_symbols(size))


def of_example(value: Any) -> Any:
    """The number that a size, a number or a decision had in the example."""
    if isinstance(value, (bool, int, float)):
        return value
    node = value.node
    known = getattr(node.shape_env, "real_tensor_prop_unbacked_vals", None) or {}
    found = node.expr.xreplace(known).xreplace(known)
    if found.free_symbols:
        raise ValueError(f"from_torch: {value} depends on values and on sizes; dynamic=False fixes the sizes")
    return bool(found) if found.is_Boolean else int(found) if found.is_Integer else float(found)

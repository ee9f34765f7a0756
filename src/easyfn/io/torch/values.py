"""Decisions by values (`if x.sum() > 0`, `.item()`, `x[mask]`): a program takes them as the example did, and checks in each
call that they are still right."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

SCALARS = ("aten.item.default", "aten._local_scalar_dense.default")


CHECKS = ("aten._assert_async.msg", "aten._functional_assert_async.msg")


def define(library: Any) -> None:
    """`places(x, size)`: the places of what is not 0, `(size, axes)`, of which the module had `size` for its example."""
    library.define("places(Tensor x, int size) -> Tensor")
    library.impl("places", lambda x, size: x.new_empty((size, x.ndim), dtype=_int64()), "Meta")
    library.impl("places", lambda x, size: x.nonzero().contiguous(), "CPU")


def _int64() -> Any:
    import torch

    return torch.int64


@contextlib.contextmanager
def of_the_example(torch: Any) -> Iterator[None]:
    """`torch.export` with the numbers of the example beside its shapes: it runs the module once more to have them.

    Whole numbers and decisions that Python takes out of arrays are the example's, and so is how many entries a mask picks, each
    with a check in the graph.
    """
    import torch._functorch.config as config
    from torch.overrides import TorchFunctionMode

    class Taken(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            taken = _instead(torch, func, args, kwargs or {})
            return func(*args, **(kwargs or {})) if taken is NotImplemented else taken

    # Where torch's shapes of an operator differ from those of its numbers, the numbers' are taken; recurrent layers of oneDNN
    # have a workspace of a size that no shape says.
    with (
        torch.backends.mkldnn.flags(enabled=False),
        config.patch(fake_tensor_propagate_real_tensors=True, generate_fake_kernels_from_real_mismatches=True),
        Taken(),
    ):
        yield


def _instead(torch: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of a function of torch that depends on values, as in the example; `NotImplemented` of all others."""
    tensor = torch.Tensor
    if func is torch.tensor:  # which reads the numbers of a list one by one
        listed = isinstance(args[0], (list, tuple)) and args[0] and all(isinstance(v, tensor) for v in args[0])
        return torch.stack(list(args[0])).to(**kwargs) if listed else NotImplemented
    if not args or _numbers(torch, args[0]) is None:
        return NotImplemented
    x, *rest = args
    if func is torch.nn.functional.pad and any(isinstance(n, tensor) for n in (rest or [()])[0]):
        return func(
            x, [_taken(torch, n, tensor.item) if isinstance(n, tensor) else n for n in rest[0]], *rest[1:], **kwargs
        )
    if func in (tensor.item, tensor.__bool__, tensor.__int__, tensor.__index__):
        return NotImplemented if x.is_floating_point() or x.is_complex() else _taken(torch, x, func)
    if func in (tensor.nonzero, torch.nonzero, torch.argwhere, tensor.argwhere):
        found = _places(torch, x)
        return found.unbind(1) if kwargs.get("as_tuple") else found
    if func in (torch.where, tensor.where) and not rest and not kwargs:
        return _places(torch, x).unbind(1)
    if func in (torch.masked_select, tensor.masked_select) and rest:
        x, mask = torch.broadcast_tensors(x, rest[0])
        return x[_places(torch, mask).unbind(1)]
    if func is torch.unique_consecutive and x.ndim == 1 and x.numel() and not any(kwargs.values()):
        differs = torch.cat([torch.ones_like(x[:1], dtype=torch.bool), x[1:] != x[:-1]])
        return x[_places(torch, differs).unbind(1)]
    if func is tensor.__getitem__:
        index = rest[0] if isinstance(rest[0], tuple) else (rest[0],)
        if not any(_is_mask(torch, i) for i in index):
            return NotImplemented
        parts = (_places(torch, i).unbind(1) if _is_mask(torch, i) else (i,) for i in index)
        return x[tuple(i for part in parts for i in part)]
    if func in (torch.repeat_interleave, tensor.repeat_interleave) and kwargs.get("output_size") is None:
        repeats = kwargs.get("repeats", rest[0] if rest else x)
        if not isinstance(repeats, tensor) or repeats.numel() == 1:  # of one number for all there is no count to know
            return NotImplemented
        return func(*args, **{**kwargs, "output_size": _taken(torch, repeats.sum(), tensor.item)})
    return NotImplemented


def _is_mask(torch: Any, index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)


def _numbers(torch: Any, array: Any) -> Any:
    """The example's numbers of an array, `None` where there are none."""
    from torch._subclasses.functional_tensor import FunctionalTensor

    inner = torch._from_functional_tensor(array.elem) if isinstance(array, FunctionalTensor) else array
    return getattr(inner, "real_tensor", None)


def _taken(torch: Any, array: Any, func: Any) -> Any:
    """A number or decision of the example, with its check."""
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes():
        value = func(_numbers(torch, array))
    same = (array != 0) == value if isinstance(value, bool) else array == value
    torch.ops.aten._assert_async.msg(same.all(), "as in the example")
    return value


def _places(torch: Any, mask: Any) -> Any:
    return torch.ops.easyfn.places(mask, _taken(torch, (mask != 0).sum(), torch.Tensor.item))


def asked_for(error: Exception) -> bool:
    """Whether an export failed because the module decides by values."""
    words = f"{type(error).__name__}: {error}"
    return any(w in words for w in ("DataDependent", "data-dependent", "DynamicOutputShape"))


def sizes_by_values(torch: Any, program: Any) -> bool:
    """Whether an array of a program has as many entries as values say."""
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    for node in program.graph.nodes:
        value = node.meta.get("val")
        for tensor in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(tensor, torch.Tensor) and free_unbacked_symbols(tensor.shape):
                return True
    return False


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

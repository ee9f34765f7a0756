"""A module made ready for its export, and put back as it was; its example inputs by name."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .delta import one_operator
from .experts import followed, operators
from .recurrent import at_any_length


def example_dict(module: Any, example_inputs: Any) -> dict[str, Any]:
    """The example inputs by the names of the arguments of `module.forward`, arrays as tensors."""
    import torch

    if isinstance(example_inputs, Mapping):
        given = dict(example_inputs)
    else:
        args = example_inputs if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
        given = dict(inspect.signature(module.forward).bind(*args).arguments)
        for name, parameter in inspect.signature(module.forward).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) and name in given:
                raise TypeError(f"from_torch: give the inputs of {type(module).__name__}.forward by name, as a dict")
    out: dict[str, Any] = {}
    for name, value in given.items():
        if value is None or isinstance(value, (bool, int, float, str, torch.Tensor)):
            out[name] = value
        elif hasattr(value, "shape") or isinstance(value, list):
            array = np.asarray(value)
            array = array.astype(np.int64) if array.dtype == np.int32 else array
            out[name] = torch.from_numpy(np.array(array.astype(np.float32) if array.dtype == np.float64 else array))
        else:
            raise TypeError(
                f"from_torch: the example input {name!r} is a {type(value).__name__}; give tensors or arrays"
            )
    if not any(isinstance(v, torch.Tensor) for v in out.values()):
        raise TypeError("from_torch: there is no tensor among the example inputs")
    return out


@contextlib.contextmanager
def prepared(module: Any, fixed: dict[str, Any]) -> Iterator[None]:
    """Eval mode, and of transformers' modules no cache, named outputs, and kernels that can be followed; all put back."""
    import torch

    modes = [(m, m.training) for m in module.modules()]
    before: list[tuple[Any, str, Any]] = []
    hf = hasattr(getattr(module, "config", None), "to_diff_dict")
    experts_of = followed(torch, module) if hf else contextlib.nullcontext("")
    with one_operator(torch, module), _cast_once(torch), at_any_length(torch, operators(torch)), experts_of as experts:
        try:
            module.eval()
            for owner, name, value in _settings(module, fixed, experts) if hf else ():
                before.append((owner, name, getattr(owner, name)))
                setattr(owner, name, value)
            yield
        finally:
            for owner, name, value in before:
                setattr(owner, name, value)
            for part, mode in modes:
                part.training = mode


@contextlib.contextmanager
def _cast_once(torch: Any) -> Iterator[None]:
    """A module that casts a part of itself (`self.fc.to(dtype)`) to what it is already leaves it alone: during an export its
    parameters cannot be put into it anew."""
    theirs = torch.nn.Module.to

    def to(self: Any, *args: Any, **kwargs: Any) -> Any:
        if all(isinstance(a, torch.dtype) for a in (*args, *kwargs.values())):
            wanted = {*args, *kwargs.values()}
            if {p.dtype for p in self.parameters() if p.is_floating_point()} <= wanted:
                return self
        return theirs(self, *args, **kwargs)

    torch.nn.Module.to = to
    try:
        yield
    finally:
        torch.nn.Module.to = theirs


def _settings(module: Any, fixed: dict[str, Any], experts: str) -> Iterator[tuple[Any, str, Any]]:
    """What the config of a transformers module should say; what its forward pass takes as an argument goes to `fixed`."""
    config, names = module.config, inspect.signature(module.forward).parameters
    any_name = any(p.kind is p.VAR_KEYWORD for p in names.values())
    if "use_cache" in names:
        fixed.setdefault("use_cache", False)
    elif any_name and getattr(config, "use_cache", None):
        yield config, "use_cache", False
    if "return_dict" in names or any_name:
        fixed.setdefault("return_dict", True)
    for each in _configs(config):
        if hasattr(each, "_experts_implementation_internal"):
            yield each, "_experts_implementation_internal", experts
        if getattr(each, "_attn_implementation_internal", None) not in ("eager", "sdpa", None):
            yield each, "_attn_implementation_internal", "sdpa"


def _configs(config: Any) -> list[Any]:
    found = [config]
    for name in getattr(config, "sub_configs", None) or ():
        if (inner := getattr(config, name, None)) is not None and hasattr(inner, "to_diff_dict"):
            found += _configs(inner)
    return found

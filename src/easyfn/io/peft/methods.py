"""The methods of PEFT other than LoRA: for each `peft_type`, who writes and who reads its two files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..safetensors import Info

Tensors = dict[str, Info]  # by their names without PEFT's prefix; `safetensors.read(info)` gives the array


class Method(NamedTuple):
    """What a `peft_type` is to easyfn.

    - `holds(model)`: whether the model has adapters of this kind.
    - `write(model, config)`: `(settings, tensors)`: the keys of `adapter_config.json` that the adapters decide, and the
      arrays by their names in the file; `config` is what the caller gave.
    - `read(model, config, tensors, dtype)`: `(model, errors)`: the model with the adapters on it. What was read is taken
      out of `tensors`: what is left there is an error. `known` are the config's keys that it understands, beside those
      that every method has.
    """

    holds: Callable[[Any], bool]
    write: Callable[[Any, Mapping[str, Any]], tuple[dict[str, Any], dict[str, np.ndarray]]]
    read: Callable[[Any, Mapping[str, Any], Tensors, Any], tuple[Any, list[str]]]
    known: frozenset[str] = frozenset()


METHODS: dict[str, Method] = {}


def register_method(peft_type: str, method: Method) -> None:
    """Teaches `save_adapter` and `load_adapter` one more `peft_type`."""
    if peft_type in METHODS:
        raise ValueError(f"there is a reader of peft_type {peft_type!r} already")
    METHODS[peft_type] = method


def method_of(model: Any) -> tuple[str, Method] | None:
    """The method whose adapters a model holds, if it is not LoRA."""
    return next(((name, method) for name, method in METHODS.items() if method.holds(model)), None)

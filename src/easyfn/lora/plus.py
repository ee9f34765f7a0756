"""LoRA+: `b` learns faster than `a` (Hayou et al. 2024, arXiv 2402.12354)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import optax

from ..core.slots import find_slots
from ..core.trainable import is_adapter
from ..core.tree import is_leaf, join, rebuild
from .adapter import arrays
from .apply import no_adapter
from .weight import LoRA


def lora_plus(
    model: Any,
    optimizer: Callable[[Any], optax.GradientTransformation],
    learning_rate: int | float | Callable[[Any], Any],
    *,
    ratio: int | float = 16,
    embedding_learning_rate: int | float | Callable[[Any], Any] = 1e-6,
) -> optax.GradientTransformation:
    """An optimizer for the adapters of `model` with the learning rates of LoRA+, in the groups of PEFT.

    - `optimizer(learning_rate)` makes the optimizer of a group: `optax.adamw`, or a function that adds options.
    - `a` learns at `learning_rate`, a number or a schedule; `b`, the magnitudes of DoRA and vectors (biases) at `ratio`
      times that; adapters on tables at `embedding_learning_rate`.

    It takes what `ef.to_state` gives an optimizer, or the adapter of `ef.split_lora`. Raises `ValueError` for a model
    without adapters.

    ```python
    import jax, optax, easyfn as ef
    model = ef.apply_lora(ef.testing.tiny(), key=jax.random.key(1))
    state = ef.to_state(model, ef.lora_plus(model, optax.adamw, 2e-4))
    ```
    """
    found = [f for f in find_slots(model) if is_adapter(f.weight)]
    if not found:
        raise no_adapter("lora_plus")
    tables = {f.path for f in found if f.slot.role == "embedding"}

    def labels(params: Any) -> Any:
        def go(path: str, node: Any, group: str | None) -> Any:
            group = "embedding" if path in tables else group
            if is_leaf(node):
                return group or ("b" if getattr(node, "ndim", 2) == 1 else "a")
            if isinstance(node, LoRA) and group is None:
                fast: dict[str, Any] = {name: "a" if name == "a" else "b" for name in arrays(node)}
                return dataclasses.replace(node, **fast)
            return rebuild(node, lambda name, child: go(join(path, name), child, group))

        return go("", params, None)

    fast = (lambda step: ratio * learning_rate(step)) if callable(learning_rate) else ratio * learning_rate
    groups = {"a": optimizer(learning_rate), "b": optimizer(fast), "embedding": optimizer(embedding_learning_rate)}
    return optax.multi_transform(groups, labels)

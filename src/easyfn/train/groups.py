"""Optimizers by pattern, and the running mean of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from ..core.tree import is_leaf, join, matches, nothing_matched, rebuild
from .precision import Wrapped, wide


def groups(optimizers: Mapping[str, Any]) -> optax.GradientTransformationExtraArgs:
    """An optimizer for each group of weights: patterns of paths, the first that fits counts, and `None` freezes.

    Every weight must fit one pattern (`".*"` takes the rest), and every pattern some weight that no earlier one took:
    `ValueError`. What is frozen for the whole run is cheaper left out, by `ef.to_state(..., trainable=pattern)`.

    ```python
    import jax, optax, easyfn as ef
    model = ef.testing.tiny()
    optimizer = ef.groups({"embed": None, "norm": optax.sgd(1e-2), ".*": optax.adamw(1e-3)})
    state, _ = ef.train_step(ef.to_state(model, optimizer), {"input_ids": jax.numpy.ones((1, 4), int)})
    ```
    """
    if not optimizers:
        raise ValueError(
            "groups: no optimizers; give them by pattern: {'norm': optax.sgd(1e-2), '.*': optax.adamw(1e-3)}"
        )

    def labels(params: Any) -> Any:
        seen: list[str] = []
        used: set[str] = set()

        def go(path: str, node: Any) -> Any:
            if not is_leaf(node):
                return rebuild(node, lambda name, child: go(join(path, name), child))
            seen.append(path)
            for pattern in optimizers:
                if matches(pattern, path, node):
                    used.add(pattern)
                    return pattern
            raise ValueError(f"groups: no pattern fits {path}; '.*' at the end takes the rest (None freezes it)")

        tree = go("", params)
        for pattern in optimizers:
            if pattern not in used:
                raise nothing_matched("groups", pattern, seen)
        return tree

    named = {pattern: optax.set_to_zero() if each is None else each for pattern, each in optimizers.items()}
    return optax.multi_transform(named, labels)


class EMAState(NamedTuple):
    average: Any  # float32 where the weights have 16 bits
    inner: Any


def ema(optimizer: Any, decay: int | float = 0.999) -> Wrapped:
    """`optimizer`, whose state keeps the exponential moving average of the weights: `decay` of the old, the rest of the new.

    [`easyfn.ema_model`][] is the model with them. Outermost: it needs the weights as they will be.

    ```python
    import jax, optax, easyfn as ef
    state = ef.to_state(ef.testing.tiny(), ef.ema(optax.adam(1e-3), decay=0.99))
    state, _ = ef.train_step(state, {"input_ids": jax.numpy.ones((1, 4), int)})
    logits = ef.forward(ef.ema_model(state), jax.numpy.ones((1, 4), int)).logits
    ```
    """
    if not 0 <= decay < 1:
        raise ValueError(f"ema: decay lies in [0, 1), not {decay}")
    inner = optax.with_extra_args_support(optimizer)

    def update(gradients: Any, state: EMAState, params: Any = None, **extra: Any) -> Any:
        if params is None:
            raise ValueError("ema needs the weights: optimizer.update(gradients, state, params)")
        updates, after = inner.update(gradients, state.inner, params, **extra)
        new = wide(optax.apply_updates(params, updates))
        average = jax.tree.map(lambda old, now: old + (1 - decay) * (now - old), state.average, new)
        return updates, EMAState(average, after)

    return Wrapped(lambda params: EMAState(jax.tree.map(jnp.copy, wide(params)), inner.init(params)), update)


def ema_model(state: Any) -> Any:
    """The model of a training state with the averages that [`easyfn.ema`][] keeps as its weights."""
    for leaf in jax.tree.leaves(state.opt_state, is_leaf=lambda x: isinstance(x, EMAState)):
        if isinstance(leaf, EMAState):
            averages = jax.tree.map(lambda mean, p: mean.astype(p.dtype), leaf.average, state.params)
            return eqx.combine(averages, state.frozen)
    raise ValueError("ema_model: the optimizer keeps no averages: ef.to_state(model, ef.ema(optimizer))")

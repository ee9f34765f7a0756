"""`guard`: steps that would do harm are skipped and counted; loss scaling for float16."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .precision import Wrapped


class GuardState(NamedTuple):
    """What a guard keeps, all scalars but `inner`: `skipped` steps in all, `in_a_row` until now, `norm` (the usual norm of
    the gradients), `scale` of the loss."""

    inner: Any
    skipped: jax.Array
    in_a_row: jax.Array
    norm: jax.Array
    seen: jax.Array
    scale: jax.Array
    good: jax.Array


def guard(
    optimizer: Any,
    *,
    spike: int | float | None = None,
    after: int = 20,
    decay: float = 0.98,
    loss_scale: int | float | None = None,
    grow_after: int = 2000,
) -> Wrapped:
    """`optimizer`, which skips a step whose gradients or loss are not finite: weights and moments stay as they were.

    - `spike`: skips a step, too, whose gradients are longer than so many times their usual norm, a running mean with
      `decay`, once `after` steps were seen. A jump that stays becomes the usual norm after a while.
    - `loss_scale`: for float16, whose small gradients vanish: the loss is multiplied by it, and the gradients divided, in
      float32. It is halved where gradients overflow and doubled after `grow_after` steps that did not (Micikevicius et al.
      2018, arXiv 1710.03740, section 3.2). Start with `2.0**15`.

    `ef.train_step` scales the loss itself, and its metrics say `skipped` (1 or 0) and `loss_scale`. In a step of your own,
    inside your own `jax.jit`, differentiate `ef.guard_state(opt_state).scale * loss` and give the gradients as they are:
    `optimizer.update(gradients, opt_state, params, value=loss)`. Outermost but for `ef.ema`.

    ```python
    import jax.numpy as jnp, optax, easyfn as ef
    weights = jnp.ones(3)
    optimizer = ef.guard(optax.adam(0.1), spike=10.0)
    updates, state = optimizer.update(weights * jnp.nan, optimizer.init(weights), weights)
    assert not updates.any() and ef.guard_state(state).skipped == 1
    ```
    """
    if spike is not None and spike <= 1:
        raise ValueError(f"guard: spike={spike} is how many times the usual norm is too much: more than 1, such as 10")
    if loss_scale is not None and loss_scale <= 0:
        raise ValueError(f"guard: loss_scale={loss_scale} must be positive, such as 2.0**15")
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> GuardState:
        zero, none = jnp.zeros((), jnp.int32), jnp.zeros(())
        scale = jnp.asarray(1.0 if loss_scale is None else loss_scale, jnp.float32)
        return GuardState(inner.init(params), zero, jnp.copy(zero), none, jnp.copy(zero), scale, jnp.copy(zero))

    def update(gradients: Any, state: GuardState, params: Any = None, **extra: Any) -> Any:
        if loss_scale is not None:
            gradients = unscaled(gradients, state.scale)
        norm = tree_norm(gradients)
        finite = jnp.isfinite(norm)
        if extra.get("value") is not None:
            finite &= jnp.isfinite(extra["value"])
        usual = state.norm / jnp.maximum(1.0 - decay ** state.seen.astype(jnp.float32), 1e-6)
        most = jnp.inf if spike is None else jnp.where(state.seen >= after, spike * usual, jnp.inf)
        kept = finite & (norm <= most)
        updates, moved = inner.update(gradients, state.inner, params, **extra)
        updates = jax.tree.map(lambda u: jnp.where(kept, u, jnp.zeros_like(u)), updates)
        moved = jax.tree.map(lambda new, old: jnp.where(kept, new, old), moved, state.inner)
        mean = decay * state.norm + (1 - decay) * jnp.minimum(norm, most)
        good = jnp.where(finite, state.good + 1, 0)
        grown = good >= grow_after
        scale = jnp.where(finite, jnp.where(grown, state.scale * 2, state.scale), jnp.maximum(state.scale / 2, 1.0))
        return updates, GuardState(
            moved,
            state.skipped + ~kept,
            jnp.where(kept, 0, state.in_a_row + 1),
            jnp.where(finite, mean, state.norm),
            state.seen + finite,
            state.scale if loss_scale is None else scale,
            jnp.where(grown, 0, good),
        )

    return Wrapped(init, update)


def guard_state(state: Any) -> GuardState | None:
    """The state of [`easyfn.guard`][] in a training state or an optimizer's state, or `None`: `skipped`, `in_a_row`, `norm`,
    `scale`."""
    for leaf in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, GuardState)):
        if isinstance(leaf, GuardState):
            return leaf
    return None


def unscaled(gradients: Any, scale: Any) -> Any:
    return jax.tree.map(lambda g: g.astype(jnp.promote_types(g.dtype, jnp.float32)) / scale, gradients)


def tree_norm(tree: Any) -> jax.Array:
    """The norm of all entries of a tree, summed in float32."""
    squares = (jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree))
    return jnp.sqrt(sum(squares, jnp.zeros(())))

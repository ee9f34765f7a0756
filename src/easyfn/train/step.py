"""`TrainState` and `train_step`: one step of any optax optimizer on any model, pure, for your own `jax.jit`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from ..core.dtype import cast
from ..core.habits import taught
from ..core.placement import mesh_of
from ..core.trainable import trainable as trainable_of
from ..core.tree import Pattern, children, is_abstract, is_leaf, join, leaves, matches, nodes, nothing_matched, rebuild
from ..inputs.statement import TOKENS, inputs
from ..nn.context import Runtime
from ..tasks.cross_entropy import LossConfig, Metrics
from ..tasks.loss import compute_loss, summed
from .guard import guard_state, tree_norm, unscaled
from .precision import holds, narrow

Optimizer: TypeAlias = optax.GradientTransformation | optax.MultiSteps


class TrainState(eqx.Module):
    """A model in training: its trainable part, its frozen part, the optimizer's state and the count of steps.

    Made by [`easyfn.to_state`][]. `params` and `frozen` have the model's structure, each with `None` where the other
    has an array; `state.model` is both together. The optimizer is static, so a state goes in and out of `jax.jit`.
    """

    params: Any
    frozen: Any
    opt_state: Any
    step: Any  # int32 scalar, steps done
    optimizer: Optimizer = eqx.field(static=True)
    shardings: tuple = eqx.field(static=True, default=())  # of the parameters, if on a mesh: a step leaves them there

    @property
    def model(self) -> Any:
        return eqx.combine(self.params, self.frozen)


@taught
def to_state(model: Any, optimizer: Optimizer, *, trainable: Any = None) -> TrainState:
    """A fresh training state. The optimizer's state exists for trainable arrays only, and lies where they lie.

    `trainable` is a boolean tree, a pattern of paths (`"layers.1|norm"`), or by default what [`easyfn.trainable`][]
    says: adapters if there are any, else every floating point array that is not part of a quantized weight. An array of
    integers cannot be trained: `ValueError`. Works on abstract models (the state is abstract, for `ef.load_state`).

    Weights are best kept in float32 and cast inside the step (`train_step(compute_dtype=jnp.bfloat16)`). Weights of 16
    bits warn: most optimizers keep their moments in that dtype, and stop learning. [`easyfn.master_weights`][],
    [`easyfn.stochastic_rounding`][] and [`easyfn.float32_moments`][] learn.

    A model can be called, and optax calls what it can: give `optax.masked`, `optax.multi_transform` and the like a mask
    or labels in the model's structure as a function, `lambda params: labels`.

    ```python
    import jax, optax, easyfn as ef
    state = ef.to_state(ef.testing.tiny(), optax.adamw(1e-3))
    step = jax.jit(ef.train_step, donate_argnums=0)
    for _ in range(2):
        state, metrics = step(state, {"input_ids": jax.numpy.array([[1, 2, 3, 4]])})
    assert int(state.step) == 2
    ```
    """
    if not hasattr(optimizer, "init"):
        raise TypeError(f"to_state takes an optax optimizer, such as optax.adamw(1e-4), not {optimizer!r}")
    params, frozen = eqx.partition(model, _which(model, trainable))
    if not (chosen := leaves(params)):
        raise ValueError("to_state: nothing in this model is trainable")
    for path, leaf in chosen.items():
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise ValueError(f"to_state: {path} is an array of {leaf.dtype}, which has no gradient; leave it frozen")
    start = lambda params: (optimizer.init(params), jnp.zeros((), jnp.int32))
    opt_state, step = jax.eval_shape(start, params) if is_abstract(model) else _own(start(params), params)
    shardings = _homes(chosen, mesh_of(model))
    opt_state, step = _beside(params, shardings, (opt_state, step))
    if not is_abstract(model) and not holds(opt_state):
        _warn(chosen)
    return TrainState(params, frozen, opt_state, step, optimizer, shardings)


def _warn(chosen: Mapping[str, Any]) -> None:
    small = [path for path, leaf in chosen.items() if narrow(leaf)]
    if small:
        warnings.warn(
            f"to_state: {len(small)} of {len(chosen)} trainable arrays are of 16 bits ({small[0]} is "
            f"{chosen[small[0]].dtype}), in which moments and small updates are lost. Train float32 weights with "
            "train_step(compute_dtype=jnp.bfloat16), or wrap the optimizer: ef.master_weights(optimizer), "
            "ef.stochastic_rounding(optimizer, key=key) or ef.float32_moments(optimizer)",
            stacklevel=4,  # over to_state and what teaches its arguments
        )


def _own(tree: Any, params: Any) -> Any:
    """The tree without arrays that are also somewhere else: an optimizer may keep the parameters themselves (L-BFGS), and
    one buffer cannot be donated twice."""
    seen = {id(leaf) for leaf in jax.tree.leaves(params)}

    def one(leaf: Any) -> Any:
        if id(leaf) in seen:
            return jnp.copy(leaf)
        seen.add(id(leaf))
        return leaf

    return jax.tree.map(one, tree)


def _homes(chosen: Mapping[str, Any], mesh: Mesh | None) -> tuple[NamedSharding, ...]:
    """Where each parameter of a model on a mesh lies."""
    if mesh is None:
        return ()
    found = (getattr(leaf, "sharding", None) for leaf in chosen.values())
    return tuple(s if isinstance(s, NamedSharding) else NamedSharding(mesh, PartitionSpec()) for s in found)


def _beside(params: Any, shardings: tuple[NamedSharding, ...], tree: Any) -> Any:
    """A tree made of parameters, or of an optimizer's state, on the mesh of the parameters: what is kept per parameter
    lies where that does, the rest is everywhere.

    XLA would choose for itself: the state would wander, and the second step compile once more.
    """
    if not shardings:
        return tree
    chosen = leaves(params)
    homes = dict(zip(chosen, shardings, strict=True))
    everywhere = NamedSharding(shardings[0].mesh, PartitionSpec())

    def one(path: str, leaf: Any) -> Any:
        while path and path not in homes:
            path = path.partition(".")[2]  # opt_state's "0.mu.model.norm.weight" is about "model.norm.weight"
        sharding = homes[path] if path and chosen[path].shape == leaf.shape else everywhere
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        return jax.lax.with_sharding_constraint(leaf, sharding)

    placed = [one(path, leaf) for path, leaf in nodes(tree) if is_leaf(leaf)]
    return jax.tree.unflatten(jax.tree.structure(tree), placed)


def _which(model: Any, trainable: Any) -> Any:
    if trainable is None:
        return trainable_of(model)
    strings = isinstance(trainable, (list, tuple)) and all(isinstance(p, str) for p in trainable)
    if not (isinstance(trainable, str) or strings or callable(trainable)) or isinstance(trainable, eqx.Module):
        return trainable
    patterns: list[Pattern] = [trainable] if isinstance(trainable, str) or callable(trainable) else list(trainable)
    able: list[str] = []
    used: set[int] = set()

    def go(path: str, node: Any, may: Any) -> Any:
        if is_leaf(node):
            if may is not True or not hasattr(node, "dtype") or not jnp.issubdtype(node.dtype, jnp.floating):
                return False
            able.append(path)
            hits = [n for n, pattern in enumerate(patterns) if matches(pattern, path, node)]
            used.update(hits)
            return bool(hits)
        if trainable_of.knows(
            type(node)
        ):  # a format says which of its parts are parameters, and which codes and scales
            may = trainable_of.which(type(node))(node)
        inner = dict(children(may)[0]) if may is not True else {}
        return rebuild(node, lambda name, child: go(join(path, name), child, may is True or inner.get(name)))

    tree = go("", model, True)
    for n, pattern in enumerate(patterns):
        if n not in used:
            raise nothing_matched("to_state", pattern, able)
    return tree


@taught
def train_step(
    state: TrainState,
    batch: Mapping[str, Any],
    loss: Callable[..., tuple[Float[Array, ""], Metrics]] | LossConfig = LossConfig(),
    *,
    key: jax.Array | None = None,
    compute_dtype: Any = None,
    accumulate: int = 1,
    runtime: Runtime = Runtime(),
) -> tuple[TrainState, Metrics]:
    """One step: gradients of the trainable part, the optimizer's update, the next state and the metrics.

    Pure; wrap it in your own `jax.jit(..., donate_argnums=0)`, which reuses the memory of the old state (and of the
    model it came from: use neither again).

    - `loss`: a [`easyfn.LossConfig`][], or a function `(model, batch, *, key) -> (loss, metrics)` of your own, whose loss
      is a mean over what its metrics' `num_tokens` or `num_examples` says.
    - `key`: turns dropout on. The same key may be given at every step: the count of steps is folded into it.
    - `compute_dtype`: mixed precision. The model is cast inside the step, so that the state keeps its own dtype.
    - `accumulate`: splits the batch's leading axis into so many parts, one after another, for the memory of one. Each
      part weighs as many tokens as it counts, so the step is that of the whole batch. An input that is not of rows
      (patches, or the images of all rows after each other) cannot be split so: `ValueError`.

    The metrics are those of the loss, and `grad_norm`; with [`easyfn.guard`][] also `skipped` and `loss_scale`. Under `jit`,
    give all of these but `key` with `functools.partial`. Optimizers that want the loss too (plateau schedules, line
    searches) get it.

    ```python
    import functools, jax, optax, easyfn as ef
    model = ef.testing.tiny()
    state = ef.to_state(model, optax.sgd(0.1))
    step = jax.jit(functools.partial(ef.train_step, accumulate=2), donate_argnums=0)
    state, metrics = step(state, {"input_ids": jax.numpy.ones((4, 8), int)})
    ```
    """
    if not isinstance(state, TrainState):
        raise TypeError(
            f"train_step takes a training state, state = ef.to_state(model, optax.adamw(1e-4)), not {type(state).__name__}"
        )
    if isinstance(loss, LossConfig):
        cfg = loss
        if cfg.reduction == "none":
            raise ValueError("train_step needs one number: LossConfig.reduction='mean' or 'sum', not 'none'")

        def measure(model: Any, part: Mapping[str, Any], key: Any) -> tuple[jax.Array, Metrics]:
            return compute_loss(model, part, cfg, key=key, runtime=runtime)

        total = summed(state.model, cfg)
    else:
        own, total = loss, False

        def measure(model: Any, part: Mapping[str, Any], key: Any) -> tuple[jax.Array, Metrics]:
            return own(model, part, key=key)

    key = None if key is None else jax.random.fold_in(key, state.step)

    guarded = guard_state(state.opt_state)
    scale = None if guarded is None else guarded.scale

    def objective(params: Any, part: Mapping[str, Any], key: Any) -> tuple[jax.Array, tuple[jax.Array, Metrics]]:
        model = eqx.combine(params, state.frozen)
        value, metrics = measure(model if compute_dtype is None else cast(model, compute_dtype), part, key)
        return (value if scale is None else value * scale), (value, metrics)

    slope = jax.value_and_grad(objective, has_aux=True)
    if accumulate == 1:
        (_, (value, metrics)), gradients = slope(state.params, batch, key)
    else:
        gradients, value, metrics = _accumulated(slope, state, batch, key, accumulate, total)
    plain = gradients if scale is None else unscaled(gradients, scale)
    optimizer = optax.with_extra_args_support(state.optimizer)
    more = {"value": value, "grad": plain, "value_fn": lambda params: objective(params, batch, key)[1][0]}
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, **more)
    params = optax.apply_updates(state.params, updates)
    params, opt_state, count = _beside(state.params, state.shardings, (params, opt_state, state.step + 1))
    metrics = {"loss": value, **metrics, "grad_norm": tree_norm(plain)}
    if guarded is not None:
        skipped = guard_state(opt_state).skipped - guarded.skipped  # type: ignore[union-attr]
        metrics |= {"skipped": skipped.astype(jnp.float32), "loss_scale": guarded.scale}
    return TrainState(params, state.frozen, opt_state, count, state.optimizer, state.shardings), metrics


def _accumulated(
    slope: Any, state: TrainState, batch: Mapping[str, Any], key: Any, parts: int, total: bool
) -> tuple[Any, jax.Array, Metrics]:
    """Gradients, loss and metrics of a batch in `parts`, each weighed by what it counts (or summed, if the loss is a sum)."""
    params, stated = state.params, inputs(state.model)
    shapes = {name: one.shape for name, one in stated.fields.items() if one.shape}
    others = {name: shape for name, shape in shapes.items() if shape[0] != "batch"}
    flat = all(shapes.get(name, TOKENS)[:2] == TOKENS for name in stated.main)  # rows of tokens, not of choices

    def divided(name: str, value: Any) -> Any:
        value = jnp.asarray(value)
        for other, shape in others.items():
            if name == other or name.endswith(f"_{other}"):  # chosen_pixel_values is pixel_values too
                raise ValueError(
                    f"train_step: accumulate={parts} gives each part some of the batch's rows, and batch[{name!r}] is "
                    f"({', '.join(map(str, shape))}), which are not rows. Give a smaller batch with accumulate=1, and take the "
                    f"mean over several with optax.MultiSteps(optimizer, {parts})"
                )
        rows = 1 if flat and value.ndim == 3 and f"_{name}".endswith("_position_ids") else 0  # (axes, batch, seq)
        shape = value.shape
        if value.ndim == 0 or shape[rows] % parts:
            raise ValueError(f"train_step: accumulate={parts} does not divide batch[{name!r}] of shape {shape}")
        # every parts-th row: where devices hold blocks of rows, each part takes some of every block
        value = value.reshape(*shape[:rows], shape[rows] // parts, parts, *shape[rows + 1 :])
        return jnp.moveaxis(value, rows + 1, 0)

    switches = {name: value for name, value in batch.items() if isinstance(value, bool)}
    pieces = {n: divided(n, value) for n, value in batch.items() if value is not None and n not in switches}

    def one(carry: Any, piece: Any) -> Any:
        index, part = piece
        (_, (value, metrics)), gradients = slope(
            params, {**part, **switches}, None if key is None else jax.random.fold_in(key, index)
        )
        metrics = {"loss": value, **metrics}
        metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
        number = counted(metrics)
        weight = jnp.ones(()) if total else number
        sums, before, count = carry
        sums = jax.tree.map(lambda s, g: s + weight * g.astype(s.dtype), sums, gradients)
        return (sums, before + number, count + weight), (value, metrics, number)

    # float32 sums: many small 16-bit gradients would be lost in a 16-bit one
    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)), params)
    start = (zeros, jnp.zeros(()), jnp.zeros(()))
    (sums, number, count), (values, metrics, numbers) = jax.lax.scan(one, start, (jnp.arange(parts), pieces))
    below = jnp.where(count > 0, count, 1.0)
    if total:
        below = jnp.ones(())
    gradients = jax.tree.map(lambda s, p: (s / below).astype(p.dtype), sums, params)
    share = numbers / jnp.where(number > 0, number, 1.0)
    means = {name: jnp.sum(each * share) for name, each in metrics.items()}
    counts = {name: jnp.sum(metrics[name]) for name in _COUNTS if name in metrics}
    return gradients, jnp.sum(values if total else values * share), means | counts


_COUNTS = ("num_tokens", "num_examples")


def counted(metrics: Metrics) -> jax.Array:
    """What a loss was averaged over: its `num_tokens` or `num_examples`, or one."""
    for name in _COUNTS:
        if name in metrics:
            return metrics[name]
    return jnp.ones(())

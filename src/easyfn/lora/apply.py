"""Adapters on a model: put them on, take them apart, take them off."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from ..core.habits import taught
from ..core.slots import Found, find_slots, map_slots
from ..core.trainable import is_adapter
from ..core.tree import Pattern, expand, lift, matches, near, nodes, nothing_matched
from ..core.verb import node_verb
from ..core.weight import Slot, Weight, axes_of, dense, routed, shape_of
from .adapter import arrays, choose, fresh, ranks_and_alphas
from .full import full
from .inits import CHANGES_BASE, start
from .tokens import choose_rows, rows
from .weight import LoRA, column_norms, row_norms

Adapter = dict[str, Any]  # path of a weight slot -> its adapter, with a hole (`None`) for the base


@node_verb
@taught
def apply_lora(
    model: Any,
    pattern: Pattern = "all-linear",
    *,
    rank: int = 8,
    alpha: int | float = 16,
    key: jax.Array,
    dropout: int | float = 0.0,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, int | float] | None = None,
    rslora: bool = False,
    dora: bool = False,
    init: str = "default",
    layers: int | Sequence[int] | None = None,
    layers_pattern: str | Sequence[str] | None = None,
    exclude: Pattern | None = None,
    modules_to_save: Pattern | None = None,
    bias: str = "none",
    lora_bias: bool = False,
    trainable_token_indices: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    dtype: Any = None,
) -> Any:
    """`model` with a [`LoRA`][easyfn.LoRA] in every weight slot that the pattern selects.

    A fresh adapter changes nothing: `b` is zero. Works on quantized, stacked, sharded and abstract models; from then on
    `ef.trainable(model)` is the adapters and nothing else.

    **Arguments**

    - `pattern`: `"all-linear"` is every linear layer and expert but no head, as in PEFT, and no embedding and no
      router: name those. Otherwise a regular expression searched in the path of the slot, a list of such, or a
      predicate.
    - `rank`, `alpha`: the change is `alpha / rank * b @ a`. `rank_pattern` and `alpha_pattern` map patterns to other
      values; the first that fits a slot holds. `rslora`: `alpha / sqrt(rank)` (arXiv 2312.03732).
    - `key`: every slot draws from its own key, made of this one and its path.
    - `dropout`: of what enters the adapter; on in `ef.forward(..., key=...)`.
    - `dora`: with a trained magnitude per row (arXiv 2402.09353).
    - `init`: `"default"` (PEFT's: `a` uniform, `b` zero), `"gaussian"`, or one that starts from the weight and
      changes the base so that the sum stays: `"pissa"` (arXiv 2404.02948), `"pissa_niter_4"` (its fast form),
      `"olora"` (arXiv 2406.01775).
    - `layers`: only these numbers, `3` or `[0, 1]`: the first number in the path, or the one after the word
      `layers_pattern`. `exclude`: a pattern of slots to leave alone.
    - `modules_to_save`: a pattern of slots that train as they are, beside what they were ([`easyfn.Full`][]): a new
      classifier, norms, embeddings. They get no LoRA, and may be of any role.
    - `bias`: which biases train so too: `"none"`, `"all"`, or `"lora_only"`, those of the layers that get a LoRA.
    - `lora_bias`: with a trained bias on what `b` answers.
    - `trainable_token_indices`: rows of the input embeddings that train as they are ([`easyfn.Rows`][]); or a mapping
      from patterns of tables to their rows. A tied head follows.
    - `dtype`: of what trains; by default float32, as PEFT keeps adapters. It computes in the dtype of its input.

    **Raises** `ValueError` if a pattern selects nothing, a rank or alpha pattern is not used, a slot has an adapter
    already or is asked for twice, and for what PEFT has not: `lora_bias` on tables, experts or with `dora`.

    ```python
    import jax, easyfn as ef
    model = ef.testing.tiny()
    tuned = ef.apply_lora(model, "q_proj|v_proj", rank=4, key=jax.random.key(1))
    base, adapter = ef.split_lora(tuned)
    assert len(adapter) == 4 and ef.has_lora(tuned) and not ef.has_lora(base)
    ```
    """
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"apply_lora: dropout must be in [0, 1), not {dropout}")
    if bias not in ("none", "all", "lora_only"):
        raise ValueError(f"apply_lora: bias must be 'none', 'all' or 'lora_only', not {bias!r}")
    number = jnp.dtype(dtype or jnp.float32)
    new: dict[str, Any] = _saved(model, modules_to_save, number)
    chosen = choose("apply_lora", model, pattern, layers, exclude, layers_pattern=layers_pattern)
    chosen = [f for f in chosen if f.path not in new]
    if lora_bias:
        _check_bias(chosen, dora)
    by_slot = ranks_and_alphas("apply_lora", chosen, rank, alpha, rank_pattern, alpha_pattern)
    for f in chosen:
        r, a = by_slot[f.path]
        new[f.path] = _adapter(f, r, float(a / (r**0.5 if rslora else r)), key, init, dropout, dora, lora_bias, number)
    if trainable_token_indices is not None:
        for path, (f, indices) in choose_rows(model, trainable_token_indices).items():
            if path in new:
                raise ValueError(
                    f"apply_lora: {path} has an adapter or is saved, and trainable_token_indices name it too"
                )
            new[path] = rows(f.weight, indices, number)
    if bias != "none":
        adapted = {f.layer for f in chosen}
        for f in find_slots(model, ("bias",)):
            if f.path not in new and (bias == "all" or f.layer in adapted):
                new[f.path] = full(f.weight, number)
    return put(model, new)


def put(model: Any, new: Mapping[str, Any]) -> Any:
    """`model` with `new[path]` in the place of the weights of these slots."""
    return map_slots(apply_lora, model, lambda path, slot, weight: new.get(path, weight))


def _saved(model: Any, pattern: Pattern | None, dtype: Any) -> dict[str, Any]:
    """The slots that train as they are."""
    if pattern is None:
        return {}
    found = [f for f in find_slots(model) if matches(pattern, f.path, f.weight)]
    if not found:
        raise nothing_matched("apply_lora", pattern, [f.path for f in find_slots(model)])
    if twice := [f.path for f in found if is_adapter(f.weight)]:
        raise ValueError(f"apply_lora: {twice[0]} has an adapter already. Fold it in (ef.merge_lora) or take it off.")
    return {f.path: full(f.weight, dtype) for f in found}


def _check_bias(chosen: list[Found], dora: bool) -> None:
    if dora:
        raise ValueError("apply_lora: lora_bias with dora is not in PEFT: choose one")
    if tables := [f for f in chosen if f.slot.role in ("embedding", "experts")]:
        raise ValueError(
            f"apply_lora: lora_bias is for layers; {tables[0].path} is of the role {tables[0].slot.role!r}"
        )


def _adapter(
    f: Found, rank: int, scale: float, key: jax.Array, init: str, dropout: float, dora: bool, biased: bool, dtype: Any
) -> LoRA:
    """The fresh adapter of one slot."""

    def make(weight: Weight, own: jax.Array) -> LoRA:
        a, b, base = start(init, weight, f.slot.role, rank, scale, own)
        began = init if init.startswith(CHANGES_BASE) else None
        zeros = jnp.zeros((*b.shape[:-1], 1), dtype) if biased else None
        made = LoRA(base, a.astype(dtype), b.astype(dtype), bias=zeros, scale=scale, dropout=dropout, start=began)
        if not dora:
            return made
        norms = column_norms(made) if f.slot.role == "embedding" else row_norms(made)
        return dataclasses.replace(made, magnitude=norms.astype(dtype))

    return fresh(f, key, make)


def has_lora(model: Any) -> bool:
    """Whether any weight of the model has an adapter."""
    return any(is_adapter(node) for _, node in nodes(model))


def walk(model: Any, change: Callable[[str, Any], Any]) -> Any:
    """`model` with `change(path, adapter)` in the place of every adapter in a weight slot."""

    def how(path: str, slot: Slot, weight: Any) -> Any:
        return change(path, weight) if is_adapter(weight) else weight

    return map_slots(apply_lora, model, how)


def no_adapter(verb: str) -> ValueError:
    return ValueError(f"{verb}: the model has no adapter. Put one on with ef.apply_lora or ef.load_adapter.")


def split_lora(model: Any) -> tuple[Any, Adapter]:
    """`(base, adapter)`: the model as it was before, and the adapters alone, by the path of their slot.

    The adapter is a pytree of its arrays and nothing else, so `jax.grad`, optax, checkpointing and averaging work on
    it:

    ```python
    import jax, easyfn as ef
    model = ef.apply_lora(ef.testing.tiny(), key=jax.random.key(1))
    base, adapter = ef.split_lora(model)

    def loss(adapter, ids):
        return ef.forward(ef.join_lora(base, adapter), ids).logits.var()

    grads = jax.grad(loss)(adapter, jax.numpy.array([[1, 2, 3]]))
    assert jax.tree.structure(grads) == jax.tree.structure(adapter)
    ```

    Raises `ValueError` if there is none.
    """
    adapter: Adapter = {}

    def take_off(path: str, w: Any) -> Any:
        adapter[path] = dataclasses.replace(w, base=None, **({"key": None} if hasattr(w, "key") else {}))
        return w.base

    base = walk(model, take_off)
    if not adapter:
        raise no_adapter("split_lora")
    return base, adapter


def join_lora(base: Any, adapter: Mapping[str, Any]) -> Any:
    """The model of a base and an adapter: the inverse of [`easyfn.split_lora`][].

    An adapter made on the listed layers fits a stacked base too, and the other way round. Raises `KeyError` for a
    slot that the base does not have and `ValueError` for a shape that does not fit or a slot that has an adapter
    already.

    ```python
    import jax, easyfn as ef
    model = ef.testing.tiny()
    base, adapter = ef.split_lora(ef.apply_lora(model, key=jax.random.key(1)))
    adapter = jax.tree.map(lambda x: 0.5 * x, adapter)
    model = ef.join_lora(base, adapter)
    ```
    """
    found = {f.path: f for f in find_slots(base)}
    fitted = fit(dict(adapter), list(found))
    new = {}
    for path, part in fitted.items():
        if path not in found:
            raise KeyError(f"join_lora: the base has no weight at {path!r}. {near(path, found)}")
        weight = found[path].weight
        if is_adapter(weight):
            raise ValueError(f"join_lora: {path} has an adapter already. Split or merge it first.")
        if not _fits(part, weight):
            shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in arrays(part).items())
            raise ValueError(f"join_lora: {path} has shape {tuple(shape_of(weight))}, which {shapes} do not fit")
        new[path] = dataclasses.replace(part, base=weight)
    return put(base, new)


def _fits(part: Any, weight: Weight) -> bool:
    """Whether an adapter without its base is one for this weight."""
    shape = tuple(shape_of(weight))
    sizes = {str(i): size for i, size in enumerate(shape)}
    try:
        whole = dataclasses.replace(part, base=jax.ShapeDtypeStruct(shape, jnp.float32))
        axes = axes_of(whole, tuple(sizes))
        for name, x in arrays(part).items():
            wanted = getattr(axes, name)
            if len(wanted) != x.ndim or any(sizes.get(i, n) != n for i, n in zip(wanted, x.shape, strict=True)):
                return False
        return routed.knows(type(part)) or jax.eval_shape(dense, whole).shape == shape
    except (TypeError, ValueError):
        return False


def fit(adapter: Adapter, paths: list[str]) -> Adapter:
    """The adapter with its layers stacked or listed as the paths of the base are."""
    if all(path in paths for path in adapter):
        return adapter
    single: Adapter = {}
    for path, part in adapter.items():
        names = expand(path)
        for i, name in enumerate(names):
            single[name] = part if names == [path] else lift(lambda w, i=i: jax.tree.map(lambda x: x[i], w))(part)
    fitted: Adapter = {}
    for path in paths:
        names = expand(path)
        parts = [single.pop(name) for name in names if name in single]
        if parts and len(parts) < len(names):
            raise ValueError(
                f"join_lora: the adapter has {len(parts)} of the {len(names)} layers of the stacked run {path!r}. "
                "Call ef.unstack(base) first."
            )
        if parts:
            alike = len({(jtu.tree_structure(p), tuple(x.shape for x in jtu.tree_leaves(p))) for p in parts}) == 1
            if not alike:
                raise ValueError(
                    f"join_lora: the layers of the stacked run {path!r} differ in rank or scale; ef.unstack first"
                )
            together = lift(lambda *parts: jax.tree.map(lambda *xs: jnp.stack(xs), *parts))
            fitted[path] = parts[0] if names == [path] else together(*parts)
    return {**fitted, **single}


def remove_lora(model: Any) -> Any:
    """The model without its adapters, bit for bit as it was before.

    Raises `ValueError` if there is none, and for adapters that began by changing the base (`init="pissa"`, `"olora"`).

    ```python
    import jax, easyfn as ef
    model = ef.testing.tiny()
    again = ef.remove_lora(ef.apply_lora(model, key=jax.random.key(1)))
    assert again.lm_head is not None and not ef.has_lora(again)
    ```
    """
    if not has_lora(model):
        raise no_adapter("remove_lora")
    base, adapter = split_lora(model)
    if changed := [path for path, w in adapter.items() if getattr(w, "start", None)]:
        raise ValueError(
            f"remove_lora: {changed[0]} started with init={adapter[changed[0]].start!r}, which moved a part "
            "of the weight into "
            "the adapter: without it the base is not what it was. Keep the model from before, or fold in "
            "with ef.merge_lora."
        )
    return base

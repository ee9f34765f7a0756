"""What all adapters share: which slots they go to, how they are drawn, where they lie, what the verbs know of them.

An adapter is a weight with a field `base`, the frozen weight that it changes. All its arrays have the rank of the dense
weight, leading axes included, so that stacking, slicing and sharding are tree maps.
"""

from __future__ import annotations

import dataclasses
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from ..core.dtype import cast, to_dtype
from ..core.slots import Found, find_slots, select_slots
from ..core.trainable import is_adapter, trainable
from ..core.tree import Pattern, expand, lift, matches, near
from ..core.verb import verb
from ..core.weight import Weight, axes_of, dense, shape_of, take

ROLES = ("linear", "head", "router", "embedding", "experts")


@verb
def gain(w: Weight) -> Any:
    """What an adapter multiplies all of its layer's output with, the bias included: `(..., out, 1)`; `None` for most.

    Folding such an adapter in scales the bias of the layer too.
    """
    return None


@verb
def shift(w: Weight) -> Any:
    """What an adapter adds to its layer's output beside the product: `(..., out, 1)`, float32; `None` for most.

    Folding such an adapter in adds it to the bias of the layer.
    """
    return None


@verb
def change(w: Weight) -> jax.Array:
    """What an adapter whose base is all zeros adds to it, `(..., out, in)` in float32: so it can be subtracted again.

    Raises `ValueError` where that depends on the base.
    """
    raise ValueError(f"a {type(w).__name__} does not add to its weight but puts another in its place")


def choose(
    name: str,
    model: Any,
    pattern: Pattern,
    layers: int | Sequence[int] | None = None,
    exclude: Pattern | None = None,
    roles: tuple[str, ...] = ROLES,
    layers_pattern: str | Sequence[str] | None = None,
) -> list[Found]:
    """The slots that the verb `name` puts adapters on; those of a slot that has one are an error."""
    if layers_pattern and layers is None:
        raise ValueError(f"{name}: layers_pattern says where the number of a layer stands; say which with layers=[...]")
    _refuse_convolutions(name, model, pattern)
    chosen = select_slots(name, model, pattern, ROLES)
    if layers is not None:
        wanted = {layers} if isinstance(layers, int) else set(layers)
        if torn := [
            f.path for f in chosen if len({_layer(path, layers_pattern) in wanted for path in expand(f.path)}) > 1
        ]:
            raise ValueError(
                f"{name}: layers={sorted(wanted)} are some of the stacked run {torn[0]!r}. Call ef.unstack(model) "
                f"first, then {name}, then ef.stack."
            )
        chosen = [f for f in chosen if _layer(expand(f.path)[0], layers_pattern) in wanted]
        if not chosen:
            raise ValueError(f"{name}: no slot of {pattern!r} is in the layers {sorted(wanted)}")
    if exclude is not None:
        chosen = [f for f in chosen if not matches(exclude, f.path, f.weight)]
        if not chosen:
            raise ValueError(f"{name}: exclude={exclude!r} leaves nothing of what {pattern!r} selects")
    for f in chosen:
        if is_adapter(f.weight):
            raise ValueError(
                f"{name}: {f.path} has an adapter already. Fold it in first (ef.merge_lora), or take it "
                "off (ef.remove_lora)."
            )
        if f.slot.role not in roles:
            raise ValueError(f"{name}: {f.path} is of the kind {f.slot.role!r}; the method is for {', '.join(roles)}")
    return chosen


def _layer(path: str, pattern: str | Sequence[str] | None = None) -> int | None:
    """The number of the layer of a path: the first in it, or the first after one of the given words."""
    words: Sequence[str | None] = [pattern] if isinstance(pattern, str) else pattern or [None]
    starts = [r"(?<![^.])(\d+)(?![^.])" if w is None else rf"(?<![^.])(?:{w})\.(\d+)(?![^.])" for w in words]
    found = next((m for start in starts if (m := re.search(start, path))), None)
    return int(found[1]) if found else None


def _refuse_convolutions(name: str, model: Any, pattern: Pattern) -> None:
    """A pattern that is meant for a convolution: PEFT refuses the one of Mamba, and cannot fold in one with groups."""
    if callable(pattern) or pattern == "all-linear":
        return
    found = find_slots(model, ("conv", *ROLES))
    asked = pattern.split("|") if isinstance(pattern, str) else pattern if isinstance(pattern, list | tuple) else ()
    for one in asked:
        try:
            hit = [f for f in found if matches(one, f.path, f.weight)]
        except ValueError:  # no expression of its own, or some of the layers of a stacked run: select_slots says so
            continue
        if hit and all(f.slot.role == "conv" for f in hit):
            raise ValueError(
                f"{name}: {hit[0].path} is a convolution of each channel alone, to which no low-rank change is made "
                "(PEFT refuses it too). Train it as it is: modules_to_save=['conv1d'] of ef.apply_lora."
            )


def fresh(f: Found, key: jax.Array | None, make: Callable[[Weight, Any], Any]) -> Any:
    """The adapter `make(weight, key)` of a slot, placed; in a stacked run every layer draws what it would alone."""
    names = expand(f.path)
    if key is None:
        made = lift(jax.vmap(lambda w: make(w, None)) if names != [f.path] else lambda w: make(w, None))(f.weight)
    else:
        seeds = jnp.asarray([zlib.crc32(p.encode()) for p in names], jnp.uint32)
        one = lambda w, seed: make(w, jax.random.fold_in(key, seed))
        made = lift(jax.vmap(one) if names != [f.path] else lambda w, seeds: one(w, seeds[0]))(f.weight, seeds)
    if getattr(made, "start", None) is None:  # the base is as it was
        made = dataclasses.replace(made, base=f.weight)  # the same object: nothing is copied
    return place(made)


def place(w: Any) -> Any:
    """The adapter split over devices as its base is, where its arrays divide; the same where the base has no mesh."""
    leaf = next((x for x in jtu.tree_leaves(w.base) if getattr(x, "ndim", 0) == len(shape_of(w))), None)
    if leaf is None or isinstance(leaf, jax.core.Tracer):
        return w
    sharding = getattr(leaf, "sharding", None)
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return w
    spec = (*sharding.spec, *[None] * (leaf.ndim - len(sharding.spec)))
    axes = axes_of(w, spec)

    def put(x: Any, parts: Any) -> Any:
        sizes = [_size(sharding.mesh, p) for p in parts]
        fits = [p if n % size == 0 else None for p, n, size in zip(parts, x.shape, sizes, strict=True)]
        where = jax.sharding.NamedSharding(sharding.mesh, jax.P(*fits))
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
        return jax.device_put(x, where)

    return dataclasses.replace(w, **{name: put(x, getattr(axes, name)) for name, x in arrays(w).items()})


def arrays(w: Any) -> dict[str, Any]:
    """The arrays of an adapter itself by the name of their field: not those of its base."""
    held = {f.name: getattr(w, f.name) for f in dataclasses.fields(w) if f.name not in ("base", "key")}
    return {name: value for name, value in held.items() if hasattr(value, "shape")}


def _size(mesh: Any, part: Any) -> int:
    names = () if part is None else (part,) if isinstance(part, str) else part
    return math.prod(mesh.shape[name] for name in names)


def register_adapter(
    cls: type, axes: Callable[..., dict[str, Any]], *, frozen: tuple[str, ...] = (), additive: bool = False
) -> None:
    """Teaches the verbs what an adapter class of which `dot` and `dense` are known has in common with all others.

    `axes(w, lead, out, into)` gives the axes of every array field, in terms of those of the weight; `frozen` names the
    fields that do not train; `additive` says that the adapter adds the same to any base.
    """
    if additive:
        change.register(cls)(dense)

    @shape_of.register(cls)
    def _(w: Any) -> tuple[int, ...]:
        return shape_of(w.base)

    @is_adapter.register(cls)
    def _(w: Any) -> bool:
        return True

    @axes_of.register(cls)
    def _(w: Any, names: tuple[str | None, ...]) -> Any:
        *lead, out, into = names
        every = axes(w, tuple(lead), out, into)
        return dataclasses.replace(
            w,
            base=axes_of(w.base, names),
            **{name: every[name] for name in arrays(w)},
            **({"key": tuple(lead)} if getattr(w, "key", None) is not None else {}),
        )

    @cast.register(cls)
    def _(w: Any, dtype: Any, pattern: Any = None) -> Any:
        return dataclasses.replace(
            w, base=cast(w.base, dtype), **{name: to_dtype(x, dtype) for name, x in arrays(w).items()}
        )

    @trainable.register(cls)
    def _(w: Any) -> Any:
        none = jax.tree.map(lambda _: False, w)
        return dataclasses.replace(none, **{name: name not in frozen for name in arrays(w)})

    if take.knows(cls):
        return

    @take.register(cls)
    def _(w: Any, ids: jax.Array) -> Any:
        if len(shape_of(w)) == 2:
            raise take.missing(w, "It adapts matrices, not tables.")
        return dataclasses.replace(w, base=take(w.base, ids), **{n: take(x, ids) for n, x in arrays(w).items()})


def by_pattern(name: str, chosen: list[Found], default: Any, patterns: Mapping[str, Any] | None) -> dict[str, Any]:
    """A value for every slot: of the first pattern that fits it, or the default. A pattern without use is an error."""
    patterns = dict(patterns or {})
    picked = {f.path: next((p for p in patterns if matches(p, f.path, f.weight)), None) for f in chosen}
    if unused := [p for p in patterns if p not in picked.values()]:
        raise ValueError(
            f"{name}: the pattern {unused[0]!r} fits none of the {len(chosen)} selected slots. "
            f"{near(unused[0], [f.path for f in chosen])}"
        )
    return {path: default if p is None else patterns[p] for path, p in picked.items()}


def ranks_and_alphas(
    name: str,
    chosen: list[Found],
    rank: int,
    alpha: int | float,
    rank_pattern: Mapping[str, int] | None,
    alpha_pattern: Mapping[str, int | float] | None,
) -> dict[str, tuple[int, int | float]]:
    """The rank and the alpha of every slot."""
    ranks = by_pattern(name, chosen, rank, rank_pattern)
    alphas = by_pattern(name, chosen, alpha, alpha_pattern)
    if (low := min((rank, *ranks.values()))) < 1:
        raise ValueError(f"{name}: rank must be at least 1, not {low}")
    return {path: (ranks[path], alphas[path]) for path in ranks}


def uniform(key: jax.Array, *shape: int) -> jax.Array:
    """Float32 numbers as torch's `kaiming_uniform_(a=sqrt(5))` draws a matrix `(..., rows, columns)`."""
    bound = 1.0 / math.sqrt(shape[-1])
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def scaled(y: jax.Array, vector: jax.Array) -> jax.Array:
    """`y` times a vector along its last axis, computed in the wider of the two dtypes, in the dtype of `y`."""
    return (y * vector.reshape((1,) * (y.ndim - 1) + vector.shape)).astype(y.dtype)


def dropped(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Dropout of what enters an adapter; without a key, `x`."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))

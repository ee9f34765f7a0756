"""Several named adapters in one model: put them in, choose one, mix them, take them out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from ..core.arrays import Host
from ..core.rows import BASE, by_row, number
from ..core.slots import find_slots
from ..core.trainable import is_adapter
from ..core.tree import expand, lift, near, replace
from ..core.weight import Weight, shape_of
from .adapter import arrays, place
from .apply import Adapter, join_lora
from .several import Adapters
from .weight import LoRA, row_norms


def with_adapters(model: Any, adapters: Mapping[str, Any]) -> Any:
    """`model` with several LoRA adapters by name, of which it takes none until one is chosen.

    Every slot that any of them changes holds an [`easyfn.Adapters`][]: ranks may differ (lower ones are filled with
    zeros), and so may scales, the slots that they change, and whether they are DoRA. Choose with
    [`easyfn.use_adapter`][], or by row with `adapter_ids=` of `forward` and `generate`. Other adapters of equal shapes
    in their place are the same compiled program.

    On a model that holds adapters already they are added, and replace those of the same name. Works on quantized,
    stacked, sharded and abstract bases. Their dropout is off: train an adapter alone and put it in.

    - `adapters`: from [`easyfn.split_lora`][], by name.

    **Raises** `ValueError` for adapters that are no LoRA or changed their base (PiSSA, OLoRA), and for a model with a
    single adapter on it; `KeyError` for slots that the base does not have.

    ```python
    import jax, easyfn as ef
    base = ef.testing.tiny()
    make = lambda rank, seed: ef.split_lora(ef.apply_lora(base, rank=rank, key=jax.random.key(seed)))[1]
    model = ef.with_adapters(base, {"fr": make(4, 1), "de": make(8, 2)})
    ids = jax.numpy.array([[1, 2, 3], [1, 2, 3], [4, 5, 6]])
    logits = ef.forward(model, ids, adapter_ids=["fr", None, "de"]).logits
    french = ef.forward(ef.use_adapter(model, "fr"), ids).logits
    assert jax.numpy.allclose(logits[0], french[0], atol=1e-5)
    ```
    """
    base, held = split_adapters(model) if adapter_names(model) else (model, {})
    if lone := [f.path for f in find_slots(base) if is_adapter(f.weight)]:
        raise ValueError(
            f"with_adapters: {lone[0]} has an adapter without a name. Take it off and give it one: base, adapter = "
            "ef.split_lora(model); ef.with_adapters(base, {'name': adapter})"
        )
    if not adapters:
        raise ValueError("with_adapters: no adapters are given: {'name': adapter, ...}")
    parts: dict[str, dict[str, LoRA]] = {}
    for name, adapter in {**held, **adapters}.items():
        _check(name, adapter)
        joined = join_lora(base, adapter)
        parts[name] = {f.path: f.weight for f in find_slots(joined) if is_adapter(f.weight)}
    paths = {path for one in parts.values() for path in one}
    new = {
        f.path: _together(f.path, f.weight, {name: one.get(f.path) for name, one in parts.items()})
        for f in find_slots(base)
        if f.path in paths
    }
    return replace(base, new)


def _check(name: str, adapter: Any) -> None:
    if not isinstance(name, str) or name in ("", BASE):
        raise ValueError(f"with_adapters: {name!r} is no name for an adapter")
    if not isinstance(adapter, Mapping):
        raise TypeError(
            f"with_adapters: {name!r} is no adapter but a {type(adapter).__name__}: give ef.split_lora(model)[1]"
        )
    for path, w in adapter.items():
        if not isinstance(w, LoRA):
            raise ValueError(f"with_adapters: {name!r} has a {type(w).__name__} at {path}, and LoRA alone can be mixed")
        if w.start is not None:
            raise ValueError(
                f"with_adapters: {name!r} began by changing the base (init={w.start!r}), which the others share: fold it "
                "in (ef.merge_lora), or, where the model is its own base, say so: dataclasses.replace(w, start=None)"
            )
        if w.magnitude is not None and w.magnitude.shape[-1] != 1:
            raise ValueError(f"with_adapters: {name!r} is DoRA on a table ({path}), by columns, which cannot be mixed")
        if more := set(arrays(w)) - {"a", "b", "magnitude"}:
            raise ValueError(f"with_adapters: {name!r} has {', '.join(sorted(more))} at {path}, which cannot be mixed")


def _together(path: str, base: Weight, parts: Mapping[str, LoRA | None]) -> Adapters:
    """The weight of one slot; `None` for an adapter that leaves it alone."""
    *lead, out, into = shape_of(base)
    rank = max(w.rank for w in parts.values() if w is not None)
    dora = tuple(w is not None and w.magnitude is not None for w in parts.values())
    stacked = expand(path) != [path]

    def gain(w: LoRA) -> jax.Array:
        return (w.magnitude.astype(jnp.float32) / row_norms(w))[..., 0]

    def make(parts: Sequence[LoRA | None]) -> Adapters:
        some = [w for w in parts if w is not None]
        dtype = jnp.result_type(*(x.dtype for w in some for x in (w.a, w.b)))
        ones = jnp.ones((*lead, out), jnp.float32)
        gains = [ones if w is None or w.magnitude is None else (jax.vmap(gain) if stacked else gain)(w) for w in parts]
        lengths = [ones if w is None or w.magnitude is None else w.magnitude[..., 0] for w in parts]

        def fill(x: jax.Array | None, shape: tuple[int, ...]) -> jax.Array:
            x = jnp.zeros(shape, dtype) if x is None else x.astype(dtype)
            return jnp.pad(x, [(0, n - m) for n, m in zip(shape, x.shape, strict=True)])

        side = len(lead)
        return Adapters(
            base=None,
            a=jnp.stack([fill(None if w is None else w.a, (*lead, rank, into)) for w in parts], side),
            b=jnp.stack([fill(None if w is None else w.b, (*lead, out, rank)) for w in parts], side),
            scale=jnp.broadcast_to(
                jnp.asarray([0.0 if w is None else w.scale for w in parts], jnp.float32), (*lead, len(parts))
            ),
            magnitude=jnp.stack(lengths, side) if any(dora) else None,
            gain=jnp.stack(gains, side) if any(dora) else None,
            names=tuple(names),
            ranks=tuple(None if w is None else w.rank for w in parts),
            dora=dora,
        )

    names = list(parts)
    # The base goes along only where norms of its rows are needed.
    given = [
        w if d or w is None else dataclasses.replace(w, base=None) for w, d in zip(parts.values(), dora, strict=True)
    ]
    return place(dataclasses.replace(lift(make)(given), base=base))


def adapter_names(model: Any) -> tuple[str, ...]:
    """The names of the adapters that a model holds, in the order of their numbers; none for other models."""
    found = (f.weight.names for f in find_slots(model) if isinstance(f.weight, Adapters))
    return next(found, ())


def _named(verb: str, model: Any) -> tuple[tuple[str, ...], dict[str, Adapters]]:
    found = {f.path: f.weight for f in find_slots(model) if isinstance(f.weight, Adapters)}
    if not found:
        raise ValueError(f"{verb}: the model holds no named adapters. Put them in: ef.with_adapters(base, {{...}})")
    return next(iter(found.values())).names, found


def use_adapter(
    model: Any, which: str | int | Mapping[str, Any] | Sequence[Any] | Int[Array, "*rows"] | Host | None
) -> Any:
    """`model` with one of its adapters chosen, a mixture of them, one for each row of a batch, or none.

    - a name or a number: that adapter for all rows, at the cost of one. Another is the same compiled program.
    - a mapping from names to weights: the sum of their changes, each times its weight (which may be arrays).
    - a list of names (or numbers, -1 or `None` for no adapter), or an integer array `(rows,)`: by row, as
      `adapter_ids` does in `forward` and `generate`; so `compute_loss` takes them too.
    - `None`: the base.

    ```python
    import jax, easyfn as ef
    linear = ef.init(ef.nn.Linear(8, 4), key=jax.random.key(0))
    _, adapter = ef.split_lora(ef.apply_lora(linear, "weight", rank=2, key=jax.random.key(1), init="orthogonal"))
    model = ef.with_adapters(linear, {"fr": adapter, "de": adapter})
    x = jax.numpy.ones((1, 8))
    half = ef.use_adapter(model, {"fr": 0.25, "de": 0.25})(x)
    assert jax.numpy.allclose(2 * half, linear(x) + ef.use_adapter(model, "fr")(x), atol=1e-6)
    ```
    """
    names, found = _named("use_adapter", model)
    if which is None:
        return replace(model, {path: dataclasses.replace(w, ids=None, mix=None) for path, w in found.items()})
    if isinstance(which, (str, int, np.integer)):
        return by_row(model, [number(which, names)])
    if not isinstance(which, Mapping):
        return by_row(model, which)
    if unknown := [name for name in which if name not in names]:
        raise KeyError(
            f"use_adapter: there is no adapter {unknown[0]!r}; there are {', '.join(names)}. {near(unknown[0], names)}"
        )
    mix = jnp.stack([jnp.asarray(which.get(name, 0.0), jnp.float32) for name in names])
    lead = lambda w: w.a.shape[:-3]
    return replace(
        model,
        {
            path: dataclasses.replace(w, ids=None, mix=jnp.broadcast_to(mix, (*lead(w), len(names))))
            for path, w in found.items()
        },
    )


def split_adapters(model: Any) -> tuple[Any, dict[str, Adapter]]:
    """`(base, adapters)`: the inverse of [`easyfn.with_adapters`][], every adapter as [`easyfn.split_lora`][] gives it.

    So adapters are removed and renamed as entries of a dict are, and saved one by one:
    `ef.save_adapter(ef.join_lora(base, adapters["fr"]), directory)`.

    ```python
    import jax, easyfn as ef
    linear = ef.init(ef.nn.Linear(8, 4), key=jax.random.key(0))
    _, adapter = ef.split_lora(ef.apply_lora(linear, "weight", rank=2, key=jax.random.key(1)))
    model = ef.with_adapters(linear, {"fr": adapter, "de": adapter})
    base, adapters = ef.split_adapters(model)
    del adapters["de"]
    assert ef.adapter_names(ef.with_adapters(base, adapters)) == ("fr",)
    ```
    """
    names, found = _named("split_adapters", model)
    adapters: dict[str, Adapter] = {}
    for i, name in enumerate(names):
        one = {path: _alone(w, i) for path, w in found.items()}
        adapters[name] = {path: w for path, w in one.items() if w is not None}
    return replace(model, {path: w.base for path, w in found.items()}), adapters


def single_adapter(model: Any, which: str | int) -> Any:
    """`model` with one of its named adapters as its only one, a plain [`easyfn.LoRA`][]: to train, merge or save it.

    ```python
    import jax, easyfn as ef
    linear = ef.init(ef.nn.Linear(8, 4), key=jax.random.key(0))
    _, adapter = ef.split_lora(ef.apply_lora(linear, "weight", rank=2, key=jax.random.key(1)))
    model = ef.with_adapters(linear, {"fr": adapter, "de": adapter})
    assert isinstance(ef.single_adapter(model, "fr").weight, ef.LoRA)
    ```
    """
    names, _ = _named("single_adapter", model)
    i = number(which, names)
    base, adapters = split_adapters(model)
    return base if i < 0 else join_lora(base, adapters[names[i]])


def _alone(w: Adapters, i: int) -> LoRA | None:
    """Adapter number `i` of a weight, without its base."""
    rank = w.ranks[i]
    if rank is None:
        return None
    scale = _one_scale(w, i, rank)

    def cut(w: Adapters) -> Any:
        b = w.b[..., i, :, :rank]
        if scale is None:
            b = b * w.scale[..., i, None, None].astype(b.dtype)
        return w.a[..., i, :rank, :], b, w.magnitude[..., i, :, None] if w.dora[i] else None

    a, b, magnitude = lift(cut)(dataclasses.replace(w, base=None))
    return LoRA(None, a, b, magnitude, scale=1.0 if scale is None else scale)


def _one_scale(w: Adapters, i: int, rank: int) -> float | None:
    """The scale as a number: `alpha` over the rank, or its root, where alpha is a short one.

    `None` where it is not known (under `jit`, in an abstract model) or differs by layer.
    """
    if isinstance(w.scale, (jax.core.Tracer, jax.ShapeDtypeStruct)):
        return None
    values = np.unique(np.asarray(w.scale[..., i]))
    if len(values) != 1:
        return None
    for by in (rank, rank**0.5):
        alpha = round(float(values[0]) * by, 4)
        if np.float32(alpha / by) == values[0]:
            return alpha / by
    return float(values[0])

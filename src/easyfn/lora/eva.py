"""EVA: adapters that start from the directions of the data (Paischer et al. 2024, arXiv 2410.07170)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.slots import Found, map_slots
from ..core.tree import Pattern, expand
from ..core.weight import shape_of
from ..inspect.observe import observe
from .adapter import by_pattern, choose, place
from .apply import apply_lora

ROLES = ("linear", "head", "router")  # as PEFT: tables and experts start as usual


def apply_eva(
    model: Any,
    batches: Iterable[Any],
    pattern: Pattern = "all-linear",
    *,
    rank: int = 8,
    alpha: int | float = 16,
    key: jax.Array,
    rho: int | float = 2.0,
    whiten: bool = False,
    adjust_scaling_factors: bool = True,
    rank_pattern: Mapping[str, int] | None = None,
    **options: Any,
) -> Any:
    """`ef.apply_lora` whose `a` are the principal components of what enters each weight on some data.

    The ranks are redistributed: the components of all weights compete for a budget of `rank` per weight by the share
    of variance that they explain, at most `rho * rank` for one. A weight that gets none has no adapter. A fresh
    adapter changes nothing, for `b` is zero.

    **Arguments**

    - `batches`: token ids `(batch, seq)`, or dicts of what [`easyfn.forward`][] takes; padding (`attention_mask`) and
      labels of -100 do not count. A few hundred sequences of the task do. Each is passed once.
    - `rho`: 1 keeps the ranks alike, as the layers of a stacked run must be.
    - `whiten`: components divided by the root of their singular value. `adjust_scaling_factors`: alpha follows the
      rank, so that all scales are `alpha / rank`, as if nothing were redistributed.
    - `rank_pattern`: other ranks to start from. The other options are [`easyfn.apply_lora`][]'s.

    The components are exact, of the covariance of all inputs; PEFT goes over the data until an incremental
    approximation has settled. One `(in, in)` float32 array per weight is kept meanwhile. Raises `ValueError` for a
    stacked run whose layers would differ in rank.

    ```python
    import jax, easyfn as ef
    model = ef.testing.tiny()
    ids = jax.random.randint(jax.random.key(1), (4, 16), 0, 64)
    tuned = ef.apply_eva(model, [ids], rank=4, key=jax.random.key(2))
    ranks = [w.rank for w in ef.split_lora(tuned)[1].values()]
    assert sum(ranks) == 4 * 14 and max(ranks) <= 8
    ```
    """
    chosen = [f for f in choose("apply_eva", model, pattern) if f.slot.role in ROLES]
    others = [f.path for f in choose("apply_eva", model, pattern) if f.slot.role not in ROLES]
    if not chosen:
        raise ValueError("apply_eva: it starts linear layers; what the pattern selects are experts and tables")
    names = {name for f in chosen for name in expand(f.path)}
    seen = observe(model, batches, pattern=lambda path, node: path in names)
    start = by_pattern("apply_eva", chosen, rank, rank_pattern)
    found = {f.path: _components(f, seen[f.path], round(start[f.path] * rho)) for f in chosen}
    ranks = _distribute(chosen, {p: share for p, (_, share, _) in found.items()}, start)
    kept = {path: r for path, r in ranks.items() if r}
    exactly = {path: "^(" + "|".join(re.escape(name) for name in expand(path)) + ")$" for path in (*kept, *others)}
    scaled = {path: alpha * r / start[path] for path, r in kept.items()} if adjust_scaling_factors else {}
    new = apply_lora(
        model,
        list(exactly.values()),
        rank=rank,
        alpha=alpha,
        key=key,
        rank_pattern={exactly[path]: r for path, r in kept.items() if r != rank},
        alpha_pattern={exactly[path]: number for path, number in scaled.items() if number != alpha},
        **options,
    )

    def how(path: str, slot: Any, w: Any) -> Any:
        if path not in kept:
            return w
        vectors, _, values = found[path]
        a = vectors[..., : kept[path], :]
        if whiten:
            a = a / jnp.sqrt(values[..., : kept[path], None])
        return place(dataclasses.replace(w, a=a.astype(w.a.dtype)))

    return map_slots(apply_lora, new, how)


def _components(f: Found, seen: Mapping[str, jax.Array], most: int) -> tuple[jax.Array, np.ndarray, jax.Array]:
    """The principal components `(..., most, in)` of a slot's inputs, the share of the variance of each, and the
    singular values of the centred inputs.
    """
    into = shape_of(f.weight)[-1]
    if most > into:
        raise ValueError(f"apply_eva: {f.path} has {into} inputs, fewer than the {most} components of rank times rho")
    count = seen["count"][..., None]
    mean = seen["sum"] / count
    spread = seen["square"] - count[..., None] * mean[..., :, None] * mean[..., None, :]
    values, vectors = jnp.linalg.eigh(spread)  # ascending
    values, vectors = jnp.maximum(values[..., ::-1], 0.0), jnp.swapaxes(vectors, -1, -2)[..., ::-1, :]
    share = values / jnp.maximum(jnp.sum(values, -1, keepdims=True), 1e-30)
    largest = jnp.take_along_axis(vectors, jnp.argmax(jnp.abs(vectors), -1)[..., None], -1)
    return (vectors * jnp.sign(largest))[..., :most, :], np.asarray(share)[..., :most], jnp.sqrt(values[..., :most])


def _distribute(chosen: list[Found], shares: Mapping[str, np.ndarray], start: Mapping[str, int]) -> dict[str, int]:
    """The rank of every slot: the components of all compete for the sum of what they would have had."""
    each = [(f.path, expand(f.path) != [f.path]) for f in chosen]
    lines = [(path, i, row) for path, run in each for i, row in enumerate(shares[path] if run else [shares[path]])]
    budget = sum(start[path] for path, _, _ in lines)
    owner = np.concatenate([np.full(len(row), n) for n, (_, _, row) in enumerate(lines)])
    order = np.argsort(-np.concatenate([row for _, _, row in lines]), kind="stable")[:budget]
    counts = np.bincount(owner[order], minlength=len(lines))
    ranks: dict[str, int] = {}
    for (path, _, _), count in zip(lines, counts, strict=True):
        if ranks.setdefault(path, int(count)) != int(count):
            raise ValueError(
                f"apply_eva: the layers of the stacked run {path!r} would get different ranks. Call ef.unstack(model) "
                "first, or keep them alike with rho=1."
            )
    return ranks

"""One adapter of several: the weighted sums and merges of PEFT's `add_weighted_adapter`, on adapter pytrees."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Shaped

from ..core.arrays import Host
from ..core.tree import expand, lift, near
from .adapter import arrays
from .apply import Adapter
from .weight import LoRA

MERGES = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
METHODS = ("cat", "svd", *MERGES, *(f"{name}_svd" for name in MERGES if name != "linear"))


def combine_adapters(
    adapters: Sequence[Mapping[str, Any]],
    weights: Sequence[Any] | Shaped[Array, " adapters"] | Host | None = None,
    *,
    method: str = "cat",
    rank: int | None = None,
    density: float | None = None,
    majority_sign_method: str = "total",
    key: jax.Array | None = None,
) -> Adapter:
    """One LoRA adapter of several: `weights[i]` times the change of each, added up or merged.

    `adapters` are what [`easyfn.split_lora`][] gives, for `join_lora`; they need not change the same slots. `weights` may
    be negative, and arrays; 1 for all by default. Pure, so it works under `jit` and `grad`.

    **Methods** (PEFT's, and its numbers)

    - `"cat"`: the exact sum; its rank is the sum of the ranks.
    - `"svd"`: the sum's best approximation of a rank: `rank`, or the largest of the adapters'.
    - `"linear"`: `a` and `b` added up on their own, each with the root of its weight: cheap and rough. Needs equal ranks,
      as do the next four, which merge `a` and `b` on their own too.
    - `"magnitude_prune"`: only the largest entries of each count, a share of `density`.
    - `"ties"`: and of those only the ones of the sign that most have, averaged (arXiv 2306.01708).
      `majority_sign_method`: by their sum, `"total"`, or their number, `"frequency"`.
    - `"dare_linear"`, `"dare_ties"`: a random share of `density` of the entries counts, by `1 / density` as much (arXiv
      2311.03099); needs `key`.
    - with `_svd` after them the last four merge the whole changes `b @ a` and decompose the result, of any ranks.

    PEFT's `svd_clamp` is left out: where it cuts depends on the signs of the singular vectors, which are arbitrary.

    **Raises** `ValueError` for ranks, names and numbers that do not fit, and adapters that are no plain LoRA.

    ```python
    import jax, easyfn as ef
    linear = ef.init(ef.nn.Linear(8, 4), key=jax.random.key(0))
    make = lambda seed: ef.apply_lora(linear, "weight", rank=2, key=jax.random.key(seed), init="orthogonal")
    a, b = make(1), make(2)
    both = ef.combine_adapters([ef.split_lora(a)[1], ef.split_lora(b)[1]], [0.7, 0.3])
    x = jax.numpy.ones((1, 8))
    assert jax.numpy.allclose(ef.join_lora(linear, both)(x), 0.7 * a(x) + 0.3 * b(x), atol=1e-6)
    ```
    """
    given = [dict(adapter) for adapter in adapters]
    weights = [1.0] * len(adapters) if weights is None else list(weights)
    _check(given, weights, method, density, majority_sign_method, key)
    if len({frozenset(adapter) for adapter in given}) > 1:
        given = [_listed(adapter) for adapter in given]  # some may be stacked, or stacked otherwise
    if len(given) == 1 and method != "cat":
        method = "linear"  # as in PEFT: there is nothing to merge
    made: Adapter = {}
    for path in dict.fromkeys(path for adapter in given for path in adapter):
        there = [i for i, adapter in enumerate(given) if path in adapter]
        parts = [given[i][path] for i in there]
        if method in MERGES and len({w.rank for w in parts}) > 1:
            raise ValueError(
                f"combine_adapters: {method!r} adds up matrices of one rank, and the adapters have "
                f"{', '.join(str(w.rank) for w in parts)} at {path}; method='cat' or one that ends in 'svd' takes any"
            )
        stem = method.removesuffix("_svd")
        size = rank or max(w.rank for w in parts)

        def one(parts: Sequence[LoRA], numbers: jax.Array, own: jax.Array, stem: str = stem, size: int = size) -> Any:
            merge = functools.partial(_merge, stem, density, majority_sign_method, own)
            if method == "cat":
                return _side_by_side(parts, numbers)
            if method == "svd":
                return _decompose(*_side_by_side(parts, numbers), size)
            if method.endswith("_svd"):
                changes = [w.scale * w.b.astype(jnp.float32) @ w.a.astype(jnp.float32) for w in parts]
                u, s, vh = jnp.linalg.svd(merge(changes, numbers, 0), full_matrices=False)
                return vh[:size], u[:, :size] * s[None, :size]
            each = numbers * jnp.asarray([w.scale for w in parts], jnp.float32)
            root = jnp.sqrt(jnp.abs(each))
            sign = jnp.where(each >= 0, 1.0, -1.0)  # on one side only, or it would be lost in the product
            a = merge([w.a.astype(jnp.float32) for w in parts], root * sign, 0)
            return a, merge([w.b.astype(jnp.float32) for w in parts], root, 1)

        numbers = jnp.stack([jnp.asarray(weights[i], jnp.float32) for i in there])
        run: Callable[..., Any] = one
        for _ in range(parts[0].a.ndim - 2):  # every layer and every expert on its own
            run = jax.vmap(run, in_axes=(0, None, 0))
        a, b = lift(run)(parts, numbers, keys(key, path, parts[0].a.shape[:-2]))
        made[path] = dataclasses.replace(
            parts[0], a=a.astype(parts[0].a.dtype), b=b.astype(parts[0].b.dtype), scale=1.0
        )
    return made


def _check(adapters: Sequence[Adapter], weights: Sequence[Any], method: str, density: Any, sign: str, key: Any) -> None:
    say = "combine_adapters:"
    if method not in METHODS:
        raise ValueError(f"{say} there is no method {method!r}. {near(method, METHODS)} All: {', '.join(METHODS)}")
    if not adapters or len(weights) != len(adapters):
        raise ValueError(f"{say} {len(adapters)} adapters and {len(weights)} weights: give one weight for each")
    pruned = method.startswith(("ties", "dare", "magnitude"))
    if pruned and (density is None or not 0 <= density <= 1):
        raise ValueError(
            f"{say} {method!r} needs density=, the share of entries that count, from 0 to 1, not {density}"
        )
    if method.startswith("dare") and not density:
        raise ValueError(f"{say} {method!r} divides by density, which must be more than 0")
    if method.startswith("dare") and key is None:
        raise ValueError(f"{say} {method!r} draws which entries count: give key=jax.random.key(seed)")
    if sign not in ("total", "frequency"):
        raise ValueError(f"{say} majority_sign_method is 'total' or 'frequency', not {sign!r}")
    for adapter in adapters:
        for path, w in adapter.items():
            if not isinstance(w, LoRA):
                raise ValueError(f"{say} {path} holds a {type(w).__name__}, and LoRA alone can be combined")
            if more := set(arrays(w)) - {"a", "b"}:
                raise ValueError(
                    f"{say} {path} has {', '.join(sorted(more))}: its change is no product of two matrices. Fold it in "
                    "(ef.merge_lora), or mix whole models: ef.use_adapter(ef.with_adapters(base, ...), weights)"
                )
            if w.start is not None:
                raise ValueError(f"{say} {path} began by changing its base (init={w.start!r}), which no other shares")


def _listed(adapter: Adapter) -> Adapter:
    """The adapter layer by layer: `join_lora` puts it on stacked and listed models alike."""
    single: Adapter = {}
    for path, w in adapter.items():
        names = expand(path)
        for i, name in enumerate(names):
            single[name] = w if names == [path] else lift(lambda w, i=i: jax.tree.map(lambda x: x[i], w))(w)
    return single


def _side_by_side(parts: Sequence[LoRA], numbers: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sum of the changes as one product: `a` of `(ranks, in)`, `b` of `(out, ranks)`."""
    a = [numbers[i] * w.scale * w.a.astype(jnp.float32) for i, w in enumerate(parts)]
    return jnp.concatenate(a), jnp.concatenate([w.b.astype(jnp.float32) for w in parts], axis=1)


def _decompose(a: jax.Array, b: jax.Array, rank: int) -> tuple[jax.Array, jax.Array]:
    """`b @ a` in its `rank` largest directions: singular vectors, and those times their values.

    By the small matrix between the orthogonal parts of both: the product, `(out, in)`, is never made.
    """
    q, r = jnp.linalg.qr(b)
    p, t = jnp.linalg.qr(a.T)
    u, s, vh = jnp.linalg.svd(jnp.matmul(r, t.T, precision="highest"), full_matrices=False)
    least = min(rank, s.shape[0])
    a, b = vh[:least] @ p.T, (q @ u[:, :least]) * s[None, :least]
    return jnp.pad(a, ((0, rank - least), (0, 0))), jnp.pad(b, ((0, 0), (0, rank - least)))


def _merge(
    method: str,
    density: Any,
    majority: str,
    key: jax.Array,
    parts: Sequence[jax.Array],
    weights: jax.Array,
    side: int,
) -> jax.Array:
    """One matrix of several; `side` tells `a` and `b` apart."""

    def pruned(x: jax.Array, i: int) -> jax.Array:
        if density is None or density >= 1:
            return x
        if method.startswith("dare"):
            kept = jax.random.bernoulli(jax.random.fold_in(key, 2 * i + side), density, x.shape)
            return jnp.where(kept, x / density, 0.0)
        top = lax.top_k(jnp.abs(x).reshape(-1), int(density * x.size))[1]
        return jnp.zeros(x.size, x.dtype).at[top].set(x.reshape(-1)[top]).reshape(x.shape)

    each = jnp.stack([x if method == "linear" else pruned(x, i) for i, x in enumerate(parts)])
    weighted = each * weights.reshape(-1, *[1] * (each.ndim - 1))
    if not method.endswith("ties"):
        return jnp.sum(weighted, 0)
    sign = jnp.sign(each)
    total = jnp.sum(each if majority == "total" else sign, 0)
    agree = sign == jnp.where(total >= 0, 1.0, -1.0)[None]
    return jnp.sum(weighted * agree, 0) / jnp.maximum(jnp.sum(agree, 0), 1)


def keys(key: jax.Array | None, path: str, lead: tuple[int, ...]) -> jax.Array:
    """What DARE draws with in a slot: a key for every layer, whether stacked or listed, and every expert."""
    key = jax.random.key(0) if key is None else key
    names = expand(path)
    own = [jax.random.fold_in(key, zlib.crc32(name.encode())) for name in names]
    stacked = names != [path]
    each = jnp.stack(own) if stacked else own[0]
    for n in lead[1:] if stacked else lead:
        each = jax.vmap(lambda k, n=n: jax.random.split(k, n))(each) if each.ndim else jax.random.split(each, n)
    return each

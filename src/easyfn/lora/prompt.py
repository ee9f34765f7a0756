"""Prompt tuning and prefix tuning: a frozen model whose cache does not begin empty.

Both train something that stands before every sequence: virtual tokens (Lester et al. 2021, arXiv 2104.08691), or the
keys and values of every layer directly (Li and Liang 2021, arXiv 2101.00190). Either is a cache that is filled already,
so one wrapper says all there is to say: `init_cache` makes a cache that begins with them, and everything that goes on
from a cache (`forward`, `generate`, `prefill`) needs to know no more.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ..core.arrays import Host
from ..core.dtype import dtype_of
from ..core.rows import by_row
from ..core.trainable import is_adapter, trainable
from ..core.tree import is_abstract, nodes
from ..core.weight import Slot, slots
from ..forward.forward import forward, init_cache
from ..inputs.checks import check_ids
from ..inputs.statement import Inputs, inputs as inputs_of
from ..nn.cache.cache import KV, Cache, Ring, layer_cache, stored
from ..nn.heads import input_embeddings
from ..nn.output import Output
from ..tasks.task import task


class Prompt(eqx.Module):
    """A causal model that has read `tokens`, `(virtual tokens, embed)`, before every sequence."""

    base: Any
    tokens: Any

    @property
    def config(self) -> Any:
        return self.base.config

    @property
    def count(self) -> int:
        return self.tokens.shape[0]


class Prefix(eqx.Module):
    """A causal model in whose every layer `k` and `v`, `(layers, kv_heads, virtual tokens, head_dim)`, stand before
    every sequence.
    """

    base: Any
    k: Any
    v: Any

    @property
    def config(self) -> Any:
        return self.base.config

    @property
    def count(self) -> int:
        return self.k.shape[2]


@slots.register(Prompt)
def _(prompt: Prompt) -> dict[str, Slot]:
    return {"tokens": Slot("other", (None, None))}


@slots.register(Prefix)
def _(prefix: Prefix) -> dict[str, Slot]:
    return {name: Slot("other", (None,) * 4) for name in ("k", "v")}


def prompt_tuning(
    model: Any,
    num_virtual_tokens: int = 20,
    *,
    key: jax.Array,
    init: str = "sample_vocab",
    token_ids: Int[Array, " tokens"] | Host | None = None,
) -> Prompt:
    """`model` with that many trained tokens before every sequence: a [`Prompt`][easyfn.Prompt].

    They start as the embeddings of `token_ids` (repeated or cut to the number, as PEFT does with a text), or of random
    tokens, or with `init="random"` as normal numbers. It is a model: `ef.forward` answers the logits of the given
    tokens alone, `ef.generate`, `ef.compute_loss`, `ef.to_state`, `ef.save_adapter` and `ef.load_adapter` take it, and
    `ef.trainable` is the tokens. `.base` is the model as it was.

    For models that keep a cache and have no encoder; others raise `NotSupported`.

    ```python
    import jax, easyfn as ef
    model = ef.prompt_tuning(ef.testing.tiny(), 8, key=jax.random.key(1))
    assert ef.forward(model, jax.numpy.array([[1, 2, 3]])).logits.shape == (1, 3, 64)
    ```
    """
    _check(model, num_virtual_tokens)
    table = input_embeddings(model)
    rows, width = table.weight.shape
    if init not in ("sample_vocab", "random"):
        raise ValueError(f"prompt_tuning: init is 'sample_vocab' or 'random', not {init!r}")
    if is_abstract(model):
        return Prompt(model, jax.ShapeDtypeStruct((num_virtual_tokens, width), jnp.float32))
    if init == "random" and token_ids is None:
        return Prompt(model, jax.random.normal(key, (num_virtual_tokens, width), jnp.float32))
    if token_ids is None:
        ids = jax.random.randint(key, (num_virtual_tokens,), 0, rows)
    else:
        ids = jnp.resize(jnp.asarray(token_ids).reshape(-1), (num_virtual_tokens,))
    return Prompt(model, table(ids).astype(jnp.float32))


def prefix_tuning(model: Any, num_virtual_tokens: int = 20, *, key: jax.Array, init: str = "normal") -> Prefix:
    """`model` with that many trained keys and values before every sequence: a [`Prefix`][easyfn.Prefix].

    They start as normal numbers, as PEFT's, or with `init="zero"` as zeros. All else is as for
    [`easyfn.prompt_tuning`][]; every layer must have attention, of the same heads.

    ```python
    import jax, easyfn as ef
    model = ef.prefix_tuning(ef.testing.tiny(), 8, key=jax.random.key(1))
    assert model.k.shape == (2, 2, 8, 8)
    ```
    """
    _check(model, num_virtual_tokens)
    if init not in ("normal", "zero"):
        raise ValueError(f"prefix_tuning: init is 'normal' or 'zero', not {init!r}")
    shape = prefix_shape(model, num_virtual_tokens)
    if is_abstract(model):
        return Prefix(model, *[jax.ShapeDtypeStruct(shape, jnp.float32)] * 2)
    if init == "zero":
        return Prefix(model, jnp.zeros(shape), jnp.zeros(shape))
    return Prefix(model, *(jax.random.normal(k, shape, jnp.float32) for k in jax.random.split(key)))


def prefix_shape(model: Any, count: int) -> tuple[int, int, int, int]:
    """`(layers, kv_heads, count, head_dim)` of the prefix of a model."""
    cache = jax.eval_shape(lambda: layer_cache(model, 1, count, jnp.float32))
    shapes = [part.k.shape for _, _, part in _layers(cache)]
    if len({(s[-3], s[-1]) for s in shapes}) != 1 or any(s[-2] != count for s in shapes):
        raise ValueError(
            f"prefix_tuning: the layers keep keys of the shapes {sorted(set(shapes))}; a prefix is of one shape in all "
            "layers, and no longer than a sliding window"
        )
    layers = sum(1 if len(s) == 4 else s[0] for s in shapes)
    return layers, shapes[0][-3], count, shapes[0][-1]


def _check(model: Any, count: int) -> None:
    if count < 1:
        raise ValueError(f"the number of virtual tokens must be at least 1, not {count}")
    if task(model) not in ("causal-lm", "base") or hasattr(model, "encoder"):
        raise forward.missing(model, "Virtual tokens go before the sequences of a causal model, by its cache.")
    if jax.eval_shape(lambda: layer_cache(model, 1, count, jnp.float32)) is None:
        raise layer_cache.missing(model, f"No part of {type(model).__name__} keeps a cache.")


def _layers(cache: Any) -> list[tuple[Any, slice, Any]]:
    """The caches of the layers: where each is in the tree, the numbers of its layers, and itself."""
    found: list[tuple[Any, slice, Any]] = []
    first = 0
    for n, part in enumerate(cache):
        run = part if isinstance(part, tuple) and not isinstance(part, (KV, Ring)) else None
        for j, one in enumerate(run or (part,)):
            if not isinstance(one, (KV, Ring)):
                raise ValueError(f"prefix_tuning needs attention in every layer, and one keeps a {type(one).__name__}")
            if run is None:
                found.append(((n,), slice(first, first + 1), one))
            else:
                found.append(((n, j), slice(first + j, first + len(run) * one.k.shape[0], len(run)), one))
        first += 1 if run is None else len(run) * run[0].k.shape[0]
    return found


@init_cache.register(Prompt)
def _(model: Prompt, batch_size: int, max_length: int, *, dtype: Any = None) -> Cache:
    cache = init_cache(model.base, batch_size, max_length + model.count, dtype=dtype)
    tokens = jnp.broadcast_to(model.tokens[None], (batch_size, *model.tokens.shape))
    return forward(model.base, inputs_embeds=tokens.astype(dtype_of(model.base)), cache=cache, fresh=True).cache


@init_cache.register(Prefix)
def _(model: Prefix, batch_size: int, max_length: int, *, dtype: Any = None) -> Cache:
    cache = init_cache(model.base, batch_size, max_length + model.count, dtype=dtype)
    layers = [list(part) if type(part) is tuple else part for part in cache.layers]
    for place, numbers, part in _layers(cache.layers):

        def begin(held: Any, new: jax.Array) -> Any:
            new = new[:, None] if held.ndim == 5 else new[0][None]
            head = stored(held, jnp.broadcast_to(new, (*held.shape[:-2], *new.shape[-2:])))
            put = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, 0, held.ndim - 2)
            return jax.tree.map(put, held, head)

        filled = dataclasses.replace(part, k=begin(part.k, model.k[numbers]), v=begin(part.v, model.v[numbers]))
        if isinstance(filled, Ring):
            filled = dataclasses.replace(filled, segment_ids=filled.segment_ids.at[..., : model.count].set(1))
        if len(place) == 1:
            layers[place[0]] = filled
        else:
            layers[place[0]][place[1]] = filled
    segments = cache.segment_ids.at[:, : model.count].set(1)
    return dataclasses.replace(
        cache,
        layers=tuple(tuple(part) if isinstance(part, list) else part for part in layers),
        segment_ids=segments,
        positions=jnp.full_like(cache.positions, model.count),
        length=jnp.asarray(model.count, cache.length.dtype),
    )


@inputs_of.register(Prompt, Prefix)
def _(model: Any) -> Inputs:
    return inputs_of(model.base)


@forward.register(Prompt, Prefix)
def _(
    model: Any,
    input_ids: Any = None,
    *,
    inputs_embeds: Any = None,
    cache: Any = None,
    fresh: bool = False,
    adapter_ids: Any = None,
    **inputs: Any,
) -> Output:
    ids, embeds = check_ids(model, input_ids, inputs_embeds)
    rows, length = (ids if ids is not None else embeds).shape[:2]
    if adapter_ids is not None:  # the virtual tokens take each row's too
        model = by_row(model, adapter_ids, rows)
    if cache is not None:
        return forward(model.base, ids, inputs_embeds=embeds, cache=cache, **inputs)
    if inputs.get("segment_ids") is not None:
        raise ValueError("forward: packed documents (segment_ids) would not see the virtual tokens; give one per row")
    begun = init_cache(model, rows, length)
    out = forward(model.base, ids, inputs_embeds=embeds, cache=begun, **inputs)
    return out.replace(cache=None)


@task.register(Prompt, Prefix)
def _(model: Any) -> str:
    return task(model.base)


@is_adapter.register(Prompt, Prefix)
def _(model: Any) -> bool:
    return True


@trainable.register(Prompt, Prefix)
def _(model: Any) -> Any:
    inner = any(is_adapter(node) for _, node in nodes(model.base))
    base = trainable(model.base) if inner else jax.tree.map(lambda _: False, model.base)
    own = {f.name: True for f in dataclasses.fields(model) if f.name != "base"}
    return dataclasses.replace(model, base=base, **own)

"""`forward`: one pass of any model, for training, prefill and decoding alike."""

from __future__ import annotations

import dataclasses
import inspect
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..core.multihost import on_host
from ..core.rows import by_row
from ..core.slots import find_slots
from ..core.tree import expand, is_abstract, replace
from ..core.verb import verb
from ..core.weight import randomized
from ..nn.cache.cache import Cache, batch_axes, layer_cache, write
from ..nn.cache.placement import on_mesh
from ..nn.context import Context, Runtime
from ..nn.output import Output

_OUTPUTS = ("hidden_states", "attentions", "router_logits")


@verb
def forward(
    model: Any,
    input_ids: Int[Array, "batch seq"] | np.ndarray | list[Any] | None = None,
    *,
    attention_mask: Any = None,
    position_ids: Any = None,
    segment_ids: Any = None,
    inputs_embeds: Float[Array, "batch seq embed"] | np.ndarray | list[Any] | None = None,
    cache: Cache | None = None,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
    output_router_logits: bool = False,
    key: jax.Array | None = None,
    runtime: Runtime = Runtime(),
    fresh: bool = False,
    adapter_ids: Any = None,
    **inputs: Any,
) -> Output:
    """Runs a model on a batch.

    **Arguments** (transformers' names; shapes `(batch, seq)` unless said otherwise)

    - `input_ids`, or `inputs_embeds` of shape `(batch, seq, embed)`.
    - `attention_mask`: 1 for tokens, 0 for padding, left or right. Padding is invisible: a row gives the same logits with
      and without it. With a cache it covers the new tokens, or the past ones too.
    - `segment_ids`: for packed documents, an integer per document and 0 for padding; documents do not see each other.
    - `position_ids`: by default the tokens before this one in its row (or document), padding not counted.
    - `cache`: from [`easyfn.init_cache`][] or a previous output; the new one is in the output.
    - `output_hidden_states`, `output_attentions`, `output_router_logits`: fill those fields of the output.
    - `key`: a PRNG key turns dropout on, at the rates of the config.
    - `runtime`: attention and rematerialisation choices, see `easyfn.Runtime`.
    - `fresh`: a promise that `cache` is empty, so that attention need not look at it.
    - `adapter_ids`: which of its named adapters each row takes, `(batch,)`: names or numbers, -1, `None` or `"__base__"`
      for none; see [`easyfn.with_adapters`][]. Other ids are the same compiled program.
    - anything else goes to the model (`token_type_ids`, `decoder_input_ids`, `logits_to_keep`, ...).

    **Returns** an [`easyfn.Output`][]. **Raises** `ValueError` for ids outside the vocabulary (when they are concrete), shapes
    that disagree, and a cache that is too short.

    ```python
    import jax, easyfn as ef
    config = ef.models.LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                   num_attention_heads=4, num_key_value_heads=2)
    model = ef.init(config, key=jax.random.key(0))
    assert ef.forward(model, jax.numpy.array([[1, 2, 3]])).logits.shape == (1, 3, 64)
    ```
    """
    ids, embeds = check_ids(model, input_ids, inputs_embeds)
    shape = (ids if ids is not None else embeds).shape[:2]
    wanted = (output_hidden_states, output_attentions, output_router_logits)
    context, cache = make_context(
        shape,
        attention_mask=attention_mask,
        position_ids=position_ids,
        segment_ids=segment_ids,
        cache=cache,
        key=key,
        runtime=runtime,
        fresh=fresh,
        outputs=frozenset(name for name, want in zip(_OUTPUTS, wanted, strict=True) if want),
    )
    arguments = {"input_ids": ids, "inputs_embeds": embeds, **inputs}
    if key is not None:
        model = with_keys(model, key)
    if adapter_ids is not None:
        model = by_row(model, adapter_ids, shape[0])
    out = call(model, context, None if cache is None else cache.layers, arguments)
    return out if cache is None else out.replace(cache=advance(cache, context, out.cache))


def with_keys(model: Any, key: jax.Array) -> Any:
    """`model` with a key for every weight that draws random numbers: one per layer, also in a stacked run."""
    new = {}
    for f in find_slots(model):
        if not randomized.knows(type(f.weight)):
            continue
        single = expand(f.path)
        keys = jnp.stack([jax.random.fold_in(key, zlib.crc32(p.encode())) for p in single])
        new[f.path] = randomized(f.weight, keys[0] if single == [f.path] else keys)
    return replace(model, new) if new else model


def call(model: Any, context: Context, layers: Any, inputs: dict[str, Any]) -> Output:
    """Calls a model with the inputs that are given; an input that it does not know is refused by name."""
    given = {name: jnp.asarray(v) if isinstance(v, np.ndarray) else v for name, v in inputs.items() if v is not None}
    if not accepted(model):
        raise forward.missing(model, "It is no model: its __call__ names no inputs.")
    unknown = set(given) - accepted(model)
    if unknown:
        known = ", ".join(sorted(accepted(model)))
        raise TypeError(f"forward: {type(model).__name__} takes no {', '.join(sorted(unknown))}; it takes {known}")
    return model(context, layers, **given)


@verb
def accepted(model: Any) -> set[str]:
    """The names of the inputs that a model takes, those of the model it wraps included."""
    parameters = inspect.signature(type(model).__call__).parameters.values()
    names = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    if any(p.kind is p.VAR_KEYWORD for p in parameters) and hasattr(model, "model"):
        names |= accepted(model.model)
    return names


def check_ids(model: Any, ids: Any, embeds: Any, *, prefix: str = "") -> tuple[Any, Any]:
    """Exactly one of ids and embeddings, of the right rank, and (when concrete) inside the vocabulary."""
    if (ids is None) == (embeds is None):
        raise ValueError(f"forward takes {prefix}input_ids or {prefix}inputs_embeds: give exactly one of them")
    if ids is None:
        embeds = jnp.asarray(embeds)
        if embeds.ndim != 3 or 0 in embeds.shape:
            raise ValueError(f"{prefix}inputs_embeds must have shape (batch, seq, embed), not {embeds.shape}")
        config = getattr(model, "config", None)
        width = getattr(config, "embedding_size", None) or getattr(config, "hidden_size", None)
        if width is not None and embeds.shape[2] != width:
            raise ValueError(f"{prefix}inputs_embeds are {embeds.shape[2]} wide, and the model's embeddings {width}")
        return None, embeds
    if not isinstance(ids, jax.Array):
        ids = rectangular(ids)
    if ids.ndim != 2:
        raise ValueError(
            f"{prefix}input_ids must have shape (batch, seq), not {ids.shape}; add a batch axis with ids[None]"
        )
    if 0 in ids.shape:
        raise ValueError(
            f"{prefix}input_ids of shape {ids.shape} has no tokens: an empty prompt; start it with the model's bos_token_id"
        )
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{prefix}input_ids must be integers, not {ids.dtype}")
    size = getattr(getattr(model, "config", None), "vocab_size", None)
    if size is not None and ids.size and not isinstance(ids, jax.core.Tracer):
        held = on_host(ids)  # a constant of somebody's jit is concrete, but what jnp makes of it would not be
        low, high = int(held.min()), int(held.max())
        if low < 0 or high >= size:
            raise ValueError(
                f"{prefix}input_ids hold {low if low < 0 else high}, outside the vocabulary of {size} (0 to {size - 1})"
            )
    return jnp.asarray(ids), None


def rectangular(ids: Any) -> np.ndarray:
    """Token ids as an array; who gives rows of different lengths is told what to do."""
    try:
        return np.asarray(ids)
    except ValueError as error:
        raise ValueError(
            "the rows of token ids differ in length: pad them (on the left, to generate) and give an attention_mask "
            "with 0 for the padding"
        ) from error


def make_context(
    shape: tuple[int, int],
    *,
    attention_mask: Any = None,
    position_ids: Any = None,
    segment_ids: Any = None,
    cache: Cache | None = None,
    fresh: bool = False,
    **more: Any,
) -> tuple[Context, Cache | None]:
    """The context of a pass over `(batch, seq)` tokens, and the cache with the new tokens' padding marked in it."""
    batch, length = shape
    mask = _mask(attention_mask, shape, cache)
    if segment_ids is None:
        segments = jnp.ones(shape, jnp.int32) if mask is None else (mask != 0).astype(jnp.int32)
        counted = jnp.cumsum(segments, axis=1) - 1
    else:
        segments = _shaped("segment_ids", segment_ids, shape).astype(jnp.int32)
        segments = segments if mask is None else jnp.where(mask != 0, segments, 0)
        counted = _within_segments(segments)
    offset = jnp.zeros((batch, 1), jnp.int32) if cache is None else cache.positions[:, None]
    positions = jnp.maximum(counted, 0) + offset if position_ids is None else _positions(position_ids, shape)
    start = jnp.zeros((), jnp.int32) if cache is None else cache.length
    if cache is not None:
        size = cache.segment_ids.shape[1]
        if batch != cache.segment_ids.shape[0]:
            raise ValueError(f"the cache holds {cache.segment_ids.shape[0]} rows and the input has {batch}")
        used = 0 if isinstance(cache.length, jax.core.Tracer) else int(np.max(on_host(cache.length)))
        if used + length > size:
            raise ValueError(
                f"the cache has {size} slots, {used} of them used, and {length} more tokens do not fit; "
                "make it longer: ef.init_cache(model, batch_size, max_length)"
            )
        cache = dataclasses.replace(cache, segment_ids=write(cache.segment_ids, segments, start, axis=1))
    context = Context(
        position_ids=positions,
        segment_ids=segments,
        slots=start[..., None] + jnp.arange(length, dtype=jnp.int32).reshape((1,) * start.ndim + (length,)),
        cached_segment_ids=None if cache is None else cache.segment_ids,
        table=None if cache is None else cache.table,
        fresh=fresh,
        **more,
    )
    return context, cache


def advance(cache: Cache, context: Context, layers: Any) -> Cache:
    """The cache after a pass."""
    seen = context.segment_ids > 0
    positions = jnp.max(jnp.where(seen, context.position_ids + 1, 0), axis=1)
    return dataclasses.replace(
        cache,
        layers=layers,
        positions=jnp.where(jnp.any(seen, axis=1), positions, cache.positions).astype(jnp.int32),
        length=cache.length + context.slots.shape[-1],
    )


def _shaped(name: str, value: Any, shape: tuple[int, int]) -> jax.Array:
    value = jnp.asarray(value)
    if value.shape != shape:
        raise ValueError(f"{name} must have the shape {shape} of the tokens, not {value.shape}")
    return value


def _positions(value: Any, shape: tuple[int, int]) -> jax.Array:
    value = jnp.asarray(value, jnp.int32)
    if value.shape not in (shape, (1, shape[1]), (shape[1],)):
        raise ValueError(f"position_ids must have the shape {shape} of the tokens, not {value.shape}")
    return jnp.broadcast_to(value.reshape(-1, shape[1]), shape)


def _mask(value: Any, shape: tuple[int, int], cache: Cache | None) -> jax.Array | None:
    if value is None:
        return None
    value = jnp.asarray(value)
    if value.ndim != 2:
        raise ValueError(f"attention_mask must have shape (batch, seq), not {value.shape}; use segment_ids for packing")
    if not isinstance(value, jax.core.Tracer) and value.dtype != bool and np.any(on_host(value) < 0):
        raise ValueError("attention_mask is 1 for tokens and 0 for padding: it is not added to the scores")
    if cache is not None and value.shape[1] > shape[1]:
        value = value[:, -shape[1] :]  # transformers' form: the past included
    return _shaped("attention_mask", value, shape)


def _within_segments(segments: jax.Array) -> jax.Array:
    """For each token, how many of its document come before it."""
    index = jnp.broadcast_to(jnp.arange(segments.shape[1])[None], segments.shape)
    changed = jnp.concatenate([jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], axis=1)
    return index - jax.lax.cummax(jnp.where(changed, index, 0), axis=1)


@verb
def init_cache(model: Any, batch_size: int, max_length: int, *, dtype: Any = None) -> Cache:
    """An empty cache for `batch_size` rows of up to `max_length` tokens (padding included).

    Layers with a sliding window keep a ring of their window; `dtype` is by default the model's. With `"int8"` keys and values
    are int8 with a float32 scale for each slot and head, about a quarter of float32's memory; recurrent states stay floats.
    For a model on a mesh the cache is split as well: rows over `dp`, `fsdp` and `ep`, key heads over `tp`.

    ```python
    import easyfn as ef
    model = ef.init(ef.models.LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                    num_attention_heads=4, num_key_value_heads=2), key=__import__("jax").random.key(0))
    cache = ef.init_cache(model, 1, 16)
    out = ef.forward(model, __import__("numpy").array([[1, 2]]), cache=cache)
    assert int(out.cache.length) == 2
    ```
    """
    from ..core.dtype import dtype_of

    dtype = jnp.dtype(dtype or dtype_of(model))
    if not jnp.issubdtype(dtype, jnp.floating) and dtype != jnp.int8:
        raise ValueError(f"init_cache: dtype is a float dtype or int8, not {dtype}")
    from ..core.placement import mesh_of

    traced = (jax.typeof(x).sharding.mesh for x in jax.tree.leaves(model) if isinstance(x, jax.core.Tracer))
    mesh = next((m for m in traced if not m.empty), None) or mesh_of(model)
    # On a mesh a compiled function makes it, so that no device ever holds all of it.
    make = _empty_cache if mesh is None or is_abstract(model) else _compiled_empty_cache
    return make(model, batch_size, max_length, dtype, mesh)


def _empty_cache(model: Any, batch_size: int, max_length: int, dtype: Any, mesh: Any) -> Cache:
    layers = layer_cache(model, batch_size, max_length, dtype)
    if layers is None:
        raise layer_cache.missing(model, f"No part of {type(model).__name__} keeps a cache.")
    if dtype == jnp.int8 and all(leaf.dtype != jnp.int8 for leaf in jax.tree.leaves(layers)):
        raise ValueError(
            f"init_cache: {type(model).__name__} keeps no keys and values, only states, which int8 would blur"
        )
    zeros = jnp.zeros((batch_size,), jnp.int32)
    segments = jnp.zeros((batch_size, max_length), jnp.int32)
    more = jax.eval_shape(lambda: layer_cache(model, batch_size + 1, max_length, dtype))
    cache = Cache(layers, segments, zeros, jnp.zeros((), jnp.int32), batch_axes(layers, more))
    return cache if mesh is None else on_mesh(cache, mesh)


_compiled_empty_cache = jax.jit(_empty_cache, static_argnums=(1, 2, 3, 4))


def pure(model: Any) -> tuple[Callable[..., Output], dict[str, Any]]:
    """`(apply, params)`: a pure function of a flat dict of arrays, for code that knows nothing of modules.

    ```python
    import jax, easyfn as ef
    model = ef.init(ef.models.LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                    num_attention_heads=4, num_key_value_heads=2), key=jax.random.key(0))
    apply, params = ef.pure(model)
    logits = jax.jit(apply)(params, input_ids=jax.numpy.array([[1, 2, 3]])).logits
    ```
    """
    from ..core.params import params, with_params

    skeleton = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), model)

    def apply(params: dict[str, Any], input_ids: Any = None, **inputs: Any) -> Output:
        if absent := [path for path in known if path not in params]:
            raise KeyError(f"apply: params lack {len(absent)} of {len(known)} arrays: {', '.join(absent[:5])}")
        return forward(with_params(skeleton, params), input_ids, **inputs)

    known = params(model)
    return apply, known

"""`forward`: one pass of any model, for training, prefill and decoding alike."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from ..core.arrays import Host
from ..core.habits import taught
from ..core.rows import by_row
from ..core.slots import find_slots
from ..core.tree import as_shapes, expand, is_abstract, replace
from ..core.verb import verb
from ..core.weight import randomized
from ..inputs.checks import checked, sequence_of
from ..inputs.context import advance, documents, make_context, positions, restarts
from ..inputs.statement import accepted, inputs as inputs_of
from ..nn.cache.axes import places
from ..nn.cache.cache import Cache, layer_cache
from ..nn.cache.placement import on_mesh
from ..nn.context import Runtime
from ..nn.output import Output
from .seq2seq import OUTPUTS, Source, apart, beside, call, two_sequences, wanted


@verb
@taught
def forward(
    model: Any,
    input_ids: Int[Array, "batch seq"] | Host | None = None,
    *,
    attention_mask: Shaped[Array, "rows keys"] | Host | None = None,
    position_ids: Int[Array, "*axes rows seq"] | Host | None = None,
    segment_ids: Int[Array, "rows seq"] | Host | None = None,
    inputs_embeds: Float[Array, "batch seq embed"] | Host | None = None,
    cache: Cache | None = None,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
    output_router_logits: bool = False,
    key: jax.Array | None = None,
    runtime: Runtime = Runtime(),
    fresh: bool = False,
    adapter_ids: Int[Array, " rows"] | Host | None = None,
    **inputs: Any,
) -> Output:
    """Runs a model on a batch.

    **Arguments** (transformers' names; shapes `(batch, seq)` unless said otherwise)

    - `input_ids`, or `inputs_embeds` of shape `(batch, seq, embed)`.
    - `attention_mask`: 1 for tokens, 0 for padding, left or right. Padding is invisible: a row gives the same logits with
      and without it. With a cache it covers the new tokens, or the past ones too.
    - `segment_ids`: for packed documents, an integer per document and 0 for padding; documents do not see each other.
    - `position_ids`: by default the tokens before this one in its row (or document), padding not counted; of a model
      whose positions have several axes (time, height, width) also `(axes, batch, seq)`. Of a decoder without a mask and
      a cache a position that is not above the one before it begins a new document, as in transformers with
      `use_cache=False`.
    - `cache`: from [`easyfn.init_cache`][] or a previous output; the new one is in the output.
    - `output_hidden_states`, `output_attentions`, `output_router_logits`: fill those fields of the output.
    - `key`: a PRNG key turns dropout on, at the rates of the config.
    - `runtime`: attention and rematerialisation choices, see `easyfn.Runtime`.
    - `fresh`: a promise that `cache` is empty, so that attention need not look at it.
    - `adapter_ids`: which of its named adapters each row takes, `(batch,)`: names or numbers, -1, `None` or `"__base__"`
      for none; see [`easyfn.with_adapters`][]. Other ids are the same compiled program.
    - anything else goes to the model (`pixel_values`, `token_type_ids`, `decoder_input_ids`, `logits_to_keep`, ...):
      [`easyfn.inputs`][] says what a model takes, and which of it gives the batch.

    An encoder-decoder reads two sequences. Everything above is of its source, but `cache` (of the decoder) and `key`;
    `decoder_input_ids` or `decoder_inputs_embeds`, with `decoder_attention_mask`, `decoder_position_ids` and
    `decoder_segment_ids` (the numbers of the source's documents), are what the decoder reads. `encoder_outputs`, from
    [`easyfn.encode`][] or an array of hidden states, replaces the source, with the same `attention_mask`. A cache keeps
    the keys and values of the source: after its first pass only new `decoder_input_ids` are given. The output has the
    decoder's `last_hidden_state`, `hidden_states` and `attentions`, its `cross_attentions`, and
    `encoder_last_hidden_state`, `encoder_hidden_states`, `encoder_attentions`, `encoder_router_logits`.

    **Returns** an [`easyfn.Output`][]. **Raises** `ValueError` for ids outside the vocabulary (when they are concrete), shapes
    that disagree, and a cache that is too short.

    ```python
    import jax, easyfn as ef
    model = ef.testing.tiny()
    assert ef.forward(model, jax.numpy.array([[1, 2, 3]])).logits.shape == (1, 3, 64)
    ```
    """
    check_runs(model)
    stated = inputs_of(model)
    given = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, **inputs}
    masks = {"attention_mask": attention_mask, "position_ids": position_ids, "segment_ids": segment_ids}
    source: Source | None = None
    if two_sequences(stated):
        source, given, masks = apart(model, stated, given, masks, cache is not None)
        shape = given["inputs_embeds" if "inputs_embeds" in given else "input_ids"].shape[:2]
    else:
        given = checked(stated, given, model)
        shape = sequence_of(stated, given)
        vain = [name for name, value in {**masks, "cache": cache}.items() if value is not None]
        if vain and not stated.sequence:
            takes = ", ".join(sorted(stated.fields))
            raise TypeError(
                f"forward: {type(model).__name__} reads no tokens and takes no {', '.join(vain)}; it takes {takes}"
            )
    outputs = (output_hidden_states, output_attentions, output_router_logits)
    alone = position_ids is not None and attention_mask is None and segment_ids is None and cache is None
    if alone and source is None and stated.position_axes == 1 and restarts(model):
        masks["segment_ids"] = documents(position_ids, shape)
    if key is not None:
        model = with_keys(model, key)
    if adapter_ids is not None:
        model = by_row(model, adapter_ids, shape[0])
    encoded: Output | None = None
    if source is not None:
        own, key = (None, None) if key is None else (jax.random.fold_in(key, 1), jax.random.fold_in(key, 2))
        asked = {f"output_{name}": want for name, want in zip(OUTPUTS, outputs, strict=True)}
        encoded = source.encoded(model, key=own, runtime=runtime, **asked)
    context, cache = make_context(
        shape,
        **masks,
        cache=cache,
        key=key,
        runtime=runtime,
        fresh=fresh,
        position_axes=stated.position_axes,
        outputs=wanted(*outputs),
    )
    if source is not None:
        context = source.into(model, context, encoded)
    if masks["position_ids"] is None and stated.sequence:
        start = 0 if cache is None else cache.positions[:, None]
        context = context.replace(position_ids=positions(model, context, given, start))
    layers = None if cache is None else cache.layers
    out = call(model, context, layers, given) if source is None else model(context, layers, **given)
    out = out if cache is None else out.replace(cache=advance(cache, context, out.cache))
    return beside(out, encoded)


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


@verb
def init_cache(model: Any, batch_size: int, max_length: int, *, dtype: Any = None) -> Cache:
    """An empty cache for `batch_size` rows of up to `max_length` tokens (padding included).

    Layers with a sliding window keep a ring of their window; `dtype` is by default the model's. With `"int8"` keys and values
    are int8 with a float32 scale for each slot and head, about a quarter of float32's memory; recurrent states stay floats.
    For a model on a mesh the cache is split as well: rows over `dp`, `fsdp` and `ep`, key heads over `tp`.

    ```python
    import easyfn as ef
    model = ef.testing.tiny()
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
    cache = Cache(layers, segments, zeros, jnp.zeros((), jnp.int32), places(layers, "batch"))
    return cache if mesh is None else on_mesh(cache, mesh)


_compiled_empty_cache = jax.jit(_empty_cache, static_argnums=(1, 2, 3, 4))


def check_runs(model: Any) -> None:
    """Raises for what is no model of named inputs."""
    if not set(accepted(model)) - {"key"}:
        raise forward.missing(
            model,
            "Its __call__ names no inputs (input_ids, pixel_values, ...): call it yourself, as model(x) or jax.vmap(model)(x).",
        )


def pure(model: Any) -> tuple[Callable[..., Output], dict[str, Any]]:
    """`(apply, params)`: a pure function of a flat dict of arrays, for code that knows nothing of modules.

    ```python
    import jax, easyfn as ef
    model = ef.testing.tiny()
    apply, params = ef.pure(model)
    logits = jax.jit(apply)(params, input_ids=jax.numpy.array([[1, 2, 3]])).logits
    ```
    """
    from ..core.params import params, with_params

    check_runs(model)
    skeleton = as_shapes(model)

    def apply(params: dict[str, Any], input_ids: Any = None, **inputs: Any) -> Output:
        if absent := [path for path in known if path not in params]:
            raise KeyError(f"apply: params lack {len(absent)} of {len(known)} arrays: {', '.join(absent[:5])}")
        return forward(with_params(skeleton, params), input_ids, **inputs)

    known = params(model)
    return apply, known

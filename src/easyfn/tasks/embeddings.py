"""Embeddings, encoder and decoder of a model: look at them, exchange them, resize the vocabulary."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.arrays import Host
from ..core.params import as_leaf
from ..core.slots import find_slots
from ..core.tree import is_leaf, nodes, rebuild, replace
from ..core.verb import verb
from ..nn.cache.cache import layer_cache
from ..nn.heads import input_embeddings


def _path_of(model: Any, part: Any) -> str:
    return next(path for path, node in nodes(model) if node is part)


def _exchange(verb_name: str, model: Any, old: Any, new: Any) -> Any:
    """`old`, a part of the model, for `new`: a layer like it, or an array for its weight."""
    if not isinstance(new, type(old)):
        new = as_leaf(new)
        if not hasattr(new, "shape"):
            raise TypeError(
                f"{verb_name} takes a {type(old).__name__} or an array for its weight, not a {type(new).__name__}"
            )
        new = replace(old, {"weight": new})
    ours, theirs = tuple(old.weight.shape), tuple(new.weight.shape)
    if ours != theirs:
        raise ValueError(
            f"{verb_name}: the new weight has shape {theirs}, the model needs {ours}; see ef.resize_embeddings"
        )
    return replace(model, {_path_of(model, old): new})


def with_input_embeddings(model: Any, embeddings: Float[Array, "vocab embed"] | Host) -> Any:
    """`model` with another input embedding: a layer, or an array `(vocab, embed)`. A tied head changes with it.

    ```python
    import jax, easyfn as ef
    model = ef.testing.tiny()
    model = ef.with_input_embeddings(model, jax.numpy.zeros((64, 32)))
    assert not ef.input_embeddings(model).weight.any()
    ```
    """
    return _exchange("with_input_embeddings", model, input_embeddings(model), embeddings)


@verb(example="@ef.output_embeddings.register({type})\ndef _(model): return model.lm_head")
def output_embeddings(model: Any) -> Any:
    """The layer that turns hidden states into scores over the vocabulary: the head, or the input embedding it is tied to.

    Raises `NotSupported` for a model without such a head.
    """
    if not hasattr(model, "lm_head"):
        raise output_embeddings.missing(model, "It has no field `lm_head`.")
    return input_embeddings(model) if model.lm_head is None else model.lm_head


def with_output_embeddings(model: Any, embeddings: Float[Array, "vocab embed"] | Host) -> Any:
    """`model` with another head: a layer, or an array `(vocab, embed)`. If it is tied, the input embedding changes too.

    ```python
    import jax, easyfn as ef
    model = ef.testing.tiny()
    model = ef.with_output_embeddings(model, jax.numpy.zeros((64, 32)))
    assert not ef.output_embeddings(model).weight.any()
    ```
    """
    return _exchange("with_output_embeddings", model, output_embeddings(model), embeddings)


def resize_embeddings(
    model: Any, size: SupportsIndex | None, *, pad_to_multiple_of: int | None = None, key: jax.Array | None = None
) -> Any:
    """`model` with a vocabulary of `size` entries: every weight with a `vocab` axis, and the config if there is one.

    `None` keeps the size, to be rounded up to `pad_to_multiple_of`.

    New rows are the mean of the old ones (Hewitt 2021; what transformers does by default), with a `key` plus normal noise of
    the config's `initializer_range`; rows beyond a smaller size are cut off.

    Raises `ValueError` if a weight to resize is quantized or has an adapter, or if the tables have different sizes.

    ```python
    import jax, easyfn as ef
    config = ef.testing.tiny().config
    model = ef.init(config, key=jax.random.key(0))
    bigger = ef.resize_embeddings(model, 70, pad_to_multiple_of=8)
    assert bigger.config.vocab_size == 72
    ```
    """
    if size is None:
        size = input_embeddings(model).weight.shape[0]
    size = operator.index(size)  # NumPy's integers have no place in a config
    if pad_to_multiple_of:
        size = -(-size // pad_to_multiple_of) * pad_to_multiple_of
    if size < 1:
        raise ValueError(f"resize_embeddings: a vocabulary of {size} entries is none")
    config: Any = getattr(model, "config", None)
    new: dict[str, Any] = {}
    had: dict[int, str] = {}  # sizes, each with the path of a table
    for n, found in enumerate(find_slots(model)):
        if "vocab" not in found.slot.axes:
            continue
        if not is_leaf(found.weight):
            kind = type(found.weight).__name__
            raise ValueError(
                f"resize_embeddings: {found.path} is {kind}; resize first, or undo it with ef.merge_lora or ef.dequantize"
            )
        axis = found.weight.ndim - len(found.slot.axes) + found.slot.axes.index("vocab")
        had.setdefault(found.weight.shape[axis], found.path)
        own = None if key is None else jax.random.fold_in(key, n)
        std = float((getattr(config, "extra", None) or {}).get("initializer_range", 0.02))
        new[found.path] = _resized(found.weight, axis, size, own, std)
    if not new:
        raise ValueError("resize_embeddings: no layer of the model has a `vocab` axis")
    if len(had) > 1:
        listed = ", ".join(f"{path} has {n}" for n, path in sorted(had.items()))
        raise ValueError(
            f"resize_embeddings: the tables have sizes of their own ({listed}); change each by ef.with_params"
        )
    return _told(replace(model, new), config, size)


def _told(model: Any, config: Any, size: int) -> Any:
    """`model` whose config, or the config inside it that has the vocabulary, says its new size."""
    names = {f.name for f in dataclasses.fields(config)} if dataclasses.is_dataclass(config) else set()
    tables = ("vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input")
    sizes = [name for name in tables if name in names and getattr(config, name) is not None]
    if sizes:
        return with_config(model, dataclasses.replace(config, **dict.fromkeys(sizes, size)), config)
    if "text_config" not in names:
        return model
    text = dataclasses.replace(config.text_config, vocab_size=size)
    model = with_config(model, text, config.text_config)
    return with_config(model, dataclasses.replace(config, text_config=text), config)


def _resized(w: Any, axis: int, size: int, key: jax.Array | None, std: float) -> Any:
    shape = (*w.shape[:axis], size, *w.shape[axis + 1 :])
    if isinstance(w, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(shape, w.dtype)
    if size <= w.shape[axis]:
        return jax.lax.slice_in_dim(w, 0, size, axis=axis)
    mean = jnp.mean(w.astype(jnp.float32), axis=axis, keepdims=True)
    more = jnp.broadcast_to(mean, (*w.shape[:axis], size - w.shape[axis], *w.shape[axis + 1 :]))
    if key is not None:
        more = more + std * jax.random.normal(key, more.shape)
    return jnp.concatenate([w, more.astype(w.dtype)], axis=axis)


def with_config(model: Any, new: Any, old: Any) -> Any:
    """`model` with `new` wherever a node's static `config` is `old`."""

    def go(node: Any) -> Any:
        if is_leaf(node):
            return node
        node = rebuild(node, lambda _, child: go(child))
        if getattr(node, "config", None) != old:
            return node
        made = object.__new__(type(node))  # static fields cannot be exchanged through the tree
        for field in dataclasses.fields(node):
            object.__setattr__(made, field.name, new if field.name == "config" else getattr(node, field.name))
        return made

    return go(model)


@verb
def encoder(model: Any) -> Any:
    """The encoder of an encoder-decoder, or of an encoder with a head. Raises `NotSupported` if there is none."""
    return _part(encoder, model, "encoder")


@verb
def decoder(model: Any) -> Any:
    """The decoder: of an encoder-decoder its second half, of a language model what stands under the head."""
    return _part(decoder, model, "decoder")


def _part(which: Any, model: Any, name: str) -> Any:
    base = getattr(model, "model", None)
    if base is None:  # only a head has one, and what a head calls `decoder` is its output layer
        if getattr(model, name, None) is not None:
            return getattr(model, name)
    elif hasattr(base, "encoder") or hasattr(base, "decoder"):
        return _part(which, base, name)
    elif (name == "decoder") == _keeps_cache(base):
        return base
    raise which.missing(model, f"It has no {name}.")


def _keeps_cache(model: Any) -> bool:
    return jax.eval_shape(lambda: layer_cache(model, 1, 1, jnp.float32)) is not None


def with_decoder(model: Any, new: Any) -> Any:
    """`model` with another decoder of the same structure.

    ```python
    import jax, easyfn as ef
    model = ef.testing.tiny()
    zeros = jax.tree.map(jax.numpy.zeros_like, ef.decoder(model))
    model = ef.with_decoder(model, zeros)
    ```
    """
    old = decoder(model)
    if bool(jax.tree.structure(old) != jax.tree.structure(new)):
        raise ValueError(
            "with_decoder: the new decoder has another structure (fields, layers or config) than the old one"
        )
    return replace(model, {_path_of(model, old): new})

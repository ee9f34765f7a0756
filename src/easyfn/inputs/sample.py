"""`sample_inputs`: a valid batch for any model, as shapes or as numbers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..core.verb import verb
from .statement import Input, inputs


@verb
def sample_inputs(model: Any, batch_size: int, sequence_length: int, *, key: jax.Array | None = None) -> dict[str, Any]:
    """A batch that a model takes: `jax.ShapeDtypeStruct`s, which is what `flops` runs it on, or numbers drawn with `key`.

    By default what [`easyfn.inputs`][] states: the first main input and all that are not optional, in the sizes that it
    names; where texts are compared with images, an image for each text. Token ids leave out the first three of the
    vocabulary, which are special by custom. A model whose inputs depend on each other (places for images among the ids)
    registers its own.

    ```python
    import jax, easyfn as ef
    model = ef.testing.tiny()
    batch = ef.sample_inputs(model, 2, 8, key=jax.random.key(1))
    assert ef.forward(model, **batch).logits.shape == (2, 8, 64)
    ```
    """
    stated = inputs(model)
    usual = {"decoder_seq": sequence_length, "images": batch_size}
    sizes = {**usual, **stated.sizes, "batch": batch_size, "seq": sequence_length}
    first = next((name for name in stated.main if name in stated.fields), None)
    if first is None:
        raise sample_inputs.missing(model, "Its __call__ names no inputs (input_ids, pixel_values, ...).")
    found = {}
    for n, (name, one) in enumerate(stated.fields.items()):
        if (one.optional and name != first) or (name != first and one.kind == "embeddings"):
            continue
        if one.shape is None or (free := [a for a in one.shape if isinstance(a, str) and a not in sizes]):
            what = "states no shape" if one.shape is None else f"leaves {', '.join(free)} open"
            raise sample_inputs.missing(model, f"Its statement of {name} {what}.")
        shape = tuple(a if isinstance(a, int) else sizes[a] for a in one.shape)
        found[name] = draw(one, shape, None if key is None else jax.random.fold_in(key, n))
    return found


def draw(one: Input, shape: tuple[int, ...], key: jax.Array | None) -> Any:
    """Numbers of an input's kind, or their shape."""
    dtype = jnp.float32 if one.floating else jnp.int32
    if key is None:
        return jax.ShapeDtypeStruct(shape, dtype)
    if one.floating:
        return jax.random.normal(key, shape, dtype)
    if one.kind == "mask":
        return jnp.ones(shape, dtype)
    size = 2 if one.below is None else one.below
    low = min(3, size - 1) if one.kind == "tokens" else 0
    return jax.random.randint(key, shape, low, size, dtype)

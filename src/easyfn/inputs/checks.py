"""Checks of a call against what the model states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.multihost import on_host
from ..core.verb import verb
from .statement import TOKENS, Input, Inputs


def checked(stated: Inputs, given: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """The inputs of a call as arrays, each known to the model and of the shape it states.

    `TypeError` for a name that the model does not take, with what it takes; `ValueError` for everything else.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if unknown := set(given) - set(stated.fields):
        known = ", ".join(sorted(stated.fields))
        raise TypeError(f"forward: {type(model).__name__} takes no {', '.join(sorted(unknown))}; it takes {known}")
    main = [name for name in stated.main if name in given]
    embeds = next((name for name in stated.main if name.endswith("inputs_embeds")), None)  # the same in another form
    exclusive = embeds is not None
    if not main or (embeds and {embeds, f"{embeds.removesuffix('inputs_embeds')}input_ids"} <= set(given)):
        how = "exactly one of them" if exclusive else "it" if len(stated.main) == 1 else "one of them, or both"
        raise ValueError(f"forward takes {' or '.join(stated.main)}: give {how}")
    return {name: _checked(name, value, stated.fields[name]) for name, value in given.items()}


@verb
def fits(model: Any, given: Mapping[str, Any]) -> None:
    """`ValueError` where inputs do not fit each other: as many places for images as there are features. By default what
    the model that a head wraps says of them."""
    if hasattr(model, "model"):
        fits(model.model, given)


def sequence_of(stated: Inputs, given: Mapping[str, Any]) -> tuple[int, int]:
    """`(batch, length)` of a call; the length is 1 where the main input is no sequence."""
    name = next(name for name in stated.main if name in given)
    shape = stated.fields[name].shape or ()
    return given[name].shape[0], given[name].shape[shape.index("seq")] if "seq" in shape else 1


def _checked(name: str, value: Any, one: Input) -> Any:
    if one.kind == "tokens":
        return check_tokens(value, one.below, name)
    if one.kind == "embeddings":
        return check_embeddings(value, one.shape[-1] if one.shape else None, name)
    if one.floating and one.shape is not None:
        value = jnp.asarray(value)
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(f"{name} must be floating point numbers, as the processor makes them, not {value.dtype}")
        fits = len(value.shape) == len(one.shape) and 0 not in value.shape
        if not fits or any(isinstance(n, int) and n != m for n, m in zip(one.shape, value.shape, strict=True)):
            raise ValueError(f"{name} must have shape ({', '.join(map(str, one.shape))}), not {value.shape}")
        return value
    return jnp.asarray(value) if isinstance(value, np.ndarray) else value


def by_token(one: Input) -> bool:
    """Whether an input has something for each token."""
    return one.shape is not None and one.shape[:2] == TOKENS


def aligned(stated: Inputs, given: Mapping[str, Any]) -> set[str]:
    """The inputs that go with the tokens, column by column (`token_type_ids`), whose first axes are those of the `input_ids`.

    Raises `ValueError` where one has another shape.
    """
    names = {n for n in given if n != "input_ids" and n in stated.fields and by_token(stated.fields[n])}
    names = {n for n in names if stated.fields[n].kind in ("mask", "index")}
    for name in sorted(names):
        if jnp.shape(given[name])[:2] != given["input_ids"].shape:
            raise ValueError(
                f"{name} has shape {jnp.shape(given[name])} and input_ids {given['input_ids'].shape}: one number for each token"
            )
    return names


def check_embeddings(embeds: Any, width: Any, name: str = "inputs_embeds") -> jax.Array:
    """`(batch, seq, embed)`, as wide as the model's own where that is known."""
    embeds = jnp.asarray(embeds)
    if embeds.ndim != 3 or 0 in embeds.shape:
        raise ValueError(f"{name} must have shape (batch, seq, embed), not {embeds.shape}")
    if isinstance(width, int) and embeds.shape[2] != width:
        raise ValueError(f"{name} are {embeds.shape[2]} wide, and the model's embeddings {width}")
    return embeds


def check_tokens(ids: Any, size: int | None, name: str = "input_ids") -> jax.Array:
    """Integers `(batch, seq)`, inside the vocabulary when they are concrete."""
    if not isinstance(ids, jax.Array):
        ids = rectangular(ids)
    if ids.ndim != 2:
        raise ValueError(f"{name} must have shape (batch, seq), not {ids.shape}; add a batch axis with ids[None]")
    if 0 in ids.shape:
        raise ValueError(
            f"{name} of shape {ids.shape} has no tokens: an empty prompt; start it with the model's bos_token_id"
        )
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{name} must be integers, not {ids.dtype}")
    if size is not None and ids.size and not isinstance(ids, jax.core.Tracer):
        held = on_host(ids)  # a constant of somebody's jit is concrete, but what jnp makes of it would not be
        low, high = int(held.min()), int(held.max())
        if low < 0 or high >= size:
            raise ValueError(
                f"{name} hold {low if low < 0 else high}, outside the vocabulary of {size} (0 to {size - 1})"
            )
    return jnp.asarray(ids)


def check_ids(model: Any, ids: Any, embeds: Any, *, prefix: str = "") -> tuple[Any, Any]:
    """Exactly one of ids and embeddings, of the right rank, and (when concrete) inside the vocabulary."""
    if (ids is None) == (embeds is None):
        raise ValueError(f"forward takes {prefix}input_ids or {prefix}inputs_embeds: give exactly one of them")
    config = getattr(model, "config", None)
    if ids is None:
        width = getattr(config, "embedding_size", None) or getattr(config, "hidden_size", None)
        return None, check_embeddings(embeds, width, f"{prefix}inputs_embeds")
    size = getattr(config, f"{prefix}vocab_size", None) or getattr(config, "vocab_size", None)
    return check_tokens(ids, size, f"{prefix}input_ids"), None


def rectangular(ids: Any) -> np.ndarray:
    """Token ids as an array; who gives rows of different lengths is told what to do."""
    first = ids[0] if isinstance(ids, list | tuple) and ids else ids
    if isinstance(ids, str) or isinstance(first, str):
        raise TypeError(
            "these are no token ids but text: ef.tokenizer(path).encode(text).ids makes token ids of it, and a list of "
            "them is a batch"
        )
    if isinstance(ids, Mapping) or (hasattr(ids, "data") and hasattr(ids, "input_ids")):
        raise TypeError(
            "these are no token ids but a batch: give ids=batch['input_ids'] and attention_mask=batch['attention_mask'], or "
            "all of it, ef.forward(model, **batch)"
        )
    try:
        return np.asarray(ids)
    except ValueError as error:
        raise ValueError(
            "the rows of token ids differ in length: pad them (on the left, to generate) and give an attention_mask "
            "with 0 for the padding"
        ) from error

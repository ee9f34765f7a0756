"""Sentence embeddings: one vector for each row of a base model, as sentence-transformers makes it."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp

from .context import Context
from .output import Output
from .pooling import POOLINGS, pool


class SentenceEmbedding(eqx.Module):
    """One vector per row: `embeddings`, `(batch, embed)` in float32, as sentence-transformers makes it.

    `pooling` names one or several modes, whose vectors are joined; `normalize` makes them unit vectors. How `ef.embed` reads
    a text: cut to `length` tokens, in small letters if `lower`.
    """

    model: Any
    config: Any = eqx.field(static=True)
    pooling: tuple[str, ...] = eqx.field(static=True)
    normalize: bool = eqx.field(static=True)
    length: int | None = eqx.field(static=True)
    lower: bool = eqx.field(static=True)

    def __init__(
        self,
        model: Any,
        *,
        pooling: str | tuple[str, ...] = "mean",
        normalize: bool = False,
        length: int | None = None,
        lower: bool = False,
    ) -> None:
        modes = (pooling,) if isinstance(pooling, str) else tuple(pooling)
        if unknown := [m for m in modes if m not in POOLINGS]:
            raise ValueError(f"unknown pooling {unknown[0]!r}; known: {', '.join(POOLINGS)}")
        self.model = model
        self.config = model.config
        self.pooling = modes
        self.normalize = normalize
        self.length = length
        self.lower = lower

    def __call__(self, context: Context, cache: Any = None, **inputs: Any) -> Output:
        out = self.model(context, cache, **inputs)
        vectors = jnp.concatenate([pool(out.last_hidden_state, context, mode) for mode in self.pooling], axis=-1)
        if self.normalize:
            length = jnp.sqrt(jnp.sum(vectors * vectors, axis=-1, keepdims=True))
            vectors = vectors / jnp.maximum(length, 1e-12)
        return out.replace(embeddings=vectors)


def sentence_embedding(model: Any) -> SentenceEmbedding:
    """A base model as a sentence embedder, pooled as its checkpoint says.

    The checkpoint's `modules.json` and `1_Pooling/config.json` arrive in `config.extra["_sentence_transformers"]` as
    `{"pooling": [...], "normalize": bool, "length": ..., "lower": bool, "other": [...]}`; without them the mean over the
    tokens is taken and left as long as it is. `ValueError` for modules of other kinds.
    """
    said = (getattr(model.config, "extra", None) or {}).get("_sentence_transformers") or {}
    if other := said.get("other"):
        raise ValueError(
            f"sentence-embedding: the checkpoint's modules.json has {', '.join(other)}, which is not implemented"
        )
    return SentenceEmbedding(
        model,
        pooling=tuple(said.get("pooling", ("mean",))),
        normalize=bool(said.get("normalize", False)),
        length=said.get("length"),
        lower=bool(said.get("lower", False)),
    )

"""Encoder-decoders: cross attention to what an encoder said, and the head that writes text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core.verb import verb
from ..core.weight import Slot, Weight, dense, slots
from .cache.cache import CrossKV, Held, empty_slots, layer_cache, stored
from .context import Context, Mask
from .heads import head_logits, max_positions, vocabulary_scores
from .linear import Embedding, Linear, along_last, declare
from .output import Output


def attend_to_encoder(
    cache: CrossKV | None, context: Context, project: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
) -> tuple[CrossKV | None, Held, Held, Mask]:
    """Keys, values `(batch, kv_heads, source, dim)` and mask of cross attention; the cache with them in it.

    `project` makes keys and values of the encoder's hidden states. With `context.encoder` they are made (and kept, if
    there is a cache); without, the kept ones are used, so that the encoder's output is projected only once.
    A query sees the encoder's tokens of its own segment: padding is segment 0.
    """
    if context.encoder is not None:
        hidden, segments = context.encoder
        k, v = project(hidden)
        if cache is not None:
            cache = CrossKV(stored(cache.k, k), stored(cache.v, v), segments)
    elif cache is None or cache.k.shape[-2] == 0:
        raise ValueError(
            "cross attention has nothing to attend to: give input_ids or encoder_outputs (with an empty cache too)"
        )
    else:
        k, v, segments = cache.k, cache.v, cache.segment_ids
    return cache, k, v, Mask(context.slots, context.segment_ids, jnp.arange(k.shape[2]), segments, causal=False)


def empty_cross(batch: int, heads: int, head_dim: int, dtype: Any) -> CrossKV:
    """The cache of a cross attention layer before it met an encoder: zero tokens.

    The first pass makes it as long as the encoder's output is.
    """
    k, v = (empty_slots((batch, heads, 0, head_dim), dtype) for _ in range(2))
    return CrossKV(k, v, jnp.zeros((batch, 0), jnp.int32))


@verb(example="@ef.nn.source_segments.register({type})\ndef _(encoder, segments, length): return segments[:, ::2]")
def source_segments(encoder: Any, segments: jax.Array, length: int) -> jax.Array:
    """The padding and documents `(batch, length)` of what an encoder says, from those of what it reads, `segments`
    `(batch, seq)`: by default the same. An encoder that says less than it reads (of sound) registers its own."""
    return segments


class Seq2Seq(eqx.Module):
    """An encoder and a decoder over one table of token embeddings (`shared`), which also embeds the source, unless the
    encoder reads something else than text.

    Called as any base model it is the decoder: it reads the encoder's output from `context.encoder`, a pair
    `(hidden states, segment ids)`, or from its cache. [`easyfn.encode`][] runs the encoder; [`easyfn.forward`][] both.
    """

    shared: Embedding
    encoder: Any
    decoder: Any
    config: Any = eqx.field(static=True)
    embed_scale: float = eqx.field(static=True)

    def __init__(self, config: Any, shared: Embedding, encoder: Any, decoder: Any, *, embed_scale: float = 1.0) -> None:
        self.shared = shared
        self.encoder = encoder
        self.decoder = decoder
        self.config = config
        self.embed_scale = embed_scale

    def embed(self, ids: Any) -> jax.Array:
        """The vectors of token ids, `(batch, seq, embed)`, times `embed_scale`."""
        x = self.shared(ids)
        return x if self.embed_scale == 1.0 else x * jnp.asarray(self.embed_scale, x.dtype)

    def __call__(
        self,
        context: Context,
        cache: Any = None,
        *,
        input_ids: Any = None,
        inputs_embeds: jax.Array | None = None,
    ) -> Output:
        x = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        return self.decoder(context, cache, inputs_embeds=x)


@layer_cache.register(Seq2Seq)
def _(model: Seq2Seq, batch_size: int, max_length: int, dtype: Any) -> Any:
    return layer_cache(model.decoder, batch_size, max_length, dtype)


@max_positions.register(Seq2Seq)
def _(model: Seq2Seq) -> int | None:
    return max_positions(model.decoder)


class Seq2SeqLM(eqx.Module):
    """An encoder-decoder with a vocabulary head on its decoder. `lm_head` is `None` when it is tied to the embeddings.

    `scale` multiplies the hidden states before the head; with `logits_bias` there is `final_logits_bias` `(1, vocab)`, a
    buffer that is added to the scores.
    """

    model: Any
    lm_head: Linear | None
    final_logits_bias: Weight | None
    config: Any = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    def __init__(
        self, model: Any, *, tied: bool, bias: bool = False, scale: float = 1.0, logits_bias: bool = False
    ) -> None:
        config = model.config
        self.model = model
        self.lm_head = (
            None if tied else Linear(config.hidden_size, config.vocab_size, bias, axes=("vocab", "embed"), role="head")
        )
        self.final_logits_bias = declare(1, config.vocab_size) if logits_bias else None
        self.config = config
        self.scale = scale

    def __call__(
        self, context: Context, cache: Any = None, *, logits_to_keep: int | None = None, **inputs: Any
    ) -> Output:
        out = self.model(context, cache, **inputs)
        hidden = out.last_hidden_state
        if logits_to_keep:
            hidden = hidden[:, -logits_to_keep:]
        return out.replace(logits=head_logits(self, hidden))


@slots.register(Seq2SeqLM)
def _(model: Seq2SeqLM) -> dict[str, Slot]:
    return {"final_logits_bias": Slot("buffer", (None, "vocab"), "zeros")}


@head_logits.register(Seq2SeqLM)
def _(model: Seq2SeqLM, hidden: jax.Array, *, dtype: Any = None) -> jax.Array:
    hidden = hidden * jnp.asarray(model.scale, hidden.dtype)
    logits = vocabulary_scores(model, model.lm_head, hidden, dtype=dtype)
    if model.final_logits_bias is None:
        return logits
    return logits + along_last(dense(model.final_logits_bias)[0].astype(logits.dtype), logits)

"""Encoder-decoders: cross attention to what an encoder said, and the head that writes text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core.verb import verb
from ..core.weight import Slot, Weight, affine, dense, shape_of, slots
from .cache.cache import CrossKV, Held, empty_slots, layer_cache, stored
from .context import Context, Mask
from .heads import head_logits, input_embeddings, kept, max_positions
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
    """An encoder and a decoder over one table of token embeddings (`shared`), or over an `embed_tokens` of each. An
    encoder that reads something else than text has none.

    Called as any base model it is the decoder: it reads the encoder's output from `context.encoder`, a pair
    `(hidden states, segment ids)`, or from its cache. [`easyfn.encode`][] runs the encoder; [`easyfn.forward`][] both.

    `embed_scale` multiplies the embeddings, `decoder_scale` (by default the same) those of the decoder, with
    `scale_inputs` also those that its caller gives. `restores`: a decoder that is given nothing reads the source, moved
    one place right (BART, which restores damaged texts). `wraps`: what is moved right begins with its own last token, the
    language (mBART), and not with `decoder_start_token_id`.
    """

    shared: Embedding | None
    encoder: Any
    decoder: Any
    config: Any = eqx.field(static=True)
    embed_scale: float = eqx.field(static=True)
    decoder_scale: float = eqx.field(static=True)
    scale_inputs: bool = eqx.field(static=True)
    restores: bool = eqx.field(static=True)
    wraps: bool = eqx.field(static=True)

    def __init__(
        self,
        config: Any,
        shared: Embedding | None,
        encoder: Any,
        decoder: Any,
        *,
        embed_scale: float = 1.0,
        decoder_scale: float | None = None,
        scale_inputs: bool = False,
        restores: bool = False,
        wraps: bool = False,
    ) -> None:
        self.shared = shared
        self.encoder = encoder
        self.decoder = decoder
        self.config = config
        self.embed_scale = embed_scale
        self.decoder_scale = embed_scale if decoder_scale is None else decoder_scale
        self.scale_inputs = scale_inputs
        self.restores = restores
        self.wraps = wraps

    def table(self, side: str) -> Embedding:
        """The token embeddings of the `"encoder"` or the `"decoder"`."""
        return getattr(self, side).embed_tokens if self.shared is None else self.shared

    def embed(self, ids: Any, side: str) -> jax.Array:
        """The scaled vectors of a side's token ids, `(batch, seq, embed)`."""
        x, scale = self.table(side)(ids), self.decoder_scale if side == "decoder" else self.embed_scale
        return x if scale == 1.0 else x * jnp.asarray(scale, x.dtype)

    def __call__(
        self,
        context: Context,
        cache: Any = None,
        *,
        input_ids: Any = None,
        inputs_embeds: jax.Array | None = None,
    ) -> Output:
        x = self.embed(input_ids, "decoder") if inputs_embeds is None else inputs_embeds
        if inputs_embeds is not None and self.scale_inputs:
            x = x * jnp.asarray(self.decoder_scale, x.dtype)
        return self.decoder(context, cache, inputs_embeds=x)


@input_embeddings.register(Seq2Seq)
def _(model: Seq2Seq) -> Embedding:
    return model.table("encoder")


@max_positions.register(Seq2Seq)
def _(model: Seq2Seq) -> int | None:
    return max_positions(model.decoder)


def moved_right(model: Seq2Seq, ids: jax.Array, start: int | None, pad: int | None) -> jax.Array:
    """What a decoder reads to say `ids` `(batch, seq)`: `start`, then all but the last; -100 becomes `pad`.

    Where the model `wraps`, each row starts with its own last token that is neither.
    """
    if pad is None:
        raise ValueError(
            "the config has no pad_token_id, which stands for ignored labels: give decoder_input_ids yourself"
        )
    ids = jnp.where(ids == -100, pad, ids)
    if model.wraps:
        place = jnp.where(ids != pad, jnp.arange(ids.shape[1])[None], 0)
        first = jnp.take_along_axis(ids, jnp.max(place, axis=1, keepdims=True), axis=1)
    elif start is None:
        raise ValueError("the config has no decoder_start_token_id: give decoder_input_ids yourself")
    else:
        first = jnp.full_like(ids[:, :1], start)
    return jnp.concatenate([first, ids[:, :-1]], axis=1)


@layer_cache.register(Seq2Seq)
def _(model: Seq2Seq, batch_size: int, max_length: int, dtype: Any) -> Any:
    return layer_cache(model.decoder, batch_size, max_length, dtype)


class Seq2SeqLM(eqx.Module):
    """An encoder-decoder with a vocabulary head on its decoder. `lm_head` is `None` when it is tied to the embeddings.

    `scale` multiplies the hidden states before the head; a tanh holds the scores below `softcap`; with `logits_bias` there
    is `final_logits_bias` `(1, vocab)`, a buffer that is added to them.
    """

    model: Any
    lm_head: Linear | None
    final_logits_bias: Weight | None
    config: Any = eqx.field(static=True)
    scale: float = eqx.field(static=True)
    softcap: float | None = eqx.field(static=True)

    def __init__(
        self,
        model: Any,
        *,
        tied: bool,
        bias: bool = False,
        scale: float = 1.0,
        softcap: float | None = None,
        logits_bias: bool = False,
    ) -> None:
        config = model.config
        vocabulary = shape_of(model.table("decoder").weight)[0]
        self.model = model
        self.lm_head = (
            None if tied else Linear(config.hidden_size, vocabulary, bias, axes=("vocab", "embed"), role="head")
        )
        self.final_logits_bias = declare(1, vocabulary) if logits_bias else None
        self.config = config
        self.scale = scale
        self.softcap = softcap

    def __call__(self, context: Context, cache: Any = None, *, logits_to_keep: Any = None, **inputs: Any) -> Output:
        out = self.model(context, cache, **inputs)
        return out.replace(logits=head_logits(self, kept(out.last_hidden_state, logits_to_keep)))


@slots.register(Seq2SeqLM)
def _(model: Seq2SeqLM) -> dict[str, Slot]:
    return {"final_logits_bias": Slot("buffer", (None, "vocab"), "zeros")}


@head_logits.register(Seq2SeqLM)
def _(model: Seq2SeqLM, hidden: jax.Array, *, dtype: Any = None) -> jax.Array:
    hidden = hidden * jnp.asarray(model.scale, hidden.dtype)
    if model.lm_head is None:
        logits = affine(model.model.table("decoder").weight, hidden, None, dtype=dtype)
    else:
        logits = model.lm_head(hidden, dtype=dtype)
    if model.softcap is not None:
        logits = jnp.tanh(logits / model.softcap) * model.softcap
    if model.final_logits_bias is None:
        return logits
    return logits + along_last(dense(model.final_logits_bias)[0].astype(logits.dtype), logits)

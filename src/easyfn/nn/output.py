"""What a forward pass returns."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax

Array = jax.Array


class Output(eqx.Module):
    """The results of [`easyfn.forward`][], under transformers' names. What was not asked for is `None`.

    `hidden_states` has one entry more than the model has layers: the input of every layer, then the output of the
    model's final norm. `attentions` and `router_logits` have one entry per layer that produces them. Of an
    encoder-decoder, `last_hidden_state`, `hidden_states` and `attentions` are the decoder's.
    """

    last_hidden_state: Array | None = None  # [batch, seq, embed]
    logits: Array | None = None
    hidden_states: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None  # each [batch, heads, queries, keys]
    router_logits: tuple[Array, ...] | None = None  # each [batch * seq, experts]
    cache: Any = None
    pooler_output: Array | None = None
    seq_relationship_logits: Array | None = None  # [batch, 2]
    start_logits: Array | None = None
    end_logits: Array | None = None
    embeddings: Array | None = None
    text_embeds: Array | None = None  # [texts, embed]
    image_embeds: Array | None = None  # [images, embed]
    logits_per_image: Array | None = None  # [images, texts]
    logits_per_text: Array | None = None
    reconstruction: Array | None = None  # [batch, channels, height, width]
    text_model_output: Any = None  # an `Output` of one tower
    vision_model_output: Any = None
    encoder_last_hidden_state: Array | None = None
    encoder_hidden_states: tuple[Array, ...] | None = None
    encoder_attentions: tuple[Array, ...] | None = None
    encoder_router_logits: tuple[Array, ...] | None = None
    cross_attentions: tuple[Array, ...] | None = None

    def replace(self, **changes: Any) -> Output:
        return dataclasses.replace(self, **changes)

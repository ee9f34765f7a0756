"""LED (Beltagy et al. 2020, arXiv 2004.05150): BART with Longformer's attention in its encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ..config.fields import Size
from ..names.rules import rename
from ..nn import (
    Context,
    LearnedPositions,
    Linear,
    Mask,
    Output,
    Seq2Seq,
    TranslationStack,
    attend_within,
    split_heads,
)
from .translation import TranslationFields, translation, translation_family


@dataclass(frozen=True, kw_only=True)
class LEDConfig(TranslationFields):
    """The keys of an LED `config.json`."""

    model_type: ClassVar[str] = "led"
    max_encoder_position_embeddings: Size = 16384
    max_decoder_position_embeddings: Size = 1024
    attention_window: Size | tuple[Size, ...] = 512
    classifier_dropout: float | int = 0.0

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        data = TranslationFields.normalize(data)
        said, depth = data.get("attention_window", 512), data.get("encoder_layers", 12)
        each = said if isinstance(said, (list, tuple)) else [said]
        if any(isinstance(n, int) and (n <= 0 or n % 2) for n in each):
            raise ValueError(f"led: attention_window={said} must be even and positive: half of it lies on each side")
        if isinstance(said, (list, tuple)) and len(said) != depth:
            raise ValueError(f"led: attention_window names {len(said)} layers, and the encoder has {depth}")
        return data


class LongformerSelfAttention(eqx.Module):
    """A token sees those at most half a window away, and all global ones; a global token sees all, by projections of its
    own (section 3.1). What is computed is the whole matrix of scores, in slices where it is large."""

    query: Linear
    key: Linear
    value: Linear
    query_global: Linear
    key_global: Linear
    value_global: Linear
    heads: int = eqx.field(static=True)
    reach: int = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(self, size: int, heads: int, window: int, dropout: float) -> None:
        if size % heads:
            raise ValueError(f"d_model={size} is no multiple of the {heads} attention heads")
        self.query, self.key, self.value = (Linear(size, size, True, axes=("heads", "embed")) for _ in range(3))
        self.query_global, self.key_global, self.value_global = (
            Linear(size, size, True, axes=("heads", "embed")) for _ in range(3)
        )
        self.heads = heads
        self.reach = window // 2
        self.dropout = dropout

    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, jax.Array | None]:
        chosen = None if context.groups is None else context.groups.get("global")
        chosen_keys = None if chosen is None else chosen > 0
        slots, segments = context.order, context.segment_ids

        def run(parts: tuple[Linear, ...], reach: int, site: int) -> tuple[jax.Array, jax.Array | None]:
            q, k, v = (split_heads(part(x), self.heads) for part in parts)
            mask = Mask(slots, segments, slots, segments, causal=False, window=reach + 1, everywhere=chosen_keys)
            out, weights = attend_within(
                context, q, k, v, mask, scale=q.shape[-1] ** -0.5, dropout=self.dropout, site=site
            )
            return out, weights

        out, weights = run((self.query, self.key, self.value), self.reach, 10)
        if chosen_keys is not None:
            other, seen = run((self.query_global, self.key_global, self.value_global), x.shape[1], 12)
            out = jnp.where(chosen_keys[..., None], other, out)
            if weights is not None and seen is not None:
                weights = jnp.where(chosen_keys[:, None, :, None], seen, weights)
        return out, weights


class LEDAttention(eqx.Module):
    """Longformer's attention and its output projection."""

    longformer_self_attn: LongformerSelfAttention
    output: Linear

    def __init__(self, config: LEDConfig, layer: int) -> None:
        c = config
        window = c.attention_window[layer] if isinstance(c.attention_window, tuple) else c.attention_window
        self.longformer_self_attn = LongformerSelfAttention(
            c.d_model, c.encoder_attention_heads, window, c.attention_dropout
        )
        self.output = Linear(c.d_model, c.d_model, True, axes=("embed", "heads"))

    def __call__(self, x: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any, jax.Array | None]:
        out, weights = self.longformer_self_attn(x, context)
        return self.output(out), cache, weights


class LEDEncoder(eqx.Module):
    """The encoder, which takes `global_attention_mask` `(batch, seq)`: 1 for tokens that see, and are seen by, all."""

    stack: TranslationStack

    def __call__(
        self, context: Context, cache: Any = None, *, inputs_embeds: jax.Array, global_attention_mask: Any = None
    ) -> Output:
        if global_attention_mask is not None:
            if tuple(global_attention_mask.shape) != inputs_embeds.shape[:2]:
                raise ValueError(
                    f"global_attention_mask has shape {tuple(global_attention_mask.shape)}, the tokens "
                    f"{tuple(inputs_embeds.shape[:2])}"
                )
            context = context.replace(groups={"global": global_attention_mask})
        return self.stack(context, cache, inputs_embeds=inputs_embeds)


def led(c: Any) -> Seq2Seq:
    """Encoder and decoder; the decoder reads what the encoder does where it is given nothing."""
    positions = lambda side: LearnedPositions(getattr(c, f"max_{side}_position_embeddings"), c.d_model)
    return translation(
        c, positions, restores=True, encoder=LEDEncoder, encoder_attention=lambda layer: LEDAttention(c, layer)
    )


translation_family(
    "LED",
    LEDConfig,
    led,
    classes=("question-answering",),
    prefix="led",
    names=[
        rename("model.encoder.stack.{rest}", "led.encoder.{rest}"),
        rename("encoder.stack.{rest}", "encoder.{rest}"),
        rename("model.{rest}", "led.{rest}"),
    ],
    # transformers scales no embeddings of it, whatever a file says.
    ignore=("scale_embedding", "max_position_embeddings", "attention_probs_dropout_prob", "gradient_checkpointing"),
)

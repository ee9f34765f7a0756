"""Whisper (Radford et al. 2022, arXiv 2212.04356): an encoder of log-mel spectrograms, and a decoder that writes text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ..config.fields import CommonFields, Size, alias
from ..core.weight import Slot, Weight, dense, slots
from ..inputs.statement import Input, Inputs, inputs
from ..names.rules import Rule, rename
from ..nn import (
    AudioClassifier,
    Context,
    Conv,
    Embedding,
    LayerNorm,
    Output,
    Seq2Seq,
    Seq2SeqLM,
    TranslationBlock,
    activation,
    dropout,
    fold,
    frame_context,
    learned_positions,
    max_positions,
    source_segments,
)
from ..nn.linear import declare, pad_token
from ..registry.family import family


@dataclass(frozen=True, kw_only=True)
class WhisperConfig(CommonFields):
    """The keys of a Whisper `config.json`."""

    model_type: ClassVar[str] = "whisper"
    vocab_size: Size = 51865
    num_mel_bins: Size = 80
    encoder_layers: int = 4
    encoder_attention_heads: Size = 6
    decoder_layers: int = 4
    decoder_attention_heads: Size = 6
    encoder_ffn_dim: Size = 1536
    decoder_ffn_dim: Size = 1536
    activation_function: str = "gelu"
    d_model: Size = 384
    dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    max_source_positions: Size = 1500
    max_target_positions: Size = 448
    pad_token_id: int | None = 50256
    bos_token_id: int | None = 50256
    eos_token_id: int | tuple[int, ...] | None = 50256
    decoder_start_token_id: int | None = 50257
    use_weighted_layer_sum: bool = False
    classifier_proj_size: Size = 256
    tie_word_embeddings: bool = True
    hidden_size = alias("d_model")
    num_hidden_layers = alias("encoder_layers")
    num_attention_heads = alias("encoder_attention_heads")


class SinePositions(eqx.Module):
    """A stored table of sines, and then cosines, at geometric frequencies, which is never trained: `(positions, embed)`."""

    weight: Weight

    def __init__(self, positions: int, dim: int) -> None:
        self.weight = declare(positions, dim)


def sines(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """The table: frequencies `10000 ** -(i / (dim / 2 - 1))`."""
    positions, half = shape[0], shape[1] // 2
    rates = jnp.exp(-math.log(10000) / (half - 1) * jnp.arange(half, dtype=jnp.float32))
    angles = jnp.arange(positions, dtype=jnp.float32)[:, None] * rates[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1).astype(dtype)


@slots.register(SinePositions)
def _(table: SinePositions) -> dict[str, Slot]:
    return {"weight": Slot("buffer", (None, "embed"), sines)}


class WhisperEncoder(eqx.Module):
    """Two convolutions, the second of which halves the frames, stored sines, and pre-norm layers.

    `input_features` are `(batch, num_mel_bins, 2 * max_source_positions)`: always a whole window, all of which is read.
    """

    conv1: Conv
    conv2: Conv
    embed_positions: SinePositions
    layers: tuple[Any, ...]
    layer_norm: LayerNorm
    config: Any = eqx.field(static=True)

    def __init__(self, config: Any) -> None:
        c = config
        self.conv1 = Conv(c.num_mel_bins, c.d_model, (3,), padding=1)
        self.conv2 = Conv(c.d_model, c.d_model, (3,), stride=2, padding=1, axes=("embed", None))
        self.embed_positions = SinePositions(c.max_source_positions, c.d_model)
        self.layers = tuple(
            TranslationBlock(c, "encoder", pre_norm=True, key_bias=False) for _ in range(c.encoder_layers)
        )
        self.layer_norm = LayerNorm(c.d_model)
        self.config = c

    def __call__(self, context: Context, cache: Any = None, *, input_features: jax.Array) -> Output:
        gelu = activation("gelu")
        x = jnp.swapaxes(input_features, 1, 2).astype(dense(self.conv1.weight).dtype)
        x = gelu(self.conv2(gelu(self.conv1(x))))
        x = x + dense(self.embed_positions.weight)[None].astype(x.dtype)
        x = dropout(x, self.config.dropout, context, 1_000_003)
        context = frame_context(context, jnp.ones(x.shape[:2], jnp.int32))
        x, _, trace = fold(self.layers, x, context)
        x = self.layer_norm(x)
        if context.wants("hidden_states"):
            trace["hidden_states"] = (*trace["hidden_states"], x)
        return Output(last_hidden_state=x, **trace)


@inputs.register(WhisperEncoder)
def _(model: WhisperEncoder) -> Inputs:
    c = model.config
    shape = ("batch", c.num_mel_bins, 2 * c.max_source_positions)
    return Inputs({"input_features": Input("audio", shape, optional=False)}, ("input_features",))


@source_segments.register(WhisperEncoder)
def _(encoder: WhisperEncoder, segments: jax.Array, length: int) -> jax.Array:
    return jnp.ones((segments.shape[0], length), jnp.int32)


class WhisperDecoder(eqx.Module):
    """Learned positions, and pre-norm layers that look at the encoder's output."""

    embed_positions: Embedding
    layers: tuple[Any, ...]
    layer_norm: LayerNorm
    config: Any = eqx.field(static=True)

    def __init__(self, config: Any) -> None:
        c = config
        self.embed_positions = Embedding(c.max_target_positions, c.d_model, axes=(None, "embed"))
        self.layers = tuple(
            TranslationBlock(c, "decoder", pre_norm=True, key_bias=False) for _ in range(c.decoder_layers)
        )
        self.layer_norm = LayerNorm(c.d_model)
        self.config = c

    def __call__(self, context: Context, cache: Any = None, *, inputs_embeds: jax.Array) -> Output:
        x = inputs_embeds + learned_positions(self.embed_positions, context.position_ids)
        x = dropout(x, self.config.dropout, context, 1_000_004)
        x, cache, trace = fold(self.layers, x, context, cache)
        x = self.layer_norm(x)
        if context.wants("hidden_states"):
            trace["hidden_states"] = (*trace["hidden_states"], x)
        return Output(last_hidden_state=x, cache=cache, **trace)


@max_positions.register(WhisperDecoder)
def _(model: WhisperDecoder) -> int:
    return model.config.max_target_positions


def whisper(config: Any) -> Seq2Seq:
    """Encoder and decoder."""
    return Seq2Seq(
        config,
        Embedding(config.vocab_size, config.d_model, padding=pad_token(config)),
        WhisperEncoder(config),
        WhisperDecoder(config),
    )


def _names(model: Any) -> list[Rule]:
    if isinstance(model, AudioClassifier):
        return [rename("model.{rest}", "encoder.{rest}")]
    prefix = "model." if isinstance(model, Seq2SeqLM) else ""
    return [
        rename(f"{prefix}shared.weight", f"{prefix}decoder.embed_tokens.weight"),
        rename("lm_head.weight", "proj_out.weight"),
    ]


family(
    "whisper",
    config=WhisperConfig,
    tasks={
        "seq2seq-lm": lambda c: Seq2SeqLM(whisper(c), tied=c.tie_word_embeddings),
        "base": whisper,
        "audio-classification": lambda c: AudioClassifier(WhisperEncoder(c)),
    },
    architectures={
        "WhisperForConditionalGeneration": "seq2seq-lm",
        "WhisperModel": "base",
        "WhisperForAudioClassification": "audio-classification",
    },
    names=_names,
    # Masks of training; what generation reads, which config.extra keeps; scales that the reference has and does not use.
    ignore=(
        "encoder_layerdrop",
        "decoder_layerdrop",
        "apply_spec_augment",
        "mask_time_prob",
        "mask_time_length",
        "mask_time_min_masks",
        "mask_feature_prob",
        "mask_feature_length",
        "mask_feature_min_masks",
        "init_std",
        "scale_embedding",
        "num_key_value_heads",
        "median_filter_width",
        "suppress_tokens",
        "begin_suppress_tokens",
        "forced_decoder_ids",
    ),
)

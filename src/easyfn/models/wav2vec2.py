"""wav2vec 2.0 (Baevski et al. 2020, arXiv 2006.11477): convolutions over samples, then an encoder over frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from ..config.config import only
from ..config.fields import CommonFields, Size
from ..core.frozen import Frozen
from ..core.stack import one_by_one
from ..core.weight import Slot, Weight, dense, slots
from ..inputs.statement import Input, Inputs, inputs
from ..names.rules import Rule, rename
from ..nn import (
    CTC,
    AudioClassifier,
    AudioFrameClassifier,
    ChannelNorm,
    Context,
    Conv,
    LayerNorm,
    Linear,
    Output,
    RelativeBias,
    SpeakerEmbedding,
    TranslationAttention,
    WeightNormConv,
    activation,
    dropout,
    fold,
    frame_context,
    source_segments,
)
from ..nn.linear import along_last, declare
from ..registry.family import family


@dataclass(frozen=True, kw_only=True)
class Wav2Vec2Config(CommonFields):
    """The keys of a wav2vec 2.0 `config.json`."""

    model_type: ClassVar[str] = "wav2vec2"
    vocab_size: Size = 32
    hidden_size: Size = 768
    num_hidden_layers: int = 12
    num_attention_heads: Size = 12
    intermediate_size: Size = 3072
    hidden_act: str = "gelu"
    hidden_dropout: float | int = 0.1
    activation_dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    feat_proj_dropout: float | int = 0.0
    final_dropout: float | int = 0.1
    layer_norm_eps: float = 1e-5
    feat_extract_norm: Literal["group", "layer"] = "group"
    feat_extract_activation: str = "gelu"
    conv_dim: tuple[Size, ...] = (512, 512, 512, 512, 512, 512, 512)
    conv_stride: tuple[Size, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_kernel: tuple[Size, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_bias: bool = False
    num_conv_pos_embeddings: Size = 128
    num_conv_pos_embedding_groups: Size = 16
    do_stable_layer_norm: bool = False
    apply_spec_augment: bool = True
    mask_time_prob: float | int = 0.05
    mask_feature_prob: float | int = 0.0
    ctc_loss_reduction: Literal["sum", "mean"] = "sum"
    ctc_zero_infinity: bool = False
    use_weighted_layer_sum: bool = False
    classifier_proj_size: Size = 256
    tdnn_dim: tuple[Size, ...] = (512, 512, 512, 512, 1500)
    tdnn_kernel: tuple[Size, ...] = (5, 3, 3, 1, 1)
    tdnn_dilation: tuple[Size, ...] = (1, 2, 3, 1, 1)
    xvector_output_dim: Size = 512
    pad_token_id: int | None = 0

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "add_adapter", False)
        only(data, "adapter_attn_dim")
        if isinstance(dims := data.get("conv_dim"), list | tuple):  # transformers writes their number, and believes it
            only(data, "num_feat_extract_layers", len(dims))
        return data

    def __post_init__(self) -> None:
        if not len(self.conv_dim) == len(self.conv_stride) == len(self.conv_kernel):
            raise ValueError(
                f"wav2vec2: conv_dim, conv_stride and conv_kernel name {len(self.conv_dim)}, {len(self.conv_stride)} and "
                f"{len(self.conv_kernel)} layers"
            )


class SampleLayer(eqx.Module):
    """A convolution over samples, its norm if it has one, and an activation."""

    conv: Conv
    layer_norm: Any
    act: str = eqx.field(static=True)

    def __init__(self, c: Any, i: int) -> None:
        into = c.conv_dim[i - 1] if i else 1
        self.conv = Conv(
            into, c.conv_dim[i], c.conv_kernel[i : i + 1], c.conv_bias, stride=c.conv_stride[i], axes=(None, None)
        )
        by_layer = c.feat_extract_norm == "layer"
        self.layer_norm = LayerNorm(c.conv_dim[i]) if by_layer else ChannelNorm(c.conv_dim[i]) if i == 0 else None
        self.act = c.feat_extract_activation
        activation(self.act)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv(x)
        return activation(self.act)(x if self.layer_norm is None else self.layer_norm(x))


class SampleLayers(eqx.Module):
    conv_layers: tuple[SampleLayer, ...]


class Projection(eqx.Module):
    layer_norm: LayerNorm | None
    projection: Linear


class FeedForward(eqx.Module):
    intermediate_dense: Linear
    output_dense: Linear


class Wav2Vec2Block(eqx.Module):
    """Attention and feed-forward with residuals, normed after each part, or (`do_stable_layer_norm`) before."""

    attention: TranslationAttention
    layer_norm: LayerNorm
    feed_forward: FeedForward
    final_layer_norm: LayerNorm
    config: Any = eqx.field(static=True)

    def __init__(self, c: Any, attention: Any = TranslationAttention) -> None:
        self.attention = attention(c.hidden_size, c.num_attention_heads, c.attention_dropout)
        self.layer_norm, self.final_layer_norm = (LayerNorm(c.hidden_size, c.layer_norm_eps) for _ in range(2))
        self.feed_forward = FeedForward(
            Linear(c.hidden_size, c.intermediate_size, True, axes=("mlp", "embed")),
            Linear(c.intermediate_size, c.hidden_size, True, axes=("embed", "mlp")),
        )
        activation(c.hidden_act)
        self.config = c

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, dict[str, Any]]:
        c, first = self.config, self.config.do_stable_layer_norm
        h, _, attentions = self.attention(self.layer_norm(x) if first else x, context, None)
        x = x + dropout(h, c.hidden_dropout, context, 0)
        x = x if first else self.layer_norm(x)
        h = activation(c.hidden_act)(self.feed_forward.intermediate_dense(self.final_layer_norm(x) if first else x))
        h = self.feed_forward.output_dense(dropout(h, c.activation_dropout, context, 1))
        x = x + dropout(h, c.hidden_dropout, context, 2)
        return x if first else self.final_layer_norm(x), cache, {"attentions": attentions}


class Positions(eqx.Module):
    """What a frame's neighbours say of its place: a convolution and an activation."""

    conv: WeightNormConv
    act: str = eqx.field(static=True)

    def __init__(self, c: Any) -> None:
        self.conv = WeightNormConv(c.hidden_size, c.num_conv_pos_embeddings, c.num_conv_pos_embedding_groups)
        self.act = c.feat_extract_activation

    def __call__(self, x: jax.Array) -> jax.Array:
        return activation(self.act)(self.conv(x))


class Encoder(eqx.Module):
    """A convolution over frames for positions, a norm before or after the layers, and the layers; WavLM's know how far apart
    two frames are, by a `relative` bias that all share."""

    pos_conv_embed: Any
    layer_norm: LayerNorm
    layers: tuple[Any, ...]
    relative: RelativeBias | None = None

    @staticmethod
    def of(
        c: Any, positions: Any = None, attention: Any = TranslationAttention, relative: RelativeBias | None = None
    ) -> Encoder:
        layers = tuple(Wav2Vec2Block(c, attention) for _ in range(c.num_hidden_layers))
        return Encoder(positions or Positions(c), LayerNorm(c.hidden_size, c.layer_norm_eps), layers, relative)


class Wav2Vec2(eqx.Module):
    """Samples to hidden states of frames. `input_values` are `(batch, samples)`; rows are padded behind their sound, and
    `attention_mask` counts their samples.

    `mask_time_indices` `(batch, frames)` is where `masked_spec_embed` stands in a frame's place (SpecAugment): the caller
    draws it, in training too.
    """

    feature_extractor: SampleLayers
    feature_projection: Projection
    masked_spec_embed: Weight | None
    encoder: Encoder
    config: Any = eqx.field(static=True)

    def __init__(self, config: Any, encoder: Encoder | None = None) -> None:
        c = config
        self.feature_extractor = SampleLayers(tuple(SampleLayer(c, i) for i in range(len(c.conv_dim))))
        normed = getattr(c, "feat_proj_layer_norm", True)
        self.feature_projection = Projection(
            LayerNorm(c.conv_dim[-1], c.layer_norm_eps) if normed else None,
            Linear(c.conv_dim[-1], c.hidden_size, True, axes=("embed", None)),
        )
        masked = c.mask_time_prob > 0 or c.mask_feature_prob > 0
        self.masked_spec_embed = declare(c.hidden_size) if masked else None
        self.encoder = encoder or Encoder.of(c)
        self.config = c

    def __call__(
        self, context: Context, cache: Any = None, *, input_values: jax.Array, mask_time_indices: Any = None
    ) -> Output:
        c, encoder = self.config, self.encoder
        if (frames := frames_of(c, input_values.shape[1])) < 1:
            raise ValueError(
                f"{input_values.shape[1]} samples of sound are fewer than the first frame of this model needs"
            )
        layers = one_by_one(self.feature_extractor.conv_layers)
        x = input_values[..., None].astype(dense(layers[0].conv.weight).dtype)
        for layer in layers:
            x = layer(x)
        norm = self.feature_projection.layer_norm
        x = self.feature_projection.projection(x if norm is None else norm(x))
        x = dropout(x, c.feat_proj_dropout, context, 1_000_003)
        if mask_time_indices is not None and c.apply_spec_augment:
            if self.masked_spec_embed is None:
                raise ValueError("mask_time_indices: this model has no masked_spec_embed, its config masks nothing")
            embed = along_last(dense(self.masked_spec_embed).astype(x.dtype), x)
            x = jnp.where(jnp.asarray(mask_time_indices).astype(bool)[..., None], embed, x)
        segments = source_segments(self, context.segment_ids, frames)
        context = frame_context(context, segments)
        x = jnp.where(segments[..., None] > 0, x, jnp.zeros_like(x))
        x = x + encoder.pos_conv_embed(x)
        x = x if c.do_stable_layer_norm else encoder.layer_norm(x)
        if encoder.relative is not None:
            context = context.replace(bias=encoder.relative(context))
        x, _, trace = fold(encoder.layers, dropout(x, c.hidden_dropout, context, 1_000_004), context)
        if context.wants("hidden_states"):
            trace["hidden_states"] = (*trace["hidden_states"], x)
        return Output(last_hidden_state=encoder.layer_norm(x) if c.do_stable_layer_norm else x, **trace)


@slots.register(Wav2Vec2)
def _(model: Wav2Vec2) -> dict[str, Slot]:
    return {"masked_spec_embed": Slot("other", ("embed",))}


def frames_of(c: Any, samples: Any) -> Any:
    """How many frames the convolutions make of so many samples: a number, or an array of them."""
    for kernel, stride in zip(c.conv_kernel, c.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


@source_segments.register(Wav2Vec2)
def _(model: Wav2Vec2, segments: jax.Array, length: int) -> jax.Array:
    count = frames_of(model.config, jnp.sum(segments > 0, axis=1))
    return (jnp.arange(length)[None] < count[:, None]).astype(jnp.int32)


@inputs.register(Wav2Vec2)
def _(model: Wav2Vec2) -> Inputs:
    fields = {
        "input_values": Input("audio", ("batch", "seq"), optional=False),
        "mask_time_indices": Input("mask", ("batch", "frames")),
    }
    return Inputs(fields, ("input_values",))


# The two parts of a normed weight, in files of torch's old way with them and of its new one.
CONV = "encoder.pos_conv_embed.conv"
WEIGHT_NORM = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}

# Layers and masks that training draws; adapters that are not here; pretraining and heads that are not here.
IGNORED = (
    "layerdrop",
    "add_adapter",
    "adapter_attn_dim",
    "adapter_kernel_size",
    "adapter_stride",
    "num_adapter_layers",
    "output_hidden_size",
    "num_feat_extract_layers",
    "mask_time_length",
    "mask_time_min_masks",
    "mask_feature_length",
    "mask_feature_min_masks",
    "feat_quantizer_dropout",
    "num_codevectors_per_group",
    "num_codevector_groups",
    "contrastive_logits_temperature",
    "num_negatives",
    "codevector_dim",
    "proj_codevector_dim",
    "diversity_loss_weight",
    "num_ctc_classes",
    "num_clusters",
    "replace_prob",
    "bos_token_id",
    "eos_token_id",
)


SPEAKERS = ("tdnn_dim", "tdnn_kernel", "tdnn_dilation", "xvector_output_dim")  # keys of the vector of a speaker


def speech_family(
    model_type: str,
    prefix: str,
    classes: str,
    config: type,
    encoder: Any = Wav2Vec2,
    names: Mapping[str, str] = Frozen(),
    ignore: tuple[str, ...] = (),
    speakers: bool = True,
) -> None:
    """Registers an encoder of sound whose files name it `prefix`, with its heads; `classes` is how their names begin.

    `speakers`: with the heads that tell who speaks, frame by frame and as a vector. `names` are places of tensors in the
    encoder that files have elsewhere in it; `ignore` are keys beside those of all.
    """

    def ctc(c: Any) -> CTC:
        if c.pad_token_id is None:
            raise ValueError(f"{model_type}: pad_token_id is the blank of CTC, and the config has none")
        return CTC(encoder(c))

    def rules(model: Any) -> list[Rule]:
        ours, theirs = ("", "") if isinstance(model, Wav2Vec2) else ("model.", f"{prefix}.")
        moved = {**{f"{CONV}.{a}": f"{CONV}.{b}" for a, b in WEIGHT_NORM.items()}, **names}
        parts = [rename(f"{ours}{a}", f"{theirs}{b}") for a, b in moved.items()]
        return [*parts, rename("model.{rest}", f"{prefix}.{{rest}}")]

    heads: dict[str, tuple[str, Any]] = {
        "audio-classification": ("SequenceClassification", lambda c: AudioClassifier(encoder(c)))
    }
    if speakers:
        heads["audio-frame-classification"] = "AudioFrameClassification", lambda c: AudioFrameClassifier(encoder(c))
        heads["audio-xvector"] = "XVector", lambda c: SpeakerEmbedding(encoder(c))
    family(
        model_type,
        config=config,
        tasks={"ctc": ctc, "base": encoder, **{name: head for name, (_, head) in heads.items()}},
        architectures={
            f"{classes}ForCTC": "ctc",
            f"{classes}Model": "base",
            **{f"{classes}For{theirs}": name for name, (theirs, _) in heads.items()},
        },
        names=rules,
        aliases={
            f"{front}{CONV}.{new}": (f"{front}{CONV}.{old}",)
            for front in ("", f"{prefix}.")
            for old, new in WEIGHT_NORM.items()
        },
        ignore=(*IGNORED, *ignore),
        prefix=prefix,
    )


speech_family("wav2vec2", "wav2vec2", "Wav2Vec2", Wav2Vec2Config)

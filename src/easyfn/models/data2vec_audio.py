"""data2vec on sound (Baevski et al. 2022, arXiv 2202.03555): wav2vec 2.0's encoder, whose positions are several convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax

from ..config.fields import Size
from ..core.stack import one_by_one
from ..nn import Conv, LayerNorm, activation
from .wav2vec2 import Encoder, Wav2Vec2, Wav2Vec2Config, speech_family


@dataclass(frozen=True, kw_only=True)
class Data2VecAudioConfig(Wav2Vec2Config):
    """The keys of a data2vec audio `config.json`. Every convolution over samples is normed by layer."""

    model_type: ClassVar[str] = "data2vec-audio"
    feat_extract_norm: ClassVar[str] = "layer"  # type: ignore[misc]  # what it cannot say, wav2vec 2.0's files can
    do_stable_layer_norm: ClassVar[bool] = False  # type: ignore[misc]
    apply_spec_augment: ClassVar[bool] = True  # type: ignore[misc]
    conv_pos_kernel_size: Size = 19
    num_conv_pos_embeddings: Size = 5


class PositionLayer(eqx.Module):
    """A convolution over frames, a norm without weights, an activation."""

    conv: Conv
    norm: LayerNorm
    act: str = eqx.field(static=True)

    def __init__(self, c: Data2VecAudioConfig) -> None:
        kernel, groups = c.conv_pos_kernel_size, c.num_conv_pos_embedding_groups
        self.conv = Conv(c.hidden_size, c.hidden_size, (kernel,), padding=kernel // 2, groups=groups)
        self.norm = LayerNorm(c.hidden_size, affine=False)
        self.act = c.feat_extract_activation

    def __call__(self, x: jax.Array) -> jax.Array:
        return activation(self.act)(self.norm(self.conv(x)[:, : x.shape[1]]))


class PositionLayers(eqx.Module):
    layers: tuple[PositionLayer, ...]

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in one_by_one(self.layers):
            x = layer(x)
        return x


def data2vec_audio(c: Any) -> Wav2Vec2:
    """The encoder."""
    return Wav2Vec2(c, Encoder.of(c, PositionLayers(tuple(PositionLayer(c) for _ in range(c.num_conv_pos_embeddings)))))


speech_family("data2vec-audio", "data2vec_audio", "Data2VecAudio", Data2VecAudioConfig, data2vec_audio)

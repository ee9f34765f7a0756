"""WavLM (Chen et al. 2021, arXiv 2110.13900): wav2vec 2.0's encoder, whose attention hears by a gate how far frames are apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from ..config.fields import Size
from ..core.weight import Slot, Weight, dense, slots
from ..nn import Context, Linear, RelativeBias, TranslationAttention
from ..nn.attention.attention import attend_to, attend_within, split_heads
from ..nn.linear import declare
from .wav2vec2 import Encoder, Wav2Vec2, Wav2Vec2Config, speech_family


@dataclass(frozen=True, kw_only=True)
class WavLMConfig(Wav2Vec2Config):
    """The keys of a WavLM `config.json`."""

    model_type: ClassVar[str] = "wavlm"
    num_buckets: Size = 320
    max_bucket_distance: Size = 800
    ctc_loss_reduction: Literal["sum", "mean"] = "mean"


class GatedRelativeAttention(TranslationAttention):
    """Attention in which each query multiplies its bias of distances by `a * (b * const - 1) + 2`, `a` and `b` between 0 and
    1 and made from its own part of the hidden state. `attentions` are those of each head (transformers gives their mean)."""

    gru_rel_pos_const: Weight
    gru_rel_pos_linear: Linear

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__(size, heads, dropout)
        self.gru_rel_pos_const = declare(1, heads, 1, 1)
        self.gru_rel_pos_linear = Linear(size // heads, 8, True, axes=(None, None))

    def __call__(self, x: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any, jax.Array | None]:
        assert context.bias is not None
        _, k, v, mask = attend_to(None, *self.keys(x), context, None)
        q = split_heads(self.q_proj(x), self.heads)
        halves = self.gru_rel_pos_linear(split_heads(x, self.heads)).reshape(*q.shape[:3], 2, 4)
        a, b = jnp.split(jax.nn.sigmoid(jnp.sum(halves.astype(jnp.float32), axis=-1)), 2, axis=-1)
        gate = a * (b * dense(self.gru_rel_pos_const).astype(jnp.float32) - 1.0) + 2.0
        out, weights = attend_within(
            *(context, q, k, v, mask),
            scale=q.shape[-1] ** -0.5,
            bias=gate * context.bias,
            dropout=self.dropout,
            site=10,
        )
        return self.out_proj(out), cache, weights


@slots.register(GatedRelativeAttention)
def _(layer: GatedRelativeAttention) -> dict[str, Slot]:
    return {"gru_rel_pos_const": Slot("other", (None, "heads", None, None), "ones")}


def wavlm(c: Any) -> Wav2Vec2:
    """The encoder."""
    relative = RelativeBias(c.num_buckets, c.num_attention_heads, max_distance=c.max_bucket_distance)
    return Wav2Vec2(c, Encoder.of(c, attention=GatedRelativeAttention, relative=relative))


NAMES = {"encoder.relative.weight.weight": "encoder.layers.0.attention.rel_attn_embed.weight"}
speech_family("wavlm", "wavlm", "WavLM", WavLMConfig, wavlm, NAMES)

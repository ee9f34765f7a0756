"""RoFormer (Su et al. 2021, arXiv 2104.09864): BERT with rotary positions, the model that introduced them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ..config.config import only
from ..config.fields import Size, head_dim
from ..nn import (
    Context,
    EncoderEmbeddings,
    EncoderLayer,
    FixedPositions,
    Linear,
    MaskedLM,
    MultipleChoice,
    PooledClassifier,
    TextEncoder,
    fold,
)
from ..nn.encoder import SelfAttention
from .encoders import IGNORED, PREDICTIONS, EncoderFields, encoder_family, encoder_only, first_token_head


@dataclass(frozen=True, kw_only=True)
class RoFormerConfig(EncoderFields):
    """The keys of a RoFormer `config.json`. Without an `embedding_size`, embeddings are as wide as the layers."""

    model_type: ClassVar[str] = "roformer"
    unsaid: ClassVar[tuple[str, ...]] = ("classifier_dropout",)
    vocab_size: Size = 50000
    embedding_size: Size | None = None
    max_position_embeddings: Size = 1536
    rotary_value: bool = False
    head_dropout = property(lambda c: c.hidden_dropout_prob)

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        for key in ("summary_use_proj", "summary_activation"):
            only(data, key, False, None)
        only(data, "summary_type", "last")
        return encoder_only(data)


class RoFormerLayers(eqx.Module):
    """The layers, under one table of sines and cosines, `(positions, head_dim)`, that files hold."""

    embed_positions: FixedPositions
    layer: tuple[EncoderLayer, ...]

    def __init__(self, c: RoFormerConfig) -> None:
        self.embed_positions = FixedPositions(c.max_position_embeddings, head_dim(c))
        rotated = "qkv" if c.rotary_value else "qk"
        attention = lambda: SelfAttention(
            c.hidden_size, c.num_attention_heads, c.attention_probs_dropout_prob, rotated=rotated
        )
        self.layer = tuple(EncoderLayer(c, attention=attention()) for _ in range(c.num_hidden_layers))

    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, dict[str, Any]]:
        sin, cos = jnp.split(self.embed_positions(context), 2, axis=-1)
        x, _, trace = fold(self.layer, x, context.replace(rope={"default": (cos, sin)}))
        return x, trace


def roformer(c: Any, *, pooler: bool = False) -> TextEncoder:
    """The encoder, which never has a pooler: each entry of a head is rotated against its neighbour."""
    narrow = c.embedding_size or c.hidden_size
    return TextEncoder(
        c,
        pooler=False,
        embeddings=EncoderEmbeddings(c, positions=False),
        project=None if narrow == c.hidden_size else Linear(narrow, c.hidden_size, True, axes=("mlp", "embed")),
        layers=RoFormerLayers(c),
    )


encoder_family(
    "RoFormer",
    RoFormerConfig,
    roformer,
    prefix="roformer",
    lm_head=lambda c: MaskedLM(roformer(c), tied=c.tie_word_embeddings, size=c.embedding_size),
    classifier=lambda c: PooledClassifier(
        roformer(c), dropout=c.head_dropout, classifier=first_token_head(c, act=c.hidden_act)
    ),
    choice=lambda c: MultipleChoice(roformer(c), pooling="lasttoken"),
    heads=PREDICTIONS,
    ignore=(*IGNORED, "summary_type", "summary_use_proj", "summary_activation"),
)

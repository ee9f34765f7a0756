"""LayoutLM (Xu et al. 2019, arXiv 1912.13318): BERT that is told where on its page every word stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ..config.config import labels
from ..config.fields import Size
from ..nn import Embedding, EncoderEmbeddings, MaskedLM, PooledClassifier, TextEncoder
from ..nn.encoder import chosen_rows
from .encoders import PREDICTIONS, BertFields, encoder_family


@dataclass(frozen=True, kw_only=True)
class LayoutLMConfig(BertFields):
    """The keys of a LayoutLM `config.json`."""

    model_type: ClassVar[str] = "layoutlm"
    max_2d_position_embeddings: Size = 1024
    tie_word_embeddings: bool = True
    head_dropout = property(lambda c: c.hidden_dropout_prob)

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return labels(data)


class Layout(eqx.Module):
    """What a box `(left, top, right, bottom)` adds to a token: rows for its four sides, its height and its width."""

    x_position_embeddings: Embedding
    y_position_embeddings: Embedding
    h_position_embeddings: Embedding
    w_position_embeddings: Embedding
    size: int = eqx.field(static=True)

    def __init__(self, size: int, dim: int) -> None:
        table = lambda: Embedding(size, dim, axes=(None, "embed"))
        self.x_position_embeddings, self.y_position_embeddings = table(), table()
        self.h_position_embeddings, self.w_position_embeddings = table(), table()
        self.size = size

    def __call__(self, bbox: Any) -> jax.Array:
        """`(batch, seq, 4)` to `(batch, seq, embed)`. A side that no table has, and a box whose left is right of its right, is a
        `ValueError`, and NaN in a compiled function."""
        left, top, right, bottom = (bbox[..., i] for i in range(4))

        def rows(table: Embedding, places: Any, name: str) -> jax.Array:
            found = chosen_rows(table, places, name)
            return jnp.where(
                ((places >= 0) & (places < self.size))[..., None], found, jnp.asarray(jnp.nan, found.dtype)
            )

        x = rows(self.x_position_embeddings, left, "lefts of bbox") + rows(
            self.y_position_embeddings, top, "tops of bbox"
        )
        x = x + rows(self.x_position_embeddings, right, "rights of bbox")
        x = x + rows(self.y_position_embeddings, bottom, "bottoms of bbox")
        x = x + rows(self.h_position_embeddings, bottom - top, "heights of bbox")
        return x + rows(self.w_position_embeddings, right - left, "widths of bbox")


def layoutlm(c: Any, *, pooler: bool = True) -> TextEncoder:
    """The encoder, which has a pooler under every head."""
    layout = Layout(c.max_2d_position_embeddings, c.hidden_size)
    return TextEncoder(c, pooler=True, embeddings=EncoderEmbeddings(c, layout=layout))


encoder_family(
    "LayoutLM",
    LayoutLMConfig,
    layoutlm,
    prefix="layoutlm",
    lm_head=lambda c: MaskedLM(layoutlm(c), tied=c.tie_word_embeddings),
    classifier=lambda c: PooledClassifier(layoutlm(c), dropout=c.head_dropout),
    lacks=("multiple-choice",),
    layers=[("embeddings.layout.{rest}", "embeddings.{rest}")],
    heads=PREDICTIONS,
    ignore=("position_embedding_type",),
)

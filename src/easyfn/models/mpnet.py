"""MPNet (Song et al. 2020, arXiv 2004.09297): RoBERTa without token types, with T5's relative positions in all layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import labels
from ..nn import RelativeBias, TextEncoder
from .encoders import EncoderFields, encoder_family


@dataclass(frozen=True, kw_only=True)
class MPNetConfig(EncoderFields):
    """The keys of an MPNet `config.json`."""

    model_type: ClassVar[str] = "mpnet"
    unsaid: ClassVar[tuple[str, ...]] = ("type_vocab_size",)
    vocab_size: int = 30527
    type_vocab_size: int = 0
    relative_attention_num_buckets: int = 32

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return labels(data)


def mpnet(config: Any, *, pooler: bool) -> TextEncoder:
    """The encoder: 32 buckets whatever the size of their table, and id 1 for padding whatever the config says."""
    bias = RelativeBias(config.relative_attention_num_buckets, config.num_attention_heads, count=32)
    return TextEncoder(config, pooler=pooler, padding=1, relative=bias)


LAYER = "encoder.layer.{i}.attention."
encoder_family(
    "MPNet",
    MPNetConfig,
    mpnet,
    prefix="mpnet",
    layers=[
        *(
            (f"{LAYER}{ours}.{{rest}}", f"{LAYER}{theirs}.{{rest}}")
            for ours, theirs in (
                ("self.query", "attn.q"),
                ("self.key", "attn.k"),
                ("self.value", "attn.v"),
                ("output.dense", "attn.o"),
                ("output.LayerNorm", "LayerNorm"),
            )
        ),
        ("relative_attention_bias.weight.weight", "encoder.relative_attention_bias.weight"),
    ],
)

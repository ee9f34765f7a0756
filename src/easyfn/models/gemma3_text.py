"""Gemma 3, text (Gemma Team 2025, arXiv 2503.19786): five local layers to a global one, norms around each part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import only
from ..config.fields import DecoderFields, Positive, Size, rope
from ..core.frozen import Frozen
from ..nn import Decoder, GatedMLP, RMSNorm, SandwichBlock
from .decoders import alternate, attention, decoder_family, layer_windows, rope_by_kind


@dataclass(frozen=True, kw_only=True)
class Gemma3TextConfig(DecoderFields):
    """The keys of a Gemma 3 text `config.json`. `rope_parameters` has one entry per kind of layer.

    Without `layer_types`, every sixth layer is global.
    """

    model_type: ClassVar[str] = "gemma3_text"
    num_key_value_heads: Size = 4
    head_dim: Size = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: Size = 131072
    rope_parameters: Frozen = Frozen(sliding_attention=rope(10000.0), full_attention=rope(1000000.0))
    query_pre_attn_scalar: Positive = 256
    sliding_window: Size | None = 4096
    layer_types: tuple[str, ...] | None = None
    attention_bias: bool = False
    final_logit_softcapping: float | int | None = None
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "use_bidirectional_attention", False)
        only(data, "attn_logit_softcapping")  # transformers reads it and never applies it
        data = dict(data)
        pattern = data.pop("sliding_window_pattern", None) or 6  # _sliding_window_pattern is written and never read
        if data.get("layer_types") is None and "num_hidden_layers" in data:
            data["layer_types"] = alternate(data["num_hidden_layers"], pattern)
        return rope_by_kind(data, sliding=10000.0, full=1000000.0)


def gemma3(config: Gemma3TextConfig) -> Decoder:
    """The decoder: scaled embeddings, queries and keys normed, and a rotary base for each kind of layer."""
    c = config
    kinds = c.layer_types or alternate(c.num_hidden_layers, 6)

    def norm(dim: int) -> RMSNorm:
        return RMSNorm(dim, c.rms_norm_eps, offset=1.0)

    layers = [
        SandwichBlock(
            attention(
                c,
                qk_norm=norm(c.head_dim),
                scale=c.query_pre_attn_scalar**-0.5,
                window=window,
                rope=kind,
            ),
            GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_activation),
            *(norm(c.hidden_size) for _ in range(4)),
        )
        for kind, window in zip(kinds, layer_windows(c, kinds, c.sliding_window), strict=True)
    ]
    rope = {kind: c.rope_parameters[kind] for kind in sorted(set(kinds))}
    return Decoder(c, layers, norm(c.hidden_size), head_dim=c.head_dim, rope=rope, embed_scale=c.hidden_size**0.5)


decoder_family(
    None,
    Gemma3TextConfig,
    gemma3,
    head={"softcap": lambda c: c.final_logit_softcapping},
    architectures={
        "Gemma3ForCausalLM": "causal-lm",
        "Gemma3TextModel": "base",
        "Gemma3TextForSequenceClassification": "sequence-classification",
    },
    ignore=("use_bidirectional_attention", "attn_logit_softcapping"),
    ignore_tensors=(r"rotary_emb\.", r"embed_tokens\.embed_scale$"),
)

"""Gemma 3, text (Gemma Team 2025, arXiv 2503.19786): five local layers to a global one, norms around each part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import UnknownConfigKey, labels, only, rope_parameters
from ..core.frozen import Frozen
from ..nn import Attention, Decoder, GatedMLP, RMSNorm, SandwichBlock
from ..registry.family import family
from .decoders import decoder_tasks, layer_windows


@dataclass(frozen=True)
class Gemma3TextConfig:
    """The keys of a Gemma 3 text `config.json`. `rope_parameters` has one entry per kind of layer.

    Without `layer_types`, every sixth layer is global.
    """

    model_type: ClassVar[str] = "gemma3_text"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-6
    rope_parameters: Frozen = Frozen(
        sliding_attention={"rope_type": "default", "rope_theta": 10000.0},
        full_attention={"rope_type": "default", "rope_theta": 1000000.0},
    )
    query_pre_attn_scalar: float | int = 256
    sliding_window: int | None = 4096
    layer_types: tuple[str, ...] | None = None
    attention_bias: bool = False
    attention_dropout: float | int = 0.0
    final_logit_softcapping: float | int | None = None
    tie_word_embeddings: bool = True
    num_labels: int = 2
    pad_token_id: int | None = 0
    extra: Frozen = Frozen()
    generation: Frozen = Frozen()

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "use_bidirectional_attention", False)
        only(data, "attn_logit_softcapping")  # transformers reads it and never applies it
        data = dict(data)
        pattern = data.pop("sliding_window_pattern", None) or data.get("_sliding_window_pattern") or 6
        if data.get("layer_types") is None and "num_hidden_layers" in data:
            data["layer_types"] = alternate(data["num_hidden_layers"], pattern)
        return labels(two_bases(data))


def alternate(layers: int, pattern: int) -> tuple[str, ...]:
    """Kinds of attention where the last of every `pattern` layers is global."""
    return tuple("full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(layers))


def two_bases(data: dict[str, Any]) -> dict[str, Any]:
    """Older spellings of the rotary settings, `rope_theta` and `rope_local_base_freq`, as one entry per kind of layer.

    Scaling (`rope_scaling`) is for the global layers only.
    """
    data = dict(data)
    bases = {
        "sliding_attention": data.pop("rope_local_base_freq", None) or 10000.0,
        "full_attention": data.pop("rope_theta", None) or 1000000.0,
    }
    given = dict(data.pop("rope_parameters", None) or {})
    if flat := sorted(set(given) - set(bases)):
        raise UnknownConfigKey(
            f"gemma3_text: rope_parameters has an entry for each of {', '.join(bases)}, not {', '.join(flat)}"
        )
    scaling = {"full_attention": data.pop("rope_scaling", None) or {}}
    nested = {
        kind: {"rope_theta": base, **(given.get(kind) or {}), **scaling.get(kind, {})} for kind, base in bases.items()
    }
    return rope_parameters({**data, "rope_parameters": nested})


def gemma3(config: Gemma3TextConfig) -> Decoder:
    """The decoder: scaled embeddings, queries and keys normed, and a rotary base for each kind of layer."""
    c = config
    kinds = c.layer_types or alternate(c.num_hidden_layers, 6)

    def norm(dim: int) -> RMSNorm:
        return RMSNorm(dim, c.rms_norm_eps, offset=1.0)

    layers = [
        SandwichBlock(
            Attention(
                c.hidden_size,
                c.num_attention_heads,
                c.num_key_value_heads,
                c.head_dim,
                qkv_bias=c.attention_bias,
                out_bias=c.attention_bias,
                qk_norm=norm(c.head_dim),
                scale=c.query_pre_attn_scalar**-0.5,
                window=window,
                rope=kind,
                dropout=c.attention_dropout,
            ),
            GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_activation),
            *(norm(c.hidden_size) for _ in range(4)),
        )
        for kind, window in zip(kinds, layer_windows(c, kinds, c.sliding_window), strict=True)
    ]
    rope = {kind: c.rope_parameters[kind] for kind in sorted(set(kinds))}
    return Decoder(c, layers, norm(c.hidden_size), head_dim=c.head_dim, rope=rope, embed_scale=c.hidden_size**0.5)


family(
    "gemma3_text",
    config=Gemma3TextConfig,
    tasks=decoder_tasks(gemma3, softcap=lambda c: c.final_logit_softcapping),
    architectures={
        "Gemma3ForCausalLM": "causal-lm",
        "Gemma3TextModel": "base",
        "Gemma3TextForSequenceClassification": "sequence-classification",
    },
    ignore=("use_bidirectional_attention", "attn_logit_softcapping"),
    ignore_tensors=(r"rotary_emb\.", r"embed_tokens\.embed_scale$"),
)

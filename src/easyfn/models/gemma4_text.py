"""Gemma 4, text (Google DeepMind 2026), the dense model: Gemma 3 with wider heads and values from keys on global layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import only
from ..config.fields import DecoderFields, Size, rope
from ..core.frozen import Frozen
from ..nn import Attention, Decoder, GatedMLP, RMSNorm, SandwichBlock, declare
from .decoders import alternate, decoder_family, layer_windows


@dataclass(frozen=True, kw_only=True)
class Gemma4TextConfig(DecoderFields):
    """The keys of a Gemma 4 text `config.json`. `per_layer_config` has what differs of a layer, by its number.

    Refused by name: experts (`enable_moe_block`), embeddings by layer (`hidden_size_per_layer_input`, which must be 0), layers
    that share keys (`num_kv_shared_layers`), attention in both directions.
    """

    model_type: ClassVar[str] = "gemma4_text"
    num_key_value_heads: Size = 4
    head_dim: Size = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: Size = 131072
    rope_parameters: Frozen = Frozen(
        sliding_attention=rope(10000.0),
        full_attention={"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
    )
    attention_bias: bool = False
    attention_k_eq_v: bool = False
    sliding_window: Size = 512
    layer_types: tuple[str, ...] | None = None
    per_layer_config: Frozen | None = None
    final_logit_softcapping: float | int | None = None
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        data = {"hidden_size_per_layer_input": 256, **data}
        only(data, "enable_moe_block", False)
        only(data, "num_kv_shared_layers", 0)
        only(data, "hidden_size_per_layer_input", 0)
        only(data, "use_bidirectional_attention", "vision")  # of images, which the text model has none of
        wide, groups = data.pop("global_head_dim", 512), data.pop("num_global_key_value_heads", None)
        if "num_hidden_layers" in data:
            kinds = list(data.get("layer_types") or alternate(data["num_hidden_layers"], 6))
            data["layer_types"] = [*kinds[:-1], "full_attention"]
            if data.get("per_layer_config") is None:
                own = {"head_dim": wide}
                if groups is not None and data.get("attention_k_eq_v"):
                    own["num_key_value_heads"] = groups
                data["per_layer_config"] = {str(i): own for i, k in enumerate(data["layer_types"]) if k[0] == "f"}
        if data.get("rope_parameters") is None:
            data["rope_parameters"] = {**Gemma4TextConfig.rope_parameters}
        return data


def gemma4(c: Gemma4TextConfig) -> Decoder:
    """The decoder: queries, keys and values normed, scores not scaled, each layer multiplied by a number of its own."""
    kinds = c.layer_types or alternate(c.num_hidden_layers, 6)
    windows = layer_windows(c, kinds, c.sliding_window)
    overrides: Mapping[str, Any] = c.per_layer_config or {}
    norm = lambda dim, affine=True: RMSNorm(dim, c.rms_norm_eps, affine=affine)
    widths: dict[str, int] = {}

    def block(i: int) -> SandwichBlock:
        own = {"head_dim": c.head_dim, "num_key_value_heads": c.num_key_value_heads, **overrides.get(str(i), {})}
        dim = own.pop("head_dim")
        groups = own.pop("num_key_value_heads")
        if own or widths.setdefault(kinds[i], dim) != dim:
            raise ValueError(
                f"gemma4_text: per_layer_config of layer {i}: only head_dim, one for each kind of layer, and heads"
            )
        attention = Attention(
            c.hidden_size,
            c.num_attention_heads,
            groups,
            dim,
            qkv_bias=c.attention_bias,
            out_bias=c.attention_bias,
            qk_norm=norm(dim),
            v_norm=norm(dim, affine=False),
            values_are_keys=c.attention_k_eq_v and windows[i] is None,
            scale=1.0,
            window=windows[i],
            rope=kinds[i],
            dropout=c.attention_dropout or 0.0,
        )
        gated = GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_activation)
        first, second, third, fourth = (norm(c.hidden_size) for _ in range(4))
        return SandwichBlock(attention, gated, first, second, third, fourth, declare(1))

    blocks = [block(i) for i in range(c.num_hidden_layers)]  # which fills the widths
    tables = {kind: c.rope_parameters[kind] for kind in sorted(set(kinds))}
    return Decoder(c, blocks, norm(c.hidden_size), head_dim=widths, rope=tables, embed_scale=c.hidden_size**0.5)


decoder_family(
    None,
    Gemma4TextConfig,
    gemma4,
    head={"softcap": lambda c: c.final_logit_softcapping},
    architectures={"Gemma4ForCausalLM": "causal-lm", "Gemma4TextModel": "base"},
    ignore=(
        "enable_moe_block",
        "hidden_size_per_layer_input",
        "moe_intermediate_size",
        "num_experts",
        "num_kv_shared_layers",
        "top_k_experts",
        "use_bidirectional_attention",
        "use_double_wide_mlp",  # of layers that share keys
        "vocab_size_per_layer_input",
    ),
)

"""GLM-4-0414 (GLM Team 2025): GLM-4 with norms around each part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import LlamaFields, Size, rope
from ..core.frozen import Frozen
from ..names.rules import rename
from ..nn import Decoder, FusedGatedMLP, SandwichBlock
from .decoders import attention, decoder, decoder_family, norm


@dataclass(frozen=True, kw_only=True)
class Glm4Config(LlamaFields):
    """The keys of a GLM-4-0414 `config.json`."""

    model_type: ClassVar[str] = "glm4"
    num_key_value_heads: Size = 2
    head_dim: Size = 128
    max_position_embeddings: Size = 131072
    rms_norm_eps: float = 1.5625e-7
    rope_parameters: Frozen = rope(10000.0, partial_rotary_factor=0.5)
    attention_bias: bool = True
    pad_token_id: int | None = 151329


def glm4(c: Any, **own: Any) -> Decoder:
    """The decoder: half of each head rotated, in neighbours; biases on queries, keys and values only."""
    return decoder(
        c,
        lambda _: SandwichBlock(
            attention(c, out_bias=False, interleaved=True),
            FusedGatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act),
            *(norm(c) for _ in range(4)),
        ),
        partial=True,
        **own,
    )


NAMES = (
    rename("{rest}.post_attention_layernorm.weight", "{rest}.post_self_attn_layernorm.weight"),
    rename("{rest}.pre_feedforward_layernorm.weight", "{rest}.post_attention_layernorm.weight"),
    rename("{rest}.post_feedforward_layernorm.weight", "{rest}.post_mlp_layernorm.weight"),
)


decoder_family("Glm4", Glm4Config, glm4, tags="score", names=NAMES)

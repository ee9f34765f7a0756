"""GPT-NeoX and Pythia (Black et al. 2022, arXiv 2204.06745): parallel layers, a quarter of each head rotated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import CommonFields, Size, head_dim, rope
from ..core.frozen import Frozen
from ..nn import MLP, Block, Decoder, LayerNorm, ParallelBlock
from .decoders import decoder_family, decoder_names, full_attention


@dataclass(frozen=True, kw_only=True)
class GPTNeoXConfig(CommonFields):
    """The keys of a GPT-NeoX `config.json`. `use_parallel_residual=False` is a plain pre-norm layer."""

    model_type: ClassVar[str] = "gpt_neox"
    classifier_dropout: float | int = 0.1
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: int
    num_attention_heads: Size
    hidden_act: str = "gelu"
    max_position_embeddings: Size = 2048
    layer_norm_eps: float = 1e-5
    rope_parameters: Frozen = rope(partial_rotary_factor=0.25)
    use_parallel_residual: bool = True
    attention_bias: bool = True
    attention_dropout: float | int = 0.0
    hidden_dropout: float | int = 0.0
    tie_word_embeddings: bool = False

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        older = {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"}
        return {older.get(key, key): value for key, value in data.items()}


def gpt_neox(c: GPTNeoXConfig) -> Decoder:
    """The decoder: LayerNorm, rotary attention from one projection by head, a plain MLP."""
    kind = ParallelBlock if c.use_parallel_residual else Block
    bias = c.attention_bias
    layers = [
        kind(
            full_attention(
                c, qkv_bias=bias, out_bias=bias, fused="groups", rope="default", dropout=c.attention_dropout
            ),
            MLP(c.hidden_size, c.intermediate_size, c.hidden_act, bias=True),
            LayerNorm(c.hidden_size, c.layer_norm_eps),
            LayerNorm(c.hidden_size, c.layer_norm_eps),
            dropout=c.hidden_dropout,
        )
        for _ in range(c.num_hidden_layers)
    ]
    final, table = LayerNorm(c.hidden_size, c.layer_norm_eps), {"default": c.rope_parameters}
    return Decoder(
        c, layers, final, head_dim=head_dim(c), rope=table, partial=True, dropout=c.hidden_dropout, padding=False
    )


NAMES = {
    "embed_tokens": "embed_in",
    "layers.{i}.self_attn.qkv_proj": "layers.{i}.attention.query_key_value",
    "layers.{i}.self_attn.o_proj": "layers.{i}.attention.dense",
    "layers.{i}.mlp.up_proj": "layers.{i}.mlp.dense_h_to_4h",
    "layers.{i}.mlp.down_proj": "layers.{i}.mlp.dense_4h_to_h",
    "norm": "final_layer_norm",
}

decoder_family(
    "GPTNeoX",
    GPTNeoXConfig,
    gpt_neox,
    tags="classifier",
    answers="gpt_neox",
    names=decoder_names("gpt_neox", NAMES, lm_head="embed_out"),
    modules=decoder_names("gpt_neox", NAMES),
    prefix="gpt_neox",
    ignore_tensors=(r"attention\.(bias|masked_bias)$", r"rotary_emb\.inv_freq$"),
    aliases={"embed_out.weight": ("lm_head.weight",)},
)

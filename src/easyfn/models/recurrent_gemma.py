"""RecurrentGemma (Botev et al. 2024, arXiv 2404.07839): Griffin, two recurrent layers to one of local attention."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import ml_dtypes

from ..config.config import rope_parameters
from ..config.fields import head_dim
from ..core.frozen import Frozen
from ..names.rules import rename
from ..nn import Attention, Block, Decoder, GatedMLP, GriffinMixer, RecurrentBlock, RMSNorm
from ..registry.family import family
from .decoders import decoder_tasks


@dataclass(frozen=True)
class RecurrentGemmaConfig:
    """The keys of a RecurrentGemma `config.json`. `block_types` is the pattern of layers, repeated."""

    model_type: ClassVar[str] = "recurrent_gemma"
    num_hidden_layers: int = 26
    vocab_size: int = 256000
    hidden_size: int = 2560
    intermediate_size: int = 7680
    num_attention_heads: int = 10
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    lru_width: int | None = None
    attention_window_size: int = 2048
    conv1d_width: int = 4
    logits_soft_cap: float | int = 30.0
    rms_norm_eps: float = 1e-6
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 8192
    rope_parameters: Frozen = Frozen(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5)
    block_types: tuple[str, ...] = ("recurrent", "recurrent", "attention")
    attention_dropout: float | int = 0.0
    attention_bias: bool = False
    tie_word_embeddings: bool = True
    extra: Frozen = Frozen()
    generation: Frozen = Frozen()

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return rope_parameters({"partial_rotary_factor": 0.5, **data})


def recurrent_gemma(config: RecurrentGemmaConfig) -> Decoder:
    """The decoder: recurrences and local attention, each before a gated MLP, all pre-norm."""
    c = config
    norm = lambda: RMSNorm(c.hidden_size, c.rms_norm_eps, offset=1.0)
    heads = c.num_attention_heads
    width = head_dim(c)
    layers: list[Any] = []
    for i in range(c.num_hidden_layers):
        mlp = GatedMLP(c.hidden_size, c.intermediate_size // 2, c.hidden_activation, bias=True)
        if c.block_types[i % len(c.block_types)] == "recurrent":
            mixer = GriffinMixer(
                c.hidden_size, c.lru_width or c.hidden_size, heads, c.conv1d_width, c.hidden_activation
            )
            layers.append(RecurrentBlock(mixer, mlp, norm(), norm()))
            continue
        attention = Attention(
            c.hidden_size,
            heads,
            c.num_key_value_heads or heads,
            width,
            qkv_bias=c.attention_bias,
            out_bias=True,
            window=c.attention_window_size,
            dropout=c.attention_dropout,
        )
        layers.append(Block(attention, mlp, norm(), norm()))
    return Decoder(
        c,
        layers,
        norm(),
        head_dim=width,
        rope={"default": c.rope_parameters},
        partial=True,
        embed_scale=float(ml_dtypes.bfloat16(math.sqrt(c.hidden_size))),  # transformers keeps it in bfloat16
        scale_inputs=True,
    )


tasks = decoder_tasks(recurrent_gemma, softcap=lambda c: c.logits_soft_cap)
family(
    "recurrent_gemma",
    config=RecurrentGemmaConfig,
    tasks={name: tasks[name] for name in ("causal-lm", "base")},
    architectures={"RecurrentGemmaForCausalLM": "causal-lm", "RecurrentGemmaModel": "base"},
    names=(
        rename("{rest}.mixer.{tail}", "{rest}.temporal_block.{tail}"),
        rename("{rest}.self_attn.{tail}", "{rest}.temporal_block.{tail}"),
        rename("{rest}.mlp.{tail}", "{rest}.mlp_block.{tail}"),
        rename("{rest}.input_layernorm.{tail}", "{rest}.temporal_pre_norm.{tail}"),
        rename("{rest}.post_attention_layernorm.{tail}", "{rest}.channel_pre_norm.{tail}"),
        rename("model.norm.{tail}", "model.final_norm.{tail}"),
        rename("norm.{tail}", "final_norm.{tail}"),
    ),
    ignore=("w_init_variance_scale", "final_w_init_variance_scale", "layers_block_type"),
    ignore_tensors=(r"rotary_emb\.inv_freq$", r"\.normalizer$"),
)

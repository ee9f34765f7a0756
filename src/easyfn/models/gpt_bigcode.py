"""GPT-BigCode, as SantaCoder and StarCoder (Li et al. 2023, arXiv 2305.06161): GPT-2 with one key head for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import only
from ..config.fields import GPTFields, head_dim
from ..nn import MLP, Attention, Block, Decoder, LayerNorm, LearnedPositions
from .decoders import decoder_family, decoder_names


@dataclass(frozen=True, kw_only=True)
class GPTBigCodeConfig(GPTFields):
    """The keys of a GPT-BigCode `config.json`. `multi_query=False`: a key head for each query head."""

    model_type: ClassVar[str] = "gpt_bigcode"
    activation_function: str = "gelu_pytorch_tanh"
    resid_pdrop: float | int = 0.1
    embd_pdrop: float | int = 0.1
    attn_pdrop: float | int = 0.1
    scale_attn_weights: bool = True
    multi_query: bool = True

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "add_cross_attention", False)
        return data


def gpt_bigcode(c: GPTBigCodeConfig) -> Decoder:
    """The decoder: learned positions, pre-norm layers, attention from one projection."""
    layers = [
        Block(
            Attention(
                c.n_embd,
                c.n_head,
                1 if c.multi_query else c.n_head,
                head_dim(c),
                qkv_bias=True,
                out_bias=True,
                fused="groups",
                scale=None if c.scale_attn_weights else 1.0,
                rope=None,
                dropout=c.attn_pdrop,
            ),
            MLP(c.n_embd, c.n_inner or 4 * c.n_embd, c.activation_function, bias=True),
            LayerNorm(c.n_embd, c.layer_norm_epsilon),
            LayerNorm(c.n_embd, c.layer_norm_epsilon),
            dropout=c.resid_pdrop,
        )
        for _ in range(c.n_layer)
    ]
    final, positions = LayerNorm(c.n_embd, c.layer_norm_epsilon), LearnedPositions(c.n_positions, c.n_embd)
    return Decoder(c, layers, final, positions=positions, dropout=c.embd_pdrop, padding=False)


NAMES = decoder_names(
    "transformer",
    {
        "embed_tokens": "wte",
        "embed_positions": "wpe",
        "layers.{i}.self_attn.qkv_proj": "h.{i}.attn.c_attn",
        "layers.{i}.self_attn.o_proj": "h.{i}.attn.c_proj",
        "layers.{i}.input_layernorm": "h.{i}.ln_1",
        "layers.{i}.post_attention_layernorm": "h.{i}.ln_2",
        "layers.{i}.mlp.up_proj": "h.{i}.mlp.c_fc",
        "layers.{i}.mlp.down_proj": "h.{i}.mlp.c_proj",
        "norm": "ln_f",
    },
)

decoder_family(
    "GPTBigCode",
    GPTBigCodeConfig,
    gpt_bigcode,
    tags="classifier",
    names=NAMES,
    prefix="transformer",
    # The precision and the kernels of the softmax: ours is in float32 always.
    ignore=(
        "add_cross_attention",
        "attention_softmax_in_fp32",
        "scale_attention_softmax_in_fp32",
        "num_key_value_heads",
        "runner_max_sequence_length",
        "inference_runner",
        "validate_runner_input",
        "pre_allocate_kv_cache",
        "max_batch_size",
        "max_sequence_length",
        "pad_key_length",
        "summary_type",
        "summary_use_proj",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_first_dropout",
        "n_ctx",
    ),
    ignore_tensors=(r"(^|\.)bias$", r"attn\.masked_bias$"),
)

"""GPT (Radford et al. 2018): the first one. Norms on the sums, learned positions, transposed matrices, no final norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import GPTFields
from ..names.rules import Rule, transposed
from ..nn import MLP, AddNormBlock, Decoder, LayerNorm, LearnedPositions
from .decoders import decoder_family, decoder_names, full_attention


@dataclass(frozen=True, kw_only=True)
class OpenAIGPTConfig(GPTFields):
    """The keys of a GPT `config.json`. Its `afn` of `gelu` is the tanh approximation."""

    model_type: ClassVar[str] = "openai-gpt"
    unsaid: ClassVar[tuple[str, ...]] = ("activation_function",)
    afn: str = "gelu"
    resid_pdrop: float | int = 0.1
    embd_pdrop: float | int = 0.1
    attn_pdrop: float | int = 0.1


def openai_gpt(c: OpenAIGPTConfig) -> Decoder:
    """The decoder: attention and MLP, each added to its input and then normed."""
    act = "gelu_new" if c.afn == "gelu" else c.afn
    layers = [
        AddNormBlock(
            full_attention(c, qkv_bias=True, out_bias=True, fused="rows", dropout=c.attn_pdrop),
            MLP(c.n_embd, 4 * c.n_embd, act, bias=True),
            LayerNorm(c.n_embd, c.layer_norm_epsilon),
            LayerNorm(c.n_embd, c.layer_norm_epsilon),
            dropout=c.resid_pdrop,
        )
        for _ in range(c.n_layer)
    ]
    return Decoder(
        c, layers, None, positions=LearnedPositions(c.n_positions, c.n_embd), dropout=c.embd_pdrop, padding=False
    )


MATRICES = {
    "layers.{i}.self_attn.qkv_proj": "h.{i}.attn.c_attn",
    "layers.{i}.self_attn.o_proj": "h.{i}.attn.c_proj",
    "layers.{i}.mlp.up_proj": "h.{i}.mlp.c_fc",
    "layers.{i}.mlp.down_proj": "h.{i}.mlp.c_proj",
}
NAMES = decoder_names(
    "transformer",
    {
        "embed_tokens": "tokens_embed",
        "embed_positions": "positions_embed",
        **MATRICES,
        "layers.{i}.input_layernorm": "h.{i}.ln_1",
        "layers.{i}.post_attention_layernorm": "h.{i}.ln_2",
    },
)


def names(model: Any) -> list[Rule]:
    """Renames, and the matrices that the file holds as `(in, out)`."""
    ours = "" if isinstance(model, Decoder) else "model."
    return [*(transposed(f"{ours}{path}.weight") for path in MATRICES), *NAMES(model)]


decoder_family(
    None,
    OpenAIGPTConfig,
    openai_gpt,
    architectures={
        "OpenAIGPTLMHeadModel": "causal-lm",
        "OpenAIGPTModel": "base",
        "OpenAIGPTForSequenceClassification": "sequence-classification",
    },
    names=names,
    prefix="transformer",
    ignore=(
        "n_ctx",
        "predict_special_tokens",
        "summary_type",
        "summary_use_proj",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_first_dropout",
    ),
    ignore_tensors=(r"attn\.bias$", r"position_ids$"),
)

"""BART (Lewis et al. 2019, arXiv 1910.13461): an encoder-decoder with learned positions and norms after each part."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import CommonFields, Size, alias
from ..nn import Embedding, Seq2Seq, Seq2SeqLM, TranslationStack
from ..registry.family import family


@dataclass(frozen=True, kw_only=True)
class BartConfig(CommonFields):
    """The keys of a BART `config.json`."""

    model_type: ClassVar[str] = "bart"
    num_labels: Size = 3
    vocab_size: Size = 50265
    max_position_embeddings: Size = 1024
    d_model: Size = 1024
    encoder_layers: int = 12
    encoder_ffn_dim: Size = 4096
    encoder_attention_heads: Size = 16
    decoder_layers: int = 12
    decoder_ffn_dim: Size = 4096
    decoder_attention_heads: Size = 16
    activation_function: str = "gelu"
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    scale_embedding: bool = False
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 1
    decoder_start_token_id: int | None = 2
    forced_eos_token_id: int | None = 2
    hidden_size = alias("d_model")


def bart(config: Any) -> Seq2Seq:
    """Encoder and decoder."""
    scale = math.sqrt(config.d_model) if config.scale_embedding else 1.0
    table = Embedding(config.vocab_size, config.d_model)
    return Seq2Seq(
        config, table, TranslationStack(config, "encoder"), TranslationStack(config, "decoder"), embed_scale=scale
    )


def bart_lm(config: Any) -> Seq2SeqLM:
    """With the head of a language model, and a bias on its scores that is never trained."""
    return Seq2SeqLM(bart(config), tied=config.tie_word_embeddings, logits_bias=True)


family(
    "bart",
    config=BartConfig,
    tasks={"seq2seq-lm": bart_lm, "base": bart},
    architectures={"BartForConditionalGeneration": "seq2seq-lm", "BartModel": "base"},
    aliases={
        f"{prefix}shared.weight": tuple(f"{prefix}{side}.embed_tokens.weight" for side in ("encoder", "decoder"))
        for prefix in ("", "model.")
    },
    # Layers that training skips at random; attention's switches of old files; for heads that are not here.
    ignore=(
        "encoder_layerdrop",
        "decoder_layerdrop",
        "init_std",
        "classifier_dropout",
        "num_hidden_layers",
        "add_bias_logits",
        "add_final_layer_norm",
        "classif_dropout",
        "normalize_before",
        "normalize_embedding",
        "static_position_embeddings",
        "force_bos_token_to_be_generated",
    ),
)

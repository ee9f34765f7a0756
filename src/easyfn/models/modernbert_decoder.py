"""ModernBERT as a decoder (Weller et al. 2025, arXiv 2507.11412): the same layers, where a token sees what came before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..names.rules import Rule, rename
from ..nn import CausalLM, Decoder, PredictionHead, SequenceClassifier
from ..registry.family import family
from .decoders import decoder, decoder_classes, decoder_names, decoder_tasks, layer_windows
from .modernbert import UNREAD, ModernBertConfig, global_first, kinds_and_tables, modernbert_block, norm


@dataclass(frozen=True, kw_only=True)
class ModernBertDecoderConfig(ModernBertConfig):
    """The keys of the `config.json` of a ModernBERT decoder.

    A layer that slides sees `sliding_window` tokens, itself among them; half of `local_attention` where that is not given.
    """

    model_type: ClassVar[str] = "modernbert-decoder"
    unsaid: ClassVar[tuple[str, ...]] = ("classifier_pooling", "sliding_window")
    local_attention: int | None = 128  # type: ignore[assignment]
    sliding_window: int | None = None
    pad_token_id: int | None = 50283

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return kinds_and_tables(data)


def modernbert_decoder(c: Any) -> Decoder:
    kinds = c.layer_types or global_first(c.num_hidden_layers)
    window = (c.local_attention or 0) // 2 if c.sliding_window is None else c.sliding_window
    windows = layer_windows(c, kinds, window if window > 0 else None)
    return decoder(
        c,
        lambda i: modernbert_block(c, i, kinds[i], windows[i], fused=None),
        norm(c),
        rope={kind: c.rope_parameters[kind] for kind in sorted(set(kinds))},
        embed_norm=norm(c),
        dropout=c.embedding_dropout,
    )


def _head(c: Any) -> PredictionHead:
    return PredictionHead(c.hidden_size, norm(c), act=c.classifier_activation, bias=c.classifier_bias)


def _names(model: Any) -> list[Rule]:
    heads = {"transform": "lm_head", "lm_head": "decoder"}
    if isinstance(model, SequenceClassifier):
        heads = {"transform": "head", "score": "classifier"}
    return [rename("bias", "decoder.bias"), *decoder_names("model", PARTS, **heads)(model)]


PARTS = {
    "embed_tokens": "embeddings.tok_embeddings",
    "embed_norm": "embeddings.norm",
    "layers.{i}.self_attn.o_proj": "layers.{i}.attn.Wo",
    "layers.{i}.self_attn": "layers.{i}.attn",
    "layers.{i}.mlp.gate_up_proj": "layers.{i}.mlp.Wi",
    "layers.{i}.mlp.down_proj": "layers.{i}.mlp.Wo",
    "layers.{i}.input_layernorm": "layers.{i}.attn_norm",
    "layers.{i}.post_attention_layernorm": "layers.{i}.mlp_norm",
    "norm": "final_norm",
}
family(
    "modernbert-decoder",
    config=ModernBertDecoderConfig,
    tasks={
        **decoder_tasks(modernbert_decoder),
        "causal-lm": lambda c: CausalLM(
            modernbert_decoder(c), tied=c.tie_word_embeddings, bias=c.decoder_bias, transform=_head(c)
        ),
        "sequence-classification": lambda c: SequenceClassifier(
            modernbert_decoder(c), transform=_head(c), bias=c.classifier_bias, dropout=c.classifier_dropout
        ),
    },
    architectures=decoder_classes("ModernBertDecoder"),
    names=_names,
    ignore=UNREAD,
)

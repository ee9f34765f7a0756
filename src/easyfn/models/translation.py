"""What fairseq's encoder-decoders say in the same words: config keys, the model and its heads, names."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

from ..config.config import labels
from ..config.fields import CommonFields, Size, alias
from ..nn import (
    Embedding,
    LastMarkClassifier,
    LearnedPositions,
    QuestionAnswering,
    Seq2Seq,
    Seq2SeqLM,
    TranslationStack,
)
from ..nn.linear import pad_token
from ..registry.family import Family, family

Ids = int | tuple[int, ...] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TranslationFields(CommonFields):
    """BART's keys, with its defaults. What names tokens is for `generate`, where no `generation_config.json` does."""

    vocab_size: Size = 50265
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
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: Ids = 2
    decoder_start_token_id: int | None = 2
    hidden_size = alias("d_model")

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return labels(data)


def learned(config: Any, *, offset: int = 0) -> Callable[[str], LearnedPositions]:
    """A table of positions, which fairseq begins at row `offset`."""
    return lambda side: LearnedPositions(config.max_position_embeddings, config.d_model, offset=offset)


def translation(
    config: Any,
    positions: Callable[[str], Any],
    *,
    pre_norm: bool = False,
    embed_norm: bool | str = True,
    scale_inputs: bool = False,
    restores: bool = False,
    wraps: bool = False,
    own_tables: bool = False,
    encoder: Callable[[TranslationStack], Any] = lambda stack: stack,
    encoder_attention: Callable[[int], Any] | None = None,
) -> Seq2Seq:
    """Encoder and decoder: `positions(side)` makes its layer of positions; see `TranslationStack` and `Seq2Seq`.

    With `embed_norm="before"` the decoder's embeddings are normed before they get positions, and not scaled; the
    encoder's are normed after. `own_tables`: each side has token embeddings of its own, the decoder
    `decoder_vocab_size` of them. `encoder_attention(layer)` is the encoder's own attention, `encoder` what is around it.
    """
    table = lambda size: Embedding(size, config.d_model, padding=pad_token(config))

    def stack(side: str, **more: Any) -> TranslationStack:
        own = (
            table(getattr(config, "decoder_vocab_size" if side == "decoder" else "vocab_size")) if own_tables else None
        )
        return TranslationStack(config, side, positions(side), pre_norm=pre_norm, table=own, **more)

    before = embed_norm == "before"  # in the decoder only
    return Seq2Seq(
        config,
        None if own_tables else table(config.vocab_size),
        encoder(stack("encoder", embed_norm=bool(embed_norm), attention=encoder_attention)),
        stack("decoder", embed_norm="before" if before else embed_norm),
        embed_scale=math.sqrt(config.d_model) if getattr(config, "scale_embedding", False) else 1.0,
        decoder_scale=1.0 if before else None,  # a norm takes it away
        scale_inputs=scale_inputs,
        restores=restores,
        wraps=wraps,
    )


def one_table(config: Any, names: Collection[str]) -> Any:
    """The config, unless the checkpoint has tables of each side: transformers 5 makes them where nothing is tied."""
    own = sorted(name for name in names if name.endswith("coder.embed_tokens.weight"))
    if own and not config.tie_word_embeddings and any(name.endswith("shared.weight") for name in names):
        raise ValueError(
            f"{config.model_type}: tie_word_embeddings=False with {' and '.join(own)} beside `shared`: transformers 5 "
            "reads each side's own table and not `shared`, which is not implemented; where all are equal, delete those "
            "of the sides from the file"
        )
    return config


def translation_family(
    name: str,
    config: Any,
    model: Callable[[Any], Seq2Seq],
    *,
    lm: str | None = None,
    logits_bias: bool = True,
    classes: Sequence[str] = (),
    prefix: str = "model",
    ignore: Sequence[str] = (),
    optional: Sequence[str] = (),
    **facts: Any,
) -> Family:
    """Registers an encoder-decoder under transformers' classes.

    `lm` is the end of the language model's class name; with `logits_bias` its scores have a bias that is never trained,
    and zero where a file has none. `classes`: further tasks (`sequence-classification`,
    `question-answering`).
    """

    def language(c: Any) -> Seq2SeqLM:
        return Seq2SeqLM(model(c), tied=c.tie_word_embeddings, logits_bias=logits_bias)

    more: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "sequence-classification": (
            "ForSequenceClassification",
            lambda c: LastMarkClassifier(model(c), dropout=c.classifier_dropout),
        ),
        "question-answering": ("ForQuestionAnswering", lambda c: QuestionAnswering(model(c))),
    }
    ends = {
        lm or "ForConditionalGeneration": "seq2seq-lm",
        "Model": "base",
        **{more[task][0]: task for task in classes},
    }
    sides = ("encoder", "decoder")
    facts.setdefault("settle", one_table)
    return family(
        config.model_type,
        config=config,
        tasks={"seq2seq-lm": language, "base": model, **{task: more[task][1] for task in classes}},
        architectures={name + end: task for end, task in ends.items()},
        prefix=prefix,
        aliases={
            f"{outer}shared.weight": tuple(f"{outer}{side}.embed_tokens.weight" for side in sides)
            for outer in ("", f"{prefix}.")
        },
        optional=("^final_logits_bias$", *optional),
        # Layers that training skips at random; what fairseq's flags said, which is the family's here.
        ignore=(
            "encoder_layerdrop",
            "decoder_layerdrop",
            "init_std",
            "num_hidden_layers",
            "add_bias_logits",
            "add_final_layer_norm",
            "classif_dropout",
            *(() if classes else ("classifier_dropout",)),
            "normalize_before",
            "normalize_embedding",
            "static_position_embeddings",
            "force_bos_token_to_be_generated",
            "extra_pos_embeddings",
            "do_blenderbot_90_layernorm",
            "layernorm_variant",
            "num_attention_heads",
            *ignore,
        ),
        **facts,
    )

"""BERT (Devlin et al. 2018, arXiv 1810.04805): a post-norm encoder with learned positions and token types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..nn import (
    MaskedLM,
    MultipleChoice,
    NextSentence,
    PooledClassifier,
    QuestionAnswering,
    TextEncoder,
    TokenClassifier,
    sentence_embedding,
)
from ..registry.family import family
from .encoders import PREDICTIONS, EncoderFields, encoder_names


@dataclass(frozen=True, kw_only=True)
class BertConfig(EncoderFields):
    """The keys of a BERT `config.json`."""

    model_type: ClassVar[str] = "bert"


family(
    "bert",
    config=BertConfig,
    tasks={
        "base": TextEncoder,
        "masked-lm": lambda c: MaskedLM(TextEncoder(c, pooler=False), tied=c.tie_word_embeddings),
        "pretraining": lambda c: MaskedLM(TextEncoder(c), tied=c.tie_word_embeddings, next_sentence=True),
        "next-sentence": lambda c: NextSentence(TextEncoder(c)),
        "sequence-classification": lambda c: PooledClassifier(TextEncoder(c), dropout=c.head_dropout),
        "token-classification": lambda c: TokenClassifier(TextEncoder(c, pooler=False), dropout=c.head_dropout),
        "question-answering": lambda c: QuestionAnswering(TextEncoder(c, pooler=False)),
        "multiple-choice": lambda c: MultipleChoice(TextEncoder(c), dropout=c.head_dropout),
        "sentence-embedding": lambda c: sentence_embedding(TextEncoder(c)),
    },
    architectures={
        "BertModel": "base",
        "BertForMaskedLM": "masked-lm",
        "BertForPreTraining": "pretraining",
        "BertForNextSentencePrediction": "next-sentence",
        "BertForSequenceClassification": "sequence-classification",
        "BertForTokenClassification": "token-classification",
        "BertForQuestionAnswering": "question-answering",
        "BertForMultipleChoice": "multiple-choice",
    },
    names=encoder_names("bert", heads=[*PREDICTIONS, ("seq_relationship.{rest}", "cls.seq_relationship.{rest}")]),
    # directionality, pooler_*: TensorFlow's words, which transformers never read
    ignore=(
        "position_embedding_type",
        "add_cross_attention",
        "directionality",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
    ),
    # Buffers; and the twin of the tied bias, which older files hold.
    ignore_tensors=(r"embeddings\.(position|token_type)_ids$", r"^cls\.predictions\.decoder\.bias$"),
    prefix="bert",
)

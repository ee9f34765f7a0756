"""Heads on encoders: masked language models, classifiers, question answering, sentence embeddings.

Every head holds its base model in the field `model`; a family renames that to its prefix (`bert.`).
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core.weight import Slot, Weight, slots
from .activation import activation
from .context import Context, dropout
from .heads import head_logits, vocabulary_scores
from .linear import Linear, declare
from .norm import LayerNorm
from .output import Output
from .pooling import POOLINGS, first_token, pool


class MaskedLM(eqx.Module):
    """Scores over the vocabulary for every token: `decoder(norm(act(dense(x)))) + bias`.

    `decoder` is `None` when it is tied to the input embeddings; one of its own has a bias of its own, and then `bias` is
    in the file and adds nothing, as in transformers (`spare_bias=False`: it is not even there). With `next_sentence`,
    `seq_relationship` reads the pooled first token: `seq_relationship_logits` `(batch, 2)`, whether the second sentence
    follows (0) or not (1).
    """

    model: Any
    dense: Linear
    norm: LayerNorm
    decoder: Linear | None
    bias: Weight | None
    seq_relationship: Linear | None
    config: Any = eqx.field(static=True)
    act: str = eqx.field(static=True)

    def __init__(
        self,
        model: Any,
        *,
        tied: bool = True,
        act: str | None = None,
        size: int | None = None,
        next_sentence: bool = False,
        spare_bias: bool = True,
    ) -> None:
        config = model.config
        size = size or config.hidden_size  # of the word embeddings, where they are narrower than the layers
        self.model = model
        self.dense = Linear(config.hidden_size, size, True, axes=("mlp", "embed"))
        self.norm = LayerNorm(size, config.layer_norm_eps)
        self.decoder = None if tied else Linear(size, config.vocab_size, True, axes=("vocab", "embed"), role="head")
        self.bias = declare(config.vocab_size) if tied or spare_bias else None
        self.seq_relationship = _pair(config.hidden_size) if next_sentence else None
        self.config = config
        self.act = act or config.hidden_act
        activation(self.act)

    def __call__(self, context: Context, cache: Any = None, **inputs: Any) -> Output:
        out = self.model(context, cache, **inputs)
        related = None if self.seq_relationship is None else self.seq_relationship(out.pooler_output)
        return out.replace(logits=head_logits(self, out.last_hidden_state), seq_relationship_logits=related)


def _pair(hidden_size: int) -> Linear:
    return Linear(hidden_size, 2, True, axes=(None, "embed"), role="head")


@slots.register(MaskedLM)
def _(head: MaskedLM) -> dict[str, Slot]:
    return {"bias": Slot("bias", ("vocab",), "zeros")}


@head_logits.register(MaskedLM)
def _(head: MaskedLM, hidden: jax.Array, *, dtype: Any = None) -> jax.Array:
    hidden = head.norm(activation(head.act)(head.dense(hidden)))
    return vocabulary_scores(head, head.decoder, hidden, bias=head.bias, dtype=dtype)


class NextSentence(eqx.Module):
    """Whether the second sentence of a row follows the first: `logits` `(batch, 2)`, 0 is yes."""

    model: Any
    seq_relationship: Linear
    config: Any = eqx.field(static=True)

    def __init__(self, model: Any) -> None:
        self.model = model
        self.seq_relationship = _pair(model.config.hidden_size)
        self.config = model.config

    def __call__(self, context: Context, cache: Any = None, **inputs: Any) -> Output:
        out = self.model(context, cache, **inputs)
        return out.replace(logits=self.seq_relationship(out.pooler_output))


class ClassificationHead(eqx.Module):
    """`out_proj(act(dense(x)))` on `(batch, embed)`: the classifier of RoBERTa (tanh) and ELECTRA (gelu)."""

    dense: Linear
    out_proj: Linear
    act: str = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(self, hidden_size: int, num_labels: int, *, act: str = "tanh", dropout: float = 0.0) -> None:
        activation(act)
        self.dense = Linear(hidden_size, hidden_size, True, axes=("mlp", "embed"))
        self.out_proj = Linear(hidden_size, num_labels, True, axes=(None, "embed"), role="head")
        self.act = act
        self.dropout = dropout

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        x = activation(self.act)(self.dense(x))
        return self.out_proj(dropout(x, self.dropout, context, 1_000_005))


class PooledClassifier(eqx.Module):
    """One answer per row, `logits` of shape `(batch, num_labels)`, read off the pooled or the first token.

    `classifier` is a `Linear`, which reads the base model's `pooler_output`, or a `ClassificationHead`, which reads the
    first token's hidden state.
    """

    model: Any
    classifier: Any
    config: Any = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(
        self, model: Any, *, dropout: float = 0.0, classifier: Any = None, num_labels: int | None = None
    ) -> None:
        config = model.config
        labels = num_labels or config.num_labels
        self.model = model
        self.classifier = classifier or Linear(config.hidden_size, labels, True, axes=(None, "embed"), role="head")
        self.config = config
        self.dropout = dropout

    def __call__(self, context: Context, cache: Any = None, **inputs: Any) -> Output:
        out = self.model(context, cache, **inputs)
        if isinstance(self.classifier, ClassificationHead):
            first = dropout(first_token(out.last_hidden_state, context), self.dropout, context, 1_000_004)
            return out.replace(logits=self.classifier(first, context))
        return out.replace(logits=self.classifier(dropout(out.pooler_output, self.dropout, context, 1_000_004)))


class MultipleChoice(eqx.Module):
    """Which of several texts fits: a score for each, `logits` of shape `(batch, choices)`.

    [`easyfn.forward`][] takes `input_ids` `(batch, choices, seq)`, and the mask and the like in that shape. The texts pass as
    rows, each scored as a `PooledClassifier` with one label does.
    """

    model: Any
    classifier: Any
    config: Any = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(self, model: Any, *, dropout: float = 0.0, classifier: Any = None) -> None:
        rows = PooledClassifier(model, dropout=dropout, classifier=classifier, num_labels=1)
        self.model = model
        self.classifier = rows.classifier
        self.config = model.config
        self.dropout = dropout

    def __call__(self, context: Context, cache: Any = None, **inputs: Any) -> Output:
        """The scores of single texts, `(rows, 1)`."""
        return PooledClassifier(self.model, dropout=self.dropout, classifier=self.classifier)(context, cache, **inputs)


class TokenClassifier(eqx.Module):
    """One answer per token: `logits` of shape `(batch, seq, num_labels)`."""

    model: Any
    classifier: Linear
    config: Any = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(self, model: Any, *, dropout: float = 0.0) -> None:
        config = model.config
        self.model = model
        self.classifier = Linear(config.hidden_size, config.num_labels, True, axes=(None, "embed"), role="head")
        self.config = config
        self.dropout = dropout

    def __call__(self, context: Context, cache: Any = None, **inputs: Any) -> Output:
        out = self.model(context, cache, **inputs)
        return out.replace(logits=self.classifier(dropout(out.last_hidden_state, self.dropout, context, 1_000_004)))


class QuestionAnswering(eqx.Module):
    """Where an answer starts and ends: `start_logits` and `end_logits`, `(batch, seq)` each."""

    model: Any
    qa_outputs: Linear
    config: Any = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(self, model: Any, *, dropout: float = 0.0) -> None:
        self.model = model
        self.qa_outputs = _pair(model.config.hidden_size)
        self.config = model.config
        self.dropout = dropout

    def __call__(self, context: Context, cache: Any = None, **inputs: Any) -> Output:
        out = self.model(context, cache, **inputs)
        both = self.qa_outputs(dropout(out.last_hidden_state, self.dropout, context, 1_000_004))
        return out.replace(start_logits=both[..., 0], end_logits=both[..., 1])


class SentenceEmbedding(eqx.Module):
    """One vector per row: `embeddings`, `(batch, embed)` in float32, as sentence-transformers makes it.

    `pooling` names one or several modes, whose vectors are joined; `normalize` makes them unit vectors.
    """

    model: Any
    config: Any = eqx.field(static=True)
    pooling: tuple[str, ...] = eqx.field(static=True)
    normalize: bool = eqx.field(static=True)

    def __init__(self, model: Any, *, pooling: str | tuple[str, ...] = "mean", normalize: bool = False) -> None:
        modes = (pooling,) if isinstance(pooling, str) else tuple(pooling)
        if unknown := [m for m in modes if m not in POOLINGS]:
            raise ValueError(f"unknown pooling {unknown[0]!r}; known: {', '.join(POOLINGS)}")
        self.model = model
        self.config = model.config
        self.pooling = modes
        self.normalize = normalize

    def __call__(self, context: Context, cache: Any = None, **inputs: Any) -> Output:
        out = self.model(context, cache, **inputs)
        vectors = jnp.concatenate([pool(out.last_hidden_state, context, mode) for mode in self.pooling], axis=-1)
        if self.normalize:
            length = jnp.sqrt(jnp.sum(vectors * vectors, axis=-1, keepdims=True))
            vectors = vectors / jnp.maximum(length, 1e-12)
        return out.replace(embeddings=vectors)


def sentence_embedding(model: Any) -> SentenceEmbedding:
    """A base model as a sentence embedder, pooled as its checkpoint says.

    The checkpoint's `modules.json` and `1_Pooling/config.json` arrive in `config.extra["_sentence_transformers"]` as
    `{"pooling": [...], "normalize": bool, "other": [...]}`; without them the mean over the tokens is taken and left as
    long as it is. `ValueError` for modules of other kinds.
    """
    said = (getattr(model.config, "extra", None) or {}).get("_sentence_transformers") or {}
    if other := said.get("other"):
        raise ValueError(
            f"sentence-embedding: the checkpoint's modules.json has {', '.join(other)}, which is not implemented"
        )
    return SentenceEmbedding(
        model, pooling=tuple(said.get("pooling", ("mean",))), normalize=bool(said.get("normalize", False))
    )

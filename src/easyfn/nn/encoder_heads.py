"""Heads on encoders: masked language models, classifiers, question answering.

Every head holds its base model in the field `model`; a family renames that to its prefix (`bert.`).
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core.weight import Slot, Weight, dense, shape_of, slots
from .activation import activation
from .context import Context, called, dropout
from .heads import head_logits, vocabulary_scores, width_of
from .linear import Linear, along_last, declare
from .norm import LayerNorm
from .output import Output
from .pooling import POOLINGS, at_token, pool

BIASES = ("spare", "own", "apart", "none")


class MaskedLM(eqx.Module):
    """Scores over the vocabulary for every token: `decoder(norm(act(dense(x)))) + bias`.

    - `decoder` is `None` when it is tied to the input embeddings.
    - `bias` says where its bias is, where it is not tied: in the `decoder` (`"own"`), in the field `bias` (`"apart"`), or in
      the decoder with one in the field that is in the file and adds nothing (`"spare"`, as transformers' BERT); `"none"`
      is no bias, tied or not.
    - `size` is the width of the embeddings, where they are narrower than the layers; what hidden states have beyond it after
      the `transform` is scored by `beyond` (MobileBERT).
    - `transform` is `(dense, norm)`, by default a linear layer and the config's `LayerNorm`; `(None, None)` for none.
    - With `next_sentence`, `seq_relationship` reads the pooled first token: `seq_relationship_logits` `(batch, 2)`, whether
      the second sentence follows (0) or not (1), or with a number instead of `True` so many scores.
    """

    model: Any
    dense: Linear | None
    norm: Any
    decoder: Linear | None
    bias: Weight | None
    beyond: Linear | None
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
        transform: tuple[Linear | None, Any] | None = None,
        bias: str = "spare",
        next_sentence: bool | int = False,
    ) -> None:
        if bias not in BIASES:
            raise ValueError(f"MaskedLM: bias is one of {', '.join(BIASES)}, not {bias!r}")
        config = model.config
        size = size or config.hidden_size
        if transform is None:
            dense = Linear(config.hidden_size, size, True, axes=("mlp", "embed"))
            transform = dense, LayerNorm(size, config.layer_norm_eps)
        self.model = model
        self.dense, self.norm = transform
        inside = bias in ("spare", "own")
        self.decoder = None if tied else Linear(size, config.vocab_size, inside, axes=("vocab", "embed"), role="head")
        field = bias != "none" if tied else bias in ("spare", "apart")
        self.bias = declare(config.vocab_size) if field else None
        more = 0 if self.dense is None else shape_of(self.dense.weight)[0] - size
        self.beyond = Linear(more, config.vocab_size, axes=("vocab", "embed"), role="head") if more else None
        count = 2 if next_sentence is True else int(next_sentence)
        self.seq_relationship = _head(config.hidden_size, count) if count else None
        self.config = config
        self.act = act or config.hidden_act
        activation(self.act)

    def __call__(self, context: Context, cache: Any = None, **inputs: Any) -> Output:
        out = self.model(context, cache, **inputs)
        related = None if self.seq_relationship is None else self.seq_relationship(out.pooler_output)
        return out.replace(logits=head_logits(self, out.last_hidden_state), seq_relationship_logits=related)


def _head(hidden_size: int, count: int) -> Linear:
    return Linear(hidden_size, count, True, axes=(None, "embed"), role="head")


@slots.register(MaskedLM)
def _(head: MaskedLM) -> dict[str, Slot]:
    return {"bias": Slot("bias", ("vocab",), "zeros")}


@head_logits.register(MaskedLM)
def _(head: MaskedLM, hidden: jax.Array, *, dtype: Any = None) -> jax.Array:
    if head.dense is not None:
        hidden = head.norm(activation(head.act)(head.dense(hidden)))
    if head.beyond is None:
        return _scores(head, hidden, dtype)
    size = hidden.shape[-1] - shape_of(head.beyond.weight)[1]
    return _scores(head, hidden[..., :size], dtype) + head.beyond(hidden[..., size:], dtype=dtype)


def _scores(head: MaskedLM, hidden: jax.Array, dtype: Any) -> jax.Array:
    scores = vocabulary_scores(head, head.decoder, hidden, bias=head.bias, dtype=dtype)
    if head.decoder is None or head.decoder.bias is not None or head.bias is None:
        return scores
    return scores + along_last(dense(head.bias).astype(scores.dtype), scores)


class NextSentence(eqx.Module):
    """Whether the second sentence of a row follows the first: `logits` `(batch, 2)`, 0 is yes."""

    model: Any
    seq_relationship: Linear
    config: Any = eqx.field(static=True)

    def __init__(self, model: Any) -> None:
        self.model = model
        self.seq_relationship = _head(model.config.hidden_size, 2)
        self.config = model.config

    def __call__(self, context: Context, cache: Any = None, **inputs: Any) -> Output:
        out = self.model(context, cache, **inputs)
        return out.replace(logits=self.seq_relationship(out.pooler_output))


class ClassificationHead(eqx.Module):
    """`out_proj(norm(act(dense(x))))` on `(..., embed)`: the classifier of RoBERTa (tanh), ELECTRA (gelu) and ModernBERT.

    `norm` is by default none; `bias` is that of `dense`.
    """

    dense: Linear
    norm: Any
    out_proj: Linear
    act: str = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(
        self,
        hidden_size: int,
        num_labels: int,
        *,
        act: str = "tanh",
        dropout: float = 0.0,
        norm: Any = None,
        bias: bool = True,
    ) -> None:
        activation(act)
        self.dense = Linear(hidden_size, hidden_size, bias, axes=("mlp", "embed"))
        self.norm = norm
        self.out_proj = Linear(hidden_size, num_labels, True, axes=(None, "embed"), role="head")
        self.act = act
        self.dropout = dropout

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        x = activation(self.act)(self.dense(x))
        x = x if self.norm is None else self.norm(x)
        return self.out_proj(dropout(x, self.dropout, context, 1_000_005))


def _answers(classifier: Any, x: jax.Array, rate: float, context: Context) -> jax.Array:
    """What a `Linear` or a `ClassificationHead` says of hidden states that are dropped at the `rate`."""
    x = dropout(x, rate, context, 1_000_004)
    return classifier(x, context) if isinstance(classifier, ClassificationHead) else classifier(x)


class LastMarkClassifier(eqx.Module):
    """One answer per row, `logits` `(batch, num_labels)`, read off the place of the source's last `eos_token_id` (BART).

    `model` is an encoder-decoder whose decoder reads the same text as its encoder.
    """

    model: Any
    classification_head: ClassificationHead
    config: Any = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(self, model: Any, *, dropout: float = 0.0) -> None:
        config = model.config
        self.model = model
        self.classification_head = ClassificationHead(config.hidden_size, config.num_labels, dropout=dropout)
        self.config = config
        self.dropout = dropout

    def __call__(self, context: Context, cache: Any = None, *, source_ids: Any = None, **inputs: Any) -> Output:
        """`source_ids`, `(batch, seq)`: what the encoder reads; [`easyfn.forward`][] gives its `input_ids`."""
        if source_ids is None:
            raise ValueError("a classifier that looks for eos_token_id needs input_ids, or source_ids beside others")
        out = self.model(context, cache, **inputs)
        marks = jnp.asarray(self.config.eos_token_id, source_ids.dtype).reshape(1, 1, -1)
        there = jnp.any(source_ids[..., None] == marks, axis=-1) & (context.encoder[1] > 0)
        if not isinstance(there, jax.core.Tracer) and not bool(jnp.all(jnp.any(there, axis=1))):
            raise ValueError(f"every row of input_ids must hold eos_token_id={self.config.eos_token_id}, which is read")
        hidden = at_token(out.last_hidden_state, jnp.max(jnp.where(there, jnp.arange(there.shape[1])[None], 0), axis=1))
        return out.replace(logits=self.classification_head(dropout(hidden, self.dropout, context, 1_000_004), context))


class PooledClassifier(eqx.Module):
    """One answer per row, `logits` of shape `(batch, num_labels)`, read off the pooled or the first token.

    `classifier` is a `Linear`, which reads the `pooler_output` of a base model that has one, or a `ClassificationHead`; else
    it reads what `pooling` makes of the hidden states: one of `easyfn.nn.POOLINGS`, or `"late"`, the mean of the answers of
    all tokens.
    """

    model: Any
    classifier: Any
    config: Any = eqx.field(static=True)
    dropout: float = eqx.field(static=True)
    pooling: str = eqx.field(static=True)

    def __init__(
        self,
        model: Any,
        *,
        dropout: float = 0.0,
        classifier: Any = None,
        num_labels: int | None = None,
        pooling: str = "cls",
    ) -> None:
        if pooling not in (*POOLINGS, "late"):
            raise ValueError(f"PooledClassifier: pooling is one of {', '.join(POOLINGS)}, late, not {pooling!r}")
        config = model.config
        labels = num_labels or config.num_labels
        self.model = model
        self.classifier = classifier or Linear(config.hidden_size, labels, True, axes=(None, "embed"), role="head")
        self.config = config
        self.dropout = dropout
        self.pooling = pooling

    def __call__(self, context: Context, cache: Any = None, **inputs: Any) -> Output:
        out = self.model(context, cache, **inputs)
        x = out.last_hidden_state
        if not isinstance(self.classifier, ClassificationHead) and out.pooler_output is not None:
            x = out.pooler_output
        elif self.pooling != "late":
            x = pool(x, context, self.pooling).astype(x.dtype)
        logits = _answers(self.classifier, x, self.dropout, context)
        if self.pooling == "late":
            logits = pool(logits, context, "mean").astype(logits.dtype)
        return out.replace(logits=logits)


class MultipleChoice(eqx.Module):
    """Which of several texts fits: a score for each, `logits` of shape `(batch, choices)`.

    [`easyfn.forward`][] takes `input_ids` `(batch, choices, seq)`, and the mask and the like in that shape. The texts pass as
    rows, each scored as a `PooledClassifier` with one label does.
    """

    model: Any
    classifier: Any
    config: Any = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    pooling: str = eqx.field(static=True)

    def __init__(self, model: Any, *, dropout: float = 0.0, classifier: Any = None, pooling: str = "cls") -> None:
        rows = PooledClassifier(model, dropout=dropout, classifier=classifier, num_labels=1, pooling=pooling)
        self.model = model
        self.classifier = rows.classifier
        self.config = model.config
        self.dropout = dropout
        self.pooling = pooling

    @property
    def rows(self) -> PooledClassifier:
        """What scores single texts, `(rows, 1)`."""
        return PooledClassifier(self.model, dropout=self.dropout, classifier=self.classifier, pooling=self.pooling)

    def __call__(self, context: Context, cache: Any = None, **inputs: Any) -> Output:
        """The scores of single texts, `(rows, 1)`."""
        return self.rows(context, cache, **inputs)


class TokenClassifier(eqx.Module):
    """One answer per token: `logits` of shape `(batch, seq, num_labels)`.

    `classifier` is by default a `Linear`; a `ClassificationHead` does as well.
    """

    model: Any
    classifier: Any
    config: Any = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(self, model: Any, *, dropout: float = 0.0, classifier: Any = None) -> None:
        config = model.config
        self.model = model
        self.classifier = classifier or Linear(
            width_of(model), config.num_labels, True, axes=(None, "embed"), role="head"
        )
        self.config = config
        self.dropout = dropout

    def __call__(self, context: Context, cache: Any = None, **inputs: Any) -> Output:
        called(self, context)
        out = self.model(context, cache, **inputs)
        return out.replace(logits=_answers(self.classifier, out.last_hidden_state, self.dropout, context))


class ReplacedTokens(eqx.Module):
    """Which tokens were replaced: `logits` of shape `(batch, seq)`, positive where one was (ELECTRA's discriminator)."""

    model: Any
    classifier: ClassificationHead
    config: Any = eqx.field(static=True)

    def __init__(self, model: Any) -> None:
        config = model.config
        self.model = model
        self.classifier = ClassificationHead(config.hidden_size, 1, act=config.hidden_act)
        self.config = config

    def __call__(self, context: Context, cache: Any = None, **inputs: Any) -> Output:
        out = self.model(context, cache, **inputs)
        return out.replace(logits=self.classifier(out.last_hidden_state, context)[..., 0])


class QuestionAnswering(eqx.Module):
    """Where an answer starts and ends: `start_logits` and `end_logits`, `(batch, seq)` each.

    `qa_outputs` is by default a `Linear`; a `ClassificationHead` does as well.
    """

    model: Any
    qa_outputs: Any
    config: Any = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(self, model: Any, *, dropout: float = 0.0, classifier: Any = None) -> None:
        self.model = model
        self.qa_outputs = classifier or _head(width_of(model), 2)
        self.config = model.config
        self.dropout = dropout

    def __call__(self, context: Context, cache: Any = None, **inputs: Any) -> Output:
        called(self, context)
        out = self.model(context, cache, **inputs)
        both = _answers(self.qa_outputs, out.last_hidden_state, self.dropout, context)
        return out.replace(start_logits=both[..., 0], end_logits=both[..., 1])

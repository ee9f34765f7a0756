"""Heads: what turns the hidden states of any base model into answers to a task."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..core.verb import verb
from ..core.weight import Slot, Weight, affine, slots
from .activation import activation
from .context import Context, called, dropout
from .linear import Linear, declare
from .output import Output
from .pooling import last_token_by_id


def width_of(model: Any) -> int:
    """How wide the hidden states are that a model returns: its own `width`, or its config's `hidden_size`."""
    return getattr(model, "width", model.config.hidden_size)


class PredictionHead(eqx.Module):
    """What hidden states go through before they are scored: `norm(act(dense(x)))` on `(..., embed)` (BERT, ModernBERT)."""

    dense: Linear
    norm: Any
    act: str = eqx.field(static=True)

    def __init__(self, hidden_size: int, norm: Any, *, act: str, bias: bool = True) -> None:
        activation(act)
        self.dense = Linear(hidden_size, hidden_size, bias, axes=("mlp", "embed"))
        self.norm = norm
        self.act = act

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(activation(self.act)(self.dense(x)))


class CausalLM(eqx.Module):
    """A decoder with a vocabulary head. `lm_head` is `None` when it is tied to the input embeddings; then `bias` is the
    head's own, where it has one. Hidden states go through `transform` before it, where there is one."""

    model: Any
    transform: Any
    lm_head: Linear | None
    bias: Weight | None
    config: Any = eqx.field(static=True)
    softcap: float | None = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    def __init__(
        self,
        model: Any,
        *,
        tied: bool,
        bias: bool = False,
        softcap: float | None = None,
        scale: float = 1.0,
        transform: Any = None,
    ) -> None:
        config = model.config
        self.model = model
        self.transform = transform
        self.lm_head = (
            None if tied else Linear(width_of(model), config.vocab_size, bias, axes=("vocab", "embed"), role="head")
        )
        self.bias = declare(config.vocab_size) if tied and bias else None
        self.config = config
        self.softcap = softcap
        self.scale = scale

    def __call__(self, context: Context, cache: Any = None, *, logits_to_keep: Any = None, **inputs: Any) -> Output:
        called(self, context)
        out = self.model(context, cache, **inputs)
        return out.replace(logits=head_logits(self, kept(out.last_hidden_state, logits_to_keep)))


def kept(hidden: jax.Array, which: Any) -> jax.Array:
    """The hidden states `(batch, seq, embed)` that are scored: the last `which` of a row, all for 0 or `None`, or those at
    the places in a 1-D array: transformers' `logits_to_keep`."""
    if which is not None and np.ndim(which):
        return hidden[:, jnp.asarray(which)]
    return hidden[:, -which:] if which else hidden


@slots.register(CausalLM)
def _(model: CausalLM) -> dict[str, Slot]:
    return {"bias": Slot("bias", ("vocab",), "zeros")}


@verb(example="@ef.nn.head_logits.register({type})\ndef _(model, hidden, *, dtype=None): return ...   # (..., vocab)")
def head_logits(model: Any, hidden: jax.Array, *, dtype: Any = None) -> jax.Array:
    """The scores over the vocabulary for hidden states `(..., embed)`: the head alone, for a loss in chunks.

    `dtype` is the result's: float32 keeps the accumulator's precision for a loss.
    """
    raise head_logits.missing(model, "It has no head over a vocabulary that easyfn knows of.")


def vocabulary_scores(
    model: Any, head: Linear | None, hidden: jax.Array, *, bias: Any = None, dtype: Any = None
) -> jax.Array:
    """What every head over a vocabulary computes: the `head`'s product, or that with the input embeddings where there is
    none, and then `bias`. One place, so that a format or an adapter acts on heads as on any layer."""
    if head is None:
        return affine(input_embeddings(model).weight, hidden, bias, dtype=dtype)
    return head(hidden, dtype=dtype)


@head_logits.register(CausalLM)
def _(model: CausalLM, hidden: jax.Array, *, dtype: Any = None) -> jax.Array:
    hidden = hidden if model.transform is None else model.transform(hidden)
    logits = vocabulary_scores(model, model.lm_head, hidden, bias=model.bias, dtype=dtype)
    if model.scale != 1.0:
        logits = logits * jnp.asarray(model.scale, logits.dtype)
    if model.softcap is not None:
        logits = jnp.tanh(logits / model.softcap) * model.softcap
    return logits


@verb(example="@ef.input_embeddings.register({type})\ndef _(model): return model.embed_tokens")
def input_embeddings(model: Any) -> Any:
    """The layer that turns token ids into vectors: an `Embedding` whose `weight` is `(vocab, embed)`.

    By default the first of the fields `embed_tokens`, `wte`, `word_embeddings`, `shared` or `embeddings` of the model, of
    the model it wraps (`model`), or of its half that reads text (`language_model`, `encoder`).

    ```python
    import easyfn as ef
    model = ef.testing.tiny()
    assert ef.input_embeddings(model).weight.shape == (64, 32)
    ```
    """
    for field in ("embed_tokens", "wte", "word_embeddings", "shared"):
        if hasattr(model, field):
            return getattr(model, field)
    for field in ("model", "language_model", "embeddings", "encoder"):
        if hasattr(model, field):
            return input_embeddings(getattr(model, field))
    raise input_embeddings.missing(model, "None of its fields looks like a table of token embeddings.")


@verb(example="@ef.nn.max_positions.register({type})\ndef _(model): return model.position_embeddings.weight.shape[0]")
def max_positions(model: Any) -> int | None:
    """How many positions a model has learned; `None` if it can go on (rotary and relative positions, state spaces).

    By default what the model it wraps (`model`) or its half that reads text (`language_model`) answers.
    """
    for field in ("model", "language_model"):
        if hasattr(model, field):
            return max_positions(getattr(model, field))
    return None


class SequenceClassifier(eqx.Module):
    """A decoder that classifies by the hidden state of each row's last token, as `LlamaForSequenceClassification`.

    The last token is neither padding nor, where `input_ids` are given, the config's `pad_token_id`. Its hidden state goes
    through `transform` where there is one, and is dropped at the rate `dropout` in training.
    """

    model: Any
    transform: Any
    score: Linear
    config: Any = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(self, model: Any, *, transform: Any = None, bias: bool = False, dropout: float = 0.0) -> None:
        self.model = model
        self.transform = transform
        self.score = Linear(width_of(model), model.config.num_labels, bias, axes=(None, "embed"), role="head")
        self.config = model.config
        self.dropout = dropout

    def __call__(self, context: Context, cache: Any = None, **inputs: Any) -> Output:
        called(self, context)
        out = self.model(context, cache, **inputs)
        hidden = last_token_by_id(out.last_hidden_state, context, inputs.get("input_ids"), self.config)
        hidden = hidden if self.transform is None else self.transform(hidden)
        return out.replace(logits=self.score(dropout(hidden, self.dropout, context, 1_000_004)))

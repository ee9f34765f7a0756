"""The numbers of a loss: logits and labels to one float32 number, over the right number of tokens."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

from ..core.arrays import Host
from ..core.weight import flat
from ..nn.heads import head_logits

Metrics = dict[str, jax.Array]
Rows = dict[str, jax.Array]  # per token, weighted
KINDS = ("causal-lm", "cross-entropy", "regression", "multi-label")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """How a loss is computed; hashable, so it may be a static argument of a jitted function.

    - `kind`: by default what the model's task implies. `causal-lm` (labels are shifted: token `t` predicts `t + 1`),
      `cross-entropy` (labels as they stand; or a weight for each class, floats of the logits' shape), `regression` (mean
      squared error), `multi-label` (binary cross entropy).
    - `label_smoothing` e: as transformers' `LabelSmoother`, `(1 - e) * nll + e * mean over classes of -log p`.
    - `z_loss` z: adds `z * logsumexp(logits) ** 2` per token, which keeps logits from drifting.
    - `aux_loss_weight`: of the routers' load balancing loss. By default as transformers: the config's
      `router_aux_loss_coef` if the config (or the batch) says `output_router_logits`, else nothing.
    - `ignore_index`: labels of this value count neither in the sum nor in the denominator (but in a regression, where
      every number is a target).
    - `reduction`: `mean` over counted tokens, `sum`, or `none` (the shape of the labels, 0 where not counted; for a
      shifted loss entry `t` is what predicting `t + 1` cost). The sum of `none` is `sum`; over the count it is `mean`.
    - `temperature`: logits of classes are divided by it.
    - `chunk_size`: with it, logits over the vocabulary exist for this many tokens at a time only (at least one of each
      row), and the backward pass makes them again: the same numbers in far less memory.
    """

    kind: str | None = None
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    aux_loss_weight: float | None = None
    ignore_index: int = -100
    reduction: str = "mean"
    chunk_size: int | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in KINDS:
            raise ValueError(f"LossConfig.kind is one of {', '.join(KINDS)}, not {self.kind!r}")
        if self.reduction not in ("mean", "sum", "none"):
            raise ValueError(f"LossConfig.reduction is 'mean', 'sum' or 'none', not {self.reduction!r}")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"LossConfig.label_smoothing lies in [0, 1), not {self.label_smoothing}")
        if self.z_loss < 0.0:
            raise ValueError(f"LossConfig.z_loss must not be negative, not {self.z_loss}")
        if not self.temperature > 0.0:
            raise ValueError(f"LossConfig.temperature is positive, not {self.temperature}")
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"LossConfig.chunk_size is a number of tokens, not {self.chunk_size}")


def loss_from_logits(
    logits: Float[Array, "*rows classes"],
    labels: Shaped[Array, ...] | Host,
    cfg: LossConfig = LossConfig(),
    *,
    attention_mask: Shaped[Array, "rows seq"] | Host | None = None,
    segment_ids: Int[Array, "rows seq"] | Host | None = None,
) -> tuple[Float[Array, ...], Metrics]:
    """The same losses for logits of your own. `cfg.kind` is `causal-lm` unless it says otherwise.

    `logits`: `(batch, seq, vocab)` with labels `(batch, seq)`; for `cross-entropy` any `(..., classes)` with labels
    `(...)`; for `regression` and `multi-label` labels of the logits' shape.

    ```python
    import jax.numpy as jnp, easyfn as ef
    loss, metrics = ef.loss_from_logits(jnp.zeros((1, 4, 8)), jnp.array([[1, 2, 3, -100]]))
    assert metrics["num_tokens"] == 2 and abs(loss - jnp.log(8.0)) < 1e-6
    ```
    """
    kind = cfg.kind or "causal-lm"
    labels = as_array(labels)
    if kind in ("regression", "multi-label"):
        return _elementwise(logits, labels, kind, cfg)
    if kind == "cross-entropy" and labels.ndim == logits.ndim:
        if labels.shape[-1] == 1:
            labels = labels[..., 0]
        elif jnp.issubdtype(labels.dtype, jnp.floating):
            return _soft(logits, labels, cfg)
    check_shape(labels, logits.shape[:-1])
    given = {"attention_mask": attention_mask, "segment_ids": segment_ids}
    segments = segments_of({k: v for k, v in given.items() if v is not None}, labels.shape)
    weights = None if segments is None else segments > 0
    if kind == "causal-lm":
        labels, weights = shift(labels, segments, cfg.ignore_index)
    return cross_entropy(logits, labels, weights, cfg)


def cross_entropy(
    logits: jax.Array, labels: Any, weights: Any = None, cfg: LossConfig = LossConfig(), *, aux: Any = None
) -> tuple[jax.Array, Metrics]:
    """Cross entropy of `logits` `(..., classes)` and integer `labels` `(...)`, reduced as `cfg` says.

    `weights` `(...)`, booleans or floats, count on top of `cfg.ignore_index`. `aux` is a pair `(value, weight)` of an
    auxiliary loss to add. The building block of every task with classes.
    """
    labels = as_array(labels)
    targets, weight = _flat(labels, weights, cfg)
    _check_labels(targets, logits.shape[-1], cfg)
    rows = _rows(logits.reshape(-1, logits.shape[-1]).astype(jnp.float32), targets, weight, cfg)
    return _reduce(rows, weight, labels.shape, cfg, aux)


def vocabulary_loss(
    model: Any, hidden: jax.Array, labels: Any, weights: Any = None, cfg: LossConfig = LossConfig(), *, aux: Any = None
) -> tuple[jax.Array, Metrics]:
    """Cross entropy of `head_logits(model, hidden)`, with `hidden` `(batch, seq, embed)`, the rest `(batch, seq)`.

    With `cfg.chunk_size` the logits are made for a slice of the sequence at a time and again in the backward pass, so
    that `(batch * seq, vocab)` never exists.
    """
    labels = as_array(labels)
    targets, weight = _flat(labels, weights, cfg)
    batch, length = labels.shape

    def head(h: jax.Array, y: jax.Array, w: jax.Array) -> Rows:
        logits = head_logits(model, h, dtype=jnp.float32)
        rows, back = flat(logits)
        y, w = (flat(x.reshape(*h.shape[:2], 1), like=logits)[0][:, 0] for x in (y, w))
        _check_labels(y, logits.shape[-1], cfg)
        return {name: back(x[:, None]).reshape(-1) for name, x in _rows(rows, y, w, cfg).items()}

    if cfg.chunk_size is None or cfg.chunk_size >= batch * length:
        return _reduce(head(hidden, targets, weight), weight, labels.shape, cfg, aux)

    # Slices of the sequence, not of the flat rows, so that a batch sharded over devices stays where it is.
    width = max(1, cfg.chunk_size // batch)
    count = -(-length // width)

    def slices(x: jax.Array) -> jax.Array:
        pad = [(0, 0), (0, count * width - length)] + [(0, 0)] * (x.ndim - 2)
        return jnp.moveaxis(jnp.pad(x, pad).reshape(batch, count, width, *x.shape[2:]), 1, 0)

    chunks = tuple(slices(x) for x in (hidden, targets.reshape(batch, length), weight.reshape(batch, length)))
    _, rows = lax.scan(lambda _, chunk: (None, jax.checkpoint(head)(*chunk)), None, chunks)

    def joined(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(count, batch, width), 0, 1).reshape(batch, -1)[:, :length].reshape(-1)

    return _reduce({name: joined(x) for name, x in rows.items()}, weight, labels.shape, cfg, aux)


def shift(labels: Any, segments: jax.Array | None, ignore_index: int = -100) -> tuple[jax.Array, jax.Array | None]:
    """Labels moved one place left (the last one ignored), and which of them count: those whose predictor is a token of
    the same document. All arrays `(batch, seq)`."""
    labels = as_array(labels)
    if labels.ndim != 2:
        raise ValueError(
            f"a causal-lm loss shifts labels of shape (batch, seq), and these have {labels.shape}; "
            "for labels as they stand: LossConfig(kind='cross-entropy')"
        )
    end = [(0, 0), (0, 1)]
    moved = jnp.pad(labels, end, constant_values=ignore_index)[:, 1:]
    if segments is None:
        return moved, None
    following = jnp.pad(segments, end)[:, 1:]
    return moved, (segments == following) & (segments > 0)


def segments_of(inputs: Mapping[str, Any], shape: tuple[int, ...]) -> jax.Array | None:
    """The segments of a batch, 0 for padding, from its `segment_ids` and `attention_mask`; `None` if it has neither."""
    found = {name: as_array(inputs[name]) for name in ("segment_ids", "attention_mask") if inputs.get(name) is not None}
    for name, value in found.items():
        if value.shape != tuple(shape):
            raise ValueError(f"{name} has shape {value.shape} and the labels {tuple(shape)}")
    segments, mask = found.get("segment_ids"), found.get("attention_mask")
    if mask is None:
        return segments
    seen = (mask != 0).astype(jnp.int32)
    return seen if segments is None else segments * seen


def as_array(x: Any) -> jax.Array:
    return x if isinstance(x, (jax.Array, jax.core.Tracer)) else jnp.asarray(np.asarray(x))


def check_shape(labels: jax.Array, shape: tuple[int, ...]) -> None:
    if tuple(labels.shape) != tuple(shape):
        raise ValueError(f"labels have shape {tuple(labels.shape)}, and the model answers for {tuple(shape)}")


def _flat(labels: jax.Array, weights: Any, cfg: LossConfig) -> tuple[jax.Array, jax.Array]:
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be integers, not {labels.dtype}; for other losses see LossConfig.kind")
    counted = (labels != cfg.ignore_index).astype(jnp.float32)
    if weights is not None:
        check_shape(labels, weights.shape)
        counted = counted * weights.astype(jnp.float32)
    return labels.reshape(-1), counted.reshape(-1)


def _check_labels(labels: jax.Array, classes: int, cfg: LossConfig) -> None:
    if isinstance(labels, jax.core.Tracer) or not labels.size:
        return
    real = np.asarray(labels)
    real = real[real != cfg.ignore_index]
    if real.size and (real.min() < 0 or real.max() >= classes):
        bad = int(real.min()) if real.min() < 0 else int(real.max())
        raise ValueError(f"labels hold {bad}: neither one of {classes} classes nor ignore_index={cfg.ignore_index}")


@functools.partial(jax.jit, inline=True, static_argnames="cfg")  # one program where the loss is taken eagerly
def _rows(logits: jax.Array, labels: jax.Array, weight: jax.Array, cfg: LossConfig) -> Rows:
    """The terms of each token: `logits` `(tokens, classes)` in float32, `labels` and `weight` `(tokens,)`.

    A label outside the classes (and not ignored) gives NaN, never a wrong number.
    """
    classes = logits.shape[-1]
    logits = logits if cfg.temperature == 1.0 else logits / cfg.temperature
    total = _logsumexp(logits)
    picked = _pick(logits, jnp.clip(labels, 0, classes - 1))
    best = lax.stop_gradient(picked >= jnp.max(logits, axis=-1))
    picked = jnp.where((labels >= 0) & (labels < classes), picked, jnp.nan)
    nll = total - picked
    terms = {"cross_entropy": nll, "accuracy": best.astype(jnp.float32)}
    loss = nll
    if cfg.label_smoothing:
        smooth = total - jnp.mean(logits, axis=-1)
        loss = (1.0 - cfg.label_smoothing) * nll + cfg.label_smoothing * smooth
    if cfg.z_loss:
        terms["z_loss"] = cfg.z_loss * jnp.square(total)
        loss = loss + terms["z_loss"]
    terms["loss"] = loss
    counted = weight > 0
    return {name: jnp.where(counted, value, 0.0) * weight for name, value in terms.items()}


# Two rules of our own, good in both directions of differentiation. Autodiff of a logsumexp keeps the exponentials
# beside the logits; these keep nothing but the logits, and both gradients fuse into one pass over them. A gather reads
# one entry of a row, but its gradient is a scatter: a comparison in a sum fuses. (1024 tokens, 32000 classes, head
# included: 282 ms and 131 MB against 320 ms and 262 MB; its three matrix products alone take 250 ms.) Neither gathers
# logits whose vocabulary is divided over devices.


@jax.custom_jvp
def _logsumexp(logits: jax.Array) -> jax.Array:
    top = jnp.max(logits, axis=-1)
    return jnp.log(jnp.sum(jnp.exp(logits - top[:, None]), axis=-1)) + top


@_logsumexp.defjvp
def _(primals, tangents):
    (logits,), (change,) = primals, tangents
    total = _logsumexp(logits)
    return total, jnp.sum(jnp.exp(logits - total[:, None]) * change, axis=-1)


@jax.custom_jvp
def _pick(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits, labels[:, None], axis=-1, mode="clip")[:, 0]


@_pick.defjvp
def _(primals, tangents):
    (logits, labels), (change, _) = primals, tangents
    hit = labels[:, None] == jnp.arange(logits.shape[-1], dtype=labels.dtype)[None]
    return _pick(logits, labels), jnp.sum(jnp.where(hit, change, 0.0), axis=-1)


def _reduce(
    rows: Rows, weight: jax.Array, shape: tuple[int, ...], cfg: LossConfig, aux: Any = None, count: str = "num_tokens"
) -> tuple[jax.Array, Metrics]:
    number = jnp.sum(weight)
    # maximum(number, 1) would be wrong for fractional weights: only an empty batch has no denominator
    below = jnp.where(number > 0, number, 1.0)
    metrics = {name: jnp.sum(values) / below for name, values in rows.items()}
    per_token = rows["loss"]
    if aux is not None:
        value, factor = aux
        metrics["aux_loss"] = value
        metrics["loss"] = metrics["loss"] + factor * value
        per_token = per_token + factor * value * weight
    metrics[count] = number
    if cfg.reduction == "mean":
        loss = metrics["loss"]
    else:
        loss = jnp.sum(per_token) if cfg.reduction == "sum" else per_token.reshape(shape)
    return loss, {name: lax.stop_gradient(value) for name, value in metrics.items()}


def _soft(logits: jax.Array, labels: jax.Array, cfg: LossConfig) -> tuple[jax.Array, Metrics]:
    """Cross entropy of scores and a weight for each class."""
    if cfg.label_smoothing or cfg.z_loss or cfg.temperature != 1.0:
        raise ValueError("label_smoothing, z_loss, temperature need a label for each row, not a weight for each class")
    check_shape(labels, logits.shape)
    x, y = (a.reshape(-1, logits.shape[-1]).astype(jnp.float32) for a in (logits, labels))
    rows = {
        "loss": -jnp.sum(jax.nn.log_softmax(x, axis=-1) * y, axis=-1),
        "accuracy": (jnp.argmax(x, axis=-1) == jnp.argmax(y, axis=-1)).astype(jnp.float32),
    }
    return _reduce(rows, jnp.ones(x.shape[:1], jnp.float32), labels.shape[:-1], cfg, count="num_examples")


def _elementwise(logits: jax.Array, labels: jax.Array, kind: str, cfg: LossConfig) -> tuple[jax.Array, Metrics]:
    """Mean squared error, or binary cross entropy, of scores and labels of one shape."""
    if cfg.label_smoothing or cfg.z_loss or cfg.temperature != 1.0:
        raise ValueError(f"label_smoothing, z_loss and temperature need classes; a {kind} loss has none")
    if labels.ndim == logits.ndim - 1 and logits.shape[-1] == 1:
        labels = labels[..., None]
    check_shape(labels, logits.shape)
    x, y = logits.astype(jnp.float32), labels.astype(jnp.float32)
    counted = jnp.ones(labels.shape, bool)
    if kind == "regression":  # every number is a target, that of ignore_index too
        each = jnp.square(x - y)
        rows = {"loss": each}
    else:
        counted = labels != cfg.ignore_index
        each = jnp.maximum(x, 0.0) - x * y + jnp.log1p(jnp.exp(-jnp.abs(x)))
        rows = {"loss": each, "accuracy": ((x > 0) == (y > 0.5)).astype(jnp.float32)}
    rows = {name: jnp.where(counted, value, 0.0).reshape(-1) for name, value in rows.items()}
    return _reduce(rows, counted.astype(jnp.float32).reshape(-1), labels.shape, cfg, count="num_examples")

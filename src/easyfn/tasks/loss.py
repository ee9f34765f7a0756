"""`compute_loss`: the loss of a batch by the model's task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ..core.fields import setting
from ..core.rows import of_batch
from ..core.tree import nodes
from ..core.verb import verb
from ..forward.forward import forward
from ..nn.context import Runtime
from ..nn.heads import CausalLM, head_logits
from ..nn.moe.router import experts_per_token
from ..nn.output import Output
from .cross_entropy import (
    LossConfig,
    Metrics,
    as_array,
    check_shape,
    cross_entropy,
    segments_of,
    shift,
    vocabulary_loss,
)
from .task import task


@verb(
    example="@ef.compute_loss.register({type})\n"
    "def _(model, batch, cfg=ef.LossConfig(), *, key=None, runtime=ef.Runtime()): return ...   # loss, metrics"
)
def compute_loss(
    model: Any,
    batch: Mapping[str, Any],
    cfg: LossConfig = LossConfig(),
    *,
    key: jax.Array | None = None,
    runtime: Runtime = Runtime(),
) -> tuple[Float[Array, "*rows"], Metrics]:
    """The loss of a batch, and what is worth logging.

    `batch` has transformers' keys (`input_ids`, `attention_mask`, `labels`, `position_ids`, `segment_ids`,
    `token_type_ids`, ...): `labels` are ours, everything else goes to [`easyfn.forward`][], which refuses a name that
    the model does not take. `key` turns dropout on; `runtime` chooses rematerialisation and attention.

    A token counts if its label is not `ignore_index`, it is no padding, and (in a language model) the token that
    predicts it is a token of the same document: neither padding nor, in packed rows, of another segment. A causal
    language model without `labels` learns its `input_ids`.

    Everything is computed in float32. The metrics are means over what counts, whatever `cfg.reduction` is: `loss` (all
    terms), `cross_entropy` (the plain one: its exponential is the perplexity), `accuracy`, `num_tokens` (or
    `num_examples`), and `z_loss`, `aux_loss` where asked for. A batch in which nothing counts has loss 0.

    ```python
    import jax, easyfn as ef
    model = ef.testing.tiny()
    batch = {"input_ids": jax.numpy.array([[1, 2, 3, 4]]), "labels": jax.numpy.array([[-100, -100, 3, 4]])}
    loss, metrics = ef.compute_loss(model, batch)
    assert metrics["num_tokens"] == 2
    ```
    """
    if not head_logits.knows(type(model)) and task(model) != "causal-lm":
        raise compute_loss.missing(model, f"What the labels of a model of task {task(model)!r} mean is not known.")
    return language_loss(model, batch, cfg, key=key, runtime=runtime)


@verb
def summed(model: Any, cfg: LossConfig) -> bool:
    """Whether the loss of a model is a sum over what counts, to which parts of a batch add up, rather than a mean."""
    return cfg.reduction == "sum"


@compute_loss.register(CausalLM)
def language_loss(
    model: Any,
    batch: Mapping[str, Any],
    cfg: LossConfig = LossConfig(),
    *,
    key: jax.Array | None = None,
    runtime: Runtime = Runtime(),
) -> tuple[jax.Array, Metrics]:
    """The loss of a causal language model: the base model once, then the head and the loss over flat rows of tokens."""
    kind = _kind(cfg, "causal-lm", ("causal-lm", "cross-entropy"))
    inputs, labels = split_labels(batch)
    if labels is None:
        if inputs.get("input_ids") is None:
            held = ", ".join(batch) or "nothing"
            raise ValueError(
                f"compute_loss: the batch holds {held}; it needs input_ids, or labels beside the inputs that it has"
            )
        labels = as_array(inputs["input_ids"])
    model, inputs = of_batch(model, inputs, labels.shape[0])
    wanted = {**inputs, "key": key, "runtime": runtime, **_router(model, inputs, cfg)}
    segments = segments_of(inputs, labels.shape)
    if kind == "causal-lm":
        labels, weights = shift(labels, segments, cfg.ignore_index)
    else:
        weights = None if segments is None else segments > 0
    if head_logits.knows(type(model)) and hasattr(model, "model"):
        out = forward(model.model, **wanted)
        check_shape(labels, out.last_hidden_state.shape[:2])
        extra = aux_loss(model, out, segments, cfg)
        return vocabulary_loss(model, out.last_hidden_state, labels, weights, cfg, aux=extra)
    if cfg.chunk_size is not None:
        raise head_logits.missing(model, "chunk_size needs the head apart from the rest of the model.")
    out = forward(model, **wanted)
    return cross_entropy(out.logits, labels, weights, cfg, aux=aux_loss(model, out, segments, cfg))


def split_labels(batch: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """A batch without its labels, and the labels (`None` if there are none)."""
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"compute_loss takes a batch as a dict, {{'input_ids': ids, 'labels': labels}}, not {type(batch).__name__}"
        )
    inputs = {name: value for name, value in batch.items() if name != "labels" and value is not None}
    labels = batch.get("labels")
    return inputs, None if labels is None else as_array(labels)


def counted(inputs: Mapping[str, Any], labels: jax.Array) -> jax.Array | None:
    """Which tokens are no padding; `None` where all are. Of an encoder-decoder, whose answers are of its second
    sequence, those of that, where it is given."""
    if any(name.startswith("decoder_input") for name in inputs):
        held = {name: inputs.get(f"decoder_{name}") for name in ("attention_mask", "segment_ids")}
        inputs = {name: value for name, value in held.items() if value is not None}
    segments = segments_of(inputs, labels.shape)
    return None if segments is None else segments > 0


def labelled(model: Any, batch: Mapping[str, Any], cfg: LossConfig) -> tuple[dict[str, Any], jax.Array]:
    """The inputs and labels of a batch whose loss is a plain cross entropy; `ValueError` where it is not."""
    if cfg.kind not in (None, "cross-entropy"):
        raise ValueError(f"compute_loss: the labels of {type(model).__name__} are a cross entropy, not {cfg.kind!r}")
    inputs, labels = split_labels(batch)
    if labels is None:
        raise ValueError(f"compute_loss: {type(model).__name__} needs batch['labels']")
    return inputs, labels


def _kind(cfg: LossConfig, default: str, allowed: tuple[str, ...]) -> str:
    kind = cfg.kind or default
    if kind not in allowed:
        raise ValueError(
            f"LossConfig.kind={kind!r} does not fit a model of task {default!r}; allowed: {', '.join(allowed)}"
        )
    return kind


# ---- Mixture of experts


def load_balancing_loss(
    router_logits: tuple[jax.Array, ...], top_k: int, weights: jax.Array | None = None
) -> jax.Array:
    """Switch Transformer's auxiliary loss (equations 4 to 6), as transformers' `load_balancing_loss_func`.

    `router_logits`: one `(tokens, experts)` array per layer; `weights`: `(tokens,)`, 0 for padding.
    """
    experts = router_logits[0].shape[-1]
    assigned = probability = jnp.zeros((experts,), jnp.float32)
    rows = jnp.zeros((), jnp.float32)
    for logits in router_logits:
        routing = jax.nn.softmax(logits.reshape(-1, experts).astype(jnp.float32), axis=-1)
        one = jnp.ones(routing.shape[:1], jnp.float32) if weights is None else weights.reshape(-1).astype(jnp.float32)
        _, chosen = lax.top_k(routing, top_k)
        assigned = assigned + jnp.sum(jax.nn.one_hot(chosen, experts) * one[:, None, None], axis=(0, 1))
        probability = probability + jnp.sum(routing * one[:, None], axis=0)
        rows = rows + jnp.sum(one)
    rows = jnp.maximum(rows, 1.0)
    return jnp.sum(assigned / rows * (probability / rows)) * experts


def aux_weight(model: Any, inputs: Mapping[str, Any], cfg: LossConfig) -> float:
    if cfg.aux_loss_weight is not None:
        return float(cfg.aux_loss_weight)
    config = getattr(model, "config", None)
    asked = inputs.get("output_router_logits", setting(config, "output_router_logits", False))
    return float(setting(config, "router_aux_loss_coef", 0.0)) if asked else 0.0


def _router(model: Any, inputs: Mapping[str, Any], cfg: LossConfig) -> dict[str, Any]:
    return {"output_router_logits": True} if aux_weight(model, inputs, cfg) else {}


def aux_loss(model: Any, out: Output, segments: jax.Array | None, cfg: LossConfig) -> tuple[jax.Array, float] | None:
    """The auxiliary loss of an output and its weight, or `None` where there is none to add."""
    if out.router_logits is None or not out.router_logits:
        if cfg.aux_loss_weight:
            raise ValueError(f"aux_loss_weight={cfg.aux_loss_weight}, but {type(model).__name__} has no router")
        return None
    weight = aux_weight(model, {"output_router_logits": True}, cfg)
    seen = None if segments is None else segments > 0
    return load_balancing_loss(out.router_logits, _top_k(model), seen), weight


def _top_k(model: Any) -> int:
    """How many experts the routers of a model choose for a token: the same number in every layer."""
    found = {k for _, node in nodes(model) if (k := experts_per_token(node)) is not None}
    if len(found) != 1:
        said = f"they say {sorted(found)}" if found else "none says it: register its type with ef.nn.experts_per_token"
        raise ValueError(f"{type(model).__name__}: a load balancing loss needs one number of experts per token; {said}")
    return found.pop()

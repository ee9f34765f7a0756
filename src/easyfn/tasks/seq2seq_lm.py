"""Encoder-decoders that write text: their task, where a decoder starts, and their loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..core.fields import setting
from ..core.rows import of_batch
from ..core.tree import layers_in
from ..forward.forward import forward
from ..nn.context import Runtime
from ..nn.output import Output
from ..nn.seq2seq import Seq2SeqLM, moved_right
from .cross_entropy import LossConfig, Metrics, check_shape, segments_of, vocabulary_loss
from .loss import aux_weight, compute_loss, load_balancing_loss, split_labels
from .task import Task, task

TASK = Task("seq2seq-lm", hub="text2text-generation", auto="AutoModelForSeq2SeqLM", peft="SEQ_2_SEQ_LM")


@task.register(Seq2SeqLM)
def _(model: Seq2SeqLM) -> str:
    return TASK.name


def decoder_start(config: Any) -> int:
    """The id that a decoder starts from; `ValueError` if neither the config nor its generation settings name it."""
    for name in ("decoder_start_token_id", "bos_token_id"):
        found = (getattr(config, "generation", None) or {}).get(name)
        found = setting(config, name) if found is None else found
        if found is not None:
            return int(found)
    raise ValueError("the config has no decoder_start_token_id: give decoder_input_ids yourself")


def decoder_inputs(model: Any, labels: jax.Array) -> jax.Array:
    """What the decoder of an encoder-decoder reads to predict `labels` `(batch, seq)`: them, moved one place right."""
    start = None if model.model.wraps else decoder_start(model.config)
    return moved_right(model.model, labels, start, setting(model.config, "pad_token_id"))


@compute_loss.register(Seq2SeqLM)
def seq2seq_loss(
    model: Seq2SeqLM,
    batch: Mapping[str, Any],
    cfg: LossConfig = LossConfig(),
    *,
    key: jax.Array | None = None,
    runtime: Runtime = Runtime(),
) -> tuple[jax.Array, Metrics]:
    """The cross entropy of the decoder's scores and `labels`, which are not shifted.

    Without `decoder_input_ids` the decoder reads the labels moved one place right, after the config's
    `decoder_start_token_id`.
    """
    if cfg.kind not in (None, "cross-entropy"):
        raise ValueError(f"compute_loss: the labels of {type(model).__name__} are a cross entropy, not {cfg.kind!r}")
    inputs, labels = split_labels(batch)
    if labels is None:
        raise ValueError(f"compute_loss: {type(model).__name__} needs batch['labels']")
    if "decoder_input_ids" not in inputs and "decoder_inputs_embeds" not in inputs:
        inputs["decoder_input_ids"] = decoder_inputs(model, labels)
    model, inputs = of_batch(model, inputs, labels.shape[0])
    routed = aux_weight(model, inputs, cfg) > 0
    out = forward(model.model, **{**inputs, "output_router_logits": routed}, key=key, runtime=runtime)
    assert out.last_hidden_state is not None
    check_shape(labels, out.last_hidden_state.shape[:2])
    given = {"attention_mask": inputs.get("decoder_attention_mask"), "segment_ids": inputs.get("decoder_segment_ids")}
    segments = segments_of({name: value for name, value in given.items() if value is not None}, labels.shape)
    weights = None if segments is None else segments > 0
    extra = _of_routers(model, out, labels.shape, aux_weight(model, inputs, cfg)) if routed else None
    return vocabulary_loss(model, out.last_hidden_state, labels, weights, cfg, aux=extra)


def _of_routers(model: Any, out: Output, shape: tuple[int, ...], weight: float) -> tuple[jax.Array, float] | None:
    """The losses of the routers of both sides, as transformers adds them for Switch Transformers: those that keep the
    load of the experts even within each row, and `router_z_loss_coef` times those of the logits' size (arXiv 2202.08906).

    A side in which every layer has experts adds nothing (there too). They are divided by `weight`, which multiplies them.
    """
    total, found = jnp.zeros(()), False
    z_weight = float(setting(model.config, "router_z_loss_coef", 0.0)) / weight
    for logits, layers in (
        (out.encoder_router_logits, model.model.encoder.block),
        (out.router_logits, model.model.decoder.block),
    ):
        if not logits:
            continue
        found = True
        if len(logits) == sum(map(layers_in, layers)):
            continue
        rows = jnp.concatenate([x.reshape(shape[0], -1, x.shape[-1]) for x in logits], axis=1)
        even = jax.vmap(lambda row: load_balancing_loss((row,), 1))(rows)
        log_z = jax.nn.logsumexp(rows, axis=-1)
        total = total + jnp.mean(even) + z_weight * jnp.mean(jnp.square(log_z))
    if not found:
        raise ValueError(f"aux_loss_weight={weight}, but {type(model).__name__} has no router")
    return total, weight

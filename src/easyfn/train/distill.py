"""Distillation: a student that agrees with a teacher's distribution over the next token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from ..forward.forward import forward
from ..nn.context import Runtime
from ..tasks.cross_entropy import as_array, segments_of, shift
from ..tasks.loss import split_labels


def distillation_loss(
    model: Any,
    batch: Mapping[str, Any],
    *,
    teacher: Any = None,
    beta: float = 0.0,
    temperature: float = 1.0,
    top_k: int | None = None,
    key: jax.Array | None = None,
    runtime: Runtime = Runtime(),
) -> tuple[Float[Array, ""], dict[str, Shaped[Array, ""]]]:
    """The divergence between a teacher's and the model's next tokens: the mean over tokens whose label counts.

    - `teacher`: a model of the same vocabulary, frozen; or the batch brings `teacher_logits` `(rows, columns, vocab)`.
    - `beta`: 0 is the forward divergence KL(teacher || student), 1 the reverse KL(student || teacher), between them the
      generalised Jensen-Shannon divergence (Agarwal et al. 2024, arXiv 2306.13649, equation 1).
    - `temperature` divides both logits (no factor `temperature^2` is put in front).
    - `top_k`: only the teacher's likeliest tokens, both distributions renormalised over them.

    `batch` is that of [`easyfn.compute_loss`][]; with `labels` only the tokens they mark count.

    ```python
    import functools, jax.numpy as jnp, optax, easyfn as ef
    teacher = ef.testing.tiny()
    state = ef.to_state(ef.quantize(teacher, "nf4"), optax.sgd(0.1), trainable="norm")
    loss = functools.partial(ef.distillation_loss, teacher=teacher)
    state, metrics = ef.train_step(state, {"input_ids": jnp.array([[1, 2, 3, 4]])}, loss)
    ```
    """
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"distillation_loss: beta lies in [0, 1], not {beta}")
    if temperature <= 0:
        raise ValueError(f"distillation_loss: temperature is positive, not {temperature}")
    rest = {name: value for name, value in batch.items() if name != "teacher_logits"}
    inputs, labels = split_labels(rest)
    if labels is None:
        labels = as_array(inputs["input_ids"])
    ours = forward(model, **inputs, key=key, runtime=runtime).logits
    if teacher is not None:
        theirs = forward(jax.lax.stop_gradient(teacher), **inputs, runtime=runtime).logits
    elif batch.get("teacher_logits") is not None:
        theirs = jnp.asarray(batch["teacher_logits"])
    else:
        raise ValueError("distillation_loss: give teacher=model, or batch['teacher_logits'] (rows, columns, vocab)")
    if ours is None or theirs is None or ours.shape != theirs.shape:
        sizes = [None if x is None else tuple(x.shape) for x in (ours, theirs)]
        raise ValueError(f"distillation_loss: the student's logits are {sizes[0]}, the teacher's {sizes[1]}")
    theirs = jax.lax.stop_gradient(theirs)
    moved, same = shift(labels, segments_of(inputs, labels.shape))
    counted = (moved != -100) if same is None else (moved != -100) & same
    each = divergence(ours, theirs, beta=beta, temperature=temperature, top_k=top_k)
    number = jnp.sum(counted.astype(jnp.float32))
    loss = jnp.sum(jnp.where(counted, each, 0.0)) / jnp.maximum(number, 1.0)
    return loss, jax.lax.stop_gradient({"loss": loss, "num_tokens": number})


def divergence(
    student: jax.Array, teacher: jax.Array, *, beta: float, temperature: float = 1.0, top_k: int | None = None
) -> jax.Array:
    """The divergence of two distributions given by logits `(..., vocab)`, float32 `(...)`; `beta` as above."""
    student, teacher = (x.astype(jnp.float32) / temperature for x in (student, teacher))
    if top_k is not None:
        teacher, kept = jax.lax.top_k(teacher, top_k)
        student = jnp.take_along_axis(student, kept, axis=-1)
    ours, theirs = jax.nn.log_softmax(student, axis=-1), jax.nn.log_softmax(teacher, axis=-1)
    if beta == 0.0:
        return jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1)
    if beta == 1.0:
        return jnp.sum(jnp.exp(ours) * (ours - theirs), axis=-1)
    mixed = jnp.logaddexp(ours + jnp.log1p(-beta), theirs + jnp.log(beta))
    towards = jnp.sum(jnp.exp(theirs) * (theirs - mixed), axis=-1)
    return beta * towards + (1.0 - beta) * jnp.sum(jnp.exp(ours) * (ours - mixed), axis=-1)

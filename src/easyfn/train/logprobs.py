"""Log probabilities of tokens and completions: what preference and policy objectives are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..nn.context import Runtime
from ..tasks.cross_entropy import LossConfig, as_array, segments_of, shift
from ..tasks.loss import compute_loss, split_labels


def token_logprobs(
    model: Any,
    batch: Mapping[str, Any],
    *,
    chunk_size: int | None = None,
    temperature: float = 1.0,
    key: jax.Array | None = None,
    runtime: Runtime = Runtime(),
) -> tuple[Float[Array, "batch seq"], Float[Array, "batch seq"]]:
    """What a causal language model gives each of its labels: `(logprobs, counted)`, both `(batch, seq)`.

    Entry `t` is the log probability, float32, of label `t + 1` given the tokens up to `t`; `counted` is 1.0 where
    that label counts (not -100, no padding, same document) and 0.0 elsewhere, where the log probability is 0 too. The
    last column never counts. `batch` is that of [`easyfn.compute_loss`][], `labels` included (`input_ids` without
    them): mark the prompt with -100. `chunk_size` makes the logits for so many tokens at a time; `temperature`
    divides them, as where the tokens were sampled.

    ```python
    import jax.numpy as jnp, easyfn as ef
    model = ef.testing.tiny()
    ids = jnp.array([[1, 2, 3, 4]])
    logprobs, counted = ef.token_logprobs(model, {"input_ids": ids, "labels": ids.at[:, :2].set(-100)})
    assert counted.tolist() == [[0, 1, 1, 0]]
    ```
    """
    cfg = LossConfig("causal-lm", reduction="none", chunk_size=chunk_size, aux_loss_weight=0.0, temperature=temperature)
    inputs, labels = split_labels(batch)
    if labels is None:
        if inputs.get("input_ids") is None:
            raise ValueError("token_logprobs: a batch of inputs_embeds needs labels")
        labels = as_array(inputs["input_ids"])
    nll, _ = compute_loss(model, {**inputs, "labels": labels}, cfg, key=key, runtime=runtime)
    moved, same = shift(labels, segments_of(inputs, labels.shape))
    counted = moved != cfg.ignore_index if same is None else (moved != cfg.ignore_index) & same
    return -nll, counted.astype(jnp.float32)


def part(batch: Mapping[str, Any], prefix: str, verb: str) -> dict[str, Any]:
    """The inputs of a batch whose names begin with `prefix`, under their own names."""
    found = {name.removeprefix(prefix): value for name, value in batch.items() if name.startswith(prefix)}
    if "input_ids" not in found:
        raise ValueError(
            f"{verb} needs batch['{prefix}input_ids']; the batch has {', '.join(sorted(batch)) or 'nothing'}"
        )
    return found


def mean(losses: jax.Array, **metrics: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean of losses `(rows,)` and what `train_step` averages over several parts of a batch."""
    loss = jnp.mean(losses)
    numbers = {"loss": loss, **{name: jnp.mean(value) for name, value in metrics.items()}}
    numbers["num_examples"] = jnp.asarray(losses.shape[0], jnp.float32)
    return loss, jax.lax.stop_gradient(numbers)

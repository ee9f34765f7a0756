"""Connectionist temporal classification (Graves et al. 2006): its loss, and its greedy reading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Shaped

from ..core.arrays import Host
from ..forward.forward import forward
from ..nn.audio import CTC
from ..nn.audio_heads import real_frames
from ..nn.context import Runtime
from .cross_entropy import LossConfig, Metrics, as_array
from .loss import compute_loss, split_labels, summed
from .task import Task, task

TASK = Task("ctc", hub="automatic-speech-recognition", auto="AutoModelForCTC", classes=("ForCTC",))


@task.register(CTC)
def _(model: CTC) -> str:
    return TASK.name


def ctc_loss(
    logits: Float[Array, "batch frames vocab"],
    labels: Int[Array, "batch count"] | Host,
    *,
    blank: int = 0,
    lengths: Int[Array, " batch"] | Host | None = None,
    ignore_index: int = -100,
    zero_infinity: bool = False,
) -> Float[Array, " batch"]:
    """The negative log likelihood of each row's labels, over all their alignments with its frames, in float32.

    `labels` `(batch, count)`: those that are `ignore_index` or `blank` are none, wherever they stand. `lengths` `(batch,)`:
    how many frames of each row are real. A row with fewer frames than its labels need is infinite, or with
    `zero_infinity` 0, without a gradient either way. The numbers are those of torch's `ctc_loss` with `reduction="none"`.
    Any other label outside the vocabulary is a `ValueError`; under `jit` its row is NaN.

    ```python
    import jax.numpy as jnp, easyfn as ef
    loss = ef.ctc_loss(jnp.zeros((1, 4, 3)), jnp.array([[1, 2, -100]]))
    assert abs(float(loss[0]) - float(jnp.log(81 / 15))) < 1e-5  # 15 of 81 paths say "1 2"
    ```
    """
    labels = as_array(labels)
    if labels.ndim != 2 or labels.shape[0] != logits.shape[0]:
        raise ValueError(f"ctc_loss: labels must have shape ({logits.shape[0]}, count), not {labels.shape}")
    real = (labels != ignore_index) & (labels != blank)
    wrong = real & ((labels < 0) | (labels >= logits.shape[-1]))
    if not isinstance(labels, jax.core.Tracer) and np.any(wrong):
        raise ValueError(
            f"ctc_loss: labels hold {int(np.asarray(labels)[np.asarray(wrong)][0])}: neither one of the vocabulary's "
            f"{logits.shape[-1]} tokens nor ignore_index={ignore_index}"
        )
    order = jnp.argsort(~real, axis=1, stable=True)
    labels, real = (jnp.take_along_axis(x, order, axis=1) for x in (labels, real))
    frames = logits.shape[1]
    lengths = jnp.full((logits.shape[0],), frames) if lengths is None else jnp.asarray(lengths)
    padded = (jnp.arange(frames)[None] >= lengths[:, None]).astype(jnp.float32)
    labels = jnp.clip(jnp.where(real, labels, blank), 0, logits.shape[-1] - 1)
    loss = optax.losses.ctc_loss(
        logits.astype(jnp.float32), padded, labels, (~real).astype(jnp.float32), blank_id=blank, log_epsilon=-1e5
    )
    doubled = jnp.sum((labels[:, 1:] == labels[:, :-1]) & real[:, 1:], axis=1)  # a blank must stand between them
    possible = lengths >= jnp.sum(real, axis=1) + doubled
    loss = jnp.where(possible, loss, 0.0 if zero_infinity else jnp.inf)
    return jnp.where(jnp.any(wrong, axis=1), jnp.nan, loss)


def ctc_decode(
    model: Any,
    logits: Float[Array, "batch frames vocab"],
    attention_mask: Shaped[Array, "batch samples"] | Host | None = None,
) -> tuple[Int[Array, "batch frames"], Int[Array, " batch"]]:
    """The likeliest token of every frame, repeats and blanks left out: `(tokens, lengths)`, with the blank behind each
    row's tokens. `attention_mask` `(batch, samples)` is that of the input.

    ```python
    import jax, numpy as np, easyfn as ef
    config = ef.models.Wav2Vec2Config(vocab_size=12, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, conv_dim=(8, 8), conv_stride=(5, 2), conv_kernel=(10, 3), num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2)
    model = ef.init(config, key=jax.random.key(0), task="ctc")
    sound = np.random.default_rng(0).standard_normal((1, 400), np.float32)
    tokens, lengths = ef.ctc_decode(model, ef.forward(model, input_values=sound).logits)
    assert tokens.shape == (1, 39) and 0 <= int(lengths[0]) <= 39
    ```
    """
    blank = model.config.pad_token_id
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    before = jnp.concatenate([jnp.full_like(best[:, :1], -1), best[:, :-1]], axis=1)
    kept = (best != blank) & (best != before)
    if attention_mask is not None:
        kept = kept & (real_frames(model, attention_mask, best.shape[1]) > 0)
    order = jnp.argsort(~kept, axis=1, stable=True)
    tokens = jnp.take_along_axis(jnp.where(kept, best, blank), order, axis=1)
    return tokens, jnp.sum(kept, axis=1, dtype=jnp.int32)


def _reduction(model: CTC, cfg: LossConfig) -> str:
    return model.config.ctc_loss_reduction if cfg.reduction == "mean" else cfg.reduction


@summed.register(CTC)
def _(model: CTC, cfg: LossConfig) -> bool:
    return _reduction(model, cfg) == "sum"


@compute_loss.register(CTC)
def loss_of_frames(
    model: CTC,
    batch: Mapping[str, Any],
    cfg: LossConfig = LossConfig(),
    *,
    key: jax.Array | None = None,
    runtime: Runtime = Runtime(),
) -> tuple[jax.Array, Metrics]:
    """[`easyfn.ctc_loss`][] of `labels` `(batch, count)`, the config's `pad_token_id` being the blank.

    The config's `ctc_loss_reduction` (`sum`, or `mean`: each row by its number of labels, then the mean of rows) holds
    where `cfg.reduction` is `mean`; `sum` and `none` there win over it. `ctc_zero_infinity` is the config's.
    """
    given = (cfg.kind, cfg.label_smoothing, cfg.z_loss, cfg.chunk_size, cfg.temperature)
    if given != (None, 0.0, 0.0, None, 1.0):
        raise ValueError(
            "compute_loss: CTC sums over alignments: "
            "LossConfig's kind, smoothing, z_loss, chunks and temperature are not its"
        )
    inputs, labels = split_labels(batch)
    if labels is None:
        raise ValueError(f"compute_loss: {type(model).__name__} needs batch['labels'], the tokens that were said")
    c = model.config
    out = forward(model, **inputs, key=key, runtime=runtime)
    assert out.logits is not None
    lengths = None
    if inputs.get("attention_mask") is not None:
        lengths = jnp.sum(real_frames(model, inputs["attention_mask"], out.logits.shape[1]) > 0, axis=1)
    losses = ctc_loss(
        out.logits,
        labels,
        blank=c.pad_token_id,
        lengths=lengths,
        ignore_index=cfg.ignore_index,
        zero_infinity=c.ctc_zero_infinity,
    )
    said = jnp.sum((labels != cfg.ignore_index) & (labels != c.pad_token_id), axis=1)
    mean = jnp.mean(losses / jnp.maximum(said, 1))
    loss = {"mean": mean, "sum": jnp.sum(losses), "none": losses}[_reduction(model, cfg)]
    # a mean of rows: no num_tokens, by which parts of a batch would be weighed
    return loss, {"loss": mean, "num_examples": jnp.asarray(losses.shape[0], jnp.float32)}

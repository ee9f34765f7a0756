"""Laws of training: what gets a gradient, what a loss counts, what a pass costs."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import easyfn as ef

from ..case import ROWS, Case, forward
from .law import law


@eqx.filter_jit
def _gradient(train: Any, frozen: Any, inputs: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], Any]:
    """Of a number to which every answer contributes: each times fixed noise, so that no symmetry cancels it."""

    def number(train: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        answers = forward(eqx.combine(train, frozen), inputs)[0]
        noise = {name: jax.random.normal(jax.random.key(n), v.shape) for n, (name, v) in enumerate(answers.items())}
        terms = [jnp.sum(v.astype(jnp.float32) * noise[name]) for name, v in answers.items()]
        return jnp.sum(jnp.stack(terms)), answers

    slopes, answers = eqx.filter_grad(number, has_aux=True)(train)
    return answers, slopes


def answers_and_gradient(model: Any, inputs: dict[str, jax.Array]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The answers, and the gradient of every trainable array by its path."""
    train, frozen = eqx.partition(model, ef.trainable(model))
    answers, slopes = _gradient(train, frozen, inputs)
    return answers, {path: np.asarray(g, np.float32) for path, g in ef.params(slopes).items()}


def gradient(model: Any, inputs: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """The gradient of every trainable array by its path."""
    return answers_and_gradient(model, inputs)[1]


@law()
def gradient_is_finite(case: Case) -> None:
    """Also where rows are padded: a masked place must not turn into NaN on the way back."""
    inputs = case.given()
    mask = inputs["attention_mask"].at[0, : case.half].set(0).at[1, case.half :].set(0)
    for path, g in gradient(case.model, {**inputs, "attention_mask": mask}).items():
        assert np.all(np.isfinite(g)), f"the gradient of {path} is not finite"


@law()
def gradients_reach_exactly_the_trainable(case: Case) -> None:
    """Every array trains but buffers; with adapters, the adapters and nothing else."""
    buffers = {found.path for found in ef.find_slots(case.model, ("buffer",))}
    floating = {path for path, v in ef.params(case.model).items() if jnp.issubdtype(v.dtype, jnp.floating)} - buffers
    adapted = case.adapted()
    own = set(ef.params(ef.split_lora(adapted)[1]))
    for model, want in ((case.model, floating), (adapted, own)):
        got = gradient(model, case.given())
        assert set(got) == want, f"these should train, or should not: {sorted(set(got) ^ want)[:4]}"
        dead = [path for path, g in got.items() if not np.any(g)]
        assert not dead, f"no gradient reaches {dead[:4]}"


@law(lambda case: case.causal and case.tokens == "input_ids")
def loss_counts_right(case: Case) -> None:
    """The mean over labels that are no padding and not ignored, and the sum over the same: by hand, in float64."""
    inputs = case.given()
    mask = inputs["attention_mask"].at[0, case.half :].set(0)
    labels = np.array(inputs["input_ids"]).astype(np.int32)
    labels[1, :3] = -100
    batch = {**inputs, "attention_mask": mask, "labels": jnp.asarray(labels)}
    logits = case.answers(case.model, attention_mask=mask)["logits"][:, :-1].astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    target, counted = labels[:, 1:], (labels[:, 1:] != -100) & (np.asarray(mask)[:, 1:] > 0)
    picked = np.take_along_axis(logits, np.maximum(target, 0)[..., None], -1)[..., 0]
    want = ((np.log(np.exp(logits).sum(-1)) - picked) * counted).sum()
    for reduction, value in (("mean", want / counted.sum()), ("sum", want)):
        loss, metrics = _loss(case.model, batch, ef.LossConfig(reduction=reduction, aux_loss_weight=0.0))
        assert int(metrics["num_tokens"]) == counted.sum(), f"{metrics['num_tokens']} tokens, {counted.sum()} count"
        assert np.isclose(float(loss), value, rtol=1e-4), f"{reduction}: the loss is {float(loss)}, by hand {value}"


_loss = eqx.filter_jit(lambda model, batch, cfg: ef.compute_loss(model, batch, cfg))


@law()
def flops_are_positive(case: Case) -> None:
    """A pass costs something, and twice the rows cost twice as much; also of a model without numbers."""
    stated, given = ef.inputs(case.model), case.given()
    read = next(given[name] for name in stated.main if name in given) if stated.sequence else None
    length = case.length if read is None else read.shape[1]  # samples, where sound is what is read
    one, two = (ef.flops(case.model, rows, length) for rows in (ROWS, 2 * ROWS))
    assert 0 < one < two and abs(two / one - 2) < 0.01, f"flops of {ROWS} and {2 * ROWS} rows: {one}, {two}"

"""Objectives on pairs and on judged answers: DPO and its kin, KTO, ORPO, SimPO, reward models.

Each is a function `(model, batch, ...) -> (loss, metrics)`: give it to `train_step` with `functools.partial`. The
numbers are TRL's (1.16) on the same batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from ..forward.forward import forward
from ..nn.context import Runtime
from .logprobs import mean, part, token_logprobs

Losses = tuple[Float[Array, ""], dict[str, Shaped[Array, ""]]]
_log_sigmoid = jax.nn.log_sigmoid


def _ipo(margin: jax.Array, beta: float, _: float) -> jax.Array:
    return jnp.square(margin - 1 / (2 * beta))


def _sigmoid(margin: jax.Array, beta: float, smoothing: float) -> jax.Array:
    return -_log_sigmoid(beta * margin) * (1 - smoothing) - _log_sigmoid(-beta * margin) * smoothing


def _hinge(margin: jax.Array, beta: float, _: float) -> jax.Array:
    return jax.nn.relu(1 - beta * margin)


def _robust(margin: jax.Array, beta: float, smoothing: float) -> jax.Array:
    kept, flipped = (1 - smoothing) * _log_sigmoid(beta * margin), smoothing * _log_sigmoid(-beta * margin)
    return (flipped - kept) / (1 - 2 * smoothing)


# Of the margin between two answers: the difference of their log ratios to the reference. Those of `PER_TOKEN` take the
# mean log ratio of each answer's tokens, not the sum.
PAIRS: dict[str, Callable[[jax.Array, float, float], jax.Array]] = {
    "sigmoid": _sigmoid,  # Rafailov et al. 2023, arXiv 2305.18290
    "hinge": _hinge,  # Zhao et al. 2023, arXiv 2305.10425
    "ipo": _ipo,  # Azar et al. 2023, arXiv 2310.12036, equation 17
    "sigmoid_norm": _sigmoid,
    "robust": _robust,  # Chowdhury et al. 2024, arXiv 2403.00409
}
PER_TOKEN = ("ipo", "sigmoid_norm")


def dpo_loss(
    model: Any,
    batch: Mapping[str, Any],
    *,
    reference: Any = None,
    beta: float = 0.1,
    kind: str = "sigmoid",
    label_smoothing: float = 0.0,
    chunk_size: int | None = None,
    key: jax.Array | None = None,
    runtime: Runtime = Runtime(),
) -> Losses:
    """Direct preference optimisation: the model should prefer `chosen` answers more than the reference does.

    `batch`: `chosen_input_ids`, `chosen_labels` (-100 on the prompt), `chosen_attention_mask`, and the same with
    `rejected_`. The reference is a model, frozen, such as the base of an adapter, or, without one, the batch brings
    `reference_chosen_logprobs` and `reference_rejected_logprobs` `(rows,)`, sums over each answer.

    `kind`: `sigmoid` (DPO; with `label_smoothing` its conservative form), `hinge` (SLiC), `ipo`, `robust`, and
    `sigmoid_norm`, DPO of each answer's mean over its tokens. Metrics: `accuracy` (how often the margin is right),
    `margin`, `chosen_reward`, `rejected_reward`.

    ```python
    import functools, jax, jax.numpy as jnp, optax, easyfn as ef
    base = ef.testing.tiny()
    model = ef.apply_lora(base, "q_proj|v_proj", rank=4, key=jax.random.key(1))
    state = ef.to_state(model, optax.adam(1e-3))
    batch = {"chosen_input_ids": jnp.array([[1, 2, 3, 4]]), "rejected_input_ids": jnp.array([[1, 2, 5, 6]])}
    state, metrics = ef.train_step(state, batch, functools.partial(ef.dpo_loss, reference=base))
    assert abs(float(metrics["loss"]) - 0.6931) < 1e-3  # a fresh adapter agrees with its base
    ```
    """
    if kind not in PAIRS:
        raise ValueError(f"dpo_loss: kind is one of {', '.join(PAIRS)}, not {kind!r}")
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"dpo_loss: label_smoothing lies in [0, 0.5), not {label_smoothing}")
    ratios = []
    for n, side in enumerate(("chosen", "rejected")):
        given = part(batch, f"{side}_", "dpo_loss")
        own = None if key is None else jax.random.fold_in(key, n)
        logprobs, counted = token_logprobs(model, given, chunk_size=chunk_size, key=own, runtime=runtime)
        before = _reference(reference, batch, given, f"reference_{side}_logprobs", "dpo_loss", chunk_size, runtime)
        ratios.append((jnp.sum(logprobs, axis=1) - before, jnp.maximum(jnp.sum(counted, axis=1), 1.0)))
    (chosen, longer), (rejected, other) = ratios
    normed = kind in PER_TOKEN
    margin = chosen / longer - rejected / other if normed else chosen - rejected
    losses = PAIRS[kind](margin, beta, label_smoothing)
    return mean(
        losses,
        accuracy=(chosen > rejected).astype(jnp.float32),
        margin=beta * (chosen - rejected),
        chosen_reward=beta * chosen,
        rejected_reward=beta * rejected,
    )


def _reference(
    reference: Any,
    batch: Mapping[str, Any],
    given: Mapping[str, Any],
    name: str,
    verb: str,
    chunk: Any,
    runtime: Runtime,
) -> jax.Array:
    """The reference's log probabilities of the rows' answers, from a model or from the batch."""
    if reference is not None:
        frozen = jax.lax.stop_gradient(reference)
        return jax.lax.stop_gradient(
            jnp.sum(token_logprobs(frozen, given, chunk_size=chunk, runtime=runtime)[0], axis=1)
        )
    if batch.get(name) is None:
        raise ValueError(f"{verb}: give reference=model, or batch[{name!r}] of shape (rows,)")
    return jnp.asarray(batch[name], jnp.float32)


def kto_loss(
    model: Any,
    batch: Mapping[str, Any],
    *,
    reference: Any = None,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    chunk_size: int | None = None,
    key: jax.Array | None = None,
    runtime: Runtime = Runtime(),
) -> Losses:
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306, equation 7): answers judged one by one.

    `batch`: `input_ids`, `labels` (-100 on the prompt), `attention_mask`, `desirable` (booleans `(rows,)`), and, to
    estimate how far the model is from its reference, other rows' answers to the same prompts as `kl_input_ids`,
    `kl_labels`, `kl_attention_mask`; without them the estimate is 0. The reference is a model, or the batch brings
    `reference_logprobs` (and `reference_kl_logprobs`) `(rows,)`.

    ```python
    import jax.numpy as jnp, easyfn as ef
    model = ef.testing.tiny()
    batch = {"input_ids": jnp.array([[1, 2, 3], [1, 4, 5]]), "desirable": jnp.array([True, False])}
    loss, metrics = ef.kto_loss(model, batch, reference=model)
    assert float(loss) == 0.5
    ```
    """
    if batch.get("desirable") is None:
        raise ValueError("kto_loss needs batch['desirable'], booleans of shape (rows,)")
    own = ("desirable", "reference_logprobs", "reference_kl_logprobs")
    given = {n: v for n, v in batch.items() if n not in own and not n.startswith("kl_")}
    good = jnp.asarray(batch["desirable"]).astype(bool)
    logprobs, _ = token_logprobs(model, given, chunk_size=chunk_size, key=key, runtime=runtime)
    ratio = jnp.sum(logprobs, axis=1) - _reference(
        reference, batch, given, "reference_logprobs", "kto_loss", chunk_size, runtime
    )
    distance = jnp.zeros(())
    if "kl_input_ids" in batch:
        other = part(batch, "kl_", "kto_loss")
        there, _ = token_logprobs(jax.lax.stop_gradient(model), other, chunk_size=chunk_size, runtime=runtime)
        before = _reference(reference, batch, other, "reference_kl_logprobs", "kto_loss", chunk_size, runtime)
        distance = jax.lax.stop_gradient(jnp.maximum(jnp.mean(jnp.sum(there, axis=1) - before), 0.0))
    signed = jnp.where(good, ratio - distance, distance - ratio)
    weight = jnp.where(good, desirable_weight, undesirable_weight)
    losses = weight * (1.0 - jax.nn.sigmoid(beta * signed))
    return mean(losses, kl=distance, reward=beta * ratio)


def _answers(model: Any, batch: Mapping[str, Any], verb: str, chunk: Any, key: Any, runtime: Runtime) -> list[Any]:
    """For the chosen and the rejected answers: sums of log probabilities, and numbers of tokens, `(rows,)`."""
    found = []
    for n, side in enumerate(("chosen_", "rejected_")):
        own = None if key is None else jax.random.fold_in(key, n)
        logprobs, counted = token_logprobs(model, part(batch, side, verb), chunk_size=chunk, key=own, runtime=runtime)
        found.append((jnp.sum(logprobs, axis=1), jnp.maximum(jnp.sum(counted, axis=1), 1.0)))
    return found


def orpo_loss(
    model: Any,
    batch: Mapping[str, Any],
    *,
    beta: float = 0.1,
    chunk_size: int | None = None,
    key: jax.Array | None = None,
    runtime: Runtime = Runtime(),
) -> Losses:
    """Odds ratio preference optimisation (Hong et al. 2024, arXiv 2403.07691): no reference model.

    The cross entropy of the chosen answers plus `beta` times `-log sigmoid` of the log odds ratio, odds being of each
    answer's mean log probability. `batch` as [`easyfn.dpo_loss`][] has it. TRL's cross entropy covers the prompt of the
    chosen rows as well; here it covers what `chosen_labels` mark.

    ```python
    import jax.numpy as jnp, easyfn as ef
    model = ef.testing.tiny()
    batch = {"chosen_input_ids": jnp.array([[1, 2, 3, 4]]), "rejected_input_ids": jnp.array([[1, 2, 5, 6]])}
    loss, metrics = ef.orpo_loss(model, batch)
    ```
    """
    (chosen, longer), (rejected, other) = _answers(model, batch, "orpo_loss", chunk_size, key, runtime)
    nll = -jnp.sum(chosen) / jnp.sum(longer)
    first, second = chosen / longer, rejected / other
    odds = (first - second) - (_log1mexp(first) - _log1mexp(second))
    return mean(nll - beta * _log_sigmoid(odds), nll=nll, log_odds=odds, accuracy=(first > second).astype(jnp.float32))


def _log1mexp(x: jax.Array) -> jax.Array:
    """`log(1 - exp(x))` of negative numbers (Mächler 2012)."""
    near = x > -0.6931472
    return jnp.where(near, jnp.log(-jnp.expm1(jnp.where(near, x, -1.0))), jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x))))


def simpo_loss(
    model: Any,
    batch: Mapping[str, Any],
    *,
    beta: float = 2.0,
    gamma: float = 0.5,
    label_smoothing: float = 0.0,
    chunk_size: int | None = None,
    key: jax.Array | None = None,
    runtime: Runtime = Runtime(),
) -> Losses:
    """Simple preference optimisation (Meng et al. 2024, arXiv 2405.14734): no reference model.

    `-log sigmoid(beta * (mean log probability of the chosen minus the rejected answer) - gamma)`. `batch` as
    [`easyfn.dpo_loss`][] has it.

    ```python
    import jax.numpy as jnp, easyfn as ef
    model = ef.testing.tiny()
    batch = {"chosen_input_ids": jnp.array([[1, 2, 3, 4]]), "rejected_input_ids": jnp.array([[1, 2, 5, 6]])}
    loss, metrics = ef.simpo_loss(model, batch)
    ```
    """
    (chosen, longer), (rejected, other) = _answers(model, batch, "simpo_loss", chunk_size, key, runtime)
    first, second = chosen / longer, rejected / other
    losses = _sigmoid(first - second - gamma / beta, beta, label_smoothing)
    return mean(losses, accuracy=(first > second).astype(jnp.float32), margin=beta * (first - second))


def rewards(
    model: Any, batch: Mapping[str, Any], *, key: jax.Array | None = None, runtime: Runtime = Runtime()
) -> Float[Array, " rows"]:
    """The score of each row, float32 `(rows,)`: the one label of a sequence classifier.

    Raises `ValueError` if the model does not answer with one number for each row.

    ```python
    import jax.numpy as jnp, easyfn as ef
    model = ef.testing.tiny(num_labels=1, task="sequence-classification")
    assert ef.rewards(model, {"input_ids": jnp.array([[1, 2, 3]])}).shape == (1,)
    ```
    """
    out = forward(model, **batch, key=key, runtime=runtime)
    if out.logits is None or out.logits.ndim != 2 or out.logits.shape[1] != 1:
        raise ValueError(
            "a reward model is a sequence classifier of one label: ef.load(path, task='sequence-classification', "
            "config_overrides={'num_labels': 1}, key=key)"
        )
    return out.logits[:, 0].astype(jnp.float32)


def reward_loss(
    model: Any,
    batch: Mapping[str, Any],
    *,
    center: float = 0.0,
    key: jax.Array | None = None,
    runtime: Runtime = Runtime(),
) -> Losses:
    """The Bradley-Terry loss of a reward model, a sequence classifier of one label: `-log sigmoid(chosen - rejected)`.

    `batch`: `chosen_input_ids`, `rejected_input_ids`, their masks, and optionally `margin` `(rows,)`, by which chosen
    answers should be better. `center` adds `center * (chosen + rejected)^2`, which keeps scores around zero (Eisenstein
    et al. 2023, arXiv 2312.09244).

    ```python
    import jax.numpy as jnp, easyfn as ef
    model = ef.testing.tiny(num_labels=1, task="sequence-classification")
    batch = {"chosen_input_ids": jnp.array([[1, 2, 3, 4]]), "rejected_input_ids": jnp.array([[1, 2, 5, 6]])}
    loss, metrics = ef.reward_loss(model, batch)
    ```
    """
    good, bad = (
        rewards(
            model,
            part(batch, side, "reward_loss"),
            key=None if key is None else jax.random.fold_in(key, n),
            runtime=runtime,
        )
        for n, side in enumerate(("chosen_", "rejected_"))
    )
    margin = jnp.asarray(batch["margin"], jnp.float32) if batch.get("margin") is not None else jnp.zeros_like(good)
    losses = -_log_sigmoid(good - bad - margin) + center * jnp.square(good + bad)
    return mean(losses, accuracy=(good > bad).astype(jnp.float32), chosen_reward=good, rejected_reward=bad)

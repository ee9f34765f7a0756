"""Policy gradients on a model's own answers: GRPO and its kin, PPO; advantages; rollouts as batches.

Losses are functions `(model, batch, ...) -> (loss, metrics)` for `train_step`. GRPO's numbers are TRL's (1.16).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from ..core.arrays import Host
from ..nn.context import Runtime
from .logprobs import token_logprobs

KINDS = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo")
_OWN = ("advantages", "old_logprobs", "reference_logprobs")


def rollout_batch(
    generation: Any, attention_mask: Shaped[Array, "rows prompt"] | Host | None = None
) -> dict[str, Shaped[Array, "rows columns"]]:
    """The batch of what [`easyfn.generate`][] wrote: `input_ids`, `attention_mask` and `labels` (-100 on prompts and
    after each row's end), all `(rows, columns)`. `attention_mask` `(rows, prompt)` is that of the prompts.

    ```python
    import jax, jax.numpy as jnp, easyfn as ef
    model = ef.testing.tiny()
    out = ef.generate(model, jnp.array([[1, 2], [1, 2]]), do_sample=True, key=jax.random.key(1), max_new_tokens=3)
    batch = ef.rollout_batch(out)
    batch["advantages"] = ef.group_advantages(jnp.array([1.0, 0.0]), 2)
    loss, metrics = ef.grpo_loss(model, batch)
    ```
    """
    ids = jnp.asarray(generation.sequences)
    start = generation.prompt_length
    column = jnp.arange(ids.shape[1])[None]
    written = column < jnp.asarray(generation.lengths)[:, None]
    mask = written.astype(jnp.int32)
    if attention_mask is not None:
        given = jnp.asarray(attention_mask)
        if given.shape != (ids.shape[0], start):
            raise ValueError(
                f"rollout_batch: attention_mask is {given.shape}, and the prompts are {(ids.shape[0], start)}"
            )
        mask = mask.at[:, :start].set(given.astype(jnp.int32))
    labels = jnp.where(written & (column >= start), ids, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def group_advantages(
    rewards: Shaped[Array, " rows"] | Host, group_size: int, *, scale: str = "group"
) -> Float[Array, " rows"]:
    """How much better each answer is than the others to its prompt: rewards less their group's mean, float32 `(rows,)`.

    Rows of a group lie together, `group_size` of them. `scale`: divided by the standard deviation (of a sample, plus
    1e-4) of the `"group"` or of the whole `"batch"`, or `"none"` (Liu et al. 2025, arXiv 2503.20783).

    ```python
    import easyfn as ef
    assert ef.group_advantages([1.0, 3.0, 5.0, 5.0], 2, scale="none").tolist() == [-1.0, 1.0, 0.0, 0.0]
    ```
    """
    values = jnp.asarray(rewards, jnp.float32)
    if values.ndim != 1 or group_size < 1 or values.shape[0] % group_size:
        raise ValueError(f"group_advantages: rewards of shape {values.shape} are not groups of {group_size}")
    if scale not in ("group", "batch", "none"):
        raise ValueError(f"group_advantages: scale is 'group', 'batch' or 'none', not {scale!r}")
    groups = values.reshape(-1, group_size)
    centered = groups - jnp.mean(groups, axis=1, keepdims=True)
    if scale == "group":
        spread = jnp.std(groups, axis=1, keepdims=True, ddof=1) if group_size > 1 else jnp.zeros((len(groups), 1))
        centered = centered / (spread + 1e-4)
    elif scale == "batch":
        centered = centered / ((jnp.std(values, ddof=1) if values.size > 1 else 0.0) + 1e-4)
    return centered.reshape(-1)


def grpo_loss(
    model: Any,
    batch: Mapping[str, Any],
    *,
    reference: Any = None,
    beta: float = 0.0,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    kind: str = "dapo",
    level: str = "token",
    unbiased_kl: bool = True,
    max_new_tokens: int | None = None,
    temperature: float = 1.0,
    chunk_size: int | None = None,
    key: jax.Array | None = None,
    runtime: Runtime = Runtime(),
) -> tuple[Float[Array, ""], dict[str, Shaped[Array, ""]]]:
    """Group relative policy optimisation (Shao et al. 2024, arXiv 2402.03300), clipped as PPO is.

    `batch`: `input_ids`, `labels` (-100 on prompts and padding: [`easyfn.rollout_batch`][]), `attention_mask`,
    `advantages` `(rows,)` ([`easyfn.group_advantages`][]), and, where the rollouts are older than the model,
    `old_logprobs` `(rows, columns)` of [`easyfn.token_logprobs`][].

    - `beta`: of the KL divergence to a `reference` model (or `reference_logprobs` in the batch): `exp(d) - d - 1` per token.
    - `epsilon`, `epsilon_high`: how far below and above 1 the ratio of probabilities counts.
    - `kind`: what the sum over tokens is divided by: `grpo` each row's tokens, then rows; `bnpo` and `dapo` all tokens of
      the batch; `dr_grpo` rows times `max_new_tokens`. `cispo` (arXiv 2506.13585) weighs log probabilities by a ratio
      that is clipped from above at `epsilon_high` and has no gradient.
    - `unbiased_kl`: the divergence's terms are multiplied by the ratio of probabilities, as TRL does by default, so that its
      gradient is that of the reverse KL divergence (DeepSeek-V3.2, arXiv 2512.02556), on the first step, too.
    - `temperature`: that at which the answers were drawn; the probabilities are those of the model's logits over it (and
      `old_logprobs` of `token_logprobs(temperature=)`).
    - `level`: ratios per `token`, or per `sequence` (GSPO, arXiv 2507.18071).

    Metrics: `kl`, `clipped` (the share of tokens whose ratio is cut).
    """
    if kind not in KINDS:
        raise ValueError(f"grpo_loss: kind is one of {', '.join(KINDS)}, not {kind!r}")
    if level not in ("token", "sequence"):
        raise ValueError(f"grpo_loss: level is 'token' or 'sequence', not {level!r}")
    if kind == "dr_grpo" and max_new_tokens is None:
        raise ValueError("grpo_loss: kind='dr_grpo' divides by max_new_tokens: give it")
    if batch.get("advantages") is None:
        raise ValueError("grpo_loss needs batch['advantages'] of shape (rows,): see ef.group_advantages")
    given = {name: value for name, value in batch.items() if name not in _OWN}
    how: dict[str, Any] = {"chunk_size": chunk_size, "temperature": temperature, "runtime": runtime}
    logprobs, counted = token_logprobs(model, given, key=key, **how)
    advantages = jnp.asarray(batch["advantages"], jnp.float32)
    advantages = advantages[:, None] if advantages.ndim == 1 else advantages
    old = batch.get("old_logprobs")
    old = jax.lax.stop_gradient(logprobs) if old is None else jnp.asarray(old, jnp.float32)
    shift = logprobs - old
    if level == "sequence":
        shift = jnp.sum(shift * counted, axis=1, keepdims=True) / jnp.maximum(
            jnp.sum(counted, axis=1, keepdims=True), 1.0
        )
    ratio = jnp.exp(shift)
    high = epsilon if epsilon_high is None else epsilon_high
    if kind == "cispo":
        losses = -jax.lax.stop_gradient(jnp.minimum(ratio, high)) * advantages * logprobs
        cut = (ratio > high) & (advantages > 0)
    else:
        losses, cut = clipped(ratio, advantages, epsilon, high)
    metrics = {}
    if beta:
        far = _towards(reference, batch, given, how) - logprobs
        kl = (jnp.exp(far) - far - 1.0) * (ratio if unbiased_kl else 1.0)
        losses = losses + beta * kl
        metrics["kl"] = jnp.sum(kl * counted) / jnp.maximum(jnp.sum(counted), 1.0)
    total = jnp.sum(losses * counted, axis=1)
    tokens = jnp.sum(counted, axis=1)
    if kind == "grpo":
        loss = jnp.mean(total / jnp.maximum(tokens, 1.0))
    elif kind == "dr_grpo":
        loss = jnp.sum(total) / (total.shape[0] * float(max_new_tokens or 1))
    else:
        loss = jnp.sum(total) / jnp.maximum(jnp.sum(tokens), 1.0)
    metrics["clipped"] = jnp.sum(cut * counted) / jnp.maximum(jnp.sum(counted), 1.0)
    by_row = kind in ("grpo", "dr_grpo")
    metrics |= {"num_examples": jnp.asarray(float(total.shape[0]))} if by_row else {"num_tokens": jnp.sum(tokens)}
    return loss, jax.lax.stop_gradient({"loss": loss, **metrics})


def clipped(ratio: jax.Array, advantages: jax.Array, low: float, high: float) -> tuple[jax.Array, jax.Array]:
    """PPO's clipped surrogate, to be minimised, and where it is cut (Schulman et al. 2017, arXiv 1707.06347, equation 7)."""
    bounded = jnp.clip(ratio, 1.0 - low, 1.0 + high)
    cut = ((ratio < 1.0 - low) & (advantages < 0)) | ((ratio > 1.0 + high) & (advantages > 0))
    return -jnp.minimum(ratio * advantages, bounded * advantages), cut


def _towards(reference: Any, batch: Mapping[str, Any], given: Any, how: dict[str, Any]) -> jax.Array:
    if reference is not None:
        frozen = jax.lax.stop_gradient(reference)
        return jax.lax.stop_gradient(token_logprobs(frozen, given, **how)[0])
    if batch.get("reference_logprobs") is None:
        raise ValueError("grpo_loss: beta needs reference=model, or batch['reference_logprobs'] (rows, columns)")
    return jnp.asarray(batch["reference_logprobs"], jnp.float32)


def gae(
    rewards: Shaped[Array, "rows steps"] | Host,
    values: Shaped[Array, "_ _"] | Host,
    mask: Shaped[Array, "_ _"] | Host,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Float[Array, "rows steps"], Float[Array, "rows steps"]]:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438): `(advantages, returns)`.

    `rewards`, `values`, `mask`: `(rows, steps)`; steps where `mask` is 0 are passed over, and nothing follows the last
    that counts.

    ```python
    import jax.numpy as jnp, easyfn as ef
    advantages, returns = ef.gae(jnp.array([[0.0, 1.0]]), jnp.zeros((1, 2)), jnp.ones((1, 2)), lam=1.0)
    assert advantages.tolist() == [[1.0, 1.0]]
    ```
    """
    rewards, values, mask = (jnp.asarray(x, jnp.float32) for x in (rewards, values, mask))
    if not rewards.shape == values.shape == mask.shape or rewards.ndim != 2:
        raise ValueError(
            f"gae: rewards {rewards.shape}, values {values.shape}, mask {mask.shape} must be one (rows, steps)"
        )

    def back(carry: Any, now: Any) -> Any:
        ahead, following = carry
        reward, value, seen = now
        advantage = reward + gamma * following - value + gamma * lam * ahead
        ahead, following = (jnp.where(seen > 0, new, old) for new, old in ((advantage, ahead), (value, following)))
        return (ahead, following), jnp.where(seen > 0, advantage, 0.0)

    start = (jnp.zeros(rewards.shape[0]), jnp.zeros(rewards.shape[0]))
    _, advantages = jax.lax.scan(back, start, (rewards.T, values.T, mask.T), reverse=True)
    return advantages.T, advantages.T + values


def ppo_loss(
    logprobs: Float[Array, "rows steps"] | Host,
    old_logprobs: Float[Array, "rows steps"] | Host,
    advantages: Float[Array, "rows steps"] | Host,
    mask: Shaped[Array, "rows steps"] | Host,
    *,
    values: Float[Array, "rows steps"] | Host | None = None,
    old_values: Float[Array, "rows steps"] | Host | None = None,
    returns: Float[Array, "rows steps"] | Host | None = None,
    epsilon: float = 0.2,
    value_epsilon: float = 0.2,
    value_weight: float = 0.1,
) -> tuple[Float[Array, ""], dict[str, Shaped[Array, ""]]]:
    """Proximal policy optimisation of arrays `(rows, steps)`: the clipped surrogate, and of a critic's `values` the
    clipped squared error to `returns`, half of it, times `value_weight`; means over the steps that `mask` counts.

    The critic is yours (a classifier over hidden states, a head of your own), so this takes numbers and not models:
    `logprobs` from [`easyfn.token_logprobs`][], `advantages` and `returns` from [`easyfn.gae`][].

    ```python
    import jax.numpy as jnp, easyfn as ef
    one = jnp.ones((1, 3))
    loss, metrics = ef.ppo_loss(0 * one, 0 * one, one, one)
    assert float(loss) == -1.0
    ```
    """
    logprobs, old_logprobs, advantages, mask = (
        jnp.asarray(x, jnp.float32) for x in (logprobs, old_logprobs, advantages, mask)
    )
    count = jnp.maximum(jnp.sum(mask), 1.0)
    losses, cut = clipped(jnp.exp(logprobs - old_logprobs), advantages, epsilon, epsilon)
    policy = jnp.sum(losses * mask) / count
    loss, metrics = policy, {"policy_loss": policy, "clipped": jnp.sum(cut * mask) / count}
    if values is not None:
        if returns is None:
            raise ValueError("ppo_loss: values need returns: see ef.gae")
        values, target = jnp.asarray(values, jnp.float32), jnp.asarray(returns, jnp.float32)
        error = jnp.square(values - target)
        if old_values is not None:
            before = jnp.asarray(old_values, jnp.float32)
            near = before + jnp.clip(values - before, -value_epsilon, value_epsilon)
            error = jnp.maximum(error, jnp.square(near - target))
        metrics["value_loss"] = 0.5 * jnp.sum(error * mask) / count
        loss = loss + value_weight * metrics["value_loss"]
    return loss, jax.lax.stop_gradient({"loss": loss, **metrics, "num_tokens": jnp.sum(mask)})

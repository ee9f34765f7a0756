"""Preference, policy and distillation objectives against their formulas, written out in numpy on one model's logits.

`benchmarks/objectives.py` holds them against TRL's trainers on the same batches.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import easyfn as ef

CONFIG = ef.models.LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    extra=ef.Frozen(initializer_range=0.3),  # far from uniform, so that ratios are far from one
)
ROWS, LENGTH, PROMPT = 4, 10, 3


@pytest.fixture(scope="module")
def models():
    """A model and its reference, far enough apart that no loss is at its start."""
    return tuple(ef.init(CONFIG, key=jax.random.key(seed)) for seed in (0, 1))


def side(seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, 64, (ROWS, LENGTH))
    mask = np.ones_like(ids)
    mask[0, :2] = 0  # left
    mask[1, -3:] = 0  # right
    labels = np.where(mask > 0, ids, -100)
    labels[:, :PROMPT] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


CHOSEN, REJECTED = side(3), side(4)
PAIR = {f"{name}_{key}": v for name, part in (("chosen", CHOSEN), ("rejected", REJECTED)) for key, v in part.items()}


@functools.cache
def _logits(which, side):
    model = ef.init(CONFIG, key=jax.random.key(which))
    given = {"chosen": CHOSEN, "rejected": REJECTED}[side]
    inputs = {n: jnp.asarray(v) for n, v in given.items() if n != "labels"}
    return np.asarray(ef.forward(model, **inputs).logits, np.float64)


def logp(which, name):
    """`(rows, columns)` of log probabilities and which of them count, by hand."""
    logits, given = _logits(which, name), {"chosen": CHOSEN, "rejected": REJECTED}[name]
    log = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    log = log - logits.max(-1, keepdims=True)
    target = np.concatenate([given["labels"][:, 1:], np.full((ROWS, 1), -100)], axis=1)
    seen = (target != -100) & (given["attention_mask"] > 0)
    return np.where(seen, np.take_along_axis(log, np.maximum(target, 0)[..., None], -1)[..., 0], 0.0), seen


def sums(which, name):
    values, seen = logp(which, name)
    return values.sum(1), seen.sum(1)


def logsig(x):
    return -np.log1p(np.exp(-x))


def near(got, want):
    np.testing.assert_allclose(float(got), float(want), rtol=2e-5, atol=2e-6)


@pytest.mark.quick("train", "log probabilities")
def test_token_logprobs(models):
    for chunk in (None, 8):
        got, counted = ef.token_logprobs(models[0], CHOSEN, chunk_size=chunk)
        want, seen = logp(0, "chosen")
        np.testing.assert_allclose(got, want, atol=2e-5)
        assert (np.asarray(counted) == seen).all()
    cool = jax.nn.log_softmax(jnp.asarray(_logits(0, "chosen") / 0.7, jnp.float32)[:, :-1])
    want = np.take_along_axis(np.asarray(cool), CHOSEN["input_ids"][:, 1:, None], -1)[..., 0] * seen[:, :-1]
    got, _ = ef.token_logprobs(models[0], CHOSEN, chunk_size=8, temperature=0.7)
    np.testing.assert_allclose(got[:, :-1], want, atol=3e-5)
    batch = {**CHOSEN, "advantages": ADVANTAGES, "old_logprobs": jnp.pad(want, [(0, 0), (0, 1)])}
    for temperature, kl in ((0.7, False), (1.0, True)):  # the same model as before, at the same temperature
        _, told = ef.grpo_loss(models[0], batch, reference=models[0], beta=0.1, temperature=temperature)
        assert (float(told["clipped"]) > 0) is kl


def margins(normed=False):
    out = []
    for name in ("chosen", "rejected"):
        (own, count), (before, _) = sums(0, name), sums(1, name)
        out.append((own - before) / (count if normed else 1))
    return out


@pytest.mark.parametrize("kind", ["sigmoid", "hinge", "ipo", "sigmoid_norm", "robust"])
def test_dpo(models, kind):
    model, reference = models
    chosen, rejected = margins(kind in ("ipo", "sigmoid_norm"))
    d, beta, e = chosen - rejected, 0.3, 0.1 if kind in ("sigmoid", "robust") else 0.0
    want = {
        "sigmoid": -(1 - e) * logsig(beta * d) - e * logsig(-beta * d),
        "sigmoid_norm": -logsig(beta * d),
        "hinge": np.maximum(1 - beta * d, 0),
        "ipo": (d - 1 / (2 * beta)) ** 2,
        "robust": (-(1 - e) * logsig(beta * d) + e * logsig(-beta * d)) / (1 - 2 * e),
    }[kind].mean()
    loss, metrics = ef.dpo_loss(model, PAIR, reference=reference, beta=beta, kind=kind, label_smoothing=e)
    near(loss, want)
    known = {f"reference_{n}_logprobs": sums(1, n)[0] for n in ("chosen", "rejected")}
    near(ef.dpo_loss(model, {**PAIR, **known}, beta=beta, kind=kind, label_smoothing=e)[0], want)
    assert 0 <= float(metrics["accuracy"]) <= 1


def test_reference_free(models):
    (a, n), (b, m) = sums(0, "chosen"), sums(0, "rejected")
    first, second = a / n, b / m
    near(ef.simpo_loss(models[0], PAIR, beta=2.0, gamma=0.5)[0], -logsig(2.0 * (first - second) - 0.5).mean())
    odds = first - second - (np.log1p(-np.exp(first)) - np.log1p(-np.exp(second)))
    near(ef.orpo_loss(models[0], PAIR, beta=0.2)[0], (-a.sum() / n.sum() - 0.2 * logsig(odds)).mean())


def test_kto(models):
    model, reference = models
    good = np.array([True, False, True, False])
    other = {f"kl_{name}": v for name, v in REJECTED.items()}
    ratio = sums(0, "chosen")[0] - sums(1, "chosen")[0]
    kl = max((sums(0, "rejected")[0] - sums(1, "rejected")[0]).mean(), 0.0)
    signed = np.where(good, ratio - kl, kl - ratio)
    want = (np.where(good, 1.0, 0.7) * (1 - 1 / (1 + np.exp(-0.2 * signed)))).mean()
    batch = {**CHOSEN, **other, "desirable": good}
    near(ef.kto_loss(model, batch, reference=reference, beta=0.2, undesirable_weight=0.7)[0], want)


def test_rewards():
    model = ef.init(
        ef.models.LlamaConfig(**{**CONFIG.__dict__, "num_labels": 1}),
        key=jax.random.key(0),
        task="sequence-classification",
    )
    pair = {n: v for n, v in PAIR.items() if not n.endswith("labels")}
    scores = [
        np.asarray(ef.forward(model, part["input_ids"], attention_mask=part["attention_mask"]).logits)[:, 0]
        for part in (CHOSEN, REJECTED)
    ]
    margin = np.array([0.1, 0.0, 0.2, 0.0])
    want = (-logsig(scores[0] - scores[1] - margin) + 0.01 * (scores[0] + scores[1]) ** 2).mean()
    near(ef.reward_loss(model, {**pair, "margin": margin}, center=0.01)[0], want)


def test_advantages():
    rewards = np.array([1.0, 3.0, 2.0, 0.0, 5.0, 5.0])
    groups = rewards.reshape(2, 3)
    centered = groups - groups.mean(1, keepdims=True)
    want = centered / (groups.std(1, ddof=1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(ef.group_advantages(rewards, 3), want.reshape(-1), rtol=1e-5)
    batch = (centered / (rewards.std(ddof=1) + 1e-4)).reshape(-1)
    np.testing.assert_allclose(ef.group_advantages(rewards, 3, scale="batch"), batch, rtol=1e-5)
    with pytest.raises(ValueError, match="groups of 4"):
        ef.group_advantages(rewards, 4)


ADVANTAGES = np.array([1.0, -0.5, 0.25, -1.5])


@pytest.mark.parametrize(
    ("kind", "level"),
    [
        ("grpo", "token"),
        ("grpo", "sequence"),
        ("bnpo", "token"),
        ("dr_grpo", "token"),
        ("dapo", "token"),
        ("cispo", "token"),
    ],
)
def test_grpo(models, kind, level):
    """Old log probabilities of another model, so that many ratios are cut; the KL to that model."""
    (new, seen), (old, _) = logp(0, "chosen"), logp(1, "chosen")
    a = ADVANTAGES[:, None]
    shift = new - old
    if level == "sequence":
        shift = (shift * seen).sum(1, keepdims=True) / seen.sum(1, keepdims=True)
    ratio = np.exp(shift)
    if kind == "cispo":
        each = -np.minimum(ratio, 1.3) * a * new
    else:
        each = -np.minimum(ratio * a, np.clip(ratio, 0.8, 1.3) * a)
    far = old - new
    unbiased = level == "token"
    each = (each + 0.04 * (np.exp(far) - far - 1) * (ratio if unbiased else 1.0)) * seen
    want = {
        "grpo": (each.sum(1) / seen.sum(1)).mean(),
        "dr_grpo": each.sum() / (ROWS * 7),
    }.get(kind, each.sum() / seen.sum())
    high = 1.3 if kind == "cispo" else 0.3  # cispo's bound is on the ratio itself
    batch = {**CHOSEN, "advantages": ADVANTAGES, "old_logprobs": old}
    options = {"kind": kind, "level": level, "epsilon_high": high, "unbiased_kl": unbiased, "max_new_tokens": 7}
    loss, metrics = ef.grpo_loss(models[0], batch, reference=models[1], beta=0.04, **options)
    near(loss, want)
    assert float(metrics["clipped"]) > 0


def test_parts_of_a_batch_are_the_batch(models):
    """Accumulated, a step has the numbers of the whole batch."""
    loss = functools.partial(ef.grpo_loss, kind="dapo")
    batch = {**CHOSEN, "advantages": ADVANTAGES}
    state = ef.to_state(models[0], optax.sgd(0.1))
    whole, one = jax.jit(lambda s: ef.train_step(s, batch, loss))(state)
    parts, two = jax.jit(lambda s: ef.train_step(s, batch, loss, accumulate=2))(state)
    near(one["loss"], two["loss"])
    for path, value in ef.params(whole.params).items():
        np.testing.assert_allclose(ef.params(parts.params)[path], value, atol=1e-6)


def test_rollouts(models):
    prompts = jnp.array([[0, 5, 6], [7, 8, 9]])
    mask = jnp.array([[0, 1, 1], [1, 1, 1]])
    out = ef.generate(
        models[0], prompts, attention_mask=mask, do_sample=True, key=jax.random.key(2), max_new_tokens=4, top_k=0
    )
    batch = ef.rollout_batch(out, mask)
    _, counted = ef.token_logprobs(models[0], batch)
    assert (np.asarray(counted).sum(1) == np.asarray(out.lengths) - 3).all()
    # No old log probabilities: every ratio is one, and the loss is minus the mean advantage.
    loss, _ = ef.grpo_loss(models[0], {**batch, "advantages": jnp.ones(2)}, kind="dapo")
    near(loss, -1.0)
    with pytest.raises(ValueError, match="prompts are"):
        ef.rollout_batch(out, mask[:, :2])


@pytest.mark.quick("train", "objectives by hand")
def test_gae_and_ppo():
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, 5)), rng.normal(size=(2, 5))
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    advantages, returns = ef.gae(rewards, values, mask, gamma=0.9, lam=0.8)
    want = np.zeros((2, 5))
    for row in range(2):
        steps = [t for t in range(5) if mask[row, t]]
        ahead, following = 0.0, 0.0
        for t in reversed(steps):
            ahead = rewards[row, t] + 0.9 * following - values[row, t] + 0.9 * 0.8 * ahead
            following = values[row, t]
            want[row, t] = ahead
    np.testing.assert_allclose(advantages, want, atol=1e-5)
    np.testing.assert_allclose((returns - values) * mask, want, atol=1e-5)
    new, old = rng.normal(size=(2, 5)) / 3, rng.normal(size=(2, 5)) / 3
    ratio = np.exp(new - old)
    policy = (-np.minimum(ratio * want, np.clip(ratio, 0.8, 1.2) * want) * mask).sum() / mask.sum()
    before = values + rng.normal(size=(2, 5)) / 2
    near_values = before + np.clip(values - before, -0.2, 0.2)
    target = np.asarray(returns)
    critic = (np.maximum((values - target) ** 2, (near_values - target) ** 2) * mask).sum() / mask.sum() / 2
    loss, metrics = ef.ppo_loss(new, old, want, mask, values=values, old_values=before, returns=target)
    near(metrics["policy_loss"], policy)
    near(loss, policy + 0.1 * critic)


@pytest.mark.parametrize(("beta", "top_k"), [(0.0, None), (1.0, None), (0.3, None), (0.0, 5)])
def test_distillation(models, beta, top_k):
    ours, theirs = (_logits(n, "chosen") / 2.0 for n in (0, 1))
    if top_k:
        kept = np.argsort(-theirs, axis=-1)[..., :top_k]
        ours, theirs = (np.take_along_axis(x, kept, -1) for x in (ours, theirs))
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (theirs, ours))  # teacher, student
    if beta in (0.0, 1.0):
        each = (p * np.log(p / q) if beta == 0.0 else q * np.log(q / p)).sum(-1)
    else:
        mix = beta * p + (1 - beta) * q
        each = (beta * p * np.log(p / mix) + (1 - beta) * q * np.log(q / mix)).sum(-1)
    _, seen = logp(0, "chosen")
    got, _ = ef.distillation_loss(models[0], CHOSEN, teacher=models[1], beta=beta, temperature=2.0, top_k=top_k)
    near(got, (each * seen).sum() / seen.sum())


def test_gradients_do_not_reach_the_reference(models):
    model, reference = models
    slope = jax.grad(lambda r: ef.dpo_loss(model, PAIR, reference=r)[0])(reference)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(slope))


@pytest.mark.quick("train", "what is wrong is said")
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: ef.dpo_loss(m, PAIR), "give reference=model, or batch"),
        (lambda m: ef.dpo_loss(m, CHOSEN, reference=m), "chosen_input_ids"),
        (lambda m: ef.dpo_loss(m, PAIR, reference=m, kind="dpo"), "kind is one of sigmoid"),
        (lambda m: ef.kto_loss(m, CHOSEN, reference=m), "desirable"),
        (lambda m: ef.grpo_loss(m, CHOSEN), "advantages"),
        (lambda m: ef.grpo_loss(m, {**CHOSEN, "advantages": ADVANTAGES}, kind="dr_grpo"), "max_new_tokens"),
        (lambda m: ef.reward_loss(m, {n: v for n, v in PAIR.items() if "labels" not in n}), "one label"),
        (lambda m: ef.distillation_loss(m, CHOSEN), "teacher=model"),
    ],
)
def test_errors_say_what_to_give(models, call, words):
    with pytest.raises(ValueError, match=words):
        call(models[0])

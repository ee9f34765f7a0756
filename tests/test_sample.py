"""Processors against transformers' own classes on random logits; samplers by their distribution."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easyfn.generation import processors, sampling, state

S = types.SimpleNamespace(**{**vars(state), **vars(processors), **vars(sampling)})

V, B, LENGTH, ROOM = 53, 4, 9, 14
EOS = (2, 7)


@pytest.fixture(scope="module")
def logits():
    random = np.random.RandomState(0)
    x = random.randn(B, V).astype(np.float32) * 3
    x[1, 5:20] = -np.inf  # as left by another processor
    return x


@pytest.fixture(scope="module")
def ids():
    random = np.random.RandomState(1)
    x = random.randint(0, 6, (B, LENGTH))  # few ids: n-grams repeat
    x[2, -3:] = x[2, :3]
    return x


def ours(processor, ids, logits, prompt_length=4):
    """One call as in the loop, compiled: ids in a longer buffer, memory from the prompt and every token after."""
    buffer = np.full((B, ROOM), -1, np.int32)
    buffer[:, : ids.shape[1]] = ids

    @jax.jit
    def run(buffer, logits, length):
        memory = S.initial((processor,), jnp.where(jnp.arange(ROOM)[None] < prompt_length, buffer, -1), V)
        for n in range(prompt_length, ids.shape[1]):
            so_far = jnp.where(jnp.arange(ROOM)[None] < n, buffer, -1)
            _, memory = S.process((processor,), memory, so_far, logits, jnp.asarray(n), prompt_length)
        return S.process((processor,), memory, buffer, logits, length, prompt_length)[0]

    return np.asarray(run(jnp.asarray(buffer), jnp.asarray(logits), jnp.asarray(ids.shape[1])))


def bias():
    return {(3,): 1.5, (1, 4): -2.0, (0, 3, 9): 4.0, (11,): -np.inf, (5, 11): 2.0}


CASES = {
    "temperature": (lambda: S.Temperature(0.7), "TemperatureLogitsWarper", (0.7,)),
    "top_k": (lambda: S.TopK(5), "TopKLogitsWarper", (5,)),
    "top_k beyond": (lambda: S.TopK(V), "TopKLogitsWarper", (V + 9,)),
    "top_p": (lambda: S.TopP(0.8), "TopPLogitsWarper", (0.8,)),
    "top_p 0": (lambda: S.TopP(0.0), "TopPLogitsWarper", (0.0,)),
    "top_p keep": (lambda: S.TopP(0.1, 3), "TopPLogitsWarper", (0.1, -np.inf, 3)),
    "min_p": (lambda: S.MinP(0.1), "MinPLogitsWarper", (0.1,)),
    "min_p keep": (lambda: S.MinP(0.9, 3), "MinPLogitsWarper", (0.9, -np.inf, 3)),
    "top_h": (lambda: S.TopH(0.4), "TopHLogitsWarper", (0.4,)),
    "typical": (lambda: S.Typical(0.6), "TypicalLogitsWarper", (0.6,)),
    "typical keep": (lambda: S.Typical(0.05, 4), "TypicalLogitsWarper", (0.05, -np.inf, 4)),
    "epsilon": (lambda: S.EpsilonCutoff(0.02), "EpsilonLogitsWarper", (0.02,)),
    "epsilon keep": (lambda: S.EpsilonCutoff(0.9, 3), "EpsilonLogitsWarper", (0.9, -np.inf, 3)),
    "eta": (lambda: S.EtaCutoff(0.05), "EtaLogitsWarper", (0.05,)),
    "repetition": (lambda: S.RepetitionPenalty(1.7), "RepetitionPenaltyLogitsProcessor", (1.7,)),
    "repetition below 1": (lambda: S.RepetitionPenalty(0.6), "RepetitionPenaltyLogitsProcessor", (0.6,)),
    "no 1-gram": (lambda: S.NoRepeatNGram(1), "NoRepeatNGramLogitsProcessor", (1,)),
    "no 2-gram": (lambda: S.NoRepeatNGram(2), "NoRepeatNGramLogitsProcessor", (2,)),
    "no 3-gram": (lambda: S.NoRepeatNGram(3), "NoRepeatNGramLogitsProcessor", (3,)),
    "no 12-gram": (lambda: S.NoRepeatNGram(12), "NoRepeatNGramLogitsProcessor", (12,)),
    "bias": (lambda: S.SequenceBias(bias().items()), "SequenceBiasLogitsProcessor", (bias(),)),
    "min_length on": (
        lambda: S.MinLength(LENGTH + 1, np.array(EOS)),
        "MinLengthLogitsProcessor",
        (LENGTH + 1, list(EOS)),
    ),
    "min_length off": (lambda: S.MinLength(LENGTH, np.array(EOS)), "MinLengthLogitsProcessor", (LENGTH, list(EOS))),
    "forced eos": (lambda: S.ForcedTokens(LENGTH, np.array([3])), "ForcedEOSTokenLogitsProcessor", (LENGTH + 1, 3)),
    "forced not yet": (
        lambda: S.ForcedTokens(LENGTH + 1, np.array([3])),
        "ForcedEOSTokenLogitsProcessor",
        (LENGTH + 2, 3),
    ),
    "invalid": (lambda: S.RemoveInvalid(), "InfNanRemoveLogitsProcessor", ()),
    "decay": (
        lambda: S.ExponentialDecay(2, 1.3, np.array(EOS)),
        "ExponentialDecayLengthPenalty",
        ((2, 1.3), list(EOS), 4),
    ),
    "suppress": (lambda: S.SuppressTokens(np.array([1, 4])), "SuppressTokensLogitsProcessor", ([1, 4],)),
    "suppress at begin": (
        lambda: S.SuppressTokens(np.array([1, 4]), LENGTH),
        "SuppressTokensAtBeginLogitsProcessor",
        ([1, 4], LENGTH),
    ),
    "renormalize": (lambda: S.Renormalize(), "LogitNormalization", ()),
}


@pytest.mark.quick("generation", "processors are transformers'")
@pytest.mark.parametrize("name", CASES)
def test_processor_is_transformers(name, ids, logits):
    import torch
    from transformers.generation import logits_process

    make, cls, arguments = CASES[name]
    theirs = getattr(logits_process, cls)(*arguments)(torch.tensor(ids), torch.tensor(logits)).numpy()
    mine = ours(make(), ids, logits)
    assert np.array_equal(np.isneginf(theirs), np.isneginf(mine))
    finite = np.isfinite(theirs)
    np.testing.assert_allclose(mine[finite], theirs[finite], rtol=1e-6, atol=1e-6)
    if "not" not in name and "off" not in name and "12" not in name and "beyond" not in name:
        assert not np.array_equal(mine, logits)


def test_encoder_processors_are_transformers(ids, logits):
    import torch
    from transformers.generation.logits_process import (
        EncoderNoRepeatNGramLogitsProcessor,
        EncoderRepetitionPenaltyLogitsProcessor,
    )

    source = np.random.RandomState(2).randint(0, 6, (B, 7))
    t = torch.tensor
    theirs = EncoderRepetitionPenaltyLogitsProcessor(1.4, t(source))(t(ids), t(logits)).numpy()
    mine = ours(S.EncoderRepetitionPenalty(1.4, jnp.asarray(source)), ids, logits)
    np.testing.assert_allclose(mine, theirs, rtol=1e-6)
    theirs = EncoderNoRepeatNGramLogitsProcessor(2, t(source))(t(ids), t(logits)).numpy()
    mine = ours(S.NoRepeatNGram(2, jnp.asarray(source)), ids, logits)
    assert np.array_equal(np.isneginf(mine), np.isneginf(theirs))


def test_padding_is_never_counted(ids, logits):
    padded = np.concatenate([np.full((B, 3), -1), ids], axis=1)
    for make in (lambda: S.RepetitionPenalty(1.7), lambda: S.NoRepeatNGram(2), lambda: S.FrequencyPenalty(0.5, 0.25)):
        np.testing.assert_array_equal(ours(make(), ids, logits), ours(make(), padded, logits, prompt_length=7))
    # nor does it count as the token of id vocab - 1, where a wrapped -1 would land
    flat = np.ones((B, V), np.float32)
    only_padding = np.full((B, 5), -1)
    assert np.array_equal(ours(S.RepetitionPenalty(1.7), only_padding, flat), flat)


def test_frequency_counts_what_was_generated_and_presence_once(ids, logits):
    expected = logits.copy()
    for row in range(B):
        for token in ids[row, 4:]:  # the prompt is free
            expected[row, token] -= 0.5
        expected[row, np.unique(ids[row, 4:])] -= 0.25
    np.testing.assert_allclose(ours(S.FrequencyPenalty(0.5, 0.25), ids, logits), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [None, "top_p", "typical", "top_k"])
def test_draws_follow_the_distribution(name):
    """Chi-square over many draws, one key per row; a wrong sampler fails by orders of magnitude."""
    count = 20000
    row = np.random.RandomState(3).randn(12).astype(np.float32)
    logits = jnp.broadcast_to(jnp.asarray(row)[None], (count, 12))
    if name:
        logits, _ = CASES[name][0]()(S.State(jnp.asarray(1), 1), jnp.zeros((count, 4), jnp.int32), logits)
    p = np.asarray(jax.nn.softmax(logits[0]), np.float64)
    drawn = np.asarray(jax.jit(S.draw)(jax.random.split(jax.random.key(0), count), 3, logits))
    seen = np.bincount(drawn, minlength=12)
    assert seen[p == 0].sum() == 0
    alive = p > 0
    chi2 = ((seen[alive] - count * p[alive]) ** 2 / (count * p[alive])).sum()
    assert chi2 < 35  # 11 degrees of freedom at most: probability 2e-4


@pytest.mark.quick("generation", "a draw depends on its row")
def test_draw_depends_on_the_step_and_on_the_row_key_only():
    logits = jnp.zeros((6, 1000))
    keys = jax.random.split(jax.random.key(1), 6)
    a, b = S.draw(keys, 0, logits), S.draw(keys, 1, logits)
    assert not np.array_equal(a, b)
    assert np.array_equal(a[2:4], S.draw(keys[2:4], 0, logits[2:4]))

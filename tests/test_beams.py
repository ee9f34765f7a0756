"""Beams: token for token as transformers, in every family that generates; beam sampling by its distribution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef
from cases import CASES, VOCAB, kinds
from easyfn.generation.beams import run_beams
from easyfn.generation.plan import prepare
from easyfn.nn.parallel.exchange import exchange

NEW = 7
FAMILIES = kinds(task="causal-lm") + kinds(task="seq2seq-lm")


def prompts(rows=2, length=7, seed=0, right=False):
    """Prompts of different lengths, padded on the left (or on the right)."""
    ids = np.random.RandomState(seed).randint(3, VOCAB, (rows, length))
    mask = np.ones_like(ids)
    for row in range(rows):
        mask[row, : 2 * row] = 0
    ids = np.where(mask > 0, ids, 0)
    if right:
        ids = np.stack([np.roll(row, -2 * n) for n, row in enumerate(ids)])
        mask = np.sort(mask)[:, ::-1]
    return ids, mask


@functools.cache
def _stops(name):
    """Ids that end beams in the midst of things: tokens that the model likes to say."""
    ids, mask = prompts()
    out = ef.generate(CASES[name].model(), ids, attention_mask=mask, max_new_tokens=NEW, eos_token_id=-1)
    new = np.asarray(out.new_tokens)
    return sorted({int(new[0, 2]), int(new[1, 4])})


def reference(name, ids, mask, **options):
    import torch

    case = CASES[name]
    if case.encoder_decoder:  # its cache fails where the decoder is deeper than the encoder
        options["use_cache"] = False
    with torch.no_grad():
        return case.torch().generate(
            torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            max_new_tokens=NEW,
            pad_token_id=0,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )


def same(name, *, seed=0, apart=False, **options):
    ids, mask = prompts(seed=seed)
    options = {"num_beams": 3, "eos_token_id": _stops(name), **options}
    theirs = reference(name, ids, mask, **options)
    ours = ef.generate(
        CASES[name].model(), ids, attention_mask=mask, max_new_tokens=NEW, pad_token_id=0, output_scores=True, **options
    )
    lengths = np.asarray(ours.lengths)
    assert lengths.min() < lengths.max() or not apart
    assert ours.sequences.shape == theirs.sequences.shape
    for row, length in enumerate(lengths):  # beyond the end transformers fills with its eos where the pad id is 0
        np.testing.assert_array_equal(np.asarray(ours.sequences)[row, :length], theirs.sequences[row, :length].numpy())
        assert np.all(np.asarray(ours.sequences)[row, length:] == 0)
    np.testing.assert_array_equal(np.asarray(ours.beam_indices), theirs.beam_indices.numpy())
    np.testing.assert_allclose(np.asarray(ours.sequences_scores), theirs.sequences_scores.numpy(), rtol=2e-4, atol=2e-4)
    assert len(ours.scores) == len(theirs.scores)
    np.testing.assert_allclose(
        np.asarray(ours.scores), np.stack([s.numpy() for s in theirs.scores]), rtol=1e-3, atol=1e-3
    )
    return ours


QUICK = ("llama", "mistral", "mamba2", "t5")  # dense caches, rings, recurrent states, cross caches


@pytest.mark.thinned("a beam reorders caches, of which the rows between repeat the kinds")
@pytest.mark.quick("generation", "beams are transformers'", rows=["llama"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_transformers(name):
    """Rows of different lengths, several ids that end them."""
    same(name, num_return_sequences=2)


OPTIONS = {
    "early": {"early_stopping": True, "num_return_sequences": 3},
    "never": {"early_stopping": "never", "length_penalty": 0.6},
    "long": {"early_stopping": "never", "length_penalty": 2.0, "num_return_sequences": 3},
    "short": {"apart": True, "length_penalty": -1.0, "num_beams": 4, "num_return_sequences": 4},
    "no end": {"eos_token_id": -1, "num_beams": 2},
    "processors": {
        "repetition_penalty": 1.4,
        "no_repeat_ngram_size": 2,
        "min_new_tokens": 3,
        "bad_words_ids": [[5], [9, 9]],
        "sequence_bias": {(17,): 1.5},
        "forced_eos_token_id": 2,
        "renormalize_logits": True,
        "remove_invalid_values": True,
    },
}


@pytest.mark.thinned("options go through one loop; each has a test of its own in test_sample.py")
@pytest.mark.parametrize("options", OPTIONS)
def test_options_are_transformers(options):
    same("llama", seed=3, **OPTIONS[options])


def test_stacked_layers_and_padding_on_the_right():
    model, stops = CASES["llama"].model(), _stops("llama")
    options = {"num_beams": 3, "max_new_tokens": NEW, "eos_token_id": stops, "repetition_penalty": 1.3}
    ids, mask = prompts()
    listed = ef.generate(model, ids, attention_mask=mask, **options)
    stacked = ef.generate(ef.stack(model), ids, attention_mask=mask, **options)
    np.testing.assert_array_equal(listed.sequences, stacked.sequences)
    ids, mask = prompts(right=True)
    right = ef.generate(model, ids, attention_mask=mask, **options)
    np.testing.assert_array_equal(listed.new_tokens, right.new_tokens)


def test_beam_sampling_draws_without_replacement():
    """With one step and as many sequences as beams, the drawn tokens are a Gumbel top-k: the best of them has the
    chance that torch.multinomial without replacement gives it, by enumeration."""
    from itertools import permutations

    ids, trials, few = np.array([[5, 6, 7]]), 1500, 4
    allowed = [11, 23, 42, 60]
    ban = [i for i in range(VOCAB) if i not in allowed]
    keys = jax.random.split(jax.random.key(1), trials)
    out = ef.generate(
        CASES["llama-tied"].model(),
        np.repeat(ids, trials, axis=0),
        key=keys,
        do_sample=True,
        num_beams=2,
        num_return_sequences=2,
        max_new_tokens=1,
        eos_token_id=-1,
        suppress_tokens=ban,
        top_k=0,
    )
    pairs = np.sort(np.asarray(out.new_tokens).reshape(trials, 2), axis=1)
    logits = np.asarray(ef.forward(CASES["llama-tied"].model(), ids).logits[0, -1], np.float64)[allowed]
    p = np.exp(logits - logits.max())
    p /= p.sum()
    chance = {}
    for a, b in permutations(range(few), 2):  # the first two draws are the beams
        pair = tuple(sorted((allowed[a], allowed[b])))
        chance[pair] = chance.get(pair, 0.0) + p[a] * p[b] / (1 - p[a])
    seen = {pair: 0 for pair in chance}
    for pair in pairs.tolist():
        seen[tuple(pair)] += 1
    chi2 = sum((seen[x] - trials * c) ** 2 / (trials * c) for x, c in chance.items())
    assert chi2 < 26, (chi2, seen)  # 5 degrees of freedom: probability 1e-4


def test_beam_sampling_is_reproducible_by_row():
    model = CASES["llama-tied"].model()
    ids, mask = prompts(rows=3)
    keys = jax.random.split(jax.random.key(4), 3)
    options = {"do_sample": True, "num_beams": 2, "max_new_tokens": 5, "temperature": 1.4, "eos_token_id": -1}
    together = ef.generate(model, ids, attention_mask=mask, key=keys, **options)
    alone = ef.generate(model, ids[1:2], attention_mask=mask[1:2], key=keys[1:2], **options)
    np.testing.assert_array_equal(together.sequences[1:2], alone.sequences)
    other = ef.generate(model, ids, attention_mask=mask, key=keys[::-1], **options)
    assert not np.array_equal(together.sequences, other.sequences)


def test_inside_jit_and_with_a_cache():
    model = CASES["llama-tied"].model()
    ids, _ = prompts(rows=2)
    ids = np.maximum(ids, 3)
    options = {"num_beams": 3, "max_new_tokens": 5, "eos_token_id": _stops("llama")}
    outside = ef.generate(model, ids, **options)
    inside = jax.jit(lambda m, i, p: ef.generate(m, i, length_penalty=p, **options))(model, jnp.asarray(ids), 1.0)
    width = outside.sequences.shape[1]
    np.testing.assert_array_equal(inside.sequences[:, :width], outside.sequences)
    _, cache = ef.prefill(model, jnp.asarray(ids[:, :4]), max_length=12)
    np.testing.assert_array_equal(outside.sequences, ef.generate(model, ids, cache=cache, **options).sequences)


def test_the_loop_holds_one_cache():
    """Beams change places within it, block by block."""
    model = CASES["llama-tied"].model()
    call = prepare(
        model, np.full((2, 5), 7), None, None, None, (), ef.Runtime(), {"max_new_tokens": 1019, "num_beams": 4}
    )
    compiled = run_beams.lower(model, call.data, plan=call.plan).compile()
    cache = sum(leaf.nbytes for leaf in jax.tree.leaves(ef.init_cache(model, 8, 1024).layers))
    assert compiled.memory_analysis().temp_size_in_bytes < 1.6 * cache


@pytest.mark.quick("generation", "beams exchange rows", rows=["gemma3"])
@pytest.mark.parametrize("name", ["llama-tied", "gemma3"])
def test_exchange_is_reorder_of_rows_that_began_alike(name):
    alike = 7
    ids = np.random.RandomState(0).randint(3, VOCAB, (4, 60))
    ids[:, :alike] = ids[:1, :alike]
    run = jax.jit(lambda m, ids, cache: ef.forward(m, ids, cache=cache).cache)
    move = jax.jit(lambda cache, rows: (exchange(cache, rows, alike), ef.reorder(cache, rows)))
    for model in (CASES[name].model(), ef.stack(CASES[name].model())):
        got, want = move(run(model, ids, ef.init_cache(model, 4, 64)), jnp.array([2, 0, 0, 1]))
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_reorder_finds_the_rows_of_every_cache():
    for name in QUICK:
        for model in (CASES[name].model(), ef.stack(CASES[name].model())):
            cache = jax.eval_shape(lambda model=model: ef.init_cache(model, 5, 9))
            swapped = jax.eval_shape(lambda cache: ef.reorder(cache, [4, 0]), cache)
            for leaf, axis in zip(jax.tree.leaves(swapped.layers), cache.batch_axes, strict=True):
                assert leaf.shape[axis] == 2
            assert jax.eval_shape(lambda cache: ef.fork(cache, 3), cache).positions.shape == (15,)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_beam_groups": 2}, "diverse beam groups: transformers 5 moved it out"),
        ({"diversity_penalty": 0.5}, "diverse beam groups"),
        ({"force_words_ids": [[5]]}, "constrained beams"),
        ({"constraints": [1]}, "constrained beams"),
        ({"num_return_sequences": 4}, "at most num_beams=3"),
        ({"low_memory": True}, "low_memory"),
        ({"early_stopping": "soon"}, "True, False or 'never'"),
        ({"guidance_scale": 1.5}, "do not go together"),
        ({"prompt_lookup_num_tokens": 2}, "do not go together"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        ef.generate(CASES["llama-tied"].model(), np.array([[5, 6]]), num_beams=3, max_new_tokens=2, **options)

"""Drafts change nothing that is said: greedily the same tokens, sampling the same distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef
from cases import CASES, VOCAB

NEW = 12


def prompts(rows=3, length=8, seed=0):
    ids = np.random.RandomState(seed).randint(3, VOCAB, (rows, length))
    mask = np.ones_like(ids)
    for row in range(rows):
        mask[row, : 2 * row] = 0
    return np.where(mask > 0, ids, 0), mask


def near(model, scale=0.02):
    """A draft that is often right: the model with noise on its weights."""
    leaves, tree = jax.tree.flatten(model)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    noisy = [x + scale * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, noisy)


def plain(out):
    return [np.asarray(row)[:n].tolist() for row, n in zip(out.sequences, np.asarray(out.lengths), strict=True)]


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_greedy_is_greedy(name):
    """Dense caches, rings (a window of 4, drafts longer than it), learned positions; rows at their own speeds."""
    model = CASES[name].model()
    ids, mask = prompts()
    options = {"attention_mask": mask, "max_new_tokens": NEW, "eos_token_id": -1, "pad_token_id": 0}
    options |= {"repetition_penalty": 1.2, "min_new_tokens": 2}
    want = ef.generate(model, ids, **options)
    stops = sorted({int(want.new_tokens[0, 6]), int(want.new_tokens[2, 3])})
    options["eos_token_id"] = stops
    want = ef.generate(model, ids, **options)
    for draft in (near(model, 0.05), model):
        got = ef.generate(model, ids, assistant_model=draft, num_assistant_tokens=5, **options)
        assert plain(got) == plain(want)
        accepted, proposed = np.asarray(got.accepted), np.asarray(got.proposed)
        assert np.all(accepted <= proposed) and proposed.min() > 0 and proposed.max() % 5 == 0
        if draft is model:  # all it says is kept, but for what lies beyond the end
            rounds = proposed // 5
            new = np.asarray(got.lengths) - ids.shape[1]
            assert np.all(rounds == -(-(new - 1) // 6)) and np.all(accepted >= new - 1 - rounds)
    looked = ef.generate(model, ids, prompt_lookup_num_tokens=3, **options)
    assert plain(looked) == plain(want)


def test_prompt_lookup_finds_what_was_said():
    """A text that repeats itself is drafted from itself."""
    model = CASES["llama-tied"].model()
    ids = np.tile([5, 9, 14, 23, 31], 4)[None]
    words = [5, 9, 14, 23, 31]
    pairs = {(a, b): 60.0 for a, b in zip(words, words[1:] + words[:1], strict=True)}
    options = {"max_new_tokens": 10, "sequence_bias": pairs}
    want = ef.generate(model, ids, **options)
    got = ef.generate(model, ids, prompt_lookup_num_tokens=4, max_matching_ngram_size=3, **options)
    np.testing.assert_array_equal(got.sequences, want.sequences)
    np.testing.assert_array_equal(got.new_tokens[0, :5], [5, 9, 14, 23, 31])
    assert int(got.accepted[0]) >= 7


@pytest.mark.parametrize("how", ["draft", "lookup"])
def test_sampling_follows_the_model(how):
    """Chi-square of the second new token given the first, over many rows: the model's own chances, after top-k and
    temperature, whatever the draft likes."""
    model, count = CASES["llama-tied"].model(), 3000
    ids = np.array([[5, 6, 7, 5]])
    force = [11, 60, 42]
    options = {
        "do_sample": True,
        "num_return_sequences": count,
        "max_new_tokens": 3,
        "eos_token_id": -1,
        "top_k": 4,
        "temperature": 1.5,
        "sequence_bias": {(t,): 9.0 for t in force},
        "key": jax.random.key(2),
    }
    draft = {"assistant_model": near(model, 0.2), "num_assistant_tokens": 2}
    if how == "lookup":
        draft = {"prompt_lookup_num_tokens": 2}
        options["sequence_bias"] = {(t,): 9.0 for t in (5, 6, 7)}  # what is looked up is often said
        force = [5, 6, 7]
    out = ef.generate(model, ids, **options, **draft)
    assert 0 < int(out.accepted.sum()) < int(out.proposed.sum())
    new = np.asarray(out.new_tokens)
    for given in force:
        rows = new[new[:, 0] == given]
        logits = np.asarray(ef.forward(model, np.array([[5, 6, 7, 5, given]])).logits[0, -1], np.float64)
        logits[list(options["sequence_bias"])] += 9.0
        logits /= 1.5
        logits[logits < np.sort(logits)[-4]] = -np.inf
        p = np.exp(logits - logits.max())
        p /= p.sum()
        seen = np.bincount(rows[:, 1], minlength=VOCAB)
        alive = p > 0
        assert seen[~alive].sum() == 0
        many = alive & (p * len(rows) > 5)
        chi2 = ((seen[many] - len(rows) * p[many]) ** 2 / (len(rows) * p[many])).sum()
        assert chi2 < 24, (given, chi2)  # at most 3 degrees of freedom


def test_rows_are_the_same_alone_and_under_jit():
    model = CASES["llama-tied"].model()
    draft = near(model, 0.1)
    ids, mask = prompts()
    keys = jax.random.split(jax.random.key(3), 3)
    options = {"do_sample": True, "max_new_tokens": 8, "eos_token_id": list(range(3, 12)), "num_assistant_tokens": 3}
    together = ef.generate(model, ids, attention_mask=mask, key=keys, assistant_model=draft, **options)
    alone = ef.generate(model, ids[1:2], attention_mask=mask[1:2], key=keys[1:2], assistant_model=draft, **options)
    assert plain(together)[1:2] == plain(alone)
    inside = jax.jit(lambda m, d, k: ef.generate(m, ids, attention_mask=mask, key=k, assistant_model=d, **options))(
        model, draft, keys
    )
    assert plain(inside) == plain(together)


@pytest.mark.quick("generation", "drafts refuse")
def test_refusals():
    llama, mamba, ids = CASES["llama-tied"].model(), CASES["mamba2"].model(), np.array([[5, 6]])
    for model, draft in ((mamba, llama), (llama, mamba)):
        with pytest.raises(ValueError, match="recurrent"):
            ef.generate(model, ids, assistant_model=draft, max_new_tokens=2)
    with pytest.raises(ValueError, match="recurrent"):
        ef.generate(mamba, ids, prompt_lookup_num_tokens=2, max_new_tokens=2)
    with pytest.raises(ValueError, match="the model's own tokens"):
        ef.generate(llama, ids, assistant_model=ef.resize_embeddings(llama, VOCAB + 3, key=jax.random.key(0)))
    with pytest.raises(ValueError, match="both draft"):
        ef.generate(llama, ids, assistant_model=llama, prompt_lookup_num_tokens=2)
    with pytest.raises(ValueError, match="do not go together"):
        ef.generate(llama, ids, assistant_model=llama, output_scores=True)
    with pytest.raises(ValueError, match="use generate"):
        ef.stream(llama, ids, prompt_lookup_num_tokens=2)


def test_rows_of_a_cache_advance_at_their_own_speeds():
    """Per-row lengths: the same logits as rows run alone, in dense and ring caches and relative biases."""
    import dataclasses

    for name in ("llama", "mistral"):
        model = CASES[name].model()
        ids = np.random.RandomState(5).randint(3, VOCAB, (2, 9))
        _, cache = ef.prefill(model, jnp.asarray(ids[:, :5]), max_length=12)
        if name == "mistral":
            from easyfn.nn.cache.cache import widen

            cache = widen(ef.init_cache(model, 2, 12), 2)
            cache = ef.forward(model, ids[:, :5], cache=cache, fresh=True).cache
        apart = dataclasses.replace(  # row 1 takes two columns back
            cache, length=jnp.array([5, 3]), positions=jnp.array([5, 3])
        )
        out = ef.forward(model, np.stack([ids[0, 5:8], ids[1, 3:6]]), cache=apart)
        want = ef.forward(model, ids).logits
        np.testing.assert_allclose(out.logits[0], want[0, 5:8], atol=3e-5)
        np.testing.assert_allclose(out.logits[1], want[1, 3:6], atol=3e-5)
        assert out.cache.length.tolist() == [8, 6]

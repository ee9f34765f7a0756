"""Guidance, the model's own outputs, given caches, prompts in chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef
from cases import CASES, VOCAB

NEW = 5


def prompts(rows=2, length=7, seed=0, pad=True):
    ids = np.random.RandomState(seed).randint(3, VOCAB, (rows, length))
    mask = np.ones_like(ids)
    for row in range(rows if pad else 0):
        mask[row, : 2 * row] = 0
    return np.where(mask > 0, ids, 0), mask


def reference(name, ids, mask, **options):
    import torch

    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": -1, **options}
    if CASES[name].encoder_decoder:
        options["use_cache"] = False
    options = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    with torch.no_grad():
        return (
            CASES[name]
            .torch()
            .generate(torch.tensor(ids), attention_mask=torch.tensor(mask), return_dict_in_generate=True, **options)
        )


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_guidance_is_transformers(name):
    model = CASES[name].model()
    ids, mask = prompts(pad=False)
    negative, _ = prompts(length=9, seed=5, pad=False)
    for more in ({}, {"negative_prompt_ids": negative}):
        options = {"guidance_scale": 2.5, "repetition_penalty": 1.3, "output_scores": True, **more}
        theirs = reference(name, ids, mask, **options)
        ours = ef.generate(model, ids, attention_mask=mask, max_new_tokens=NEW, eos_token_id=-1, **options)
        np.testing.assert_array_equal(ours.sequences, theirs.sequences.numpy())
        np.testing.assert_allclose(ours.scores, np.stack([s.numpy() for s in theirs.scores]), atol=2e-3, rtol=1e-3)
    plain = ef.generate(model, ids, attention_mask=mask, max_new_tokens=NEW, eos_token_id=-1, repetition_penalty=1.3)
    assert not np.array_equal(plain.sequences, ours.sequences)
    several = ef.generate(
        model, ids, guidance_scale=2.0, do_sample=True, top_k=1, num_return_sequences=2, max_new_tokens=NEW,
        eos_token_id=-1, key=jax.random.key(0),
    )  # fmt: skip
    greedy = ef.generate(model, ids, guidance_scale=2.0, max_new_tokens=NEW, eos_token_id=-1)
    np.testing.assert_array_equal(several.sequences, np.repeat(np.asarray(greedy.sequences), 2, axis=0))


@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.parametrize("beams", [1, 2])
def test_the_models_outputs_are_transformers(name, beams):
    ids, mask = prompts()
    options = {"output_hidden_states": True, "output_attentions": True, "num_beams": beams}
    theirs = reference(name, ids, mask, **options)
    ours = ef.generate(CASES[name].model(), ids, attention_mask=mask, max_new_tokens=NEW, eos_token_id=-1, **options)
    second = CASES[name].encoder_decoder
    prefix = "decoder_" if second else ""
    pairs = [(getattr(ours, n), getattr(theirs, prefix + n)) for n in ("hidden_states", "attentions")]
    if second:
        pairs.append((ours.cross_attentions, theirs.cross_attentions))
    real = np.repeat(mask, beams, axis=0)
    for mine, other in pairs:
        assert len(mine) == len(other) == NEW
        for i, (a, b) in enumerate(zip(mine, other, strict=True)):
            assert len(a) == len(b)
            for x, y in zip(a, b, strict=True):
                y = y.numpy()
                if second and i and mine is not pairs[2][0]:
                    y = y[..., -1:, :]  # without a cache it ran all columns again
                elif second and i:
                    y = y[..., -1:, :]
                assert x.shape == y.shape
                if not second and i == 0:  # what padding attends to is nobody's business
                    where = np.broadcast_to(np.expand_dims(real, tuple(range(1, x.ndim - 2)))[..., None], x.shape)
                    x, y = np.where(where, x, 0), np.where(where, y, 0)
                np.testing.assert_allclose(x, y, atol=3e-4, rtol=1e-3)
    if second:
        np.testing.assert_allclose(
            ours.encoder_hidden_states[-1][mask > 0], theirs.encoder_hidden_states[-1].numpy()[mask > 0], atol=1e-4
        ) if beams == 1 else None


@pytest.mark.parametrize("name", ["llama", "mistral", "mamba2"])
def test_a_shared_prompt_is_run_once(name):
    """Prefilled, forked, continued: the tokens of whole prompts, penalties included."""
    model = CASES[name].model()
    shared = np.random.RandomState(2).randint(3, VOCAB, (1, 8))
    ends = np.random.RandomState(3).randint(3, VOCAB, (3, 4))
    ids = np.concatenate([np.repeat(shared, 3, axis=0), ends], axis=1)
    options = {"max_new_tokens": NEW, "eos_token_id": -1, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2}
    whole = ef.generate(model, ids, **options)
    _, cache = ef.prefill(model, jnp.asarray(shared), max_length=ids.shape[1] + NEW)
    forked = ef.fork(cache, 3)
    np.testing.assert_array_equal(whole.sequences, ef.generate(model, ids, cache=forked, **options).sequences)
    streamed = np.stack(list(ef.stream(model, ids, cache=forked, **options)), axis=1)
    np.testing.assert_array_equal(whole.new_tokens, streamed)
    np.testing.assert_array_equal(whole.sequences, ef.generate(model, ids, prefill_chunk_size=5, **options).sequences)
    chunked = ef.generate(model, ids, cache=forked, prefill_chunk_size=3, **options)
    np.testing.assert_array_equal(whole.sequences, chunked.sequences)


def test_a_conversation_goes_on_with_its_cache():
    """Rows that ended early go on too: what was written after their end is padding."""
    model = CASES["llama"].model()
    ids, mask = prompts(rows=2)
    diverse = {"max_new_tokens": NEW, "pad_token_id": 0, "repetition_penalty": 1.9}
    free = ef.generate(model, ids, attention_mask=mask, eos_token_id=-1, **diverse)
    rows = np.asarray(free.new_tokens)[:, :-1].tolist()
    end = next(t for row, other in (rows, rows[::-1]) for t in row if t not in other)
    options = {**diverse, "eos_token_id": end}
    empty = ef.init_cache(model, 2, 40)
    first = ef.generate(model, ids, attention_mask=mask, cache=empty, return_cache=True, **options)
    width = first.sequences.shape[1]
    told = np.concatenate([mask, np.arange(ids.shape[1], width)[None] < np.asarray(first.lengths)[:, None]], axis=1)
    assert not told.all(axis=0)[ids.shape[1] :].all()
    more = np.random.RandomState(8).randint(3, VOCAB, (2, 3))
    both = np.concatenate([np.asarray(first.sequences), more], axis=1)
    mask = np.concatenate([told, np.ones_like(more)], axis=1).astype(int)
    options["eos_token_id"] = -1
    whole = ef.generate(model, both, attention_mask=mask, **options)
    again = ef.generate(model, both, attention_mask=mask, cache=first.cache, **options)
    np.testing.assert_array_equal(whole.sequences, again.sequences)


@pytest.mark.parametrize("name", ["mistral", "mamba2"])
def test_chunks_of_a_padded_prompt(name):
    ids, mask = prompts(rows=3, length=11)
    model = CASES[name].model()
    options = {"attention_mask": mask, "max_new_tokens": NEW, "eos_token_id": -1}
    want = ef.generate(model, ids, **options)
    np.testing.assert_array_equal(want.sequences, ef.generate(model, ids, prefill_chunk_size=4, **options).sequences)


@pytest.mark.thinned("one check of sizes")
@pytest.mark.parametrize(
    "options, message",
    [
        ({"rows": 3}, "cache has 2 rows and the prompt 3; ef.fork"),
        ({"length": 4}, "cache holds 4 columns and ids have 4"),
        ({"max_new_tokens": 30}, "cache has 12 slots"),
        ({"output_attentions": True}, "do not go together"),
        ({"guidance_scale": 2.0}, "do not go together"),
        ({"attention_mask": np.array([[1] * 6 + [0]] * 2)}, "padded on the left"),
    ],
)
def test_caches_that_do_not_fit(options, message):
    model = CASES["llama-tied"].model()
    options = {"max_new_tokens": 2, **options}
    ids = np.full((options.pop("rows", 2), options.pop("length", 7)), 5)
    _, cache = ef.prefill(model, jnp.full((2, 4), 5), max_length=12)
    with pytest.raises(ValueError, match=message):
        ef.generate(model, ids, cache=cache, **options)


def test_return_dict_and_use_cache_change_nothing():
    model, ids = CASES["llama-tied"].model(), np.array([[5, 6, 7]])
    plain = ef.generate(model, ids, max_new_tokens=2)
    told = ef.generate(model, ids, max_new_tokens=2, return_dict_in_generate=True, use_cache=True)
    np.testing.assert_array_equal(plain.sequences, told.sequences)

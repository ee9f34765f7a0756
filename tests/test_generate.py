"""generate: token for token as transformers, compiled once, honest about every option."""

import copy
import dataclasses
import logging
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef
from cases import CASES, VOCAB, kinds
from easyfn.generation.config import FIELDS
from easyfn.generation.loop import run
from easyfn.generation.options import HARMLESS, HARMLESS_IN_FILES, REFUSED, resolve
from easyfn.generation.plan import prepare

GENERATING = [name for name, case in CASES.items() if case.generates]
FAMILIES = kinds(task="causal-lm") + kinds(task="seq2seq-lm")
NEW = 10


def prompts(rows=3, length=9, seed=0):
    """Left-padded prompts of different lengths."""
    ids = np.random.RandomState(seed).randint(3, VOCAB, (rows, length))
    mask = np.ones_like(ids)
    for row in range(rows):
        mask[row, : 2 * row] = 0
    return np.where(mask > 0, ids, 0), mask


def reference(name, ids, mask, **options):
    import torch

    hf = CASES[name].torch()
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, **options}
    if CASES[name].encoder_decoder:  # its cache fails where the decoder is deeper than the encoder
        options["use_cache"] = False
    with torch.no_grad():
        out = hf.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), return_dict_in_generate=True, **options)
    return out


def same(name, ids, mask, **options):
    theirs = reference(name, ids, mask, **options)
    ours = ef.generate(CASES[name].model(), ids, attention_mask=mask, **{"max_new_tokens": NEW, **options})
    np.testing.assert_array_equal(np.asarray(ours.sequences), theirs.sequences.numpy())
    return ours, theirs


# --- as transformers


@pytest.mark.thinned("test_families.py decodes every family")
@pytest.mark.quick("generation", "greedy is transformers'", rows=["llama"])
@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_is_transformers(name):
    ids, mask = prompts()
    ours, _ = same(name, ids, mask, eos_token_id=-1, repetition_penalty=1.3, no_repeat_ngram_size=2)
    assert len(set(np.asarray(ours.new_tokens).ravel().tolist())) > 4  # the models do not just repeat a token
    # several ids end rows, each at its own time: two tokens that were seen
    new = np.asarray(ours.new_tokens)
    eos = [int(new[0, 3]), int(new[1, 5])]
    ours, _ = same(name, ids, mask, eos_token_id=eos, repetition_penalty=1.3, no_repeat_ngram_size=2)
    lengths = np.asarray(ours.lengths)
    assert lengths.min() < lengths.max() or ours.sequences.shape[1] == lengths.max()
    for row, length in enumerate(lengths):
        assert np.all(np.asarray(ours.sequences)[row, length:] == 0)


OPTIONS = {
    "plain": {},
    "min_new_tokens": {"min_new_tokens": 7},
    "min_length": {"min_length": 13},
    "max_length": {"max_length": 12, "max_new_tokens": None},
    "bad words": {"bad_words_ids": [[5], [9, 9], [30, 41]], "no_repeat_ngram_size": 3},
    "bias": {"sequence_bias": {(5,): -8.0, (9, 9): -50.0, (17,): 2.5}, "repetition_penalty": 1.4},
    "suppressed": {"suppress_tokens": [5, 9, 1], "begin_suppress_tokens": [17, 30]},
    "forced": {"forced_eos_token_id": 2},
    "decay": {"exponential_decay_length_penalty": (2, 1.9)},
    "encoder": {"encoder_repetition_penalty": 1.6, "encoder_no_repeat_ngram_size": 2, "repetition_penalty": 1.2},
    "renormalized": {"renormalize_logits": True, "remove_invalid_values": True},
}


@pytest.mark.thinned("options go through one loop; each has a test of its own in test_sample.py")
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("options", OPTIONS)
def test_options_are_transformers(name, options):
    if name == "gpt2" and options not in ("plain", "encoder"):
        pytest.skip("the options do not know the family")
    ids, mask = prompts(seed=1)
    if options == "encoder":  # transformers' encoder penalties count padding; ours do not
        ids, mask = prompts(rows=1, seed=1)
    chosen = {k: v for k, v in {"max_new_tokens": NEW, **OPTIONS[options]}.items() if v is not None}
    theirs = reference(name, ids, mask, **{"max_new_tokens": None, **chosen})
    ours = ef.generate(CASES[name].model(), ids, attention_mask=mask, **chosen)
    np.testing.assert_array_equal(np.asarray(ours.sequences), theirs.sequences.numpy())


def test_default_length_is_transformers(recwarn):
    ids, mask = prompts(rows=1)
    theirs = reference("gpt2", ids, mask, max_new_tokens=None, eos_token_id=-1)
    ours = ef.generate(CASES["gpt2"].model(), ids, eos_token_id=-1)
    recwarn.clear()
    np.testing.assert_array_equal(np.asarray(ours.sequences), theirs.sequences.numpy())


def test_scores_and_logits_are_transformers():
    ids, mask = prompts()
    ours, theirs = same(
        "llama", ids, mask, repetition_penalty=1.3, output_scores=True, output_logits=True, eos_token_id=-1
    )
    assert ours.scores.shape == (NEW, 3, VOCAB)
    for mine, other in ((ours.scores, theirs.scores), (ours.logits, theirs.logits)):
        np.testing.assert_allclose(np.asarray(mine), np.stack([t.numpy() for t in other]), atol=1e-4, rtol=1e-4)


def test_mask_is_inferred_from_padding_as_transformers_does():
    import torch

    ids, mask = prompts()
    model, hf = CASES["llama"].model(), CASES["llama"].torch()
    inferred = ef.generate(model, ids, max_new_tokens=4, pad_token_id=0, eos_token_id=2)
    given = ef.generate(model, ids, attention_mask=mask, max_new_tokens=4, pad_token_id=0, eos_token_id=2)
    np.testing.assert_array_equal(inferred.sequences, given.sequences)
    with torch.no_grad():  # padding that also ends a row is no padding
        theirs = hf.generate(torch.tensor(ids), max_new_tokens=4, pad_token_id=0, eos_token_id=0, do_sample=False)
    ours = ef.generate(model, ids, max_new_tokens=4, pad_token_id=0, eos_token_id=0)
    np.testing.assert_array_equal(np.asarray(ours.sequences), theirs.numpy())


# --- padding


@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba2"])
def test_padding_is_invisible_on_either_side(name):
    model = CASES[name].model()
    ids, mask = prompts()
    options = {"max_new_tokens": 6, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "eos_token_id": -1}
    left = ef.generate(model, ids, attention_mask=mask, **options).new_tokens
    rolled = np.stack([np.roll(row, -2 * n) for n, row in enumerate(ids)])
    right = ef.generate(model, rolled, attention_mask=np.sort(mask)[:, ::-1], **options)
    np.testing.assert_array_equal(left, right.new_tokens)
    np.testing.assert_array_equal(np.asarray(right.sequences)[:, :9], rolled)  # the prompt is returned as given
    alone = ef.generate(model, ids[2:, 4:], **options).new_tokens
    np.testing.assert_array_equal(left[2:], alone)


# --- compiled once


def compilations(caplog, call):
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        jax.block_until_ready(call())
    return [r.getMessage()[:100] for r in caplog.records if r.getMessage().startswith("Compiling")]


@pytest.mark.quick("generation", "a second call compiles nothing")
def test_second_call_compiles_nothing(caplog):
    model = CASES["llama-tied"].model()
    ids, mask = prompts(rows=2, length=7)

    def call(seed=0, **numbers):
        options = {
            "max_new_tokens": 5,
            "do_sample": True,
            "eos_token_id": [3, 4, 5],
            "repetition_penalty": 1.1,
            **numbers,
        }
        return ef.generate(model, ids + seed, attention_mask=mask, key=jax.random.key(seed), **options)

    assert compilations(caplog, lambda: call(temperature=0.9, top_p=0.9))
    assert not compilations(caplog, lambda: call(temperature=0.9, top_p=0.9))
    assert not compilations(
        caplog, lambda: call(1, temperature=0.5, top_p=0.3, repetition_penalty=1.9)
    )  # numbers are data
    list(ef.stream(model, ids, max_new_tokens=3))
    assert not compilations(caplog, lambda: list(ef.stream(model, ids, max_new_tokens=3)))


def test_the_loop_copies_no_cache():
    config = dataclasses.replace(CASES["llama"].model().config, max_position_embeddings=4096)
    model = ef.init(config, key=jax.random.key(0))
    ids = np.full((4, 5), 7)
    call = prepare(model, ids, None, None, None, (), ef.Runtime(), {"max_new_tokens": 2043})
    compiled = run.lower(model, call.data, plan=call.plan).compile()
    cache = sum(leaf.nbytes for leaf in jax.tree.leaves(ef.init_cache(model, 4, 2048).layers))
    assert compiled.memory_analysis().temp_size_in_bytes < 1.25 * cache
    computations = re.split(r"\n\n", compiled.as_text())
    of_a_layer = r"= f32\[(4,2|8),2048,16\]\S* (copy|transpose)\("
    assert not [c for c in computations if re.search(of_a_layer, c) and "ENTRY" not in c]


def test_inside_jit_and_under_vmap():
    model = CASES["llama-tied"].model()
    ids, mask = prompts(rows=2, length=7)
    options = {"max_new_tokens": 6, "do_sample": True, "eos_token_id": [4, 5, 6, 7, 8, 9], "top_k": 0}

    @jax.jit
    def mine(model, ids, mask, key, temperature):
        return ef.generate(model, ids, attention_mask=mask, key=key, temperature=temperature, **options)

    key = jax.random.key(3)
    inside = mine(model, ids, mask, key, 0.8)
    outside = ef.generate(model, ids, attention_mask=mask, key=key, temperature=0.8, **options)
    assert inside.sequences.shape == (2, 13)
    width = outside.sequences.shape[1]
    np.testing.assert_array_equal(inside.sequences[:, :width], outside.sequences)
    assert np.all(np.asarray(inside.sequences)[:, width:] == 0)

    keys = jax.random.split(key, 3)
    many = jax.vmap(lambda k: ef.generate(model, ids, key=k, attention_mask=mask, **options).sequences)(keys)
    for k, one in zip(keys, many, strict=True):
        alone = np.asarray(ef.generate(model, ids, key=k, attention_mask=mask, **options).sequences)
        np.testing.assert_array_equal(one[:, : alone.shape[1]], alone)


def test_stacked_model_generates_the_same():
    model = CASES["llama"].model()
    ids, mask = prompts()
    options = {"max_new_tokens": 5, "repetition_penalty": 1.3}
    np.testing.assert_array_equal(
        ef.generate(model, ids, attention_mask=mask, **options).sequences,
        ef.generate(ef.stack(model), ids, attention_mask=mask, **options).sequences,
    )


def test_abstract_model_has_a_shape():
    model = jax.eval_shape(lambda: CASES["llama-tied"].model())
    out = jax.eval_shape(lambda m: ef.generate(m, np.array([[5, 6]]), max_new_tokens=3), model)
    assert out.sequences.shape == (1, 5)


# --- sampling


def test_a_row_draws_the_same_alone_and_in_any_batch():
    model = CASES["llama-tied"].model()
    ids, _ = prompts(rows=3, length=5, seed=4)
    ids = np.maximum(ids, 3)
    keys = jax.random.split(jax.random.key(5), 3)
    options = {"max_new_tokens": 6, "do_sample": True, "eos_token_id": -1, "temperature": 1.5}
    together = ef.generate(model, ids, key=keys, **options)
    again = ef.generate(model, ids, key=keys, **options)
    np.testing.assert_array_equal(together.sequences, again.sequences)
    turned = ef.generate(model, ids[::-1], key=keys[::-1], **options)
    np.testing.assert_array_equal(together.sequences, turned.sequences[::-1])
    alone = ef.generate(model, ids[1:2], key=keys[1:2], **options)
    np.testing.assert_array_equal(together.sequences[1:2], alone.sequences)
    one_key = ef.generate(model, ids, key=jax.random.key(5), **options)
    by_hand = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(5), i))(jnp.arange(3))
    np.testing.assert_array_equal(one_key.sequences, ef.generate(model, ids, key=by_hand, **options).sequences)
    old_style = ef.generate(model, ids, key=jax.random.PRNGKey(5), **options)
    np.testing.assert_array_equal(one_key.sequences, old_style.sequences)


def test_return_sequences():
    model = CASES["llama-tied"].model()
    ids, mask = prompts(rows=2, length=5)
    options = {"max_new_tokens": 6, "do_sample": True, "eos_token_id": -1, "num_return_sequences": 3}
    out = ef.generate(model, ids, attention_mask=mask, key=jax.random.key(0), **options)
    assert out.sequences.shape == (6, 11)
    np.testing.assert_array_equal(np.asarray(out.sequences)[:, :5], np.repeat(ids, 3, axis=0))
    assert len({tuple(row) for row in np.asarray(out.new_tokens).tolist()}) == 6
    with pytest.raises(ValueError, match="one answer"):
        ef.generate(model, ids, num_return_sequences=2)


def test_first_token_follows_the_model():
    model = CASES["llama-tied"].model()
    ids = np.array([[5, 6, 7]])
    count = 4000
    logits = ef.forward(model, ids).logits[0, -1]
    p = np.asarray(jax.nn.softmax(logits / 0.5), np.float64)
    out = ef.generate(
        model,
        ids,
        max_new_tokens=1,
        do_sample=True,
        temperature=0.5,
        top_k=0,
        num_return_sequences=count,
        key=jax.random.key(9),
    )
    seen = np.bincount(np.asarray(out.new_tokens)[:, 0], minlength=VOCAB)
    common = p > 20 / count
    chi2 = ((seen[common] - count * p[common]) ** 2 / (count * p[common])).sum()
    assert chi2 < common.sum() + 5 * np.sqrt(2 * common.sum())


# --- stream, prefill, decode


@pytest.mark.parametrize("sample", [False, True])
def test_stream_yields_the_tokens_of_generate(sample):
    model = CASES["llama-tied"].model()
    ids, mask = prompts(rows=2, length=7)
    options = {"max_new_tokens": 6, "repetition_penalty": 1.4, "eos_token_id": list(range(3, 20))}
    if sample:
        options |= {"do_sample": True, "temperature": 1.3, "key": jax.random.key(0)}
    whole = np.asarray(ef.generate(model, ids, attention_mask=mask, **options).new_tokens)
    streamed = np.stack(list(ef.stream(model, ids, attention_mask=mask, **options)), axis=1)
    np.testing.assert_array_equal(whole, streamed)


@pytest.mark.parametrize("name", ["llama", "mamba2"])
def test_prefill_and_decode_step_are_forward(name):
    model = CASES[name].model()
    ids = np.random.RandomState(0).randint(3, VOCAB, (2, 8))
    want = ef.forward(model, ids).logits
    logits, cache = ef.prefill(model, jnp.asarray(ids[:, :6]), max_length=8)
    np.testing.assert_allclose(logits, want[:, 5], atol=2e-5)
    for t in (6, 7):
        logits, cache = ef.decode_step(model, jnp.asarray(ids[:, t]), cache)
        np.testing.assert_allclose(logits, want[:, t], atol=2e-5)
    with pytest.raises(ValueError, match="max_length"):
        ef.prefill(model, jnp.asarray(ids))


def test_cache_is_returned_on_demand():
    model = CASES["llama-tied"].model()
    ids = np.array([[5, 6, 7]])
    assert ef.generate(model, ids, max_new_tokens=3).cache is None
    out = ef.generate(model, ids, max_new_tokens=3, return_cache=True)
    logits, _ = ef.decode_step(model, out.sequences[:, -1], out.cache)
    np.testing.assert_allclose(logits, ef.forward(model, out.sequences).logits[:, -1], atol=2e-5)


# --- the user's own processors


def no_fives(state, ids, logits):
    return logits.at[:, 5].set(-jnp.inf), state


class AtMost(eqx.Module):
    """With memory: each row may say `token` only `limit` times."""

    token: int
    limit: int

    def init(self, ids, vocab_size):
        return jnp.zeros(ids.shape[0], jnp.int32)

    def __call__(self, state, ids, logits):
        last = jax.lax.dynamic_slice_in_dim(ids, state.length - 1, 1, axis=1)[:, 0]
        count = state.memory + ((last == self.token) & (state.new > 0))
        over = (count >= self.limit)[:, None] & (jnp.arange(logits.shape[1]) == self.token)[None]
        return jnp.where(over, -jnp.inf, logits), state._replace(memory=count)


def test_processors_of_the_user_run_in_the_loop(caplog):
    model = CASES["llama"].model()
    ids, mask = prompts()
    out = ef.generate(model, ids, attention_mask=mask, max_new_tokens=6, processors=(no_fives,))
    assert not np.any(np.asarray(out.new_tokens) == 5)
    plain = np.asarray(ef.generate(model, ids, attention_mask=mask, max_new_tokens=6).new_tokens)
    token = int(np.bincount(plain.ravel()).argmax())
    out = ef.generate(model, ids, attention_mask=mask, max_new_tokens=6, processors=[AtMost(token, 2)])
    assert max((np.asarray(out.new_tokens) == token).sum(axis=1)) == 2
    again = lambda: ef.generate(model, ids, attention_mask=mask, max_new_tokens=6, processors=[AtMost(token, 1)])
    assert not compilations(caplog, again)  # the limit is data


# --- options: honoured or refused


@pytest.mark.quick("generation", "every option is known")
def test_every_option_of_transformers_is_known():
    from transformers import GenerationConfig

    theirs = {k for k in GenerationConfig().to_dict() if not k.startswith("_")}
    assert len(theirs) > 60
    assert not theirs - set(FIELDS) - set(REFUSED) - HARMLESS
    assert not set(FIELDS) & {*REFUSED, *HARMLESS} and set(REFUSED) >= HARMLESS_IN_FILES
    assert set(FIELDS) - theirs == {"frequency_penalty", "presence_penalty"}
    for name, (off, why) in REFUSED.items():
        with pytest.raises(ValueError, match=re.escape(f"{name}=") + ".*" + re.escape(why)):
            ef.generate(CASES["gpt2"].model(), np.array([[5]]), max_new_tokens=1, **{name: "something"})
        for value in (None, *off):
            resolve(None, None, {name: value})


@pytest.mark.quick("generation", "refusals")
@pytest.mark.parametrize(
    "options, message",
    [
        ({"penalty_alpha": 0.6}, "penalty_alpha=0.6 is not supported"),
        ({"use_cache": False}, "use_cache"),
        ({"stop_strings": ["a"]}, "tokenizer="),
        ({"num_assistant_tokens": 3}, "assistant_model="),
        ({"negative_prompt_ids": [[5]]}, "guidance_scale="),
        ({"cache_implementation": "offloaded"}, "cache_implementation='offloaded' must be 'static'"),
        ({"temprature": 0.3}, "Near misses: temperature"),
        ({"temperature": 0.5}, "do_sample=True"),
        ({"length_penalty": 2.0}, "num_beams"),
        ({"temperature": 0.0, "do_sample": True}, "temperature=0.0 must be positive"),
        ({"top_p": 1.5, "do_sample": True}, "top_p"),
        ({"top_k": -1, "do_sample": True}, "top_k"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": -3}, "max_new_tokens=-3"),
        ({"max_length": 3}, "no room after a prompt of 3"),
        ({"max_length": 9, "max_new_tokens": 3}, "twice"),
        ({"do_sample": True}, "key="),
        ({"do_sample": True, "key": 0}, "jax.random.key(seed)"),
        ({"bad_words_ids": [[VOCAB]]}, f"outside the vocabulary of {VOCAB}"),
        ({"suppress_tokens": 3}, "suppress_tokens"),
        ({"max_new_tokens": 63}, "learned 64 positions"),
    ],
)
def test_refusals(options, message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        ef.generate(CASES["gpt2"].model(), np.array([[5, 6, 7]]), **options)


@pytest.mark.quick("generation", "bad prompts")
@pytest.mark.parametrize(
    "ids, mask, message",
    [
        (np.zeros((1, 0), int), None, "empty"),
        (np.array([5, 6]), None, "batch axis"),
        (np.array([[5.0]]), None, "integers"),
        (np.array([[5, VOCAB]]), None, "outside the vocabulary"),
        (np.array([[5, 6], [7, 8]]), np.array([[1, 1], [0, 0]]), "row 1 holds an attention_mask of zeros"),
        (np.array([[5, 6], [0, 0]]), None, "row 1 holds nothing but pad_token_id=0"),
        (np.array([[5, 6]]), np.array([[1]]), "attention_mask has shape"),
    ],
)
def test_bad_prompts(ids, mask, message):
    with pytest.raises(ValueError, match=message):
        ef.generate(CASES["gpt2"].model(), ids, attention_mask=mask, max_new_tokens=2)


def test_learned_positions_are_a_limit_and_rotary_ones_are_not():
    ids = np.full((1, 60), 5)
    model = CASES["gpt2"].model()
    assert ef.generate(model, ids, max_new_tokens=5, eos_token_id=-1).sequences.shape == (1, 65)  # the last is not run
    with pytest.raises(ValueError, match="at most 5"):
        ef.generate(model, ids, max_new_tokens=6)
    padded = np.concatenate([np.zeros((1, 9), int), ids], axis=1)  # padding takes no position
    ef.generate(model, padded, max_new_tokens=5, eos_token_id=-1)
    assert ef.generate(CASES["llama"].model(), ids, max_new_tokens=8, eos_token_id=-1).sequences.shape == (1, 68)


def with_generation(model, **generation):
    told = copy.copy(model)
    object.__setattr__(told, "config", dataclasses.replace(model.config, generation=ef.Frozen(generation)))
    return told


def test_generation_config_of_the_checkpoint_is_honoured():
    model = CASES["gpt2"].model()
    ids = np.array([[5, 6, 7]])
    plain = ef.generate(model, ids, max_new_tokens=4, repetition_penalty=1.9, eos_token_id=-1)
    told = with_generation(model, max_new_tokens=4, repetition_penalty=1.9, eos_token_id=-1, transformers_version="5")
    np.testing.assert_array_equal(plain.sequences, ef.generate(told, ids).sequences)
    with pytest.warns(UserWarning, match="max_length=5 does nothing"):  # as in transformers
        assert ef.generate(told, ids, max_length=5).sequences.shape == (1, 7)
    config = ef.GenerationConfig(max_new_tokens=2)
    assert ef.generate(told, ids, config=config).sequences.shape == (1, 5)
    assert ef.generate(told, ids, config=config, max_new_tokens=3).sequences.shape == (1, 6)
    assert ef.generate(told, ids, config={"max_new_tokens": 2}).sequences.shape == (1, 5)
    from transformers import GenerationConfig

    assert ef.generate(told, ids, config=GenerationConfig(max_new_tokens=2)).sequences.shape == (1, 5)
    with pytest.raises(TypeError, match=r"ef\.GenerationConfig"):
        ef.generate(told, ids, config=2)
    sampling = with_generation(model, do_sample=True, temperature=0.6)
    with pytest.raises(ValueError, match="key="):
        ef.generate(sampling, ids)
    ef.generate(sampling, ids, do_sample=False, max_new_tokens=2)
    with pytest.raises(ValueError, match=r"generation_config.json: penalty_alpha"):
        ef.generate(with_generation(model, penalty_alpha=0.6), ids)
    ef.generate(with_generation(model, cache_implementation="hybrid", guidance_scale=1.0), ids, max_new_tokens=1)


def test_generation_config_is_a_value():
    a = ef.GenerationConfig(eos_token_id=[1, 2], sequence_bias={(3,): 1.0}, bad_words_ids=[[4]])
    b = ef.GenerationConfig(eos_token_id=(1, 2), sequence_bias=[[[3], 1.0]], bad_words_ids=((4,),))
    assert a == b and hash(a) == hash(b) and a.eos == (1, 2) and a.pad == 1
    assert ef.GenerationConfig(eos_token_id=np.array([1, 2])).eos == (1, 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        a.top_k = 3


def test_can_generate():
    assert ef.can_generate(CASES["llama"].model())
    assert not ef.can_generate(CASES["llama-base"].model())
    with pytest.raises(ef.NotSupported, match="needs a language model"):
        ef.generate(CASES["llama-base"].model(), np.array([[5]]))

"""Mamba-2: the scan, its cache and its padding, against transformers and against itself."""

import functools
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import Mamba2Config as HFConfig, Mamba2ForCausalLM

import easyfn as ef
from easyfn.config.config import read, write
from easyfn.names.rules import tensors
from easyfn.registry.family import build, family_of

SETTINGS = dict(
    vocab_size=61,
    hidden_size=32,
    num_hidden_layers=3,
    num_heads=8,
    head_dim=8,
    state_size=10,
    n_groups=4,
    chunk_size=4,
    conv_kernel=3,
    pad_token_id=0,
)
VARIANTS = {
    "plain": {},
    "biased": dict(use_bias=True, n_groups=1, time_step_limit=(0.01, 0.3), conv_kernel=4),
    "bare": dict(use_conv_bias=False, residual_in_fp32=False, tie_word_embeddings=True, chunk_size=256, n_groups=8),
}


@functools.cache
def pair(variant: str):
    """transformers' model with noise in every parameter, and ours with the same numbers."""
    torch.manual_seed(0)
    config = HFConfig(**{**SETTINGS, **VARIANTS[variant]})
    theirs = Mamba2ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    ours = read(ef.models.Mamba2Config, json.loads(config.to_json_string(use_diff=False)), family_of("mamba2").ignore)
    model = build(ours)
    state = {k: v.numpy() for k, v in theirs.state_dict().items()}
    names = tensors(model, family_of(model).names(model))
    new = {path: jnp.asarray(parts[0].join([state[n] for n in parts[0].names])) for path, parts in names.items()}
    used = {n for parts in names.values() for part in parts for n in part.names}
    assert set(state) - used <= ({"lm_head.weight"} if ours.tie_word_embeddings else set())
    return theirs, ef.with_params(model, new)


def ids(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 61, shape)


run = eqx.filter_jit(lambda model, tokens, **more: ef.forward(model, tokens, **more))


def close(a, b, atol: float = 2e-5) -> None:
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=atol, rtol=1e-4)


@pytest.mark.thinned("sizes of one recurrence")
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_hidden_states_agree_with_transformers(variant):
    theirs, model = pair(variant)
    tokens = ids(2, 11)  # no multiple of the chunk
    with torch.no_grad():
        want = theirs(torch.tensor(tokens), output_hidden_states=True, use_cache=False)
    out = run(model, tokens, output_hidden_states=True)
    close(out.logits, want.logits)
    assert len(out.hidden_states) == 4
    for ours, other in zip(out.hidden_states, want.hidden_states, strict=True):  # of each layer, then of the last norm
        close(ours, other)
    close(out.last_hidden_state, want.hidden_states[-1])


def test_left_padding_agrees_with_transformers():
    theirs, model = pair("plain")
    tokens, mask = ids(3, 11), np.ones((3, 11), int)
    mask[1, :4], mask[2, :9] = 0, 0
    with torch.no_grad():
        want = theirs(torch.tensor(tokens), attention_mask=torch.tensor(mask), use_cache=False).logits.numpy()
    got = np.asarray(run(model, tokens, attention_mask=mask).logits)
    close(got[mask > 0], want[mask > 0])


@pytest.mark.parametrize("left", [True, False])
def test_padding_is_invisible_also_to_the_tokens_decoded_after_it(left):
    _, model = pair("plain")
    long, short, more = ids(9), ids(3, seed=1), ids(2, 5, seed=2)
    pad = np.zeros(6, int)
    row = np.concatenate([pad, short] if left else [short, pad])
    tokens, mask = np.stack([long, row]), np.stack([np.ones(9, int), row * 0 + (row > 0)])
    out = run(model, tokens, attention_mask=mask, cache=ef.init_cache(model, 2, 20))
    alone = run(model, short[None], cache=ef.init_cache(model, 1, 20))
    close(out.logits[1][mask[1] > 0], alone.logits[0])
    assert int(out.cache.positions[1]) == 3
    for chunk in (more[:, :1], more[:, 1:4], more[:, 4:]):
        out, alone = run(model, chunk, cache=out.cache), run(model, chunk[1:], cache=alone.cache)
        close(out.logits[1], alone.logits[0])


def test_padding_between_tokens_is_looked_past():
    _, model = pair("plain")
    short, mask = ids(5), np.array([1, 0, 0, 1, 1, 0, 1, 1, 0])
    row = np.zeros(9, int)
    row[mask > 0] = short
    for cache in (None, ef.init_cache(model, 1, 20)):
        apart = run(model, row[None], attention_mask=mask[None], cache=cache)
        close(apart.logits[0][mask > 0], run(model, short[None]).logits[0])
    after = run(model, row[None], attention_mask=mask[None], cache=apart.cache)
    close(after.logits[0][mask > 0], run(model, np.concatenate([short, short])[None]).logits[0, 5:])


def test_cached_decoding_agrees_with_transformers_and_with_one_pass():
    theirs, model = pair("plain")
    tokens = ids(2, 12)
    with torch.no_grad():
        past = theirs(torch.tensor(tokens[:, :7]), use_cache=True)
        want, cache = [past.logits], past.cache
        for t in range(7, 12):
            want.append(theirs(torch.tensor(tokens[:, t : t + 1]), cache=cache, use_cache=True).logits)
    got, cache = [], ef.init_cache(model, 2, 12)
    for chunk in np.split(tokens, [7, 8, 9, 11], axis=1):  # chunks of 7, 1, 1, 2 and 1
        out = run(model, chunk, cache=cache)
        cache = out.cache
        got.append(out.logits)
    close(np.concatenate(got, 1), torch.cat(want, 1))
    close(np.concatenate(got, 1), run(model, tokens).logits)
    assert cache.layers[0].ssm.dtype == jnp.float32


def test_packed_documents_do_not_see_each_other():
    _, model = pair("biased")
    tokens = ids(1, 14)
    segments = np.array([[1, 1, 1, 2, 3, 3, 3, 3, 3, 3, 4, 4, 0, 0]])
    got = run(model, tokens, segment_ids=segments).logits
    for document in (1, 2, 3, 4):
        here = segments[0] == document
        close(got[0][here], run(model, tokens[:, here]).logits[0])
    cache = ef.init_cache(model, 1, 14)  # and across chunks of a cached pass
    for part in (slice(0, 5), slice(5, 6), slice(6, 14)):
        out = run(model, tokens[:, part], segment_ids=segments[:, part], cache=cache)
        cache = out.cache
        close(out.logits[0][: 12 - part.start], got[0, part][: 12 - part.start])


def test_gradients_are_finite_also_with_padding():
    _, model = pair("plain")
    tokens, mask = ids(2, 9), np.ones((2, 9), int)
    mask[1, :6] = 0

    @eqx.filter_jit
    def gradient(model):
        def loss(model):
            return jnp.sum(jax.nn.logsumexp(ef.forward(model, tokens, attention_mask=mask).logits, -1) * mask)

        return eqx.filter_grad(loss)(model)

    for path, g in ef.params(gradient(model)).items():
        assert np.all(np.isfinite(np.asarray(g))) and np.any(np.asarray(g) != 0), path


def test_bfloat16_is_near_and_keeps_a_float32_state():
    _, model = pair("plain")
    low = ef.cast(model, jnp.bfloat16)
    out = run(low, ids(2, 9), cache=ef.init_cache(low, 2, 12))
    assert out.logits.dtype == jnp.bfloat16 and out.cache.layers[0].ssm.dtype == jnp.float32
    want = np.asarray(run(model, ids(2, 9)).logits)
    assert np.abs(np.asarray(out.logits, np.float32) - want).max() < 0.05 * np.abs(want).max()


def test_init_gives_the_state_space_its_own_start(key):
    config = ef.models.Mamba2Config(**{k: v for k, v in SETTINGS.items() if k != "pad_token_id"})
    mixer = ef.init(config, key=key).model.layers[0].mixer
    close(mixer.A_log, np.log(np.arange(1, 9)))
    close(mixer.D, np.ones(8))
    step = np.asarray(jax.nn.softplus(mixer.dt_bias))
    assert step.min() >= 0.99e-4 and step.max() <= 0.1001
    assert np.abs(np.asarray(mixer.conv1d.weight)).max() <= 3**-0.5


def test_config_accounts_for_every_key_and_reads_both_spellings_of_infinity(tmp_path):
    theirs = HFConfig(**SETTINGS)
    config = read(ef.models.Mamba2Config, json.loads(theirs.to_json_string(use_diff=False)), family_of("mamba2").ignore)
    assert config.time_step_limit == (0.0, float("inf")) and hash(config)
    assert read(ef.models.Mamba2Config, json.loads(json.dumps(write(config))), family_of("mamba2").ignore) == config
    (tmp_path / "config.json").write_text(json.dumps(write(config)))
    again = HFConfig.from_pretrained(tmp_path)
    assert tuple(again.time_step_limit) == (0.0, float("inf")) and again.state_size == 10
    with pytest.raises(ValueError, match=r"hidden_size \* expand = 64 must equal num_heads \* head_dim = 72"):
        ef.models.Mamba2Config(vocab_size=8, hidden_size=32, num_hidden_layers=1, num_heads=9, head_dim=8, n_groups=1)
    with pytest.raises(ValueError, match="no multiple of n_groups=3"):
        ef.models.Mamba2Config(vocab_size=8, hidden_size=32, num_hidden_layers=1, num_heads=8, head_dim=8, n_groups=3)
    with pytest.raises(ef.UnknownConfigKey, match="novel_gate"):
        read(ef.models.Mamba2Config, {**SETTINGS, "novel_gate": 1}, family_of("mamba2").ignore)

"""Rotary frequencies of every kind against transformers' own functions, below and beyond the trained length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef
from cases import CASES, SMALL
from easyfn.config.config import read, rope_parameters
from easyfn.registry.family import abstract_config, family_of

HALF = 8
SHORT, LONG = [1.0 + 0.1 * i for i in range(HALF)], [2.0 + 0.5 * i for i in range(HALF)]
KINDS = {
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0},
    "yarn-truncate": {"rope_type": "yarn", "factor": 4.0, "truncate": False, "beta_fast": 20, "beta_slow": 2},
    "yarn-mscale": {"rope_type": "yarn", "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.3},
    "yarn-attention": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.7},
    "yarn-ratio": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 16},
    "longrope": {"rope_type": "longrope", "factor": 4.0, "short_factor": SHORT, "long_factor": LONG},
    "longrope-ratio": {
        "rope_type": "longrope",
        "short_factor": SHORT,
        "long_factor": LONG,
        "original_max_position_embeddings": 16,
    },
    "partial": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5},
}


def theirs(parameters, length):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(**SMALL, head_dim=16, rope_parameters={"rope_theta": 5000.0, **parameters})
    return ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, None, seq_len=length)


@pytest.mark.parametrize("length", [3, 64, 65, 500])
@pytest.mark.parametrize("kind", KINDS)
def test_frequencies(kind, length):
    want, factor = theirs(KINDS[kind], length)
    ours = rope_parameters({**SMALL, "rope_parameters": {"rope_theta": 5000.0, **KINDS[kind]}})["rope_parameters"]
    got, got_factor = ef.nn.inverse_frequencies(ef.Frozen(ours), 16, 64, jnp.asarray(length))
    np.testing.assert_allclose(got, want.numpy(), rtol=2e-6)
    assert got_factor == pytest.approx(factor, rel=1e-6)


@pytest.mark.quick("nn", "rotary tables of each kind")
def test_default_frequencies_and_the_rotation():
    import torch
    from transformers.models.llama.modeling_llama import LlamaConfig, LlamaRotaryEmbedding, apply_rotary_pos_emb

    config = LlamaConfig(**SMALL, head_dim=16)
    positions = np.array([[0, 1, 2, 700, 131071]])
    x = np.random.RandomState(0).randn(1, 2, 5, 16).astype(np.float32)
    cos, sin = LlamaRotaryEmbedding(config)(torch.tensor(x), torch.tensor(positions))
    want = apply_rotary_pos_emb(torch.tensor(x), torch.tensor(x), cos, sin)[0].numpy()
    table = ef.nn.rope_table(ef.Frozen(rope_type="default", rope_theta=10000.0), 16, 64, jnp.asarray(positions))
    got = np.asarray(ef.nn.rotate(jnp.asarray(x), table))
    np.testing.assert_allclose(got[:, :, :4], want[:, :, :4], atol=1e-3)
    np.testing.assert_allclose(got[:, :, 4], want[:, :, 4], atol=5e-2)  # float32 angles of 10^5 have two digits left
    rest = ef.nn.rotate(jnp.asarray(x), tuple(t[..., :3] for t in table))
    assert np.array_equal(rest[..., 6:], x[..., 6:])  # a partial rotation leaves the rest of a head alone


@pytest.mark.parametrize("kind", [k for k in KINDS if "ratio" not in k])
def test_old_and_new_spellings_are_one(kind):
    known = family_of("llama").config
    inner = {k: v for k, v in KINDS[kind].items() if k != "rope_type"}
    old = {**SMALL, "rope_theta": 5000.0, "rope_scaling": {"type": KINDS[kind]["rope_type"], **inner}}
    new = {**SMALL, "rope_parameters": {"rope_theta": 5000.0, **KINDS[kind]}}
    a, b = read(known, old), read(known, new)
    assert a.rope_parameters == b.rope_parameters and a.rope_parameters["rope_theta"] == 5000.0


def test_spellings_agree_with_transformers():
    from transformers import LlamaConfig

    for more in (
        {},
        {"rope_theta": 123.0},
        {"rope_scaling": None, "rope_theta": 7e5},
        {"rope_scaling": KINDS["llama3"], "rope_theta": 5e5},
        {"rope_scaling": {"type": "linear", "factor": 3.0}},
    ):
        want = dict(LlamaConfig(**SMALL, **more).rope_parameters)
        want.pop("type", None)
        got = read(family_of("llama").config, {**SMALL, **more}).rope_parameters
        assert got == ef.Frozen(want), more


def test_the_first_name_of_longrope():
    part = {"type": "su", "short_factor": SHORT, "long_factor": LONG}
    data = rope_parameters({**SMALL, "rope_scaling": part, "original_max_position_embeddings": 16})
    assert data["rope_parameters"]["rope_type"] == "longrope"
    assert data["rope_parameters"]["original_max_position_embeddings"] == 16
    assert part["type"] == "su"  # the caller's dict is as it was


def test_what_is_not_implemented_is_refused():
    with pytest.raises(ef.UnknownConfigKey, match="mrope_section"):
        rope_parameters({"rope_scaling": {"type": "default", "mrope_section": [1, 2]}})
    config = read(family_of("llama").config, {**SMALL, "rope_scaling": {"type": "spiral", "factor": 2.0}})
    with pytest.raises(ValueError, match="unknown rope_type 'spiral'; known: default, linear"):
        abstract_config(config, "causal-lm", None)


@pytest.mark.quick("nn", "heads turn in pairs")
def test_heads_turn_in_pairs():
    """transformers multiplies a head of one value by two cosines, and goes on with heads of two."""
    sizes = {**SMALL, "num_attention_heads": 4, "num_key_value_heads": 2}
    with pytest.raises(ValueError, match="3 of 12 are an odd number"):
        ef.abstract({**sizes, "model_type": "phi", "partial_rotary_factor": 0.25})
    with pytest.raises(ValueError, match="1 of 1 are an odd number"):
        ef.abstract({**sizes, "model_type": "llama", "head_dim": 1})


@pytest.mark.parametrize("name", ["phi3-longrope", "phimoe"])
def test_a_cache_that_longrope_makes_useless_is_refused(name):
    """Transformers runs the past again beyond Phi-3's trained length; what would be wrong in silence is an error."""
    model = ef.abstract(CASES[name].model().config)
    bound = model.config.rope_bound
    ids = np.full((1, 3), 5)
    with pytest.raises(ValueError, match=f"beyond {bound} tokens"):
        ef.generate(model, ids, max_length=bound + 2)
    with pytest.raises(ValueError, match="in one piece"):
        ef.generate(model, np.full((1, bound + 1), 5), max_new_tokens=2, prefill_chunk_size=4)


def test_phimoe_scales_beyond_its_length_as_it_is_told():
    said = {**CASES["phimoe"].model().config.rope_parameters, "long_mscale": 1.1}
    assert (
        ef.read_config({**SMALL, "model_type": "phimoe", "rope_parameters": said}).rope_bound is None
    )  # nothing changes
    with pytest.raises(ValueError, match="phimoe has the rope_type 'default' or 'longrope', not 'yarn'"):
        ef.read_config({**SMALL, "model_type": "phimoe", "rope_parameters": {**said, "rope_type": "yarn"}})


def test_truncate_of_one_kind_is_refused():
    """transformers looks for it beside the kinds, where it never is."""
    from easyfn.config.config import read

    config = ef.models.ModernBertDecoderConfig
    table = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16, "truncate": False}
    with pytest.raises(ValueError, match=r"rope_parameters.full_attention.truncate=False"):
        read(config, {"model_type": "modernbert-decoder", "rope_parameters": {"full_attention": table}})


def test_queries_grow_at_whole_quotients():
    """41 / 41 is a little less than 1 in XLA, which multiplies by 1 / 41."""
    from easyfn.nn.attention.attention import Temperature

    p = np.arange(1000)
    for length in (41, 41.0, 8192, 64.5):
        got = jax.jit(lambda p, t=Temperature(0.1, length, 1): t(p))(p)
        np.testing.assert_allclose(got, 1 + 0.1 * np.log1p((p + 1) // length), rtol=1e-6)

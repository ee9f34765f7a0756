"""Keys and values in int8: close to floats on every kind of layer, a quarter of the memory, and all that a cache can do."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef
from cases import CASES, VOCAB
from easyfn.nn.cache.int8 import encode

ROOT = Path(__file__).parent.parent
run = jax.jit(ef.forward, static_argnames="fresh")


def prompt(rows=2, length=14, seed=0):
    return jnp.asarray(np.random.RandomState(seed).randint(3, VOCAB, (rows, length)))


def decoded(held):
    return held.codes * held.scale[..., None]


@pytest.fixture(scope="module")
def model():
    return CASES["llama-tied"].model()


# --- the arithmetic


@pytest.mark.thinned("numbers of queries and dtypes of one product")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("queries", [1, 5, 40])  # two digits each, or floats
def test_attention_is_that_of_the_decoded_entries(queries, dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(keys[0], (2, 6, queries, 64)).astype(dtype)
    k, v = (encode(jax.random.normal(key, (2, 2, 50, 64)) * 3).codes for key in keys[1:])
    k, v = (ef.nn.Int8Slots(codes, jax.random.uniform(keys[0], codes.shape[:-1])) for codes in (k, v))
    got, weights = ef.nn.attend(q, k, v, None, scale=0.02, weights=True)
    want, their = ef.nn.attend(q.astype("float32"), decoded(k), decoded(v), None, scale=0.02, weights=True)
    assert got.dtype == dtype
    tolerance = 2e-4 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(got.astype("float32"), want, atol=tolerance * float(jnp.abs(want).max()))
    np.testing.assert_allclose(weights.astype("float32"), their, atol=tolerance)


@pytest.mark.quick("nn", "a cache in int8 is near")
def test_an_entry_is_off_by_half_a_step():
    x = jax.random.normal(jax.random.key(0), (2, 3, 7, 64)).at[0, 0, 0].set(0.0)
    held = encode(x)
    assert (jnp.abs(decoded(held) - x) <= held.scale[..., None] * 0.501).all()
    assert ef.num_bytes(held) < 0.27 * x.nbytes
    assert not decoded(held)[0, 0, 0].any()


# --- every family


ALSO = [("longcat_flash", False, 0.01), ("gemma4_text-dense", False, 0.02)]  # latents; scores that nothing scales


@pytest.mark.parametrize(
    "name, stacked, apart",
    [
        *[("gpt2", False, 0.01), ("gemma3", False, 0.01), ("gemma3", True, 0.01)],  # plain, and rings
        *(pytest.param(*row, marks=pytest.mark.every_family) for row in ALSO),
    ],
)
def test_prompt_chunk_and_steps_are_near_the_floats(name, stacked, apart):
    model = CASES[name].model()
    model = ef.stack(model) if stacked else model
    ids, parts = prompt(), []
    want = run(model, ids).logits
    cache = ef.init_cache(model, 2, 20, dtype="int8")
    for start, stop in ((0, 6), (6, 9), *((n, n + 1) for n in range(9, 14))):
        out = run(model, ids[:, start:stop], cache=cache, fresh=start == 0)
        cache = out.cache
        parts.append(out.logits)
    got = jnp.concatenate(parts, axis=1)
    np.testing.assert_allclose(got[:, :6], want[:, :6], atol=1e-4)  # a fresh prompt sees its own floats
    assert 0 < jnp.abs(got - want).max() < apart * jnp.abs(want).max()
    assert all(x.dtype == jnp.int8 for x in jax.tree.leaves(cache.layers) if x.ndim == 4 + stacked and x.shape[-1] > 8)


def test_t5_keeps_its_source_in_int8():
    model, ids = CASES["t5"].model(), prompt(2, 9)
    want = run(model, ids, decoder_input_ids=ids).logits
    out = run(model, ids, decoder_input_ids=ids[:, :1], cache=ef.init_cache(model, 2, 12, dtype="int8"))
    assert out.cache.layers[0][1].k.codes.dtype == jnp.int8
    out = run(model, decoder_input_ids=ids[:, 1:4], cache=out.cache)
    assert 0 < jnp.abs(out.logits - want[:, 1:4]).max() < 0.02 * jnp.abs(want).max()


# --- in generation


def test_transformers_name_for_it(model):
    ids = prompt()
    out = ef.generate(model, ids, max_new_tokens=5, cache_implementation="quantized", return_cache=True)
    given = ef.generate(model, ids, max_new_tokens=5, cache=ef.init_cache(model, 2, 20, dtype="int8"))
    np.testing.assert_array_equal(out.sequences, given.sequences)
    np.testing.assert_array_equal(out.sequences, ef.generate(model, ids, max_new_tokens=5).sequences)
    assert isinstance(out.cache.layers[0].k, ef.nn.Int8Slots)
    with pytest.raises(
        ValueError, match=r"cache and cache_implementation='quantized' do not go together.*dtype='int8'"
    ):
        ef.generate(model, ids, cache=out.cache, cache_implementation="quantized")
    with pytest.raises(ValueError, match=r"cache_config.*8 bits"):
        ef.generate(model, ids, cache_implementation="quantized", cache_config={"nbits": 4})


def test_all_that_a_cache_can_do(model):
    """Forked, continued, in beams, by chunks and with drafts: the tokens of floats, on a model whose choices are clear."""
    shared, new = prompt(1, 8), {"max_new_tokens": 6, "eos_token_id": -1}
    ids = jnp.concatenate([jnp.repeat(shared, 3, axis=0), prompt(3, 3, seed=1)], axis=1)
    plain = ef.generate(model, ids, **new).sequences
    _, cache = ef.prefill(model, shared, cache=ef.init_cache(model, 1, 20, dtype="int8"))
    np.testing.assert_array_equal(ef.generate(model, ids, cache=ef.fork(cache, 3), **new).sequences, plain)
    turned = ef.reorder(ef.fork(cache, 3), [2, 0, 1])
    np.testing.assert_array_equal(turned.layers[0].k.scale[0], cache.layers[0].k.scale[0])
    quantized = {**new, "cache_implementation": "quantized"}
    for more in ({"prompt_lookup_num_tokens": 3}, {"prefill_chunk_size": 4}):
        np.testing.assert_array_equal(ef.generate(model, ids, **quantized, **more).sequences, plain)
    beams = ef.generate(model, ids, **new, num_beams=3)
    got = ef.generate(model, ids, **quantized, num_beams=3)
    np.testing.assert_array_equal(got.sequences, beams.sequences)
    np.testing.assert_allclose(got.sequences_scores, beams.sequences_scores, atol=5e-3)


def test_drafts_on_rings():
    """Rings are widened, so that drafted tokens can be taken back."""
    model, ids = CASES["gemma3"].model(), jnp.tile(prompt(2, 4), (1, 3))
    options = {"max_new_tokens": 6, "eos_token_id": -1, "cache_implementation": "quantized"}
    drafted = ef.generate(model, ids, prompt_lookup_num_tokens=2, **options)
    np.testing.assert_array_equal(drafted.sequences, ef.generate(model, ids, **options).sequences)


def test_a_learned_prefix_begins_it(model):
    prefixed = ef.prefix_tuning(model, num_virtual_tokens=3, key=jax.random.key(0))
    for one in (prefixed, ef.prefix_tuning(ef.stack(model), num_virtual_tokens=3, key=jax.random.key(0))):
        want = run(one, prompt(), cache=ef.init_cache(one, 2, 14)).logits
        got = run(one, prompt(), cache=ef.init_cache(one, 2, 14, dtype="int8")).logits
        assert 0 < jnp.abs(got - want).max() < 0.02 * jnp.abs(want).max()


# --- memory and accuracy


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_step_copies_no_cache(rows, dtype):
    config = ef.models.LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=8192,
    )
    model = ef.init(config, key=jax.random.key(0))
    cache = ef.init_cache(model, rows, 8192, dtype=dtype)
    held = ef.num_bytes(cache.layers)
    assert held == {"float32": 1, "int8": 68 / 256}[dtype] * rows * 2 * 2 * 2 * 8192 * 64 * 4
    step = jax.jit(ef.decode_step, donate_argnums=2).lower(model, jnp.zeros((rows,), jnp.int32), cache).compile()
    assert step.memory_analysis().temp_size_in_bytes < 0.25 * held
    assert step.memory_analysis().alias_size_in_bytes >= held
    step(model, jnp.zeros((rows,), jnp.int32), cache)  # and no buffer is in it twice


def test_accuracy_on_the_trained_model():
    spec = importlib.util.spec_from_file_location("cache_benchmark", ROOT / "benchmarks" / "cache.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    model = ef.load(benchmark.TINY, dtype=jnp.float32, progress=False)
    text = np.fromfile(benchmark.TINY / "held_out.u16", np.uint16).astype(np.int32).reshape(-1, 256)
    found = benchmark.judge(model, jnp.asarray(text[:4, :128]), ("float32", "int8"))
    (_, exact, _), (size, loss, divergence) = found["float32"], found["int8"]
    assert size < 0.29  # heads of 32 entries
    assert abs(loss / exact - 1) < 1e-3 and 0 < divergence < 5e-5


# --- refusals


def test_what_cannot_be_int8_is_refused(model):
    with pytest.raises(ValueError, match="only states"):
        ef.init_cache(CASES["mamba2"].model(), 1, 8, dtype="int8")
    with pytest.raises(ValueError, match="a float dtype or int8, not uint8"):
        ef.init_cache(model, 1, 8, dtype="uint8")
    with pytest.raises(TypeError, match="empty_slots"):
        ef.nn.stored(jnp.zeros((1, 1, 4, 2), jnp.int8), jnp.ones((1, 1, 1, 2)))

"""Operations counted in the traced program: by hand, against XLA, through every kind of nesting."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import easyfn as ef
from cases import CASES, kinds
from easyfn.inspect.flops import count

LLAMA = ef.models.LlamaConfig(
    vocab_size=1000,
    hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=48,
)


def abstract(config, **more):
    return jax.eval_shape(lambda: ef.init(config, key=jax.random.key(0), **more))


def by_hand(c, b, t):
    q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    matrices = c.hidden_size * (q + 2 * kv) + q * c.hidden_size + 3 * c.hidden_size * c.intermediate_size
    attention = 2 * t * q  # scores and values, per token
    return 2 * b * t * (c.num_hidden_layers * (matrices + attention) + c.hidden_size * c.vocab_size)


@pytest.mark.quick("inspect", "flops by formula")
def test_llama_is_the_formula():
    model = abstract(LLAMA)
    assert ef.flops(model, 2, 64) == by_hand(LLAMA, 2, 64)
    assert ef.flops_per_token(model, 64) == by_hand(LLAMA, 1, 64) / 64


def xla(model, inputs):
    found = jax.jit(lambda m, x: ef.forward(m, **x)).lower(model, inputs).cost_analysis()
    return (found[0] if isinstance(found, list) else found)["flops"]


@pytest.mark.parametrize("name", kinds(moe=False))
def test_every_kind_against_xla(name):
    """XLA also counts elementwise work, which weighs much in models as small as these; never less than ours."""
    model = jax.eval_shape(lambda m: m, CASES[name].model())
    ours = ef.flops(model, 2, 16)
    theirs = xla(model, ef.sample_inputs(model, 2, 16))
    assert 0.4 * theirs < ours <= theirs


@pytest.mark.parametrize("name", kinds(moe=True))
def test_experts_count_for_the_tokens_that_choose_them(name):
    model = jax.eval_shape(lambda m: m, CASES[name].model())  # XLA counts one turn of the loop over blocks of rows
    config, tokens = model.config, 2 * 16
    share = config.num_experts_per_tok / config.num_local_experts
    used = {"linear": 1.0, "head": 1.0, "router": 1.0, "experts": share}
    matrices = sum(found.weight.size * used[found.slot.role] for found in ef.find_slots(model, tuple(used)))
    heads = 2 * 2 * 16 * 16 * 2 * config.num_attention_heads * config.head_dim * config.num_hidden_layers
    assert ef.flops(model, 2, 16) == 2 * tokens * matrices + heads


def test_a_real_size_is_within_two_per_cent_of_xla():
    config = dataclasses.replace(LLAMA, hidden_size=1024, intermediate_size=2816, vocab_size=32000)
    model = abstract(config)
    ours, theirs = ef.flops(model, 1, 128), xla(model, ef.sample_inputs(model, 1, 128))
    assert 0.98 * theirs < ours <= theirs


def test_stacked_quantized_and_adapted_models():
    model = abstract(LLAMA)
    whole = ef.flops(model, 2, 8)
    assert ef.flops(ef.stack(model), 2, 8) == whole  # XLA counts the body of the loop once
    for method in ("8bit", "nf4"):  # 8bit: few rows meet the codes in two integer products
        assert ef.flops(ef.quantize(model, method), 2, 8) == whole
    adapted = ef.apply_lora(model, "q_proj", rank=4, key=jax.random.key(0))
    q = LLAMA.num_attention_heads * LLAMA.head_dim
    assert ef.flops(adapted, 2, 8) - whole == 2 * 16 * 3 * 4 * (LLAMA.hidden_size + q)


def test_training_is_three_times_forward_and_less_for_an_adapter():
    model = abstract(LLAMA)
    once = ef.flops(model, 2, 8)
    assert ef.flops(model, 2, 8, training=True) == 3 * once
    adapted = ef.apply_lora(model, "q_proj", rank=4, key=jax.random.key(0))
    assert 1.9 * once < ef.flops(adapted, 2, 8, training=True) < 2.4 * once


X, W = jnp.ones((4, 8)), jnp.ones((16, 8))
ONE = 2 * 4 * 8 * 16


@pytest.mark.parametrize(
    ("function", "times"),
    [
        (lambda x, w: x @ w.T, 1),
        (jax.jit(lambda x, w: x @ w.T), 1),
        (jax.checkpoint(lambda x, w: x @ w.T), 1),
        (lambda x, w: jax.lax.scan(lambda c, _: (c + x @ w.T, None), jnp.zeros((4, 16)), length=5)[0], 5),
        (lambda x, w: jax.lax.fori_loop(0, 3, lambda i, c: c + x @ w.T, jnp.zeros((4, 16))), 3),
        (lambda x, w: jax.lax.map(lambda row: w @ row, x), 1),
        (lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w.T, lambda: jnp.zeros((4, 16))), 1),
        (lambda x, w: ef.dot(w.astype(jnp.bfloat16), x.astype(jnp.bfloat16)), 1),  # a rule of its own
        (lambda x, w: jax.vmap(lambda row: w @ row)(x), 1),
        (lambda x, w: jnp.einsum("td,od->to", x, w) + 1.0, 1),
    ],
)
def test_nesting(function, times):
    assert count(jax.make_jaxpr(function)(X, W).jaxpr) == times * ONE


def test_convolutions_and_groups():
    x, k = jnp.ones((2, 6, 10)), jnp.ones((6, 1, 4))  # depthwise, causal
    convolve = lambda x, k: jax.lax.conv_general_dilated(x, k, (1,), [(3, 0)], feature_group_count=6)
    assert count(jax.make_jaxpr(convolve)(x, k).jaxpr) == 2 * (2 * 6 * 10) * 4
    rows, experts, sizes = jnp.ones((7, 8)), jnp.ones((3, 16, 8)), jnp.array([2, 4, 1])
    run = lambda r, e: ef.ragged_dot(e, r, sizes)
    assert count(jax.make_jaxpr(run)(rows, experts).jaxpr) == 2 * 7 * 8 * 16


def test_a_loop_of_unknown_length_is_refused():
    loop = lambda x: jax.lax.while_loop(lambda c: jnp.sum(c) < 9, lambda c: c @ W.T @ W, x)
    with pytest.raises(ValueError, match="while loop"):
        count(jax.make_jaxpr(loop)(X).jaxpr)


def test_a_third_partys_model():
    class Mine(eqx.Module):
        table: ef.nn.Embedding
        head: ef.nn.Linear

        def __call__(self, context, cache=None, *, input_ids):
            return ef.Output(logits=self.head(self.table(input_ids)))

    assert ef.flops(Mine(ef.nn.Embedding(10, 8), ef.nn.Linear(8, 10)), 1, 4) == 2 * 4 * 8 * 10


@pytest.mark.quick("inspect", "400 billion parameters take no memory")
def test_four_hundred_billion_parameters_take_no_memory():
    config = dataclasses.replace(
        LLAMA,
        vocab_size=128256,
        hidden_size=16384,
        intermediate_size=53248,
        num_hidden_layers=126,
        num_attention_heads=128,
        num_key_value_heads=8,
        head_dim=128,
    )
    model = ef.stack(functools.partial(abstract, dtype=jnp.bfloat16)(config))
    assert ef.num_params(model) == 405853388800
    assert ef.num_bytes(model) == 2 * 405853388800
    assert ef.flops(model, 1, 128) == by_hand(config, 1, 128)
    assert "126 x 16384 x 16384" in str(ef.show(model))

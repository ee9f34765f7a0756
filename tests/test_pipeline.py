"""Stages of a pipeline: the numbers of one device, the weights where they are, and as many idle steps as the formula says."""

import dataclasses
import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import easyfn as ef
from easyfn.nn import schedule

VOCAB, EMBED, MLP, ROWS, TOKENS = 61 * 2, 48, 80, 8, 6
SMALL = dict(
    vocab_size=VOCAB, hidden_size=EMBED, intermediate_size=MLP, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip
LLAMA = ef.models.LlamaConfig(**SMALL, head_dim=20)
GEMMA = ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"]
T5 = ef.models.T5Config(vocab_size=VOCAB, d_model=EMBED, d_kv=10, d_ff=MLP, num_layers=2, num_heads=4)
# family: the config, the mesh, microbatches, rounds
CASES = {
    "llama": (LLAMA, dict(pp=2, fsdp=2, tp=2), 4, 2),
    "gemma3": (
        ef.models.Gemma3Config(
            **{**SMALL, "num_hidden_layers": 5}, head_dim=16, sliding_window=4, layer_types=tuple(GEMMA)
        ),
        dict(pp=2, fsdp=2, tp=2),
        2,
        1,
    ),
    "mixtral": (
        ef.models.MixtralConfig(**SMALL, head_dim=16, num_local_experts=4, num_experts_per_tok=2),
        dict(pp=2, fsdp=2, ep=2),
        2,
        1,
    ),
    "mamba2": (
        ef.models.Mamba2Config(
            vocab_size=VOCAB, hidden_size=EMBED, num_hidden_layers=4, num_heads=12, head_dim=8, state_size=10, n_groups=4,
            conv_kernel=3, chunk_size=4,
        ),
        dict(pp=4, fsdp=2),
        4,
        1,
    ),
    "gpt2": (
        ef.models.GPT2Config(vocab_size=VOCAB, n_positions=64, n_embd=EMBED, n_layer=4, n_head=4),
        dict(pp=2, dp=2, fsdp=1, tp=2),
        4,
        1,
    ),
    "t5": (T5, dict(pp=2, fsdp=2, tp=2), 2, 1),
    "bert": (
        ef.models.BertConfig(
            vocab_size=VOCAB, hidden_size=EMBED, intermediate_size=MLP, num_hidden_layers=4, num_attention_heads=4
        ),
        dict(pp=2, tp=2, sp=2, fsdp=1),
        8,
        2,
    ),
}  # fmt: skip


def inputs(family):
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(3, VOCAB, (ROWS, TOKENS)), np.ones((ROWS, TOKENS), np.int32)
    mask[0, :2] = mask[5, -2:] = 0
    given = {"input_ids": ids, "attention_mask": mask}
    if family == "t5":
        given["decoder_input_ids"] = rng.integers(3, VOCAB, (ROWS, TOKENS))
    return {name: jnp.asarray(value) for name, value in given.items()}


def objective(model, given):
    wanted = {"output_router_logits": True} if type(model).__name__ == "CausalLM" else {}
    out = ef.forward(model, **given, output_hidden_states=True, **wanted)
    answers = {n: v for n in ("logits", "hidden_states", "router_logits") if (v := getattr(out, n)) is not None}
    if "logits" not in answers:
        answers["logits"] = out.last_hidden_state
    seen = given["attention_mask"][:, :, None].astype(jnp.float32)
    return jnp.mean(jnp.square(answers["logits"]) * seen), answers


def same(got, want, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=1e-4), got, want)


@pytest.mark.parametrize("family", CASES)
def test_stages_give_the_numbers_of_one_device(family, key):
    """Logits, loss, gradients, hidden states and router logits, in their order, on meshes of three axes."""
    config, sizes, parts, rounds = CASES[family]
    model = ef.stack(ef.init(config, key=key))
    given = inputs(family)
    step = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (loss, answers), gradients = step(model, given)
    mesh = ef.make_mesh(**sizes)
    piped = ef.shard(ef.pipeline(model, mesh.shape["pp"], microbatches=parts, rounds=rounds), None, mesh)
    (same_loss, same_answers), same_gradients = step(piped, ef.shard_batch(given, mesh))
    same((same_loss, same_answers), (loss, answers))
    same(ef.unpipeline(ef.fully_gather(same_gradients)), gradients)

"""Padding on the right of a prompt takes no room in any kind of cache: the next tokens are those of the row alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef
from cases import CASES, VOCAB

run = jax.jit(ef.forward, static_argnames="fresh")
SIZE = 40
TABLE = jnp.asarray(np.random.default_rng(0).permutation(30).reshape(3, 10), jnp.int32)


def kept(model, kind):
    if kind == "paged":
        cache = ef.init_paged_cache(model, page_size=4, num_pages=30, max_model_length=SIZE, batch_size=3)
        return dataclasses.replace(cache, table=TABLE)
    return ef.init_cache(model, 3, SIZE, dtype="int8" if kind == "int8" else None)


def latent():
    """A decoder whose only kind of layer keeps latents."""
    layer = ef.nn.LatentAttention(
        48, 4, q_lora_rank=None, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8
    )
    block = ef.nn.Block(layer, ef.nn.GatedMLP(48, 64), ef.nn.RMSNorm(48), ef.nn.RMSNorm(48))
    config = CASES["llama"].model().config
    decoder = ef.nn.Decoder(
        config, [block] * 2, ef.nn.RMSNorm(48), head_dim=4, rope={"default": config.rope_parameters}
    )
    return ef.init(ef.nn.CausalLM(decoder, tied=False), key=jax.random.key(0))


MODELS = {
    "mistral": "a ring",
    "gemma3": "a ring, or all keys, by layer",
    "llama": "all keys",
    "mamba2": "states",
    "t5": "all keys, and those of the encoder",
    "latent": "latents",
}
KINDS = [(name, "dense") for name in MODELS] + [("llama", "paged"), ("gemma3", "paged"), ("mistral", "int8")]


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_right_padding_is_invisible_to_a_cache(name, kind):
    """Rows of 9, 4 and 12 tokens, padded to 14 in two pieces; then three tokens one by one, and two pieces with padding."""
    model = latent() if name == "latent" else CASES[name].model()
    second = name == "t5"
    ids_name, mask_name = ("decoder_input_ids", "decoder_attention_mask") if second else ("input_ids", "attention_mask")
    source = {"input_ids": jnp.arange(15).reshape(3, 5) + 3} if second else {}
    rng = np.random.default_rng(1)
    rows = [list(rng.integers(3, VOCAB, n)) for n in (9, 4, 12)]
    pieces = [([9, 4, 9], 9), ([0, 0, 3], 5)]  # (tokens of each row, columns)
    pieces += [([1, 1, 1], 1)] * 3 + [([2, 5, 0], 6), ([1, 0, 1], 1), ([1, 1, 1], 1)]
    more = {len(p): list(rng.integers(3, VOCAB, 20)) for p in rows}
    rows = [row + more[len(row)] for row in rows]
    cache, at, found = kept(model, kind), [0, 0, 0], [[], [], []]
    for counts, width in pieces:
        ids, mask = np.full((3, width), 7), np.zeros((3, width), int)
        for r, count in enumerate(counts):
            ids[r, :count], mask[r, :count] = rows[r][at[r] : at[r] + count], 1
            at[r] += count
        fresh = {} if second else {"fresh": cache.length.ndim == 0 and not int(cache.length)}
        out = run(model, **{ids_name: jnp.asarray(ids), mask_name: jnp.asarray(mask)}, cache=cache, **source, **fresh)
        cache = out.cache
        for r, count in enumerate(counts):
            found[r] += list(np.asarray(out.logits[r, :count]))
    for r, row in enumerate(rows):
        ids = np.zeros((3, 20), int)
        ids[r, : at[r]] = row[: at[r]]
        want = run(model, **{ids_name: jnp.asarray(ids)}, **source).logits[r, : at[r]]
        tolerance = 0.1 if kind == "int8" else 2e-5
        np.testing.assert_allclose(np.stack(found[r]), want, atol=tolerance * float(jnp.abs(want).max()))

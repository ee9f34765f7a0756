"""DeepSeek-V4: windows of tokens at the borders of pieces, what mixes streams, experts by token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef
from cases import tokens
from easyfn.models.deepseek_v4 import HEAVY, SLIDING, SPARSE, DeepseekV4Config
from easyfn.nn.manifold import sinkhorn

CONFIG = DeepseekV4Config(
    **{"vocab_size": 97, "hidden_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 3, "head_dim": 16},
    **{"num_attention_heads": 4, "q_lora_rank": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "hc_mult": 2},
    **{"sliding_window": 4, "o_groups": 2, "o_lora_rank": 8, "index_n_heads": 7, "index_head_dim": 8, "index_topk": 2},
    layer_types=(SPARSE, HEAVY, SLIDING),
    mlp_layer_types=("hash_moe", "moe", "moe"),
    compress_rates=ef.Frozen({SPARSE: 3, HEAVY: 5}),
    hc_sinkhorn_iters=3,
)


@pytest.fixture(scope="module")
def model():
    found = jax.tree.map(lambda x: 3 * x, ef.init(CONFIG, key=jax.random.key(0)))
    table = jnp.asarray(np.random.RandomState(1).rand(97, 4).argsort(-1)[:, :2], jnp.int32)
    return ef.with_params(found, {"model.layers.0.mlp.gate.tid2eid": table})


forward = jax.jit(lambda model, ids, mask, cache: ef.forward(model, ids, attention_mask=mask, cache=cache))


def test_pieces_of_every_length(model):
    """Borders of pieces fall everywhere in windows of three and of five, in rows padded on both sides."""
    ids, mask = tokens(length=20)
    want = forward(model, ids, mask, None).logits
    for lengths in ([1] * 4 + [7, 2, 7], [7, 7, 2, 1, 1, 1, 1], [2, 7, 7, 1, 1, 1, 1]):
        cache, found = ef.init_cache(model, 3, 20), []
        for end, length in zip(np.cumsum(lengths), lengths, strict=True):
            out = forward(model, ids[:, end - length : end], mask[:, end - length : end], cache)
            cache = out.cache
            found.append(out.logits)
        np.testing.assert_allclose(jnp.concatenate(found, 1)[mask > 0], want[mask > 0], atol=2e-5)


def test_what_is_far_is_read_as_entries(model):
    """A token that every window of tokens has left behind still counts, as part of an entry; the last of a window that is not
    full counts nowhere but near."""
    ids, _ = tokens(rows=1, length=20, pad=False)
    far = ids.copy()
    far[0, 1] = (far[0, 1] + 5) % 90 + 3
    moved = lambda model: np.abs(forward(model, ids, None, None).logits - forward(model, far, None, None).logits)[0, -1]
    assert moved(model).max() > 1e-4
    blind = dataclasses.replace(CONFIG, compress_rates=ef.Frozen({SPARSE: 30, HEAVY: 30}))
    blind = ef.init(blind, key=jax.random.key(0))
    assert moved(blind).max() == 0


def test_slices(model):
    ids, mask = tokens(length=24)
    want = forward(model, ids, mask, None).logits
    sliced = ef.forward(model, ids, attention_mask=mask, runtime=ef.nn.Runtime(attention_chunk=500)).logits
    np.testing.assert_allclose(sliced[mask > 0], want[mask > 0], atol=2e-5)


def test_entries_in_int8(model):
    """Nothing is chosen here but experts: a choice may turn on a rounding, of a token or two."""
    everything = ef.abstract(dataclasses.replace(CONFIG, index_topk=64))
    everything = ef.with_params(everything, ef.params(model))
    ids, mask = tokens(length=24)
    want = forward(everything, ids, mask, None).logits
    first = forward(everything, ids[:, :17], mask[:, :17], ef.init_cache(everything, 3, 24, dtype="int8"))
    assert any(leaf.dtype == np.int8 for leaf in jax.tree.leaves(first.cache.layers))
    rest = forward(everything, ids[:, 17:], mask[:, 17:], first.cache).logits
    assert np.quantile(np.abs(rest - want[:, 17:])[mask[:, 17:] > 0], 0.8) < 0.02 * np.abs(want).max()


def test_streams_mix_without_growing():
    weights = np.random.RandomState(0).rand(2, 5, 4, 4).astype(np.float32) ** 3 + 1e-6
    want = weights / (weights.sum(-2, keepdims=True) + 1e-6)
    for _ in range(6):
        want = want / (want.sum(-1, keepdims=True) + 1e-6)
        want = want / (want.sum(-2, keepdims=True) + 1e-6)
    np.testing.assert_allclose(sinkhorn(jnp.asarray(weights), 7, 1e-6), want, atol=1e-6)
    np.testing.assert_allclose(sinkhorn(jnp.asarray(weights), 60, 1e-6).sum(-1), 1, atol=1e-3)


def test_experts_by_token(model):
    """The table chooses, whatever is read; what is read says how much the answers count."""
    gate = model.model.layers[0].mlp.gate
    ids = jnp.asarray([[5, 9, 5]])
    x = jax.random.normal(jax.random.key(1), (1, 3, 32))
    routing = gate(x, ef.nn.Runtime(), ids)
    np.testing.assert_array_equal(routing.chosen, gate.tid2eid[ids])
    scores = np.sqrt(np.log1p(np.exp(np.asarray(x) @ np.asarray(gate.weight).T)))
    picked = np.take_along_axis(scores, np.asarray(routing.chosen), -1)
    np.testing.assert_allclose(routing.weights, 1.5 * picked / picked.sum(-1, keepdims=True), rtol=1e-5)
    assert not ef.trainable(model).model.layers[0].mlp.gate.tid2eid
    with pytest.raises(ValueError, match="this model chooses experts by the ids of tokens: give input_ids"):
        ef.forward(model, inputs_embeds=x)


def test_whole_numbers_are_as_long_in_files_as_in_torch(model, tmp_path):
    from safetensors.numpy import load_file

    ef.save(model, tmp_path)
    table = load_file(tmp_path / "model.safetensors")["model.layers.0.ffn.gate.tid2eid"]
    assert table.dtype == np.int64
    back = ef.load(tmp_path, dtype="bfloat16", progress=False).model.layers[0].mlp.gate.tid2eid
    np.testing.assert_array_equal(back, table)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"num_key_value_heads": 2}, "num_key_value_heads=2, and all heads read one key"),
        ({"mlp_layer_types": ["dense"] * 3}, "mlp_layer_types says hash_moe or moe"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types holds 'full_attention'"),
        ({"n_shared_experts": 2}, "n_shared_experts=2"),
        ({"index_head_dim": 1}, "2 numbers of a head are rotated, and an index head has 1"),
        ({"compress_ratios": [4, 8, 0], "layer_types": None}, r"compress_ratios=\[8\]"),
    ],
)
def test_refused_by_name(own, message):
    small = {
        f.name: getattr(CONFIG, f.name) for f in dataclasses.fields(CONFIG) if f.name not in ("extra", "generation")
    }
    with pytest.raises(ValueError, match=message):
        ef.abstract({"model_type": "deepseek_v4", **small, **own})


def test_older_spellings():
    """The keys of DeepSeek's own files, where layers that predict further tokens are counted, too."""
    read = ef.read_config(
        {
            **{"model_type": "deepseek_v4", "num_hidden_layers": 3, "compress_ratios": [128, 4, 0, 0], "head_dim": 32},
            **{"num_hash_layers": 1, "compress_rate_csa": 8, "qk_rope_head_dim": 16, "rope_theta": 500.0},
            **{"compress_rope_theta": 700.0, "rope_scaling": {"type": "yarn", "factor": 16, "beta_fast": 32}},
        }
    )
    assert read.layer_types == (HEAVY, SPARSE, SLIDING) and read.mlp_layer_types == ("hash_moe", "moe", "moe")
    assert dict(read.compress_rates) == {SPARSE: 8, HEAVY: 128}
    main, far = read.rope_parameters["main"], read.rope_parameters["compress"]
    assert dict(main) == {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}
    assert far["rope_type"] == "yarn" and far["attention_factor"] == 1.0 and far["rope_theta"] == 700.0

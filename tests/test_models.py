"""Every family against transformers: the same numbers, whatever the padding, the packing, the cache and the dtype."""

from __future__ import annotations

import dataclasses
import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef
from cases import CASES, VOCAB, Case, kinds, names, port, positions, tokens
from easyfn.config.config import read, write
from easyfn.names.rules import tensors
from easyfn.registry.family import abstract_config, family_of

DECODERS = [n for n, c in CASES.items() if c.causal and not c.encoder_decoder and c.inputs is None]
FAMILIES = kinds(task="causal-lm")
CACHED = [*(n for n in FAMILIES if not CASES[n].recurrent), "qwen2-window"]  # Mamba-2 has its own in test_mamba2


def torch_run(case: Case, ids=None, mask=None, *, module=None, **more):
    """What transformers computes: numpy arrays by the names of its output."""
    import torch

    # dynamic rotary frequencies are state of the module: a fresh one for each run
    module = module or (case.make() if "dynamic" in case.name else case.torch())
    inputs = {"input_ids": ids, "attention_mask": mask, **more}
    if (
        mask is not None
        and "position_ids" not in more
        and "position_ids" in inspect.signature(module.forward).parameters
    ):
        inputs["position_ids"] = positions(mask)
    if case.encoder_decoder and "decoder_input_ids" in inspect.signature(module.forward).parameters:
        inputs.setdefault("decoder_input_ids", ids[:, :5])
    given = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in inputs.items() if v is not None}
    with torch.no_grad():
        out = module(**given)
    return {
        k: jax.tree.map(lambda t: t.float().numpy(), v) for k, v in out.items() if "past" not in k and "cache" not in k
    }


def at_tokens(value, mask):
    """The entries of real tokens: `(batch, seq, ...)` or attention weights `(batch, heads, seq, keys)`."""
    value = np.asarray(value, np.float32)
    if value.ndim == 4:
        value = np.swapaxes(value, 1, 2)
    return value[mask > 0] if value.shape[:2] == mask.shape else value


def close(got, want, mask, atol=1e-4):
    assert np.shape(got) == np.shape(want)
    np.testing.assert_allclose(at_tokens(got, mask), at_tokens(want, mask), atol=atol, rtol=1e-4)


@pytest.mark.quick("nn", "attention weights are the reference's", rows=["llama"])
@pytest.mark.parametrize("name", [n for n in FAMILIES if not CASES[n].recurrent])
def test_attention_weights(name):
    """Those of every layer; outputs and hidden states are compared in `test_families.py`."""
    case = CASES[name]
    ids, mask = tokens()
    want = torch_run(case, ids, mask, output_attentions=True)["attentions"]
    got = ef.forward(case.model(), ids, attention_mask=mask, output_attentions=True).attentions
    for a, b in zip(got, want, strict=True):
        close(a, b, mask)


@pytest.mark.quick("nn", "router logits are the reference's", rows=["mixtral"])
@pytest.mark.parametrize("name", kinds(moe=True))
def test_router_logits(name):
    case = CASES[name]
    ids, mask = tokens()
    if case.task == "causal-lm":
        want = torch_run(case, ids, mask, output_router_logits=True)["router_logits"]
        got = ef.forward(case.model(), ids, attention_mask=mask, output_router_logits=True).router_logits
        for a, b in zip(got, want, strict=True):
            assert a.shape == b.shape and a.shape[0] == ids.size
            np.testing.assert_allclose(a[mask.reshape(-1) > 0], b[mask.reshape(-1) > 0], atol=1e-4)
    assert ef.forward(case.model(), ids, attention_mask=mask).router_logits is None


@pytest.mark.parametrize("name", [n for n in FAMILIES if not CASES[n].recurrent])
def test_position_ids_and_inputs_embeds(name):
    case = CASES[name]
    ids, mask = tokens(pad=False)
    where = np.broadcast_to(np.arange(11)[None] * 2 + 3, ids.shape)
    embeds = np.random.RandomState(1).randn(*ids.shape, 48).astype(np.float32)
    want = torch_run(case, None, mask, position_ids=where, inputs_embeds=embeds)["logits"]
    got = ef.forward(case.model(), inputs_embeds=jnp.asarray(embeds), position_ids=where).logits
    close(got, want, mask)


@pytest.mark.parametrize("name", [n for n in FAMILIES if not CASES[n].recurrent])
def test_positions_that_begin_anew_begin_a_document(name):
    """As in transformers where there is no mask and no cache, which it makes by default."""
    case, model = CASES[name], CASES[name].model()
    ids, _ = tokens(pad=False)
    where = np.array([[0, 1, 2, 3, 0, 1, 0, 0, 1, 2, 3], np.arange(11), [0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1]])[: len(ids)]
    want = torch_run(case, ids, position_ids=where, use_cache=False)["logits"]
    got = jax.jit(lambda model, where: ef.forward(model, ids, position_ids=where).logits)(model, where)
    close(got, want, np.ones_like(ids))
    split = ef.forward(model, ids, segment_ids=1 + np.cumsum(where == 0, axis=1)).logits
    np.testing.assert_allclose(ef.forward(model, ids, position_ids=where).logits, split, atol=1e-5)
    together = ef.forward(model, ids, position_ids=where, attention_mask=np.ones_like(ids)).logits
    close(together, torch_run(case, ids, np.ones_like(ids), position_ids=where)["logits"], np.ones_like(ids))
    assert np.abs(together - split)[0].max() > 1e-3


@pytest.mark.quick("nn", "learned positions end")
def test_what_the_tables_do_not_have():
    """Learned positions and token types beyond the table: an error where ids are concrete, NaN (no clamped row) in jit."""
    model = CASES["gpt2"].model()  # 64 positions
    ids, _ = tokens(1, 66, pad=False)
    with pytest.raises(ValueError, match="position 65 is beyond the 64 learned positions"):
        ef.forward(model, ids)
    assert np.isnan(jax.jit(lambda m, i: ef.forward(m, i).logits)(model, ids)[0, -1]).all()
    with pytest.raises(ValueError, match="position -1 is beyond"):
        ef.forward(model, ids[:, :2], position_ids=[[-1, 0]])
    with pytest.raises(ValueError, match="token_type_ids hold 97"):
        ef.forward(model, ids[:, :2], token_type_ids=[[0, VOCAB]])
    typed = ef.forward(model, ids[:, :2], token_type_ids=[[3, 4]]).logits
    want = torch_run(CASES["gpt2"], ids[:, :2], token_type_ids=np.array([[3, 4]]))["logits"]
    np.testing.assert_allclose(typed, want, atol=1e-4)


@pytest.mark.quick("inputs", "inputs that make no sense")
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": [[]]}, "empty prompt"),
        ({"input_ids": [[1.0]]}, "must be integers"),
        ({"inputs_embeds": [[1.0, 2.0]]}, "inputs_embeds must have shape"),
        ({"input_ids": [[1, 2]], "attention_mask": [[0.0, -1e9]]}, "not added to the scores"),
    ],
)
def test_inputs_that_make_no_sense(inputs, message):
    with pytest.raises(ValueError, match=message):
        ef.forward(CASES["llama"].model(), **inputs)


@pytest.mark.quick("forward", "what is no model")
def test_forward_of_what_is_no_model():
    with pytest.raises(ef.NotSupported, match="no inputs"):
        ef.forward(CASES["llama"].model().config, [[1]])
    apply, params = ef.pure(CASES["llama-tied"].model())
    with pytest.raises(KeyError, match="params lack 1 of"):
        apply({k: v for k, v in params.items() if k != "model.norm.weight"}, [[1]])


PIECES = (([5, 1, 1, 4], 11), ([3, 8], 16))
run = jax.jit(
    lambda model, ids, mask, cache, fresh: ef.forward(model, ids, attention_mask=mask, cache=cache, fresh=fresh),
    static_argnums=4,
)


@pytest.mark.quick("nn", "a cache of windows by layer, in pieces", rows=["gemma3"])
@pytest.mark.parametrize("name", CACHED)
def test_a_cache_changes_nothing(name):
    """Prefill and decode in pieces of one, three, and more than the window; caches with a ring and caches that fit."""
    case = CASES[name]
    model = case.model()
    ids, mask = tokens()
    full = run(model, ids, mask, None, False).logits
    for pieces, size in PIECES:
        cache, start, parts = ef.init_cache(model, 3, size), 0, []
        for n in pieces:
            part = slice(start, start + n)
            out = run(model, ids[:, part], mask[:, part], cache, start == 0)
            cache, start = out.cache, start + n
            parts.append(out.logits)
        close(jnp.concatenate(parts, axis=1), full, mask, 2e-5)
        assert int(cache.length) == 11 and cache.positions.tolist() == mask.sum(1).tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_is_as_near_as_transformers(name):
    """Rounding to bfloat16 moves the logits; ours move no further from the float32 ones than transformers' do."""
    import torch

    case = CASES[name]
    ids, mask = tokens()
    want = torch_run(case, ids, mask)["logits"]
    theirs = torch_run(case, ids, mask, module=case.make().to(torch.bfloat16))["logits"]
    out = ef.forward(ef.cast(case.model(), jnp.bfloat16), ids, attention_mask=mask).logits
    assert out.dtype == jnp.bfloat16

    def distance(x):
        return np.sqrt(np.mean((at_tokens(x, mask) - at_tokens(want, mask)) ** 2))

    assert distance(out) < 1.25 * distance(theirs) + 1e-4


# --- configs


def without_extra(config):
    inner = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    inner = {name: without_extra(c) for name, c in inner.items() if dataclasses.is_dataclass(c)}
    return dataclasses.replace(config, extra=ef.Frozen(), **inner)


@pytest.mark.parametrize("name", [n for n in DECODERS if not CASES[n].recurrent])
def test_every_key_of_the_config_is_accounted_for(name, tmp_path):
    """What `to_dict` says and what `save_pretrained` writes give the same config, and it writes back every key."""
    hf = CASES[name].torch()
    known = family_of(hf.config.model_type)
    hf.config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    config = read(known.config, saved, known.ignore)
    hash(config)
    again = write(config)
    for key, value in saved.items():
        if not key.startswith("_") and key != "dtype":  # `save` says it from the tensors
            if isinstance(value, dict) and "model_type" in value:  # a config inside: its own marks aside
                value = {k: v for k, v in value.items() if k in again[key] or (v not in (None, "") and k[0] != "_")}
                again[key] = {k: v for k, v in again[key].items() if k in value or k != "num_labels"}  # of the whole
            assert value is None or again[key] == value, key
    assert read(known.config, again, known.ignore) == config
    assert without_extra(read(known.config, hf.config.to_dict(), known.ignore)) == without_extra(config)
    with pytest.raises(ef.UnknownConfigKey, match="surprising_key"):
        read(known.config, {**saved, "surprising_key": 3}, known.ignore)


@pytest.mark.parametrize("name", [n for n in DECODERS if CASES[n].files])
def test_tensor_names_are_those_of_the_file(name, tmp_path):
    from safetensors import safe_open

    case = CASES[name]
    hf = case.torch()
    hf.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "numpy") as file:
        theirs = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    known = family_of(hf.config.model_type)
    model = abstract_config(read(known.config, hf.config.to_dict(), known.ignore), case.task, None)
    ours = {key: value.shape for key, value in known.constants(model).items()}
    for found in tensors(model, known.names(model)).values():
        ours |= dict(zip(found[0].names, found[0].shapes(), strict=True))
    assert ours == theirs


SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.quick("models", "windows are derived from the config")
def test_qwen_windows_are_derived():
    sizes = {**SIZES, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}
    for config in (ef.models.Qwen2Config(**sizes), ef.models.Qwen3Config(**sizes)):
        layers = abstract_config(config, "base", None).layers
        assert [layer.self_attn.window for layer in layers] == [None, None, None, 8]
    off = abstract_config(ef.models.Qwen2Config(**{**sizes, "use_sliding_window": False}), "base", None)
    assert {layer.self_attn.window for layer in off.layers} == {None}


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (("full_attention",) * 3, "names 3 layers and num_hidden_layers is 4"),
        (("chunked_attention",) * 4, "holds 'chunked_attention'"),
        (("sliding_attention",) * 4, "no sliding_window"),
    ],
)
def test_layer_types_that_make_no_sense(kinds, message):
    with pytest.raises(ValueError, match=message):
        abstract_config(ef.models.Qwen2Config(**SIZES, layer_types=kinds), "base", None)


def test_gemma3_older_spellings():
    """The keys of the first Gemma 3 checkpoints: an integer pattern, two bases, scaling for the global layers."""
    from transformers import Gemma3TextConfig

    old = {
        **SIZES,
        "head_dim": 16,
        "sliding_window_pattern": 3,
        "rope_theta": 5e5,
        "rope_local_base_freq": 2e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    known = family_of("gemma3_text")
    ours, theirs = read(known.config, old), Gemma3TextConfig(**old)
    assert list(ours.layer_types) == theirs.layer_types
    assert ours.rope_parameters == ef.Frozen(theirs.rope_parameters)


def test_zamba2_refuses_hybrid_layers_said_two_ways():
    config = CASES["zamba2-classifier"].torch().config.to_dict()
    with pytest.raises(ValueError, match=r"hybrid_layer_ids=\[0, 2\] are not .* \[0\]"):
        ef.read_config({**config, "num_hidden_layers": 1, "layers_block_type": ["hybrid"]})


@pytest.mark.parametrize(
    "key",
    [{"use_bidirectional_attention": True}, {"attn_logit_softcapping": 50.0}, {"rope_parameters": {"factor": 2.0}}],
)
def test_gemma3_refuses_what_it_does_not_do(key):
    with pytest.raises(ef.UnknownConfigKey, match=next(iter(key))):
        read(family_of("gemma3_text").config, {**SIZES, **key})


@pytest.mark.quick("tasks", "a classifier reads the last token")
def test_classifier_reads_the_last_token_of_each_row():
    """Also in a packed or padded row, where transformers looks for the pad id instead of at the mask."""
    case = CASES["llama-classifier"]
    ids, mask = tokens()
    ids[mask == 0] = 7  # padding by the mask alone
    got = ef.forward(case.model(), ids, attention_mask=mask).logits
    alone = ef.forward(case.model(), ids[:1, mask[0] > 0]).logits
    np.testing.assert_allclose(got[0], alone[0], atol=1e-5)
    want = torch_run(case, np.where(mask > 0, ids, 0), mask)["logits"]
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_classifier_without_a_mask_looks_for_the_pad_id():
    """As transformers: the last token that is not `pad_token_id`, and not simply the last column."""
    import torch

    case = CASES["llama-classifier"]
    ids = tokens()[0]
    with torch.no_grad():
        want = case.torch()(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(ef.forward(case.model(), ids).logits, want, atol=1e-4)
    plain = case.model().model
    embeds = ef.input_embeddings(plain)(jnp.asarray(ids))
    at_end = ef.forward(case.model(), inputs_embeds=embeds).logits  # no ids to look at: the last column
    np.testing.assert_allclose(
        at_end[1], case.model().score(ef.forward(plain, ids).last_hidden_state[1, -1]), atol=1e-5
    )


def test_port_is_exact():
    hf = CASES["llama"].torch()
    weight = port(hf).model.layers[2].mlp.down_proj.weight
    assert np.array_equal(weight, hf.model.layers[2].mlp.down_proj.weight.numpy())


def test_names_select_cases():
    assert "llama" in names(task="causal-lm", variant=False) and "llama-tied" not in names(variant=False)

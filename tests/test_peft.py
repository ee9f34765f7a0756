"""Adapters in PEFT's files, checked with PEFT itself, on one model of every family."""

import dataclasses
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from cases import CASES, names, positions, tokens

import easyfn as ef

peft = pytest.importorskip("peft")


def theirs(case, module):
    """What transformers answers: logits, or the last hidden state."""
    ids, mask = tokens()
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    if case.encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor(tokens(seed=1, pad=False)[0])
    elif not case.recurrent:
        inputs["position_ids"] = torch.tensor(positions(mask))
    with torch.no_grad():
        out = module(**inputs)
    return pick(out).numpy()


def pick(out):
    for field in ("logits", "start_logits", "last_hidden_state"):
        if getattr(out, field, None) is not None:
            return getattr(out, field)
    raise AssertionError(out)


@eqx.filter_jit
def _run(model, inputs):
    return pick(ef.forward(model, **inputs))


def ours(case, model):
    ids, mask = tokens()
    inputs = {"input_ids": jnp.asarray(ids), "attention_mask": jnp.asarray(mask)}
    if case.encoder_decoder:
        inputs["decoder_input_ids"] = jnp.asarray(tokens(seed=1, pad=False)[0])
    return np.asarray(_run(model, inputs))


def agree(case, model, module, atol=3e-5):
    a, b = ours(case, model), theirs(case, module)
    seen = tokens()[1] > 0 if a.ndim == 3 and not case.encoder_decoder else slice(None)
    np.testing.assert_allclose(a[seen], b[seen], atol=atol * max(1.0, float(np.abs(b[seen]).max())))


def trained(model, seed=3, size=0.05):
    """The model with adapters that are no longer fresh."""
    base, adapter = ef.split_lora(model)
    leaves, treedef = jax.tree.flatten(adapter)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [x + size * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)]
    return ef.join_lora(base, treedef.unflatten(moved))


def into_peft(case, model, folder, **config):
    ef.save_adapter(model, folder, **config)
    return peft.PeftModel.from_pretrained(case.make(), folder).eval()


def from_peft(case, folder, seed=0, **config):
    """A PEFT model with an adapter that does something, saved."""
    torch.manual_seed(seed)
    config = {"target_modules": REACHED.get(case.name, "all-linear"), "r": 4, "lora_alpha": 6, "init_lora_weights": False, **config}
    module = peft.get_peft_model(case.make(), peft.LoraConfig(**config)).eval()
    module.save_pretrained(folder)
    return module


# PEFT refuses an adapter on Mamba's out_proj, whose weight a fused kernel reads; its "all-linear" has a bug on Mixtral.
REACHED = {"mamba2": ["in_proj"], "mixtral": ["q_proj", "v_proj"]}
FAMILIES = [n for n in names(variant=False)]


@pytest.mark.parametrize("name", FAMILIES)
def test_peft_reads_ours(name, tmp_path, key):
    case = CASES[name]
    pattern = "in_proj" if name == "mamba2" else "all-linear"
    model = trained(ef.apply_lora(case.model(), pattern, rank=3, alpha=5, key=key))
    base = ours(case, case.model())
    module = into_peft(case, model, tmp_path)
    assert np.abs(ours(case, model) - base).max() > 1e-3
    agree(case, model, module)


@pytest.mark.parametrize("name", FAMILIES)
def test_we_read_pefts(name, tmp_path):
    case = CASES[name]
    module = from_peft(case, tmp_path)
    model = ef.load_adapter(case.model(), tmp_path)
    agree(case, model, module)
    agree(case, ef.merge_lora(model), module)

"""Laws of files and of torch: what is written is what is read, and both ways mean the same numbers."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

import easyfn as ef

from ..case import Case, per_token, same, same_trees
from .law import law


def _torch(case: Case) -> bool:
    return case.torch is not None


def _facts(config: Any) -> Any:
    """A config without what has no influence on the numbers."""
    loose = {f.name: ef.Frozen() for f in dataclasses.fields(config) if f.name in ("extra", "generation")}
    return dataclasses.replace(config, **loose)


@law()
def save_then_load_is_identity(case: Case) -> None:
    """A saved model is loaded bit by bit, with an equal config; so is one that was saved from stacked layers."""
    for model in (case.model, case.stacked()):
        with tempfile.TemporaryDirectory() as folder:
            ef.save(model, folder)
            back = ef.load(folder, task=ef.task(case.model), progress=False)
        assert _facts(back.config) == _facts(case.model.config), "the config came back changed"
        same_trees(back, case.model, "saved and loaded")


@law()
def names_are_a_bijection(case: Case) -> None:
    """Every array has its own tensors in a file, under transformers' names, and comes back from them."""
    tensors = ef.to_state_dict(case.model)
    back = ef.from_state_dict(case.model.config, tensors, task=ef.task(case.model))
    same_trees(back, case.model, "to a state dict and back")
    if case.torch is not None:
        with tempfile.TemporaryDirectory() as folder:
            case.module.save_pretrained(folder)
            theirs = {name for file in Path(folder).glob("*.safetensors") for name in load_file(file)}
        assert set(tensors) == theirs, f"names differ: {sorted(set(tensors) ^ theirs)[:8]}"


@law(_torch)
def torch_agrees(case: Case) -> None:
    """transformers answers the same to the same inputs, with a row padded on the right."""
    import torch

    inputs = case.given()
    if case.tokens == "input_ids":
        inputs["attention_mask"] = inputs["attention_mask"].at[1, case.half :].set(0)
    got = case.answers(ef.from_torch(case.module), **inputs)
    with torch.no_grad():
        out = case.module(**{name: torch.tensor(np.asarray(value)) for name, value in inputs.items()})
    want = {name: value.float().numpy() for name in got if (value := getattr(out, name, None)) is not None}
    got = {name: value for name, value in got.items() if name in want}
    seen = np.asarray(inputs["attention_mask"]) > 0
    for name, value in per_token(got).items():
        if value.shape[:2] == seen.shape:  # and not frames, of which there are fewer than samples
            mask = seen.reshape(*seen.shape, *[1] * (value.ndim - 2))
            got[name], want[name] = np.where(mask, value, 0), np.where(mask, want[name], 0)
    same(case, got, want, "easyfn against transformers", tolerance=1e-4)


@law(_torch)
def torch_round_trip(case: Case) -> None:
    """To torch and back is the model, bit by bit; from torch and back is torch's own state."""
    same_trees(ef.from_torch(ef.to_torch(case.model)), case.model, "to torch and back")
    ours, theirs = ef.to_torch(ef.from_torch(case.module)).state_dict(), case.module.state_dict()
    assert set(ours) == set(theirs), f"the state dicts differ: {sorted(set(ours) ^ set(theirs))[:4]}"
    assert all((ours[name] == theirs[name]).all() for name in theirs), "a tensor came back changed"

"""Shapes in public signatures: what takes or gives arrays says of which shape, and beartype holds it to that here."""

from __future__ import annotations

import inspect
import re
import types

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import torch

import easyfn as ef
from cases import CASES

# Parameters that say `Any`, by name: why no shape can be said of them.
OPEN = {
    "a model, a layer, or any tree of arrays": "model models base config_or_path node like state quantized original new which "
    "reference teacher assistant_model trainable module w",
    "a weight slot: an array or a format of its own": "bias",
    "a tree of the user's, or one of named arrays": "batch inputs example_inputs cache options more args data_state dynamic",
    "a dtype": "dtype compute_dtype",
    "a config, or the words of one": "config optimizer schema example rules quantize",
    "a path, or an open file": "name_or_path path paths directory cache_dir file",
    "objects of other libraries": "tokenizer devices device",
    "what generate returned": "generation",
    "a PRNG key of either kind, or none": "key",
}
KNOWN = {name for names in OPEN.values() for name in names.split()}
SHAPED = re.compile(r"(Float|Int|Integer|Bool|Shaped)\[(Array|np\.ndarray), ('[^']*'|\.\.\.)\]")


def functions():
    for name in dir(ef):
        value = getattr(ef, name)
        if not name.startswith("_") and not isinstance(value, (type, types.ModuleType)):
            function = inspect.unwrap(getattr(value, "_default", value))
            if inspect.isfunction(function):
                yield name, inspect.signature(function)


def test_arrays_have_shapes():
    wrong = []
    for name, signature in functions():
        for p in signature.parameters.values():
            rest = SHAPED.sub("", str(p.annotation))
            if p.name not in KNOWN and (rest == "Any" or re.search(r"jax\.Array|np\.ndarray|ArrayLike", rest)):
                wrong.append(f"{name}({p.name}: {p.annotation})")
        if re.search(r"jax\.Array|np\.ndarray|ArrayLike", SHAPED.sub("", str(signature.return_annotation))):
            wrong.append(f"{name} -> {signature.return_annotation}")
    assert not wrong, "\n".join(wrong)
    assert sum(SHAPED.search(str(p.annotation)) is not None for _, s in functions() for p in s.parameters.values()) > 60


def test_the_exceptions_are_needed():
    open_ = {p.name for _, s in functions() for p in s.parameters.values() if str(p.annotation) == "Any"}
    keys = {p.name for _, s in functions() for p in s.parameters.values() if "jax.Array" in str(p.annotation)}
    assert open_ | keys >= KNOWN


WRONG = {
    "ids of no batch": lambda m, ids: ef.forward(m, ids[0]),
    "ids that are no integers": lambda m, ids: ef.forward(m, ids * 1.0),
    "embeddings of no batch": lambda m, ids: ef.forward(m, inputs_embeds=jnp.zeros((3, 8))),
    "a mask of one row": lambda m, ids: ef.forward(m, ids, attention_mask=ids[0] > 0),
    "tokens with a column": lambda m, ids: ef.decode_step(m, ids, None),
    "labels of another batch": lambda m, ids: ef.ctc_loss(jnp.zeros((2, 5, 7)), jnp.zeros((3, 2), int)),
    "steps of other rows": lambda m, ids: ef.ppo_loss(*[jnp.ones((2, 3))] * 3, jnp.ones((1, 3))),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_shapes_are_seen_here(what):
    """By jaxtyping and beartype, which the wheel does not need: there the functions' own errors say it."""
    with pytest.raises(jaxtyping.TypeCheckError):
        WRONG[what](CASES["llama"].model(), jnp.array([[1, 2, 3]]))


def test_what_is_no_array_of_jax():
    """NumPy's arrays, torch's and lists are taken as before; shapes without numbers, and tracers, too."""
    model, rows = CASES["llama"].model(), [[1, 2, 3], [4, 5, 6]]
    run = jax.jit(lambda ids, mask: ef.forward(model, ids, attention_mask=mask).logits)
    want = np.asarray(run(jnp.array(rows), jnp.ones((2, 3), bool)))
    for kind in (list, np.array, torch.tensor):
        logits, _ = ef.prefill(model, kind(rows), attention_mask=kind([[1, 1, 1]] * 2), max_length=3)
        np.testing.assert_allclose(logits, want[:, -1], atol=1e-5)
    shape = jax.ShapeDtypeStruct((2, 3), jnp.int32)
    assert jax.eval_shape(lambda ids: ef.forward(model, ids, attention_mask=ids), shape).logits.shape == want.shape

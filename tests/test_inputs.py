"""A model states what it takes: names, shapes, which input says the batch; verbs ask instead of assuming token ids."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef
from cases import CASES


class Patches(eqx.Module):
    """Somebody's model of pixels, without a family: rows of an image are its tokens."""

    proj: ef.nn.Linear
    score: ef.nn.Linear

    def __init__(self, key: Any = None) -> None:
        self.proj = ef.nn.Linear(3 * 8, 16, True)
        self.score = ef.nn.Linear(16, 5)

    def __call__(self, context: Any, cache: Any = None, *, pixel_values: Any) -> ef.Output:
        b, c, h, w = pixel_values.shape
        x = self.proj(jnp.swapaxes(pixel_values, 1, 2).reshape(b, h, c * w))
        return ef.Output(last_hidden_state=x, logits=self.score(x.mean(1)))


@ef.inputs.register(Patches)
def _(model: Patches) -> ef.Inputs:
    return ef.Inputs(
        {"pixel_values": ef.Input("image", ("batch", 3, "height", 8))}, main=("pixel_values",), sizes={"height": 4}
    )


@pytest.fixture(scope="module")
def patches():
    return ef.init(Patches(), key=jax.random.key(0))


@pytest.mark.quick("inputs", "each kind of model states what it takes")
def test_a_model_of_pixels(patches):
    batch = ef.sample_inputs(patches, 2, 8, key=jax.random.key(1))
    assert {name: x.shape for name, x in batch.items()} == {"pixel_values": (2, 3, 4, 8)}
    assert ef.forward(patches, **batch).logits.shape == (2, 5)
    assert ef.forward(patches, pixel_values=np.zeros((1, 3, 9, 8), np.float32)).last_hidden_state.shape == (1, 9, 16)
    assert ef.flops(patches, 2, 8) == 2 * 2 * (4 * 24 * 16 + 16 * 5)
    seen = ef.observe(patches, [batch], pattern="proj")
    assert float(seen["proj.weight"]["count"]) == 8  # every row of both images
    assert ef.supports(patches, "forward")


@pytest.mark.quick("inputs", "what is refused")
@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"input_ids": [[1, 2]]}, TypeError, "takes no input_ids; it takes pixel_values"),
        ({}, ValueError, "forward takes pixel_values: give it"),
        (
            {"pixel_values": np.zeros((2, 3, 4, 9), np.float32)},
            ValueError,
            r"\(batch, 3, height, 8\), not \(2, 3, 4, 9\)",
        ),
        ({"pixel_values": np.zeros((3, 4, 8), np.float32)}, ValueError, r"\(batch, 3, height, 8\), not \(3, 4, 8\)"),
        ({"pixel_values": np.zeros((2, 3, 4, 8), np.uint8)}, ValueError, "not uint8"),
        (
            {"pixel_values": np.zeros((2, 3, 4, 8), np.float32), "attention_mask": [[1]]},
            TypeError,
            "reads no tokens and takes no attention_mask; it takes pixel_values",
        ),
    ],
)
def test_what_is_refused(patches, given, error, words):
    with pytest.raises(error, match=words):
        ef.forward(patches, **given)


@pytest.mark.parametrize(
    ("name", "required"),
    [("llama", {"input_ids"}), ("bert", {"input_ids"}), ("t5", {"input_ids", "decoder_input_ids"})],
)
def test_text_models_state_tokens(name, required):
    model = CASES[name].model()
    stated = ef.inputs(model)
    assert stated.sequence and stated.main == ("input_ids", "inputs_embeds")
    assert stated.fields["input_ids"].below == model.config.vocab_size
    batch = ef.sample_inputs(model, 2, 5, key=jax.random.key(0))
    assert set(batch) == required and all(x.shape == (2, 5) for x in batch.values())
    assert int(batch["input_ids"].min()) >= 3 and int(batch["input_ids"].max()) < model.config.vocab_size
    shapes = ef.sample_inputs(model, 2, 5)
    assert {k: v.shape for k, v in shapes.items()} == {k: v.shape for k, v in batch.items()}
    assert "input_ids*" in str(stated) and "says the batch" in str(stated)

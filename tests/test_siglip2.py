"""SigLIP 2: patches of images of any shape, padding among them, against transformers."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import easyfn as ef
from families.siglip2 import module

SHAPES = np.array([[3, 5], [7, 2], [2, 2]])


def images():
    """Three images of up to 15 patches; of the second there are as many as fit."""
    pixels = np.random.RandomState(0).randn(3, 15, 12).astype(np.float32)
    mask = (np.arange(15)[None] < SHAPES.prod(1)[:, None]).astype(np.int64)
    return {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": SHAPES}


def texts():
    ids = np.random.RandomState(1).randint(3, 97, (3, 9))
    mask = np.ones_like(ids)
    mask[1, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask}


HEADS = {
    "Siglip2Model": (lambda: images() | texts(), "contrastive", ("logits_per_text", "image_embeds", "text_embeds")),
    "Siglip2ForImageClassification": (images, "image-classification", ("logits",)),
    "Siglip2VisionModel": (images, "base", ("last_hidden_state", "pooler_output")),
    "Siglip2TextModel": (texts, "base", ("last_hidden_state", "pooler_output")),
}


@pytest.mark.parametrize("head", HEADS)
def test_agrees_and_keeps_its_files(head, tmp_path):
    make, task, answers = HEADS[head]
    more = {"num_labels": 3, "vision": {"vision_use_head": False}} if task == "image-classification" else {}
    hf, inputs = module(head, **more), make()
    hf.save_pretrained(tmp_path / "theirs")
    model = ef.load(tmp_path / "theirs")
    assert ef.task(model) == task
    with torch.no_grad():
        want = hf(**{k: torch.tensor(v) for k, v in inputs.items()})
    got = jax.jit(lambda m, x: ef.forward(m, **x))(model, inputs)
    for name in answers:
        np.testing.assert_allclose(getattr(got, name), want[name].numpy(), atol=1e-4, rtol=1e-4, err_msg=name)
    ef.save(model, tmp_path / "ours")
    ours, theirs = (load_file(tmp_path / side / "model.safetensors") for side in ("ours", "theirs"))
    assert sorted(ours) == sorted(theirs) and all(np.array_equal(ours[k], theirs[k]) for k in ours)
    assert type(ef.to_torch(model)) is type(hf)


def test_contrastive_loss_and_its_gradient():
    hf, inputs = module("Siglip2Model").requires_grad_(True), images() | texts()
    want = hf(**{k: torch.tensor(v) for k, v in inputs.items()}, return_loss=True).loss
    want.backward()
    model = ef.from_torch(hf, task="contrastive")
    loss, slopes = jax.jit(jax.value_and_grad(lambda m, b: ef.compute_loss(m, b)[0]))(model, inputs)
    np.testing.assert_allclose(loss, want.item(), rtol=1e-5)
    slopes = ef.to_state_dict(slopes)
    for name, parameter in hf.named_parameters():
        np.testing.assert_allclose(slopes[name], parameter.grad.numpy(), atol=1e-4, rtol=1e-3, err_msg=name)


@pytest.mark.every_family
def test_all_transforms_at_once():
    """Stacked, quantized, adapted and sharded: the loss of the listed model on one device."""
    model = ef.quantize(ef.from_torch(module("Siglip2Model"), task="contrastive"), "8bit")
    model = ef.apply_lora(model, "all-linear", rank=2, key=jax.random.key(0))
    loss, inputs = jax.jit(lambda m, b: ef.compute_loss(m, b)[0]), images() | texts()
    rules = dataclasses.replace(ef.default_rules(model), indivisible="replicate")
    stacked = ef.stack(model)
    assert len(ef.params(stacked)) < len(ef.params(model))
    split = ef.shard(stacked, rules, ef.make_mesh(dp=2, fsdp=2, tp=2))
    np.testing.assert_allclose(loss(split, inputs), loss(model, inputs), rtol=1e-4)


@pytest.mark.quick("inputs", "patches of any shape")
def test_shapes():
    """What an image does not fill says nothing, a square need not be named, and shapes that do not fit are an error."""
    model, given = ef.from_torch(module("Siglip2VisionModel"), task="base"), images()
    want = ef.forward(model, **given).pooler_output
    junk = np.where(given["pixel_attention_mask"][..., None] > 0, given["pixel_values"], 9.0).astype(np.float32)
    np.testing.assert_allclose(ef.forward(model, **{**given, "pixel_values": junk}).pooler_output, want, atol=1e-5)
    small = {"pixel_values": given["pixel_values"][2:, :4]}
    np.testing.assert_allclose(ef.forward(model, **small).pooler_output, want[2:], atol=1e-5)
    with pytest.raises(ValueError, match="no square need spatial_shapes"):
        ef.forward(model, pixel_values=given["pixel_values"])
    with pytest.raises(ValueError, match="do not fit the 15 patches"):
        ef.forward(model, **{**given, "spatial_shapes": SHAPES + 3})

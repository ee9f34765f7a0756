"""Models of images against transformers: the same numbers, files both ways, gradients, and all transforms together."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef
from cases import IMAGES, in_test_all
from easyfn.testing import Case, laws
from easyfn.testing.case import forward

ANSWERS = ("last_hidden_state", "pooler_output", "logits", "hidden_states", "attentions")
ANSWERS += ("image_embeds", "text_embeds", "logits_per_image", "logits_per_text", "reconstruction")
NAMES = list(IMAGES)
SMALLER = [n for n in NAMES if not IMAGES[n].variant]


def model_of(name):
    case = IMAGES[name]
    if name not in MODELS:
        MODELS[name] = ef.from_torch(case.torch(), task=case.task)
    return MODELS[name]


MODELS: dict[str, object] = {}


def batch(model, rows=2, seed=0):
    drawn = ef.sample_inputs(model, rows, 9, key=jax.random.key(seed))
    return {name: np.asarray(value) for name, value in drawn.items()}


def torch_run(module, inputs, **more):
    import torch

    with torch.no_grad():
        out = module(**{name: torch.tensor(value) for name, value in inputs.items()}, **more)
    return {k: jax.tree.map(lambda t: t.float().numpy(), out[k]) for k in ANSWERS if out.get(k) is not None}


def close(got, want, what, atol=1e-4):
    assert np.shape(got) == np.shape(want), f"{what}: {np.shape(got)} against {np.shape(want)}"
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), atol=atol, rtol=1e-4, err_msg=what)


def agree(out, want):
    for name, value in want.items():
        mine = getattr(out, name)
        assert mine is not None, f"there is no {name}"
        if isinstance(value, tuple):
            assert len(mine) == len(value), name
            for i, (a, b) in enumerate(zip(mine, value, strict=True)):
                close(a, b, f"{name}[{i}]")
        else:
            close(mine, value, name)


@pytest.mark.quick("models", "images", rows=["vit", "clip"])
@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_transformers(name):
    model, module = model_of(name), IMAGES[name].torch()
    inputs = batch(model)
    # Where layers read images only, transformers leaves them out of the hidden states of text.
    wants = {
        "output_hidden_states": name != "mllama",
        "output_attentions": "convnext" not in name and "mobilenet" not in name,
    }
    want = torch_run(module, inputs, **wants)
    assert want
    agree(jax.jit(lambda m, x: ef.forward(m, **x, **wants))(model, inputs), want)


@pytest.mark.parametrize("name", NAMES)
def test_files_both_ways(name, tmp_path):
    """Names, shapes and bits of the file are transformers'; what we save it reads, and it says the same."""
    from safetensors.numpy import load_file

    case, model = IMAGES[name], model_of(name)
    case.torch().save_pretrained(tmp_path / "theirs")
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    ef.save(model, tmp_path / "ours")
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert all(np.array_equal(ours[k], theirs[k]) for k in ours)
    back = ef.load(tmp_path / "theirs", progress=False)
    assert ef.task(back) == case.task
    for path, value in ef.params(back).items():
        assert np.array_equal(value, ef.params(model)[path]), path
    # Of PaliGemma's two ways only eager attention is causal without token_type_ids.
    eager = {"attn_implementation": "eager"} if case.task == "causal-lm" else {}
    again = type(case.torch()).from_pretrained(tmp_path / "ours", **eager).eval()
    inputs = batch(model)
    want = torch_run(case.torch(), inputs)
    for key, value in torch_run(again, inputs).items():
        close(value, want[key], key, 1e-6)


def test_laws_speak_of_two_towers():
    """Batches are drawn with an image for each text, and what is answered is compared."""
    held = Case(name="clip", make=lambda key: IMAGES["clip"].model(), causal=False)
    laws.flops_are_positive(held)
    answers, _ = jax.eval_shape(forward, held.model, held.given())
    assert {"text_embeds", "image_embeds", "logits_per_image"} <= set(answers)


# Patches, stages of convolutions, windows, two towers, and one way each of placing images in a text.
KINDS = ["vit", "convnext", "swin", "clip", "llava", "gemma3-images", "qwen2-vl", "mllama"]


@pytest.mark.parametrize("name", in_test_all(KINDS, SMALLER))
def test_gradient_and_transforms(name):
    """Every weight that answers has transformers' gradient; stacked, quantized, adapted and sharded it is one function."""
    import torch

    model, module = model_of(name), IMAGES[name].make()
    inputs = batch(model)
    answers = {k: v for k, v in torch_run(module, inputs).items() if not isinstance(v, tuple)}
    noise = {k: np.random.RandomState(3).randn(*np.shape(v)).astype(np.float32) for k, v in answers.items()}

    def total(m, x):
        out = ef.forward(m, **x)
        return sum(jnp.sum(getattr(out, k) * noise[k]) for k in noise)

    slopes = jax.jit(jax.grad(total))(model, inputs)
    trained = lambda g, t: g if t else np.zeros(g.shape)  # buffers are not
    slopes = jax.tree.map(trained, slopes, ef.trainable(model))
    module.requires_grad_(True)
    out = module(**{k: torch.tensor(v) for k, v in inputs.items()})
    sum((out[k] * torch.tensor(noise[k])).sum() for k in noise).backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        for buffer in module.buffers():  # which have none
            buffer.zero_()
    want = ef.params(ef.from_torch(module, task=IMAGES[name].task))
    largest = max(np.abs(v).max() for v in want.values())
    for path, value in ef.params(slopes).items():
        np.testing.assert_allclose(value, want[path], atol=2e-5 * largest, rtol=1e-3, err_msg=path)

    key = jax.random.key(0)
    small = model  # of convolutions alone: nothing to quantize, nothing to adapt
    if ef.find_slots(model, ("linear",)):
        small = ef.apply_lora(ef.quantize(model, "8bit"), "all-linear", rank=2, key=key)
    whole = jax.jit(lambda m, x: {k: getattr(ef.forward(m, **x), k) for k in noise})
    want = whole(small, inputs)
    rules = dataclasses.replace(ef.default_rules(small), indivisible="replicate")
    split = ef.shard(ef.stack(small), rules, ef.make_mesh(dp=2, fsdp=2, tp=2))
    for k, answer in whole(split, inputs).items():
        # A product of few rows with int8 codes rounds its input to two digits, an error of up to 4e-5 of a row's largest
        # result: where devices add in another order, a digit may round the other way.
        np.testing.assert_allclose(answer, want[k], atol=2e-4 * np.abs(want[k]).max(), rtol=1e-4, err_msg=k)


@pytest.mark.quick("nn", "patches are resized as in torch")
def test_sizes():
    """Another size is refused unless positions are interpolated, as transformers does it; DINOv2 always does."""
    pixels = np.random.RandomState(0).randn(1, 2, 40, 24).astype(np.float32)
    model, module = model_of("vit-classifier"), IMAGES["vit-classifier"].torch()
    with pytest.raises(ValueError, match=r"5 x 3 patches.*3 x 3.*interpolate_pos_encoding=True"):
        ef.forward(model, pixel_values=pixels)
    want = torch_run(module, {"pixel_values": pixels}, interpolate_pos_encoding=True)
    agree(ef.forward(model, pixel_values=pixels, interpolate_pos_encoding=True), want)
    pixels = np.random.RandomState(0).randn(1, 3, 26, 16).astype(np.float32)
    mask = np.array([[True, False, True, False, False, False]])
    module = IMAGES["dinov2"].torch()
    for more in ({}, {"bool_masked_pos": mask}):
        agree(
            ef.forward(model_of("dinov2"), pixel_values=pixels, **more),
            torch_run(module, {"pixel_values": pixels, **more}),
        )
    with pytest.raises(TypeError, match="takes no bool_masked_pos"):
        ef.forward(model, pixel_values=pixels[:, :2], bool_masked_pos=mask)
    for name, told in (("dinov2_with_registers", False), ("ijepa-classifier", True), ("vit_msn-classifier", True)):
        more = {"interpolate_pos_encoding": True} if told else {}
        want = torch_run(IMAGES[name].torch(), {"pixel_values": pixels}, **more)
        agree(ef.forward(model_of(name), pixel_values=pixels, **more), want)
    for name in ("convnextv2-classifier", "resnet-early"):
        agree(
            ef.forward(model_of(name), pixel_values=pixels), torch_run(IMAGES[name].torch(), {"pixel_values": pixels})
        )


def test_masked_patches():
    """BEiT at another size, with masked patches, and their loss with labels of all patches and of the masked ones."""
    import torch

    pixels = np.random.RandomState(0).randn(2, 3, 16, 40).astype(np.float32)
    agree(
        ef.forward(model_of("beit"), pixel_values=pixels), torch_run(IMAGES["beit"].torch(), {"pixel_values": pixels})
    )
    mask = np.random.RandomState(1).rand(2, 10) < 0.4
    labels = np.random.RandomState(2).randint(0, 19, (2, 10))
    model, inputs = model_of("beit-masked"), {"pixel_values": pixels, "bool_masked_pos": mask}
    with torch.no_grad():
        given = {k: torch.tensor(v) for k, v in inputs.items()}
        want = IMAGES["beit-masked"].torch()(**given, labels=torch.tensor(labels[mask]))
    close(ef.forward(model, **inputs).logits, want.logits.numpy(), "logits")
    for some in (labels, labels[mask]):
        loss, _ = ef.compute_loss(model, {**inputs, "labels": some})
        np.testing.assert_allclose(loss, want.loss.item(), rtol=1e-5)
    with pytest.raises(ValueError, match="3 labels for"):
        ef.compute_loss(model, {**inputs, "labels": labels[0, :3]})
    with pytest.raises(ValueError, match="needs batch\\['bool_masked_pos'\\]"):
        ef.compute_loss(model, {"pixel_values": pixels, "labels": labels})


@pytest.mark.parametrize("name", ["vit-masked", "swinv2-masked"])
def test_masked_pixels(name):
    """Masked patches are told by their pixels, and the loss is transformers'; of square images alone."""
    import torch

    model, module = model_of(name), IMAGES[name].torch()
    inputs, c = batch(model), module.config
    mask = np.random.RandomState(1).rand(2, (c.image_size // c.patch_size) ** 2) < 0.4
    inputs["bool_masked_pos"] = mask
    with torch.no_grad():
        want = module(**{k: torch.tensor(v) for k, v in inputs.items()})
    agree(ef.forward(model, **inputs), {"reconstruction": want.reconstruction.numpy()})
    loss, _ = ef.compute_loss(model, inputs)
    np.testing.assert_allclose(loss, want.loss.item(), rtol=1e-5)
    with pytest.raises(ValueError, match="square images"):
        ef.forward(model, pixel_values=inputs["pixel_values"][:, :, :16], interpolate_pos_encoding=True)
    with pytest.raises(ValueError, match="needs batch\\['bool_masked_pos'\\]"):
        ef.compute_loss(model, {"pixel_values": inputs["pixel_values"]})


def test_segmentation_loss():
    """Scores are resampled to the labels of pixels of an image of another size, of which some do not count."""
    import torch

    model, module = model_of("segformer-segmentation"), IMAGES["segformer-segmentation"].torch()
    draw = np.random.RandomState(0)
    pixels = draw.randn(2, 3, 37, 61).astype(np.float32)
    labels = draw.randint(0, 5, (2, 37, 61))
    labels[0, :9] = 255
    with torch.no_grad():
        want = module(pixel_values=torch.tensor(pixels), labels=torch.tensor(labels))
    close(ef.forward(model, pixel_values=pixels).logits, want.logits.numpy(), "logits")
    loss, metrics = ef.compute_loss(model, {"pixel_values": pixels, "labels": labels})
    np.testing.assert_allclose(loss, want.loss.item(), rtol=1e-5)
    assert metrics["num_tokens"] == np.sum(labels != 255)


def test_loss_and_training():
    """Image classification learns; dropout and stochastic depth need a key."""
    model = model_of("vit-classifier")
    inputs = {**batch(model), "labels": np.array([1, 3])}
    loss, metrics = ef.compute_loss(model, inputs)
    import torch

    want = (
        IMAGES["vit-classifier"]
        .torch()(pixel_values=torch.tensor(inputs["pixel_values"]), labels=torch.tensor([1, 3]))
        .loss
    )
    np.testing.assert_allclose(loss, want.item(), rtol=1e-5)
    assert ef.task(model) == "image-classification" and metrics["num_tokens"] == 2
    assert ef.flops(model, 2, 1) == 2 * ef.flops(model, 1, 1) > 0
    config = ef.models.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=8, drop_path_rate=0.5
    )
    deep = ef.init(config, key=jax.random.key(0), task="base")
    pixels = jnp.ones((4, 3, 16, 16))
    a, b = (ef.forward(deep, pixel_values=pixels, key=k).last_hidden_state for k in (None, jax.random.key(1)))
    assert not np.allclose(a, b) and np.isfinite(b).all()


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("old", "new"), [((5, 5), (7, 3)), ((4, 6), (8, 6)), ((7, 5), (2, 5))])
def test_resampling_is_torchs(method, antialias, old, new):
    import torch

    table = np.random.RandomState(0).randn(old[0] * old[1], 3).astype(np.float32)
    grid = torch.tensor(table).reshape(1, *old, 3).permute(0, 3, 1, 2)
    want = torch.nn.functional.interpolate(grid, size=new, mode=method, align_corners=False, antialias=antialias)
    got = ef.nn.resize_grid(jnp.asarray(table), old, new, method=method, antialias=antialias)
    np.testing.assert_allclose(got, want.permute(0, 2, 3, 1).reshape(-1, 3), atol=2e-6)


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ((3, 3), {"stride": 2, "padding": 1}),
        ((2, 3), {"stride": (2, 3)}),
        ((7, 7), {"padding": 3, "groups": 4}),
        ((5,), {"padding": 2}),
    ],
)
def test_convolutions_are_torchs(kernel, options):
    import torch

    kind = {1: torch.nn.Conv1d, 2: torch.nn.Conv2d}[len(kernel)]
    theirs = kind(4, 8, kernel, **options)
    conv = ef.init(ef.nn.Conv(4, 8, kernel, **options), key=jax.random.key(0))
    conv = eqx.tree_at(
        lambda c: (c.weight, c.bias), conv, tuple(jnp.asarray(t.detach().numpy()) for t in (theirs.weight, theirs.bias))
    )
    x = np.random.RandomState(0).randn(2, 4, *(11, 9)[: len(kernel)]).astype(np.float32)
    want = theirs(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(
        np.moveaxis(np.asarray(conv(jnp.moveaxis(jnp.asarray(x), 1, -1))), -1, 1), want, atol=1e-5
    )


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_contrastive_loss(name):
    """The reference's loss, padded texts included; on eight devices the negatives of all of them, the same number."""
    import torch

    model, module = model_of(name), IMAGES[name].torch()
    rng = np.random.RandomState(0)
    ids = rng.randint(3, 90, (8, 9))
    mask = np.ones_like(ids)
    mask[1::2, 6:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": rng.randn(8, 3, 24, 24).astype(np.float32)}
    if name == "clip":
        inputs["input_ids"] = np.where(np.arange(9)[None] == 5, 96, ids)  # the end of every text
    with torch.no_grad():
        want = module(**{k: torch.tensor(v) for k, v in inputs.items()}, return_loss=True).loss.item()
    compiled = jax.jit(lambda m, b: jax.value_and_grad(lambda m: ef.compute_loss(m, b)[0])(m))
    loss, slopes = compiled(model, inputs)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    mesh = ef.make_mesh(dp=8, fsdp=1)
    split = ef.shard(model, mesh=mesh)
    loss, others = compiled(split, ef.shard_batch(inputs, mesh))
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    for path, value in ef.params(others).items():
        np.testing.assert_allclose(value, ef.params(slopes)[path], atol=1e-5, err_msg=path)
    with pytest.raises(ValueError, match="needs batch\\['pixel_values'\\]"):
        ef.compute_loss(model, {"input_ids": ids})
    only = ef.forward(model, pixel_values=inputs["pixel_values"])
    both = ef.forward(model, **inputs)
    np.testing.assert_allclose(only.image_embeds, both.image_embeds, atol=1e-6)
    assert only.text_embeds is None and both.logits_per_image.shape == (8, 8)

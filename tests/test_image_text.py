"""Images among words, against transformers: logits, cached decoding, greedy tokens, files; padded on both sides."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch

import easyfn as ef
from cases import IMAGES
from test_vision import close, model_of, torch_run

NAMES = [n for n, c in IMAGES.items() if c.task == "causal-lm"]


def prompt(name, pad="left"):
    """Two rows of what the processor would make of text with images: padded ids, mask, pixels."""
    rng = np.random.RandomState(0)
    parts, features = (grids if "qwen" in name else squares)(model_of(name).config, rng)
    width = max(map(len, parts))
    ids, mask = np.zeros((2, width), int), np.zeros((2, width), int)
    for i, row in enumerate(parts):
        place = slice(width - len(row), width) if pad == "left" else slice(0, len(row))
        ids[i, place], mask[i, place] = row, 1
    if "qwen" in name:
        features["mm_token_type_ids"] = np.where(ids == 7, 1, np.where(ids == 8, 2, 0))
    return {"input_ids": ids, "attention_mask": mask, **features}


def squares(config, rng):
    """An image in each row, all of the tower's size."""
    vision = config.vision_config
    count = (vision.image_size // vision.patch_size) ** 2
    count += config.vision_feature_select_strategy == "full" and vision.model_type == "clip_vision_model"
    rows = [[*rng.randint(10, 90, 3), *[config.image_token_index] * count, *rng.randint(10, 90, n)] for n in (5, 2)]
    return rows, {"pixel_values": rng.randn(2, 3, vision.image_size, vision.image_size).astype(np.float32)}


def grids(config, rng):
    """Two images and a video in the first row, an image in the second, each of its own size."""
    images, videos = np.array([[1, 4, 6], [1, 8, 4], [1, 6, 10]]), np.array([[3, 4, 4]])
    words = lambda n: [*rng.randint(10, 90, n)]
    places = lambda token, grid: [5, *[token] * int(grid.prod() // 4), 6]
    rows = [
        [*words(3), *places(7, images[0]), *words(2), *places(8, videos[0]), *places(7, images[1]), *words(4)],
        [*words(1), *places(7, images[2]), *words(5)],
    ]
    pixels = lambda grid: rng.randn(grid.prod(1).sum(), 3 * 2 * 4 * 4).astype(np.float32)
    features = {"pixel_values": pixels(images), "image_grid_thw": images}
    features |= {"pixel_values_videos": pixels(videos), "video_grid_thw": videos}
    return rows, features


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_cache(name):
    model, module, inputs = model_of(name), IMAGES[name].torch(), prompt(name)
    mask = inputs["attention_mask"]
    told = {} if "qwen" in name else {"position_ids": np.maximum(mask.cumsum(1) - 1, 0)}
    want = torch_run(module, {**inputs, **told})["logits"]
    out = jax.jit(lambda m, x: ef.forward(m, **x))(model, inputs)
    close(np.asarray(out.logits)[mask > 0], want[mask > 0], "logits")
    cache, head = ef.init_cache(model, 2, mask.shape[1] + 3), mask.shape[1] - 2
    cut = lambda v: v[:, :head] if v.shape == mask.shape else v
    first = ef.forward(model, **{k: cut(v) for k, v in inputs.items()}, cache=cache)
    rest = ef.forward(model, inputs["input_ids"][:, head:], cache=first.cache)
    close(rest.logits, want[:, head:], "cached")


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens(name, pad):
    model, module, inputs = model_of(name), IMAGES[name].torch(), prompt(name)
    given = {k: torch.tensor(v) for k, v in inputs.items()}
    want = module.generate(**given, max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0)
    if pad == "right":
        inputs = prompt(name, "right")
    got = ef.generate(model, inputs.pop("input_ids"), **inputs, max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert np.array_equal(got.sequences[:, -5:], want[:, -5:].numpy())


def test_what_does_not_fit():
    model, inputs = model_of("llava"), prompt("llava")
    with pytest.raises(ValueError, match=r"have 9 features and input_ids 18 places"):
        ef.forward(model, **{**inputs, "pixel_values": inputs["pixel_values"][:1]})
    ids = inputs.pop("input_ids")
    with pytest.raises(ValueError, match=r"have 9 features and input_ids 18 places"):
        ef.generate(model, ids, **{**inputs, "pixel_values": inputs["pixel_values"][:1]}, max_new_tokens=2)
    with pytest.raises(ValueError, match=r"pixel_values must have shape \(images, 3, height, width\)"):
        ef.generate(model, ids, **{**inputs, "pixel_values": inputs["pixel_values"][0]}, max_new_tokens=2)
    with pytest.raises(ValueError, match="pixel_values and prefill_chunk_size=4 do not go together"):
        ef.generate(model, ids, **inputs, max_new_tokens=2, prefill_chunk_size=4)
    blind = jax.jit(lambda m, i, p: ef.forward(m, i, pixel_values=p))(model, ids, inputs["pixel_values"][:1]).logits
    assert np.isnan(blind[:, -1]).any()  # nobody can raise in a compiled function
    assert np.isfinite(ef.forward(model, ids).logits).all()  # text alone, as everywhere


def test_loss_learns_text_after_images():
    model, module, inputs = model_of("llava"), IMAGES["llava"].torch(), prompt("llava", "right")
    labels = np.where((inputs["attention_mask"] > 0) & (inputs["input_ids"] != 7), inputs["input_ids"], -100)
    with torch.no_grad():
        want = module(**{k: torch.tensor(v) for k, v in {**inputs, "labels": labels}.items()}).loss.item()
    loss, slopes = jax.value_and_grad(lambda m: ef.compute_loss(m, {**inputs, "labels": labels})[0])(model)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    assert np.abs(slopes.model.multi_modal_projector.linear_1.weight).max() > 0


@pytest.mark.parametrize("name", NAMES)
def test_beams_and_rows(name):
    """Features enter once: beams and several answers share the prompt's cache."""
    model, inputs = model_of(name), prompt(name)
    ids = inputs.pop("input_ids")
    with torch.no_grad():
        given = {k: torch.tensor(v) for k, v in inputs.items()}
        want = (
            IMAGES[name]
            .torch()
            .generate(
                input_ids=torch.tensor(ids), **given, max_new_tokens=4, num_beams=2, do_sample=False, eos_token_id=None
            )
        )
    got = ef.generate(model, ids, **inputs, max_new_tokens=4, num_beams=2, eos_token_id=None)
    assert np.array_equal(got.sequences[:, -4:], want[:, -4:].numpy())

"""Images among words, against transformers: logits, cached decoding, greedy tokens, files; padded on both sides."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import easyfn as ef
from cases import IMAGES, in_test_all, reference
from test_vision import close, model_of, torch_run

NAMES = [n for n, c in IMAGES.items() if c.task == "causal-lm"]
SMALLER = [n for n in NAMES if not IMAGES[n].variant]
BASES = [n for n in SMALLER if n != "llama4"]  # of which transformers has no class without a head


def prompt(name, pad="left"):
    """Two rows of what the processor would make of text with images."""
    return IMAGES[name].inputs(pad)


def told(name, mask):
    """The positions that transformers must be told where it would count padding."""
    if "qwen" in name or "glm" in name:
        return {}
    return {"position_ids": np.maximum(mask.cumsum(1) - 1, 0) + ("paligemma" in name)}


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_cache(name):
    model, module, inputs = model_of(name), IMAGES[name].torch(), prompt(name)
    mask = inputs["attention_mask"]
    want = torch_run(module, {**inputs, **told(name, mask)})["logits"]
    run = jax.jit(lambda m, x, cache: ef.forward(m, **x, cache=cache))
    out = run(model, inputs, None)
    close(np.asarray(out.logits)[mask > 0], want[mask > 0], "logits")
    cache, head = ef.init_cache(model, 2, mask.shape[1] + 3), mask.shape[1] - 2
    cut = lambda v: v[:, :head] if v.shape[:2] == mask.shape else v
    first = run(model, {k: cut(v) for k, v in inputs.items()}, cache)
    rest = run(model, {"input_ids": inputs["input_ids"][:, head:]}, first.cache)
    close(rest.logits, want[:, head:], "cached")


@pytest.mark.parametrize("name", SMALLER)
def test_greedy_tokens(name):
    model, module, inputs = model_of(name), IMAGES[name].torch(), prompt(name)
    given = {k: torch.tensor(v) for k, v in inputs.items()}
    want = module.generate(**given, max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0)
    for inputs in (prompt(name), prompt(name, "right")):  # one program for both
        got = ef.generate(
            model, inputs.pop("input_ids"), **inputs, max_new_tokens=5, do_sample=False, eos_token_id=None
        )
        assert np.array_equal(got.sequences[:, -5:], want[:, -5:].numpy())


@pytest.mark.parametrize("name", ["gemma3-images", "qwen3-vl", "mllama"])
def test_stacked_layers_read_images(name):
    """Blocks of the mask, what is added behind layers, and layers of two kinds are as good in a scan."""
    model, inputs = model_of(name), prompt(name)
    both = jax.jit(lambda m, x: (ef.forward(m, **x).logits, ef.forward(ef.stack(m), **x).logits))
    listed, stacked = both(model, inputs)
    close(stacked, listed, "stacked")


@pytest.mark.parametrize("name", ["qwen2-vl", "gemma3-images", "llava-next", "mllama", "qwen3-vl-moe"])
def test_other_spellings_of_files(name):
    """Files under the names of transformers' modules, and with experts as (in, out), are the same model."""
    module, model = IMAGES[name].torch(), model_of(name)
    held = {key: value.numpy() for key, value in module.state_dict().items()}
    held = {key: np.swapaxes(value, 1, 2) if ".experts." in key else value for key, value in held.items()}
    again = ef.from_state_dict(ef.read_config(module.config), held)
    for path, value in ef.params(again).items():
        assert np.array_equal(value, ef.params(model)[path]), path


@pytest.mark.parametrize("name", in_test_all(["llava-next", "qwen2-vl"], BASES))
def test_without_a_head(name, tmp_path):
    """`LlavaModel` and its like: hidden states, and the names and bytes of files."""
    module, inputs = IMAGES[name].torch().model, prompt(name)
    mask = inputs["attention_mask"]
    model = ef.from_torch(module)
    assert ef.task(model) == "base" and ef.torch_class(model) is type(module)
    want = torch_run(module, {**inputs, **told(name, mask)})["last_hidden_state"]
    got = jax.jit(lambda m, x: ef.forward(m, **x).last_hidden_state)(model, inputs)
    close(np.asarray(got)[mask > 0], want[mask > 0], "hidden states")
    module.save_pretrained(tmp_path / "theirs")
    ef.save(ef.load(tmp_path / "theirs", progress=False), tmp_path / "ours")
    theirs, ours = (load_file(tmp_path / side / "model.safetensors") for side in ("theirs", "ours"))
    assert theirs.keys() == ours.keys() and all(np.array_equal(theirs[n], ours[n]) for n in theirs)


@pytest.mark.parametrize("pad", ["left", "right"])
def test_a_classifier_of_images_and_text(pad):
    """Gemma 3's reads the last token that is no padding, and has transformers' loss."""
    name, inputs = "gemma3-classifier", {**prompt("gemma3-images", pad)}
    labels = {"labels": np.array([2, 0])}
    mask = inputs["attention_mask"]
    given = {k: torch.tensor(v) for k, v in {**inputs, **told("gemma3", mask), **labels}.items()}
    with torch.no_grad():
        want = IMAGES[name].torch()(**given)
    got = ef.forward(model_of(name), **inputs).logits
    close(got, want.logits.numpy(), "logits")
    np.testing.assert_allclose(ef.compute_loss(model_of(name), {**inputs, **labels})[0], want.loss.item(), rtol=1e-4)


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


@pytest.mark.parametrize("name", ["llava-next", "idefics3", "gemma4-images", "qwen3-vl"])
def test_both_counts_are_named(name):
    """Where the number of features is data, too."""
    inputs = prompt(name)
    ids = inputs.pop("input_ids")
    there = int((ids == 7).sum())
    ids[tuple(np.argwhere(ids == 7)[0])] = 10
    with pytest.raises(ValueError, match=rf"images have {there} features and input_ids {there - 1} places"):
        ef.generate(model_of(name), ids, **inputs, max_new_tokens=2)


@pytest.mark.parametrize("name", ["Idefics3", "SmolVLM"])
def test_images_of_zeros_and_odd_grids(name):
    """Images of three by three patches on a tower of five by five, parts of them padding; one of zeros is none, except where
    SmolVLM has no other."""
    import transformers

    vision = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = {
        "model_type": "llama",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "vocab_size": 97,
        "num_attention_heads": 2,
    }
    config = getattr(transformers, f"{name}Config")(
        text_config={**text, "intermediate_size": 16},
        vision_config={**vision, "image_size": 20, "patch_size": 4},
        image_token_id=7,
        scale_factor=3,
    )
    module = reference(getattr(transformers, f"{name}ForConditionalGeneration"), config)
    model, random = ef.from_torch(module), np.random.RandomState(0)
    run = jax.jit(lambda m, x: ef.forward(m, **x).logits)
    mask = np.ones((1, 4, 12, 12), int)
    mask[0, 0, 4:], mask[0, 1, :, 5:], mask[0, 2, 9:, :8] = 0, 0, 0
    pixels = (random.randn(1, 4, 3, 12, 12) * mask[:, :, None]).astype(np.float32)
    pixels[0, 1] = 0
    for drawn, count in [(pixels, 3), (0 * pixels, 1)][: 1 if name == "Idefics3" else 2]:
        ids = np.array([[3, *[7] * count, *random.randint(10, 90, 5 - count)]])
        inputs = {"input_ids": ids, "pixel_values": drawn, "pixel_attention_mask": mask}
        close(run(model, inputs), torch_run(module, inputs)["logits"], name)


def test_loss_learns_text_after_images():
    model, module, inputs = model_of("llava"), IMAGES["llava"].torch(), prompt("llava", "right")
    labels = np.where((inputs["attention_mask"] > 0) & (inputs["input_ids"] != 7), inputs["input_ids"], -100)
    with torch.no_grad():
        want = module(**{k: torch.tensor(v) for k, v in {**inputs, "labels": labels}.items()}).loss.item()
    loss, slopes = jax.value_and_grad(lambda m: ef.compute_loss(m, {**inputs, "labels": labels})[0])(model)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    assert np.abs(slopes.model.multi_modal_projector.linear_1.weight).max() > 0


@pytest.mark.parametrize("name", ["llava", "gemma3-images", "qwen2-vl", "mllama"])
def test_beams_and_rows(name):
    """Features enter once: beams and several answers share the prompt's cache, of each kind that there is."""
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


def test_tiles_are_chosen_as_the_processor_chooses():
    """It rounds quotients to 64 bits: of some images it counts one row of pixels less than they have."""
    from transformers.image_processing_utils import select_best_resolution

    from easyfn.nn.packing import AnyResolution

    resolutions = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
    pack = AnyResolution(8, resolutions, tile=336, side=24)
    odd = np.array([[622, 1243], [630, 1259], [1043, 2085], [1082, 2163], [1243, 622], [49, 98], [336, 672]])
    sizes = np.concatenate([odd, np.random.RandomState(0).randint(1, 3000, (500, 2))])
    rows, columns = pack.grid(jax.numpy.asarray(sizes, "int32"))
    ours = np.stack([np.asarray(rows), np.asarray(columns)], axis=1) * 336
    np.testing.assert_array_equal(
        ours, [select_best_resolution(tuple(size), list(resolutions)) for size in sizes.tolist()]
    )

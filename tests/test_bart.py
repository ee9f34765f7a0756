"""BART against transformers: outputs, loss, greedy and beams token for token, files both ways."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import easyfn as ef
from cases import CASES, tokens


def batch():
    ids, mask = tokens(3, 11, pad=False)
    ids[1, -3:], mask[1, -3:] = 0, 0
    target, _ = tokens(3, 7, seed=1, pad=False)
    return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": target}


@pytest.mark.parametrize("name", ["bart", "bart-base"])
def test_outputs_and_files(tmp_path, name):
    case, inputs = CASES[name], batch()
    hf = case.torch()
    hf.save_pretrained(tmp_path / "theirs")
    model = ef.load(tmp_path / "theirs", progress=False)
    assert ef.task(model) == case.task
    asked = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        want = hf(**{k: torch.tensor(v) for k, v in inputs.items()}, **asked)
    got = ef.forward(model, **inputs, **asked)
    field = "logits" if name == "bart" else "last_hidden_state"
    np.testing.assert_allclose(getattr(got, field), getattr(want, field).numpy(), atol=1e-4)
    for a, b in zip(got.hidden_states, want.decoder_hidden_states, strict=True):
        np.testing.assert_allclose(a, b.numpy(), atol=1e-4)
    for a, b in zip(got.cross_attentions, want.cross_attentions, strict=True):
        np.testing.assert_allclose(a, b.numpy(), atol=1e-5)
    ef.save(model, tmp_path / "ours")
    before, after = (load_file(tmp_path / d / "model.safetensors") for d in ("theirs", "ours"))
    assert set(before) == set(after)
    for key, value in before.items():
        np.testing.assert_array_equal(value, after[key], err_msg=key)
    back = type(hf).from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        again = getattr(back(**{k: torch.tensor(v) for k, v in inputs.items()}), field).numpy()
    np.testing.assert_allclose(again, getattr(want, field).numpy(), atol=1e-5)


def test_loss_and_cache():
    case, inputs = CASES["bart"], batch()
    labels = np.random.RandomState(3).randint(3, 97, (3, 6))
    source = {k: inputs[k] for k in ("input_ids", "attention_mask")}
    with torch.no_grad():
        want = case.torch()(**{k: torch.tensor(v) for k, v in source.items()}, labels=torch.tensor(labels)).loss
    loss, _ = ef.compute_loss(case.model(), {**source, "labels": labels})
    np.testing.assert_allclose(loss, want.numpy(), atol=1e-5)
    whole = ef.forward(case.model(), **inputs).logits
    cache = ef.init_cache(case.model(), 3, 8)
    first = ef.forward(case.model(), **{**inputs, "decoder_input_ids": inputs["decoder_input_ids"][:, :4]}, cache=cache)
    rest = ef.forward(case.model(), decoder_input_ids=inputs["decoder_input_ids"][:, 4:], cache=first.cache).logits
    np.testing.assert_allclose(rest, whole[:, 4:], atol=1e-4)
    assert not any("final_logits_bias" in path for path, leaf in ef.params(ef.trainable(case.model())).items() if leaf)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "forced_bos_token_id": 5}])
def test_generate(options):
    case, inputs = CASES["bart"], batch()
    source = {k: inputs[k] for k in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 7, "do_sample": False, "forced_eos_token_id": 2, **options}
    with torch.no_grad():
        want = case.torch().generate(**{k: torch.tensor(v) for k, v in source.items()}, **options).numpy()
    got = ef.generate(case.model(), source["input_ids"], attention_mask=source["attention_mask"], **options).sequences
    np.testing.assert_array_equal(np.asarray(got)[:, : want.shape[1]], want)

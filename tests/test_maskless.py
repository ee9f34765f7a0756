"""RWKV-4 and xLSTM, whose references know no mask: tokens, padding, packed documents; RWKV's halved layers."""

import dataclasses

import numpy as np
import pytest

import easyfn as ef
from cases import CASES, port, tokens

FAMILIES = ["rwkv", "xlstm"]


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_and_padding(name):
    import torch

    case, (ids, mask) = CASES[name], tokens()
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    got = ef.generate(case.model(), ids, attention_mask=mask, **options).sequences
    for row, real, answer in zip(ids, mask, got, strict=True):
        prompt = torch.tensor(row[real > 0][None])
        want = case.torch().generate(prompt, **options)
        np.testing.assert_array_equal(answer[len(row) :], want[0, prompt.shape[1] :].numpy())


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_documents(name):
    model, ids = CASES[name].model(), tokens(rows=1, pad=False)[0]
    packed = ef.forward(model, ids, segment_ids=np.array([[1] * 5 + [0] * 2 + [2] * 4])).logits
    np.testing.assert_allclose(packed[:, :5], ef.forward(model, ids[:, :5]).logits, atol=1e-5)
    np.testing.assert_allclose(packed[:, 7:], ef.forward(model, ids[:, 7:]).logits, atol=1e-5)


def test_halved_layers():
    """The reference halves its weights in place at its first pass, so ours are taken before it."""
    import torch

    module = CASES["rwkv"].make()
    module.config.rescale_every = 2
    model = port(module)
    assert model.model.config == dataclasses.replace(CASES["rwkv"].model().model.config, rescale_every=2)
    ids = tokens(rows=1, pad=False)[0]
    with torch.no_grad():
        want = module(torch.tensor(ids), output_hidden_states=True)
    got = ef.forward(model, ids, output_hidden_states=True)
    np.testing.assert_allclose(got.logits, want.logits.numpy(), atol=1e-4)
    np.testing.assert_allclose(got.hidden_states[1], want.hidden_states[1].numpy(), atol=1e-4)
    with pytest.raises(ValueError, match="has run in eval mode, which divides weights in place"):
        ef.from_torch(module)
    with torch.no_grad():
        module.train()(torch.tensor(ids))
    np.testing.assert_allclose(ef.forward(ef.from_torch(module), ids).logits, want.logits.numpy(), atol=1e-4)

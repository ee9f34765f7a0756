"""BERT and the heads on encoders, against transformers."""

import jax
import numpy as np
import pytest
import torch
from cases import CASES, names, port, positions, tokens

import easyfn as ef

BERT = [n for n in names(causal=False) if n.startswith("bert")]


def both(name, **options):
    ids, mask = tokens()
    types = np.random.RandomState(1).randint(0, 3, ids.shape)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    case = CASES[name]
    with torch.no_grad():
        # Hugging Face's pooler reads place 0, padding or not: compare it on rows that start with a token.
        theirs = case.torch()(
            **{k: torch.tensor(v) for k, v in inputs.items()}, position_ids=torch.tensor(positions(mask)), **options
        )
    return ef.forward(case.model(), **inputs, **options), theirs, mask


@pytest.mark.parametrize("name", BERT)
def test_parity(name):
    ours, theirs, mask = both(name, output_hidden_states=True, output_attentions=True)
    seen = mask > 0
    compared = 0
    pairs = {
        "last_hidden_state": "last_hidden_state",
        "logits": "prediction_logits" if name == "bert-pretraining" else "logits",
        "start_logits": "start_logits",
        "end_logits": "end_logits",
        "pooler_output": "pooler_output",
        "seq_relationship_logits": "seq_relationship_logits",
    }
    for mine, yours in pairs.items():
        if getattr(theirs, yours, None) is None:
            continue
        a, b = np.asarray(getattr(ours, mine)), getattr(theirs, yours).numpy()
        assert a.shape == b.shape
        where = seen if a.shape[:2] == mask.shape else slice(1, None)
        np.testing.assert_allclose(a[where], b[where], atol=2e-5, rtol=1e-4)
        compared += 1
    assert compared
    assert len(ours.hidden_states) == len(theirs.hidden_states) == 4
    for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        np.testing.assert_allclose(np.asarray(a)[seen], b.numpy()[seen], atol=2e-5, rtol=1e-4)
    for a, b in zip(ours.attentions, theirs.attentions, strict=True):
        np.testing.assert_allclose(a.swapaxes(1, 2)[seen], b.numpy().swapaxes(1, 2)[seen], atol=1e-5)

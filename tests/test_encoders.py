"""Encoders and every head on them, against transformers: outputs, losses, padding."""

import numpy as np
import pytest
import torch

import easyfn as ef
from cases import CASES, VOCAB, tokens
from encoder_cases import NAMES as ENCODERS

MAIN = [n for n in ENCODERS if not CASES[n].variant]
UNPADDED = [n for n in MAIN if "padding_is_invisible" not in CASES[n].expected_failures]


def batch(name, left=False):
    """Inputs and labels of a case; padding on the right, because transformers counts positions from the first column."""
    case = CASES[name]
    ids, mask = tokens(4, 11)
    if not left:
        ids[0], mask[0] = tokens(1, 11, seed=5, pad=False)[0][0], 1
    pad = case.torch().config.pad_token_id
    inputs = {"input_ids": np.where(mask > 0, ids, pad), "attention_mask": mask}
    if (getattr(case.torch().config, "type_vocab_size", 0) or 0) > 1:
        inputs["token_type_ids"] = np.random.RandomState(1).randint(0, 2, ids.shape)
    draw = np.random.RandomState(2)
    if sides := getattr(case.torch().config, "max_2d_position_embeddings", None):  # left, top, right, bottom
        corners = draw.randint(0, sides, (2, *ids.shape, 2))
        inputs["bbox"] = np.concatenate([corners.min(0), corners.max(0)], axis=-1)
    labels = {
        "masked-lm": {
            "labels": np.where((draw.rand(*ids.shape) < 0.4) & (mask > 0), draw.randint(0, VOCAB, ids.shape), -100)
        },
        "token-classification": {"labels": np.where(mask > 0, draw.randint(0, 5, ids.shape), -100)},
        "sequence-classification": {"labels": draw.randint(0, 3, 4)},
        "multiple-choice": {"labels": np.array([1, 0])},
        "pretraining": {"labels": draw.randint(0, 2, ids.shape)},
    }.get(case.task, {})
    if name == "albert-pretraining":
        labels["labels"] = np.where(mask > 0, labels["labels"], -100)
        labels["sentence_order_label"] = draw.randint(0, 2, 4)
    if case.task == "multiple-choice":
        inputs = {k: v.reshape(2, 2, -1) for k, v in inputs.items()}
    return inputs, labels


def theirs(hf, inputs, **options):
    with torch.no_grad():
        return hf(**{k: torch.tensor(v) for k, v in inputs.items()}, **options)


OF_ALBERT = {"logits": "prediction_logits", "seq_relationship_logits": "sop_logits"}  # in pretraining


@pytest.mark.parametrize("name", ENCODERS)
def test_outputs_and_loss(name):
    case = CASES[name]
    inputs, labels = batch(name)
    want = theirs(case.torch(), {**inputs, **labels}, output_hidden_states=True, output_attentions=True)
    got = ef.forward(case.model(), **inputs, output_hidden_states=True, output_attentions=True)
    seen = inputs["attention_mask"].reshape(4, -1) > 0
    compared = 0
    for field in (
        "last_hidden_state",
        "logits",
        "pooler_output",
        "start_logits",
        "end_logits",
        "seq_relationship_logits",
    ):
        if (b := getattr(want, OF_ALBERT.get(field, field), getattr(want, field, None))) is None:
            continue
        a, b = np.asarray(getattr(got, field)), b.numpy()
        assert a.shape == b.shape, field
        where = seen if a.shape[:2] == seen.shape else slice(None)
        np.testing.assert_allclose(a[where], b[where], atol=1e-4, rtol=1e-4)
        compared += 1
    assert compared
    assert len(got.hidden_states) == len(want.hidden_states)
    for a, b in zip(got.hidden_states, want.hidden_states, strict=True):
        np.testing.assert_allclose(np.asarray(a)[seen], b.numpy()[seen], atol=1e-4, rtol=1e-4)
    for a, b in zip(got.attentions, want.attentions, strict=True):
        b = torch.softmax(b, -1) if case.family == "squeezebert" else b  # which answers scores
        np.testing.assert_allclose(np.asarray(a).swapaxes(1, 2)[seen], b.numpy().swapaxes(1, 2)[seen], atol=1e-5)
    if labels:
        loss, _ = ef.compute_loss(case.model(), {**inputs, **labels})
        np.testing.assert_allclose(loss, want.loss.numpy(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", UNPADDED)
def test_padding(name):
    case = CASES[name]
    left, _ = batch(name, left=True)
    one = {k: v[:1, left["attention_mask"][0] > 0] for k, v in left.items()}
    alone = ef.forward(case.model(), **one).logits
    padded = ef.forward(case.model(), **left).logits[:1, left["attention_mask"][0] > 0]
    np.testing.assert_allclose(padded, alone, atol=1e-4)
    stacked = ef.forward(ef.stack(case.model()), **left).logits
    np.testing.assert_allclose(stacked[:1, left["attention_mask"][0] > 0], alone, atol=1e-4)


@pytest.mark.parametrize("name", ["roberta", "mpnet"])
def test_positions_count_by_id_and_are_rows_of_the_table(name):
    """Without a mask, padding is seen and has no position; given positions are taken as they are, as in transformers."""
    hf, model = CASES[name].torch(), CASES[name].model()
    ids, _ = tokens(3, 11, pad=False)
    ids[0, 8:] = ids[1, :2] = ids[2, 4] = 1 if name == "mpnet" else hf.config.pad_token_id
    places = np.random.RandomState(0).permutation(30)[:11] + np.zeros_like(ids)
    for inputs in ({"input_ids": ids}, {"input_ids": ids, "position_ids": places}):
        got = ef.forward(model, **inputs).logits
        np.testing.assert_allclose(got, theirs(hf, inputs).logits.numpy(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["dpr", "dpr-context"])
def test_pad_ids_are_padding_of_dpr(name):
    """With a mask and without, as in transformers."""
    inputs, _ = batch(name)
    want = theirs(CASES[name].torch(), inputs).pooler_output.numpy()
    for given in (inputs, {name: value for name, value in inputs.items() if name != "attention_mask"}):
        np.testing.assert_allclose(ef.forward(CASES[name].model(), **given).pooler_output, want, atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(theirs(CASES[name].torch(), given).pooler_output.numpy(), want, atol=1e-6)


@pytest.mark.parametrize("name", ["roberta", "modernbert", "debertav2-apart"])
def test_documents_of_one_row_do_not_meet(name):
    model, (ids, _) = CASES[name].model(), tokens(1, 11, pad=False)
    got = ef.forward(model, ids, segment_ids=np.array([[1] * 5 + [2] * 6])).logits
    alone = [ef.forward(model, part).logits for part in (ids[:, :5], ids[:, 5:])]
    np.testing.assert_allclose(got, np.concatenate(alone, axis=1), atol=1e-4, rtol=1e-4)


def test_weights_of_classes_are_labels_of_deberta():
    hf, model = CASES["debertav2-c2p"].torch(), CASES["debertav2-c2p"].model()
    ids, _ = tokens(3, 11, pad=False)
    labels = np.random.RandomState(0).dirichlet(np.ones(3), 3).astype(np.float32)
    loss, _ = ef.compute_loss(model, {"input_ids": ids, "labels": labels})
    np.testing.assert_allclose(loss, theirs(hf, {"input_ids": ids, "labels": labels}).loss.numpy(), rtol=1e-5)

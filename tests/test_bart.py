"""BART against transformers: outputs, loss, greedy and beams token for token, files both ways."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import easyfn as ef
from cases import CASES, tokens
from families.bart import small


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


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3, "forced_bos_token_id": 5},
        {
            "num_beams": 2,
            "no_repeat_ngram_size": 2,
            "min_new_tokens": 4,
            "encoder_no_repeat_ngram_size": 1,
            "suppress_tokens": [0],
        },
    ],
)
def test_generate(options):
    case, inputs = CASES["bart"], batch()
    source = {k: inputs[k] for k in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 7, "do_sample": False, "forced_eos_token_id": 2, **options}
    with torch.no_grad():
        want = case.torch().generate(**{k: torch.tensor(v) for k, v in source.items()}, **options).numpy()
    got = ef.generate(case.model(), source["input_ids"], attention_mask=source["attention_mask"], **options).sequences
    np.testing.assert_array_equal(np.asarray(got)[:, : want.shape[1]], want)


def test_a_file_without_a_bias_of_scores():
    """Files before there was one have none, and transformers takes zeros: so does a table of sinusoids come back."""
    held = ef.to_state_dict(CASES["bart"].model())
    held.pop("final_logits_bias")
    model = ef.from_state_dict(CASES["bart"].model().config, held)
    assert not np.asarray(model.final_logits_bias).any()
    held = ef.to_state_dict(CASES["pegasus"].model())
    for side in ("encoder", "decoder"):
        held.pop(f"model.{side}.embed_positions.weight")
    model = ef.from_state_dict(CASES["pegasus"].model().config, held)
    from transformers.models.pegasus.modeling_pegasus import PegasusSinusoidalPositionalEmbedding

    want = PegasusSinusoidalPositionalEmbedding(40, 48).create_weight().numpy()
    np.testing.assert_allclose(model.model.encoder.embed_positions.weight, want, atol=1e-5)


def test_heads_learn_from_a_source_alone():
    """The losses of a classifier and of answers, whose decoder reads the source too."""
    from families.bart import marked

    source = marked()
    for name, labels in (
        ("bart-classifier", {"labels": np.array([1, 3, 0])}),
        ("bart-answers", {"start_positions": np.array([0, 2, 4]), "end_positions": np.array([3, 2, 11])}),
    ):
        case, batch = CASES[name], {**source, **labels}
        if name == "bart-answers":  # there padding takes part in transformers' softmax
            batch = {k: v[[0, 2]] for k, v in batch.items()}
        with torch.no_grad():
            want = case.torch()(**{k: torch.tensor(v) for k, v in batch.items()}).loss
        np.testing.assert_allclose(ef.compute_loss(case.model(), batch)[0], want.numpy(), rtol=1e-4)
    with pytest.raises(ValueError, match="eos_token_id=2"):
        ef.forward(CASES["bart-classifier"].model(), np.full((1, 4), 7))


@pytest.mark.parametrize("name", ["switch_transformers", "switch_transformers-full"])
def test_losses_of_routers(name):
    """Without padding, which the reference's routers count and ours do not."""
    case, ids = CASES[name], tokens(3, 11, pad=False)[0]
    source = {"input_ids": ids, "labels": np.random.RandomState(3).randint(3, 97, (3, 6))}
    with torch.no_grad():
        want = case.torch()(**{k: torch.tensor(v) for k, v in source.items()}, output_router_logits=True).loss
    loss, _ = ef.compute_loss(case.model(), {**source, "output_router_logits": True})
    np.testing.assert_allclose(loss, want.numpy(), rtol=1e-5)


def test_tables_of_each_side_are_refused_by_name():
    """Where nothing is tied, transformers 5 has three tables, and reads two."""
    with pytest.raises(ValueError, match=r"tie_word_embeddings=False.*decoder\.embed_tokens.*each side's own table"):
        ef.from_torch(small("Bart", "ForConditionalGeneration", tie_word_embeddings=False))

"""wav2vec 2.0 beyond what every family is held to: padded recordings, the loss and the reading of CTC, both spellings."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from safetensors.numpy import load_file, save_file

import easyfn as ef
from cases import CASES
from easyfn.core.tree import replace

LENGTHS = np.array([471, 300, 129])
VALUES = np.random.RandomState(4).randn(3, 471).astype(np.float32)
MASK = (np.arange(471)[None] < LENGTHS[:, None]).astype(np.int64)


def padded():
    return {"input_values": VALUES * MASK.astype(np.float32), "attention_mask": MASK}


@pytest.mark.parametrize("name", ["wav2vec2", "wav2vec2-base", "wav2vec2-classifier"])
def test_padded_recordings(name):
    hf, model = CASES[name].torch(), CASES[name].model()
    with torch.no_grad():
        want = hf(**{k: torch.tensor(v) for k, v in padded().items()})
    got = ef.forward(model, **padded())
    if name.endswith("classifier"):
        np.testing.assert_allclose(got.logits, want.logits.numpy(), atol=1e-4)
        return
    field = "logits" if name == "wav2vec2" else "last_hidden_state"
    frames = hf._get_feat_extract_output_lengths(torch.tensor(LENGTHS)).numpy()
    real = np.arange(getattr(got, field).shape[1])[None] < frames[:, None]
    np.testing.assert_allclose(np.asarray(getattr(got, field))[real], getattr(want, field).numpy()[real], atol=1e-4)


def test_masked_frames():
    hf, model = CASES["wav2vec2"].torch(), CASES["wav2vec2"].model()
    mask = np.random.RandomState(0).rand(3, 23) < 0.3
    with torch.no_grad():
        want = hf.wav2vec2(torch.tensor(VALUES), mask_time_indices=torch.tensor(mask)).last_hidden_state
    got = ef.forward(model.model, input_values=VALUES, mask_time_indices=mask).last_hidden_state
    np.testing.assert_allclose(got, want.numpy(), atol=1e-4)


LABELS = np.array([[5, 5, -100, 7, 4], [9, 2, 2, 2, -100], [3, 3, 3, 3, 3]])  # the last needs 9 frames and has fewer


@pytest.mark.parametrize("zero", [False, True])
def test_loss_and_gradient(zero):
    """Each row as torch has it, impossible ones too; and the model's loss with both reductions of its config."""
    logits = np.random.RandomState(0).randn(3, 12, 23).astype(np.float32)
    lengths = np.array([12, 9, 7])
    rows = [[i for i in row if i not in (-100, 4)] for row in LABELS.tolist()]
    scores = torch.tensor(logits, requires_grad=True)
    want = torch.nn.functional.ctc_loss(
        torch.log_softmax(scores, -1).transpose(0, 1),
        torch.tensor([i for row in rows for i in row]),
        torch.tensor(lengths),
        torch.tensor([len(row) for row in rows]),
        blank=4,
        reduction="none",
        zero_infinity=zero,
    )
    given = {"blank": 4, "lengths": lengths, "zero_infinity": zero}
    np.testing.assert_allclose(ef.ctc_loss(jnp.asarray(logits), LABELS, **given), want.detach().numpy(), rtol=1e-5)
    want[:2].sum().backward()
    slope = jax.grad(lambda x: jnp.sum(ef.ctc_loss(x, LABELS, **given)[:2]))(jnp.asarray(logits))
    np.testing.assert_allclose(slope[:2], scores.grad[:2].numpy(), atol=2e-5)  # torch: NaN for the third


def test_heads_for_speakers():
    """Both losses; and a vector of a padded recording is that of the recording alone, which the reference's is not."""
    sounds = torch.tensor(VALUES)
    kinds = np.random.RandomState(1).randint(0, 5, (3, 23))
    each = {
        "wav2vec2-frames": (np.eye(5, dtype=np.int64)[kinds], kinds),
        "wav2vec2-speaker": (np.array([3, 0, 4]),) * 2,
    }
    for name, (labels, ours) in each.items():
        hf, model = CASES[name].torch(), CASES[name].model()
        with torch.no_grad():
            want = hf(sounds, labels=torch.tensor(labels)).loss
        for given in (labels, ours):
            loss, _ = ef.compute_loss(model, {"input_values": VALUES, "labels": given})
            np.testing.assert_allclose(loss, want.numpy(), rtol=1e-4)
    vectors = ef.forward(model, input_values=VALUES[:2] * MASK[:2], attention_mask=MASK[:2]).embeddings
    for n in (0, 1):
        with torch.no_grad():
            want = hf(sounds[n : n + 1, : LENGTHS[n]]).embeddings
        np.testing.assert_allclose(vectors[n], want[0].numpy(), atol=1e-4)
    with pytest.raises(ValueError, match="4 frames are too few"):
        ef.forward(model, input_values=VALUES[:1, :100])


@pytest.mark.parametrize("how", ["sum", "mean"])
def test_compute_loss(how):
    hf = CASES["wav2vec2"].make()
    hf.config.ctc_loss_reduction, hf.config.ctc_zero_infinity = how, True
    model = ef.from_torch(hf)
    labels = np.where(LABELS == 4, -100, LABELS)
    with torch.no_grad():
        want = hf(**{k: torch.tensor(v) for k, v in padded().items()}, labels=torch.tensor(labels)).loss
    loss, metrics = ef.compute_loss(model, {**padded(), "labels": labels})
    np.testing.assert_allclose(loss, want.numpy(), rtol=1e-4)
    assert metrics["num_examples"] == 3
    each, _ = ef.compute_loss(model, {**padded(), "labels": labels}, ef.LossConfig(reduction="none"))
    assert each.shape == (3,)
    with pytest.raises(ValueError, match="needs batch\\['labels'\\]"):
        ef.compute_loss(model, padded())


def test_reading():
    model = CASES["wav2vec2"].model()
    best = np.array([[4, 7, 7, 4, 7, 9, 9, 4], [3, 3, 4, 4, 3, 5, 6, 6]])
    logits = jnp.asarray(np.eye(23, dtype=np.float32)[best])
    tokens, lengths = ef.ctc_decode(model, logits)
    assert [list(map(int, t[:n])) for t, n in zip(tokens, lengths, strict=True)] == [[7, 7, 9], [3, 3, 5, 6]]
    assert np.all(np.asarray(tokens)[0, 3:] == 4)
    mask = np.arange(180)[None] < np.array([[180], [100]])  # 100 samples are 4 frames
    tokens, lengths = ef.ctc_decode(model, logits, mask)
    assert list(map(int, tokens[1, : lengths[1]])) == [3]


def test_both_spellings_of_a_normed_weight(tmp_path):
    hf, model = CASES["wav2vec2"].torch(), CASES["wav2vec2"].model()
    hf.save_pretrained(tmp_path)
    ef.save(model, tmp_path / "ours")
    new, ours = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "ours/model.safetensors")
    assert set(new) == set(ours) and all(np.array_equal(new[k], ours[k]) for k in new)
    old = {
        k.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): v
        for k, v in new.items()
    }
    assert set(old) != set(new)
    save_file(old, tmp_path / "model.safetensors")
    again = ef.load(tmp_path, progress=False)
    for path, value in ef.params(again).items():
        np.testing.assert_array_equal(value, ef.params(model)[path], err_msg=path)


def test_sound_too_short():
    with pytest.raises(ValueError, match="7 samples of sound are fewer"):
        ef.forward(CASES["wav2vec2"].model(), input_values=VALUES[:, :7])


def test_labels_out_of_the_vocabulary():
    logits = jnp.zeros((2, 6, 5))
    for bad in (-1, 5):
        labels = np.array([[1, bad, -100], [1, 2, -100]])
        with pytest.raises(ValueError, match=f"labels hold {bad}"):
            ef.ctc_loss(logits, labels)
    loss = jax.jit(ef.ctc_loss)(logits, labels)
    assert np.isnan(loss[0]) and np.isfinite(loss[1])


class Frames(eqx.Module):
    """A frame for each number, so that nothing but the loss is compiled."""

    weight: jax.Array
    config: ef.models.Wav2Vec2Config = eqx.field(static=True)

    def __call__(self, context, cache=None, *, input_values):
        return ef.nn.Output(last_hidden_state=input_values[..., None] * self.weight[None, None])


@pytest.mark.parametrize("how", ["sum", "mean"])
def test_parts_of_a_batch_are_the_batch(how):
    """A mean of rows is not weighed by how many labels they have, and sums are added."""
    stated = {"input_values": ef.Input("audio", ("batch", "seq"), optional=False)}
    ef.inputs.register(Frames, override=True)(lambda model: ef.Inputs(stated, ("input_values",)))
    config = ef.models.Wav2Vec2Config(vocab_size=12, hidden_size=4, num_attention_heads=2, ctc_loss_reduction=how)
    model = ef.nn.CTC(Frames(jnp.ones(4), config))
    scores = jnp.asarray(np.random.RandomState(0).randn(12, 4), jnp.float32)
    model = replace(model, {"lm_head.weight": scores, "lm_head.bias": jnp.zeros(12)})
    state = ef.to_state(model, optax.sgd(0.1))
    batch = {"input_values": VALUES[:2, :9], "labels": np.array([[5, 3, 7, 4], [9, -100, -100, -100]])}
    whole, one = jax.jit(ef.train_step)(state, batch)
    parts, two = jax.jit(functools.partial(ef.train_step, accumulate=2))(state, batch)
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-5, err_msg=name)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), parts.params, whole.params)

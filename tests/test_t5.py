"""T5 and what encoder-decoders share, against transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import easyfn as ef
from cases import CASES, names, reference, tokens
from easyfn.nn import buckets

# Heads that read the states are compared in test_families.py.
T5 = [n for n in names(encoder_decoder=True) if CASES[n].family == "t5" and CASES[n].task in ("seq2seq-lm", "base")]


def batch(decoder_pad=True):
    ids, mask = tokens(3, 11)
    target, seen = tokens(3, 7, seed=1)
    if not decoder_pad:
        seen = np.ones_like(seen)
    return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": target, "decoder_attention_mask": seen}


def to_torch(inputs):
    return {name: torch.tensor(value) for name, value in inputs.items()}


@pytest.mark.quick("nn", "T5's buckets")
@pytest.mark.parametrize("count,far,bidirectional", [(32, 128, True), (32, 128, False), (8, 7, True), (10, 50, False)])
def test_buckets(count, far, bidirectional):
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = np.arange(-400, 401)
    theirs = T5Attention._relative_position_bucket(torch.tensor(distance), bidirectional, count, far)
    ours = buckets(jnp.asarray(distance), bidirectional=bidirectional, count=count, max_distance=far)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.thinned("settings of one family that test_families.py compares")
@pytest.mark.parametrize("name", T5)
def test_parity(name):
    inputs = batch()
    case = CASES[name]
    wanted = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        theirs = case.torch()(**to_torch(inputs), **wanted)
    ours = ef.forward(case.model(), **inputs, **wanted)
    source, target = inputs["attention_mask"] > 0, inputs["decoder_attention_mask"] > 0

    def same(a, b, where):
        np.testing.assert_allclose(np.asarray(a)[where], b.numpy()[where], atol=3e-5, rtol=1e-4)

    same(ours.encoder_last_hidden_state, theirs.encoder_last_hidden_state, source)
    if name == "t5-base":
        same(ours.last_hidden_state, theirs.last_hidden_state, target)
    else:
        same(ours.logits, theirs.logits, target)
    for mine, yours, where, count in (
        (ours.encoder_hidden_states, theirs.encoder_hidden_states, source, 3),
        (ours.hidden_states, theirs.decoder_hidden_states, target, 4),
    ):
        assert len(mine) == len(yours) == count
        for a, b in zip(mine, yours, strict=True):
            same(a, b, where)
    for mine, yours, where in (
        (ours.encoder_attentions, theirs.encoder_attentions, source),
        (ours.attentions, theirs.decoder_attentions, target),
        (ours.cross_attentions, theirs.cross_attentions, target),
    ):
        for a, b in zip(mine, yours, strict=True):
            same(a.swapaxes(1, 2), b.swapaxes(1, 2), where)


def test_encoder_parity():
    ids, mask = tokens()
    case = CASES["t5-encoder"]
    theirs = case.torch()(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state.numpy()
    ours = np.asarray(ef.forward(case.model(), ids, attention_mask=mask).last_hidden_state)
    np.testing.assert_allclose(ours[mask > 0], theirs[mask > 0], atol=3e-5, rtol=1e-4)


def test_cache_and_encoder_outputs():
    model = CASES["t5"].model()
    inputs = batch()
    full = ef.forward(model, **inputs)
    source = {"encoder_outputs": ef.encode(model, inputs["input_ids"], attention_mask=inputs["attention_mask"])}
    target, seen = inputs["decoder_input_ids"], inputs["decoder_attention_mask"]
    cache = ef.init_cache(model, 3, 12)
    parts = []
    for start, stop in ((0, 3), (3, 4), (4, 7)):
        out = ef.forward(
            model,
            **(source | {"attention_mask": inputs["attention_mask"]} if start == 0 else {}),
            decoder_input_ids=target[:, start:stop],
            decoder_attention_mask=seen[:, start:stop],
            cache=cache,
        )
        cache = out.cache
        parts.append(out.logits)
    where = seen > 0
    np.testing.assert_allclose(np.concatenate(parts, 1)[where], np.asarray(full.logits)[where], atol=2e-5)


def test_padding_is_invisible():
    model = CASES["t5"].model()
    rng = np.random.RandomState(0)
    ids, target = rng.randint(3, 97, (1, 6)), rng.randint(3, 97, (1, 4))
    alone = ef.forward(model, ids, decoder_input_ids=target).logits
    for left in (True, False):
        pad = ((0, 0), (5, 0) if left else (0, 5))
        padded = ef.forward(
            model,
            np.pad(ids, pad, constant_values=9),
            attention_mask=np.pad(np.ones_like(ids), pad),
            decoder_input_ids=np.pad(target, pad, constant_values=7),
            decoder_attention_mask=np.pad(np.ones_like(target), pad),
        ).logits
        np.testing.assert_allclose(padded[:, 5:] if left else padded[:, :4], alone, atol=2e-5)
    empty = ef.forward(model, ids, attention_mask=np.zeros_like(ids), decoder_input_ids=target)
    assert np.isfinite(np.asarray(empty.logits)).all()


def test_packed_documents():
    model = CASES["t5"].model()
    rng = np.random.RandomState(0)
    ids, target = rng.randint(3, 97, (1, 9)), rng.randint(3, 97, (1, 7))
    out = ef.forward(
        model,
        ids,
        segment_ids=np.array([[1] * 4 + [2] * 5]),
        decoder_input_ids=target,
        decoder_segment_ids=np.array([[1] * 3 + [2] * 4]),
    ).logits
    one = ef.forward(model, ids[:, :4], decoder_input_ids=target[:, :3]).logits
    two = ef.forward(model, ids[:, 4:], decoder_input_ids=target[:, 3:]).logits
    np.testing.assert_allclose(out, np.concatenate([one, two], 1), atol=2e-5)


@pytest.mark.parametrize("name", ["t5", "t5-v1.1"])
def test_loss(name):
    inputs = batch()
    labels = np.where(inputs.pop("decoder_attention_mask") > 0, inputs.pop("decoder_input_ids"), -100)
    case = CASES[name]
    with torch.no_grad():
        theirs = case.torch()(**to_torch(inputs), labels=torch.tensor(labels)).loss
    for cfg in (ef.LossConfig(), ef.LossConfig(chunk_size=4)):
        ours, metrics = ef.compute_loss(case.model(), {**inputs, "labels": labels}, cfg)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
        assert metrics["num_tokens"] == (labels != -100).sum()


def test_stacked_and_compiled():
    model = CASES["t5"].model()
    stacked = ef.stack(model)
    assert len(ef.params(stacked)) < len(ef.params(model))
    inputs = batch()
    run = jax.jit(lambda model, inputs: ef.forward(model, **inputs).logits)
    where = inputs["decoder_attention_mask"] > 0
    np.testing.assert_allclose(run(stacked, inputs)[where], run(model, inputs)[where], atol=2e-5)


def test_dropout():
    model = CASES["t5"].model()
    inputs = batch()
    plain, one, two, again = (
        ef.forward(model, **inputs, key=None if k is None else jax.random.key(k)).logits for k in (None, 0, 1, 0)
    )
    assert not np.allclose(plain, one) and not np.allclose(one, two)
    np.testing.assert_array_equal(one, again)


def test_errors():
    model = CASES["t5"].model()
    ids = np.array([[5, 6]])
    with pytest.raises(ValueError, match="decoder_input_ids"):
        ef.forward(model, ids)
    with pytest.raises(ValueError, match="encoder_outputs"):
        ef.forward(model, decoder_input_ids=ids)
    with pytest.raises(ValueError, match="nothing to attend to"):
        ef.forward(model, decoder_input_ids=ids, cache=ef.init_cache(model, 1, 4))
    with pytest.raises(ValueError, match="decoder_segment_ids"):
        ef.forward(model, ids, segment_ids=np.array([[1, 2]]), decoder_input_ids=ids)
    with pytest.raises(ValueError, match="1 rows and the decoder's input 2"):
        ef.forward(model, ids, decoder_input_ids=np.concatenate([ids, ids]))


def generate_torch(case, ids, mask, settings):
    """Without a cache: transformers' has no place for a decoder deeper than its encoder."""
    with torch.no_grad():
        inputs = {"attention_mask": torch.tensor(mask), "use_cache": False, **settings}
        return case.torch().generate(torch.tensor(ids), **inputs).numpy()


@pytest.mark.parametrize("name", ["t5", "t5-v1.1"])
@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.7}])
def test_generate(name, options):
    ids, mask = tokens(4, 9)
    case = CASES[name]
    for eos in (None, "first"):
        settings = {"max_new_tokens": 12, "eos_token_id": 96, **options}
        if eos == "first":  # a token that is sure to come, so that rows end at different lengths
            settings["eos_token_id"] = int(theirs[0, 3])
        theirs = generate_torch(case, ids, mask, settings)
        ours = ef.generate(case.model(), ids, attention_mask=mask, **settings)
        np.testing.assert_array_equal(ours.sequences, theirs)


def test_generate_with_a_decoder_prompt():
    ids, mask = tokens(2, 9)
    prompt = np.array([[0, 5, 6], [0, 7, 8]])
    case = CASES["t5"]
    settings = {"max_new_tokens": 5, "eos_token_id": 96, "decoder_input_ids": prompt}
    theirs = generate_torch(case, ids, mask, {**settings, "decoder_input_ids": torch.tensor(prompt)})
    ours = ef.generate(ef.stack(case.model()), ids, attention_mask=mask, **settings)
    np.testing.assert_array_equal(ours.sequences, theirs)
    assert ef.task(case.model()) == "seq2seq-lm" and ef.can_generate(case.model())
    again = ef.generate(CASES["t5"].model(), ids, decoder_input_ids=[[0, 5]] * len(ids), max_new_tokens=2)
    assert again.sequences.shape[1] <= 4
    with pytest.raises(ValueError, match="decoder_input_ids hold 97"):
        ef.generate(CASES["t5"].model(), ids, decoder_input_ids=[[97]] * len(ids), max_new_tokens=2)


@pytest.mark.thinned("settings of one family that test_io.py saves")
@pytest.mark.parametrize("name", [*T5, "t5-encoder"])
def test_files(tmp_path, name):
    from safetensors.numpy import load_file

    CASES[name].torch().save_pretrained(tmp_path / "theirs")
    model = ef.load(tmp_path / "theirs")
    jax.tree.map(np.testing.assert_array_equal, ef.params(model), ef.params(CASES[name].model()))
    ef.save(model, tmp_path / "ours")
    theirs, ours = (load_file(tmp_path / d / "model.safetensors") for d in ("theirs", "ours"))
    assert set(ours) == set(theirs)
    with torch.no_grad():
        hf = type(CASES[name].torch()).from_pretrained(tmp_path / "ours")
    for key, value in hf.state_dict().items():
        np.testing.assert_array_equal(value, CASES[name].torch().state_dict()[key])


def test_v11_as_transformers_5_makes_and_saves_it(tmp_path):
    """Tied and unscaled: a file without a head, whose config says tie_word_embeddings=true and what is not scaled."""
    from transformers import T5Config, T5ForConditionalGeneration

    small = {"vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    hf = reference(T5ForConditionalGeneration, T5Config(**small, tie_word_embeddings=False, decoder_start_token_id=0))
    hf.save_pretrained(tmp_path / "theirs")
    inputs = batch()
    with torch.no_grad():
        want = hf(**to_torch(inputs)).logits.numpy()
    seen = inputs["decoder_attention_mask"] > 0
    model = ef.load(tmp_path / "theirs")
    assert model.lm_head is None and model.scale == 1.0
    assert ef.from_torch(hf).lm_head is None
    np.testing.assert_allclose(np.asarray(ef.forward(model, **inputs).logits)[seen], want[seen], atol=1e-4)
    ef.save(model, tmp_path / "ours")
    again = ef.load(tmp_path / "ours")
    assert jax.tree.structure(again) == jax.tree.structure(model)
    back = T5ForConditionalGeneration.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        np.testing.assert_allclose(back(**to_torch(inputs)).logits.numpy(), want, atol=1e-5)


def test_config():
    hub = {  # t5-small's config.json
        "architectures": ["T5ForConditionalGeneration"], "d_ff": 2048, "d_kv": 64, "d_model": 512,
        "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "initializer_factor": 1.0,
        "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06, "model_type": "t5", "n_positions": 512,
        "num_heads": 8, "num_layers": 6, "output_past": True, "pad_token_id": 0, "relative_attention_num_buckets": 32,
        "task_specific_params": {"summarization": {"early_stopping": True, "num_beams": 4}}, "vocab_size": 32128,
    }  # fmt: skip
    model = ef.abstract(ef.read_config(hub))
    assert ef.num_params(model) == 60_506_624 and model.lm_head is None and model.scale == 512**-0.5
    v11 = {
        **hub, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "d_ff": 1024, "num_heads": 6,
        "num_layers": 8, "num_decoder_layers": 8, "dense_act_fn": "gelu_new", "is_gated_act": True,
    }  # fmt: skip
    model = ef.abstract(ef.read_config(v11))
    assert ef.num_params(model) == 76_961_152 and model.scale == 1.0
    with pytest.raises(ValueError, match="dense_act_fn"):
        ef.read_config({**v11, "dense_act_fn": "relu"})
    with pytest.raises(ValueError, match="feed_forward_proj"):
        ef.read_config({**hub, "feed_forward_proj": "double-relu"})


def test_init():
    config = ef.models.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    params = ef.params(ef.init(config, key=jax.random.key(0)))
    path = "model.encoder.block.0.layer.0.SelfAttention.q.weight"
    assert abs(float(params[path].std()) * (32 * 8) ** 0.5 - 1) < 0.2  # unscaled attention starts small
    assert abs(float(params["model.shared.weight"].std()) - 1) < 0.1

"""Whisper beyond what every family is held to: features, prompts, timestamps, recordings of any length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import easyfn as ef
from easyfn.generation.speech import Timestamps
from families.whisper import whisper

# A vocabulary as Whisper's: words, then the end token, then all others, the times last.
SPEECH = {"eos_token_id": 60, "pad_token_id": 60, "bos_token_id": 60, "decoder_start_token_id": 61}
FACTS = {
    **{"lang_to_id": {"<|en|>": 62, "<|fr|>": 63}, "task_to_id": {"translate": 64, "transcribe": 65}},
    **{
        "prev_sot_token_id": 66,
        "no_timestamps_token_id": 68,
        "is_multilingual": True,
        "max_initial_timestamp_index": 9,
    },
    **{"suppress_tokens": [3, 61, 62, 63, 64, 65, 66, 67], "begin_suppress_tokens": [5, 60]},
}
_made = {}


def speaker():
    """A random Whisper that is fond of times, and its twin."""
    if not _made:
        hf = whisper("WhisperForConditionalGeneration", **SPEECH, max_target_positions=64)
        hf.proj_out.weight[60] += 0.05  # ends now and then
        for name, value in {**FACTS, **SPEECH}.items():
            setattr(hf.generation_config, name, value)
        hf.generation_config.max_length = None
        _made["torch"], _made["jax"] = hf, ef.from_torch(hf)
    return _made["torch"], _made["jax"]


def recording(rows, frames, seed=0):
    return np.random.RandomState(seed).randn(rows, 10, frames).astype(np.float32) * 2


def agree(options, features, **more):
    hf, model = speaker()
    with torch.no_grad():
        want = hf.generate(
            torch.tensor(features), return_segments=True, **options, **{k: torch.tensor(v) for k, v in more.items()}
        )
    got = ef.transcribe(model, features, **options, **more)
    np.testing.assert_array_equal(got.sequences, want["sequences"].numpy())
    for mine, theirs in zip(got.segments, want["segments"], strict=True):
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_allclose((a.start, a.end), (float(b["start"]), float(b["end"])), atol=1e-6)
            np.testing.assert_array_equal(a.tokens, b["tokens"].numpy())
    return got


LONG = (np.arange(170)[None] < np.array([[170], [101]])).astype(np.int64)


@pytest.mark.parametrize(
    ("options", "frames", "more"),
    [
        ({}, 48, {}),
        ({"language": ["en", "french"], "task": "translate", "return_timestamps": True}, 40, {}),
        ({"language": "<|fr|>", "condition_on_prev_tokens": True, "prompt_ids": [66, 7, 8, 9]}, 170, LONG),
    ],
    ids=["language-heard", "timestamps", "long"],
)
def test_tokens_and_segments(options, frames, more):
    """Token for token: one window, without and with times; and windows that begin where the one before ended."""
    if "prompt_ids" in options:
        options = {**options, "prompt_ids": torch.tensor(options["prompt_ids"])}
    got = agree(
        {**options, "max_new_tokens": 12}, recording(2, frames), **({"attention_mask": more} if len(more) else {})
    )
    if frames == 170:
        assert len(got.segments[0]) > len(got.segments[1]) > 1 and got.segments[0][-1].end > 0.9


def test_thresholds():
    """A window that is unlikely and likely silent is skipped; one that says little anew is tried again."""
    features = recording(2, 48)
    limits = {"language": "en", "max_new_tokens": 12, "logprob_threshold": -0.1, "temperature": 0.0}
    skipped = agree({**limits, "no_speech_threshold": 0.0}, features)
    assert skipped.sequences.shape[1] == 0
    kept = agree({**limits, "no_speech_threshold": 1.0, "compression_ratio_threshold": 1.5}, features)
    assert kept.sequences.shape[1] > 0
    _, model = speaker()
    warmer = ef.transcribe(model, features, **{**limits, "temperature": (0.0, 5.0)}, key=jax.random.key(0))
    assert not np.array_equal(warmer.sequences, kept.sequences)


def test_rules_of_timestamps():
    """The reference's processor, on histories of every kind."""
    from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

    hf, _ = speaker()
    rng = np.random.RandomState(0)
    histories = [
        [],
        [75],
        [75, 8],
        [75, 8, 80],
        [75, 8, 80, 80],
        [75, 8, 80, 80, 9],
        [7],
        [7, 9],
        [75, 75],
        [70, 8, 71, 9, 72],
    ]
    for history in histories:
        for likely in (0.0, 4.0):
            ids = np.array([[61, 62, *history]] * 2)
            logits = rng.randn(2, 97).astype(np.float32)
            logits[0, 69:] += likely
            reference = WhisperTimeStampLogitsProcessor(hf.generation_config, begin_index=2)
            want = reference(torch.tensor(ids), torch.tensor(logits)).numpy()
            room = np.full((2, 12), -1)
            room[:, : ids.shape[1]] = ids
            state = ef.State(jnp.asarray(ids.shape[1]), jnp.asarray(2))
            got, _ = Timestamps(68, 60, 9)(state, jnp.asarray(room), jnp.asarray(logits))
            np.testing.assert_array_equal(got, want, err_msg=f"{history} {likely}")


def test_decoder_padded_on_the_left_and_its_cache():
    hf, model = speaker()
    features, ids = recording(2, 48), np.random.RandomState(1).randint(3, 60, (2, 7))
    mask = np.ones_like(ids)
    mask[1, :3] = 0
    places = np.maximum(mask.cumsum(1) - 1, 0)
    with torch.no_grad():
        want = hf(
            torch.tensor(features),
            decoder_input_ids=torch.tensor(ids),
            decoder_attention_mask=torch.tensor(mask),
            decoder_position_ids=torch.tensor(places),
        ).logits.numpy()
    given = {"decoder_input_ids": ids, "decoder_attention_mask": mask}
    encoded = ef.encode(model, input_features=features)
    whole = ef.forward(model, encoder_outputs=encoded, **given).logits
    np.testing.assert_allclose(np.asarray(whole)[mask > 0], want[mask > 0], atol=1e-4)
    cache = ef.init_cache(model, 2, 7)
    first = {name: value[:, :5] for name, value in given.items()}
    first = ef.forward(model, input_features=features, attention_mask=np.ones((2, 48)), cache=cache, **first)
    rest = ef.forward(model, decoder_input_ids=ids[:, 5:], cache=first.cache).logits
    np.testing.assert_allclose(rest, whole[:, 5:], atol=1e-4)


@pytest.mark.parametrize("bins", [80, 128])
def test_log_mel(bins):
    """Transformers' extractor: torch's floats, and NumPy's doubles."""
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=bins, chunk_length=1)
    rng, time = np.random.default_rng(0), np.arange(16000) / 16000
    tone = np.sin(2e3 * time) * np.exp(-3 * time) + 1e-2 * rng.standard_normal(16000)
    recordings = [
        rng.standard_normal(16000) * 0.1,
        rng.standard_normal(9000),
        tone,
    ]
    recordings = [one.astype(np.float32) for one in recordings]
    want = extractor(recordings, sampling_rate=16000, return_attention_mask=True)
    sound, mask = ef.pad_sound(recordings, length=16000)
    np.testing.assert_array_equal(mask[:, ::160], want["attention_mask"])
    got = ef.log_mel(sound, num_mel_bins=bins)
    doubles = extractor._np_extract_fbank_features(sound, "cpu")
    for reference in (np.stack(want["input_features"]), doubles):
        np.testing.assert_allclose(got[:2], reference[:2], atol=1e-5)
        np.testing.assert_allclose(got[2], reference[2], atol=5e-5)  # beside a loud tone torch's floats are no nearer


def test_normalize_sound():
    from transformers import Wav2Vec2FeatureExtractor

    rows = [np.arange(300, dtype=np.float32) % 7, np.arange(500, dtype=np.float32) % 11]
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    want = extractor(rows, sampling_rate=16000, padding=True, return_tensors="np")
    sound, mask = ef.pad_sound(rows)
    np.testing.assert_array_equal(mask, want["attention_mask"])
    np.testing.assert_allclose(ef.normalize_sound(sound, mask), want["input_values"], atol=1e-5)
    with pytest.raises(ValueError, match="mix the channels"):
        ef.pad_sound([np.zeros((2, 300))])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"language": "klingon"}, "language='klingon' is none of this checkpoint's: en, fr"),
        ({"task": "sing"}, "task='sing' is unknown"),
        ({"language": ["en"]}, "1 languages for 2 recordings"),
        ({"temperature": 0.5}, "needs key="),
        ({"no_speech_threshold": 0.5}, "needs logprob_threshold"),
        ({"prompt_condition_type": "all-segments"}, "needs condition_on_prev_tokens"),
        ({"language": "en", "max_new_tokens": 62}, "64 positions"),
        ({"do_sample": True}, "temperature= samples"),
        ({"return_token_timestamps": True}, "times of segments"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        ef.transcribe(speaker()[1], recording(2, 48), **options)


def test_what_generate_says():
    model, features = speaker()[1], recording(2, 48)
    with pytest.raises(ValueError, match="transcribe finds it out"):
        ef.generate(model, features)
    with pytest.raises(ValueError, match="language='en' is not supported: it is an option of"):
        ef.generate(model, features, language="en")
    with pytest.raises(ValueError, match=r"input_features must have shape \(batch, 10, 48\)"):
        ef.generate(model, features[:, :, :40], decoder_input_ids=np.full((2, 1), 61))
    with pytest.raises(ValueError, match="give input_features"):
        ef.generate(model, decoder_input_ids=np.full((2, 1), 61))
    with pytest.raises(ValueError, match="several long recordings need an attention_mask"):
        ef.transcribe(model, recording(2, 60))
    with pytest.raises(ValueError, match="leave return_timestamps out"):
        ef.transcribe(model, recording(1, 60), return_timestamps=False)

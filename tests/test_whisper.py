"""Whisper beyond what every family is held to: features, prompts, timestamps, recordings of any length."""

import numpy as np
import pytest
import torch

import easyfn as ef
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


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"language": "french", "task": "translate"},
        {"language": ["en", "<|fr|>"], "return_timestamps": True},
        {"language": "en", "prompt_ids": np.array([66, 7, 8, 9])},
    ],
    ids=["heard", "named", "timestamps", "prompt"],
)
def test_one_window(options):
    prompt = options.get("prompt_ids")
    hf_options = options if prompt is None else {**options, "prompt_ids": torch.tensor(prompt)}
    agree({**hf_options, "max_new_tokens": 12}, recording(2, 48))

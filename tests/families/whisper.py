"""Whisper: the decoder is deeper than the encoder; and its classifier, which mixes the layers."""

from typing import Any

import numpy as np

from cases import VOCAB, case, reference, tokens

KEYS: dict[str, Any] = {
    **{"vocab_size": VOCAB, "d_model": 48, "num_mel_bins": 10, "max_source_positions": 24, "max_target_positions": 40},
    **{"encoder_layers": 2, "encoder_ffn_dim": 80, "encoder_attention_heads": 6},
    **{"decoder_layers": 3, "decoder_ffn_dim": 64, "decoder_attention_heads": 4},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3, "max_length": 40},
    **{"suppress_tokens": None, "begin_suppress_tokens": None},
}


def whisper(head: str, **more: Any) -> Any:
    import transformers

    hf = reference(getattr(transformers, head), transformers.WhisperConfig(**{**KEYS, **more}))
    encoder, trained = getattr(hf, "model", hf).encoder, hf.requires_grad_

    def without_sines(on: bool = True) -> Any:  # the reference made them untrained, and a test must not undo that
        trained(on)
        encoder.embed_positions.requires_grad_(False)
        return hf

    hf.requires_grad_ = without_sines
    return hf


def sound() -> dict[str, np.ndarray]:
    features = np.random.RandomState(5).randn(3, 10, 48).astype(np.float32)
    return {"input_features": features, "decoder_input_ids": tokens(3, 7, pad=False)[0]}


@case("whisper", task="seq2seq-lm", causal=False, encoder_decoder=True, inputs=sound)
def _():
    return whisper("WhisperForConditionalGeneration")


@case("whisper-base", task="base", causal=False, encoder_decoder=True, inputs=sound, variant=True)
def _():
    return whisper("WhisperModel", activation_function="relu")


@case(
    "whisper-classifier",
    task="audio-classification",
    causal=False,
    inputs=lambda: {"input_features": sound()["input_features"]},
    variant=True,
)
def _():
    return whisper("WhisperForAudioClassification", num_labels=5, use_weighted_layer_sum=True, classifier_proj_size=20)

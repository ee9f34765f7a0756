"""wav2vec 2.0: group and layer norm among the convolutions, norms behind and before, an even and an odd kernel."""

from typing import Any

import numpy as np

from cases import case, reference

KEYS: dict[str, Any] = {
    **{"vocab_size": 23, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6},
    **{"conv_dim": (16, 20, 24), "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 2)},
    **{"num_conv_pos_embeddings": 6, "num_conv_pos_embedding_groups": 4, "pad_token_id": 4},
}


def wav2vec2(head: str, **more: Any) -> Any:
    import transformers

    return reference(getattr(transformers, head), transformers.Wav2Vec2Config(**{**KEYS, **more}))


def sound(samples: int = 471) -> dict[str, np.ndarray]:
    return {"input_values": np.random.RandomState(4).randn(3, samples).astype(np.float32)}


@case("wav2vec2", task="ctc", causal=False, inputs=sound)
def _():
    return wav2vec2("Wav2Vec2ForCTC")


@case("wav2vec2-base", task="base", causal=False, inputs=sound, variant=True)
def _():
    keys = {"num_conv_pos_embeddings": 5, "feat_extract_norm": "layer", "conv_bias": True, "mask_time_prob": 0.0}
    return wav2vec2("Wav2Vec2Model", do_stable_layer_norm=True, hidden_act="relu", **keys)


@case("wav2vec2-classifier", task="audio-classification", causal=False, inputs=sound, variant=True)
def _():
    return wav2vec2(
        "Wav2Vec2ForSequenceClassification", num_labels=5, use_weighted_layer_sum=True, classifier_proj_size=20
    )


@case("wav2vec2-frames", task="audio-frame-classification", causal=False, inputs=sound, variant=True)
def _():
    return wav2vec2("Wav2Vec2ForAudioFrameClassification", num_labels=5)


@case("wav2vec2-speaker", task="audio-xvector", causal=False, inputs=sound, variant=True)
def _():
    sizes = {"tdnn_dim": (20, 24, 28), "tdnn_kernel": (3, 2, 1), "tdnn_dilation": (2, 3, 1), "xvector_output_dim": 12}
    return wav2vec2("Wav2Vec2ForXVector", num_labels=5, use_weighted_layer_sum=True, feat_extract_norm="layer", **sizes)

"""data2vec on sound: an even kernel of positions, a bias among the convolutions, two of which are alike."""

from typing import Any

from cases import case, reference
from families.wav2vec2 import KEYS, sound

OWN: dict[str, Any] = {
    **{**KEYS, "conv_pos_kernel_size": 6, "num_conv_pos_embeddings": 2, "conv_bias": True},
    **{"conv_dim": (20, 20, 20, 24), "conv_stride": (5, 2, 2, 2), "conv_kernel": (10, 3, 3, 2)},
}


@case("data2vec-audio", task="ctc", causal=False, inputs=sound)
def _():
    from transformers import Data2VecAudioConfig, Data2VecAudioForCTC

    return reference(Data2VecAudioForCTC, Data2VecAudioConfig(**OWN))

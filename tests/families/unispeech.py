"""UniSpeech: wav2vec 2.0's encoder under another name."""

from cases import case, reference
from families.wav2vec2 import KEYS, sound


@case("unispeech", task="ctc", causal=False, inputs=sound)
def _():
    from transformers import UniSpeechConfig, UniSpeechForCTC

    return reference(UniSpeechForCTC, UniSpeechConfig(**KEYS, do_stable_layer_norm=True, feat_extract_norm="layer"))

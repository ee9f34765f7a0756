"""WavLM: buckets fewer than frames, so that far ones share theirs; norms behind and before."""

from cases import case, reference
from families.wav2vec2 import KEYS, sound

OWN = {"num_buckets": 12, "max_bucket_distance": 14}


@case("wavlm", task="ctc", causal=False, inputs=sound)
def _():
    from transformers import WavLMConfig, WavLMForCTC

    return reference(WavLMForCTC, WavLMConfig(**KEYS, **OWN))


@case("wavlm-classifier", task="audio-classification", causal=False, inputs=sound, variant=True)
def _():
    from transformers import WavLMConfig, WavLMForSequenceClassification

    own = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "num_labels": 5, "use_weighted_layer_sum": True}
    return reference(WavLMForSequenceClassification, WavLMConfig(**KEYS, **OWN, **own))

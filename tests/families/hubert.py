"""HuBERT: with and without a norm before the projection of what the convolutions say."""

from cases import case, reference
from families.wav2vec2 import KEYS, sound


@case("hubert", task="ctc", causal=False, inputs=sound)
def _():
    from transformers import HubertConfig, HubertForCTC

    return reference(HubertForCTC, HubertConfig(**KEYS, feat_proj_layer_norm=False))


@case("hubert-classifier", task="audio-classification", causal=False, inputs=sound, variant=True)
def _():
    from transformers import HubertConfig, HubertForSequenceClassification

    own = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True, "num_labels": 5}
    return reference(HubertForSequenceClassification, HubertConfig(**KEYS, **own))

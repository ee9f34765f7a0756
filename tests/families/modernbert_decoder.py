"""ModernBERT as a decoder: windows, two rotary tables, a layer before the scores, biases everywhere."""

from typing import Any

from cases import SMALL, case, reference


def _decoder(head: str, **more: Any) -> Any:
    import transformers

    keys = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
    keys |= {"cls_token_id": 1, "sep_token_id": 2, "local_attention": 8, **more}
    config = transformers.ModernBertDecoderConfig(**keys)
    return reference(getattr(transformers, f"ModernBertDecoder{head}"), config)


@case("modernbert-decoder")
def _():
    return _decoder("ForCausalLM", num_hidden_layers=4, classifier_bias=True)


BIASED = {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_activation": "relu"}


@case("modernbert-decoder-untied", variant=True)
def _():
    rope = {"sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 50.0}}
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    more = {"tie_word_embeddings": False, "sliding_window": 3, "layer_types": kinds, "rope_parameters": rope}
    return _decoder("ForCausalLM", decoder_bias=False, hidden_activation="silu", **BIASED, **more)


@case("modernbert-decoder-classifier", task="sequence-classification", variant=True)
def _():
    return _decoder("ForSequenceClassification", classifier_bias=True, num_labels=3, **BIASED)

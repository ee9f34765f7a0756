"""MobileBERT, with each of its heads; norms, attention that is thin as a whole, and no bottleneck at all."""

from typing import Any

from cases import SMALL, case, reference
from encoder_cases import encoder_cases

FAILS = {"padding_is_invisible": "the words beside padding read it as a neighbour, as in transformers"}
SIZES: dict[str, Any] = {"embedding_size": 20, "intra_bottleneck_size": 24, "num_feedforward_networks": 3}
encoder_cases(
    "MobileBert",
    "MobileBertConfig",
    facts={"expected_failures": FAILS},
    type_vocab_size=3,
    **SIZES,
)


def other(head: str, **more: Any) -> Any:
    import transformers

    keys = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "pad_token_id",
    )
    config = transformers.MobileBertConfig(
        **{**{k: SMALL[k] for k in keys}, "max_position_embeddings": 40, **SIZES, **more}
    )
    return reference(getattr(transformers, f"MobileBert{head}"), config)


@case("mobilebert-normed", task="next-sentence", causal=False, variant=True)
def _():
    more = {"normalization_type": "layer_norm", "use_bottleneck_attention": True, "classifier_activation": False}
    return other("ForNextSentencePrediction", **more)


@case("mobilebert-wide", task="sequence-classification", causal=False, variant=True)
def _():
    more = {"use_bottleneck": False, "trigram_input": False, "num_feedforward_networks": 1, "hidden_act": "gelu"}
    return other("ForSequenceClassification", **more, num_labels=3)


@case("mobilebert-pretraining", task="pretraining", causal=False, variant=True)
def _():
    return other("ForPreTraining", tie_word_embeddings=False)

"""EuroBERT, with each of its heads: key heads in groups of three, every bias, and each pooling."""

from cases import SMALL, case, reference
from encoder_cases import ROTARY, encoder_cases

KEYS = {"num_key_value_heads": 2, "head_dim": 10, "bos_token_id": 1, "eos_token_id": 2}
encoder_cases("EuroBert", "EuroBertConfig", heads=ROTARY, attention_bias=True, mlp_bias=True, **KEYS)


def classifier(pooling):
    from transformers import EuroBertConfig, EuroBertForSequenceClassification

    config = EuroBertConfig(**{**SMALL, **KEYS}, num_labels=3, classifier_pooling=pooling)
    return reference(EuroBertForSequenceClassification, config)


@case("eurobert-bos", task="sequence-classification", causal=False, variant=True)
def _():
    return classifier("bos")


@case("eurobert-mean", task="sequence-classification", causal=False, variant=True)
def _():
    return classifier("mean")

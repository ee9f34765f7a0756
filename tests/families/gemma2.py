"""Gemma 2: windows in turn, soft caps on scores and logits."""

from cases import SMALL, case, reference


@case("gemma2")
def _():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        **SMALL,
        head_dim=16,
        sliding_window=4,
        query_pre_attn_scalar=20,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    )
    return reference(Gemma2ForCausalLM, config)


@case("gemma2-classifier", task="sequence-classification", variant=True)
def _():
    from transformers import Gemma2Config, Gemma2ForSequenceClassification

    return reference(Gemma2ForSequenceClassification, Gemma2Config(**SMALL, num_labels=3))

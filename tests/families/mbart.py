"""mBART: pre-norm, the decoder starts from the last token of a text."""

from cases import case
from families.bart import marked, small


@case("mbart", task="seq2seq-lm", causal=False, encoder_decoder=True)
def _():
    return small("MBart", "ForConditionalGeneration", forced_bos_token_id=7)


@case("mbart-classifier", task="sequence-classification", encoder_decoder=True, inputs=marked, variant=True)
def _():
    return small("MBart", "ForSequenceClassification", num_labels=4)

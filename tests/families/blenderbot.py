"""Blenderbot: pre-norm, learned positions from row 0, no sequence of three tokens of the source is said again."""

from cases import case
from families.bart import small


@case("blenderbot", task="seq2seq-lm", causal=False, encoder_decoder=True)
def _():
    return small("Blenderbot", "ForConditionalGeneration", encoder_no_repeat_ngram_size=1)

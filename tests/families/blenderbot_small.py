"""Blenderbot's small model: post-norm, the decoder's embeddings are normed before they get positions."""

from cases import case
from families.bart import small


@case("blenderbot_small", task="seq2seq-lm", causal=False, encoder_decoder=True)
def _():
    return small("BlenderbotSmall", "ForConditionalGeneration")

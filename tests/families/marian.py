"""Marian: post-norm, sinusoids that no file holds, vocabularies of two sizes."""

from cases import case
from families.bart import small


@case("marian", task="seq2seq-lm", causal=False, encoder_decoder=True)
def _():
    return small("Marian", "MTModel", decoder_start_token_id=3)


@case("marian-two-vocabularies", task="seq2seq-lm", causal=False, encoder_decoder=True, variant=True)
def _():
    more = {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 101}
    return small("Marian", "MTModel", decoder_start_token_id=3, **more)

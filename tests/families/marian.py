"""Marian: post-norm, sinusoids that no file holds, vocabularies of two sizes."""

from typing import Any

from cases import case
from families.bart import small


def _marian(**more: Any) -> Any:
    hf = small("Marian", "MTModel", decoder_start_token_id=3, **more)
    for side in (hf.model.encoder, hf.model.decoder):  # no file holds them, so they are what they are
        side.embed_positions.weight.copy_(side.embed_positions.create_weight())
    return hf


@case("marian", task="seq2seq-lm", causal=False, encoder_decoder=True)
def _():
    return _marian()


@case("marian-two-vocabularies", task="seq2seq-lm", causal=False, encoder_decoder=True, variant=True)
def _():
    return _marian(share_encoder_decoder_embeddings=False, decoder_vocab_size=101)

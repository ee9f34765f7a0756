"""PEGASUS: pre-norm, a table of positions in the file, no norm of the embeddings."""

from cases import case
from families.bart import small


@case("pegasus", task="seq2seq-lm", causal=False, encoder_decoder=True)
def _():
    return small("Pegasus", "ForConditionalGeneration", encoder_layers=3, decoder_layers=2)

"""M2M-100: pre-norm, sinusoids that begin after the padding id."""

from cases import case
from families.bart import small


@case("m2m_100", task="seq2seq-lm", causal=False, encoder_decoder=True)
def _():
    return small("M2M100", "ForConditionalGeneration", forced_bos_token_id=7)

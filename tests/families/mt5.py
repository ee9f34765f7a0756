"""mT5: gated, unscaled, tied."""

from cases import case
from families.t5 import small


@case("mt5", task="seq2seq-lm", causal=False, encoder_decoder=True)
def _():
    return small("MT5", "ForConditionalGeneration")

"""UMT5: a table of position biases in every layer."""

from cases import case
from families.t5 import small


@case("umt5", task="seq2seq-lm", causal=False, encoder_decoder=True)
def _():
    return small("UMT5", "ForConditionalGeneration", num_layers=3, num_decoder_layers=2)


@case("umt5-head", task="seq2seq-lm", causal=False, encoder_decoder=True, variant=True)
def _():
    import torch

    hf = small("UMT5", "ForConditionalGeneration", tie_word_embeddings=False, feed_forward_proj="relu")
    hf.lm_head.weight = torch.nn.Parameter(torch.randn_like(hf.shared.weight) * 0.2, requires_grad=False)
    return hf

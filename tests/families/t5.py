"""T5: encoder and decoder, relative positions."""

from typing import Any

from cases import VOCAB, case, reference

from .bart import marked


def small(family: str, head: str, **more: Any) -> Any:
    """A tiny model of T5's kin: `head` of the transformers classes that begin with `family`."""
    import transformers

    keys = {"vocab_size": VOCAB, "d_model": 48, "d_kv": 10, "d_ff": 80, "num_heads": 4}
    keys |= {"num_layers": 2, "num_decoder_layers": 3, "relative_attention_num_buckets": 8}
    keys |= {"relative_attention_max_distance": 7, "decoder_start_token_id": 0, "eos_token_id": 2, **more}
    return reference(getattr(transformers, family + head), getattr(transformers, f"{family}Config")(**keys))


@case("t5", task="seq2seq-lm", causal=False, encoder_decoder=True)
def _():
    return small("T5", "ForConditionalGeneration")


@case("t5-v1.1", task="seq2seq-lm", causal=False, encoder_decoder=True, variant=True)
def _():
    import torch

    hf = small("T5", "ForConditionalGeneration", feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    hf.lm_head.weight = torch.nn.Parameter(torch.randn_like(hf.shared.weight) * 0.2, requires_grad=False)
    return hf


@case("t5-base", task="base", causal=False, encoder_decoder=True, variant=True)
def _():
    return small("T5", "Model", feed_forward_proj="gated-silu")


@case("t5-encoder", task="encoder", causal=False, variant=True)
def _():
    return small("T5", "EncoderModel")


@case("t5-classifier", task="sequence-classification", encoder_decoder=True, inputs=marked, variant=True)
def _():
    return small("T5", "ForSequenceClassification", num_labels=4)


@case("t5-answers", task="question-answering", encoder_decoder=True, inputs=marked, variant=True)
def _():
    return small("T5", "ForQuestionAnswering", num_layers=1)


@case("t5-tokens", task="token-classification", causal=False, variant=True)
def _():
    return small("T5", "ForTokenClassification", num_labels=5)

"""BART: an encoder-decoder with learned positions; the number of layers differs, the embeddings are scaled."""

from typing import Any

from cases import VOCAB, case, reference


def small(family: str, head: str, **more: Any) -> Any:
    """A tiny model of BART's kin: `head` of the transformers classes that begin with `family`."""
    import torch
    import transformers

    keys = {
        **{"vocab_size": VOCAB, "d_model": 48, "max_position_embeddings": 40, "scale_embedding": True},
        **{"encoder_layers": 2, "encoder_ffn_dim": 80, "encoder_attention_heads": 6},
        **{"decoder_layers": 3, "decoder_ffn_dim": 64, "decoder_attention_heads": 4},
        **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, **more},
    }
    hf = reference(getattr(transformers, family + head), getattr(transformers, f"{family}Config")(**keys))
    if hasattr(hf, "final_logits_bias"):
        hf.final_logits_bias.copy_(torch.randn_like(hf.final_logits_bias) * 0.3)
    return hf


def marked() -> dict[str, Any]:
    """Source and mask: rows that end with `eos_token_id`, one of them padded on the right, one with a second mark."""
    import numpy as np

    ids = np.random.RandomState(5).randint(3, VOCAB, (3, 9))
    ids[:, -1] = ids[1, 5] = ids[0, 3] = ids[2, 4] = 2
    ids[1, 6:] = 0
    ids[1, 2] = 2
    return {"input_ids": ids, "attention_mask": (ids != 0).astype(int)}


@case("bart", task="seq2seq-lm", causal=False, encoder_decoder=True)
def _():
    return small("Bart", "ForConditionalGeneration")


@case("bart-base", task="base", causal=False, encoder_decoder=True, variant=True)
def _():
    return small("Bart", "Model", scale_embedding=False, activation_function="relu", encoder_layers=3, decoder_layers=2)


@case("bart-classifier", task="sequence-classification", encoder_decoder=True, inputs=marked, variant=True)
def _():
    return small("Bart", "ForSequenceClassification", num_labels=4)


@case("bart-answers", task="question-answering", encoder_decoder=True, inputs=marked, variant=True)
def _():
    return small("Bart", "ForQuestionAnswering")

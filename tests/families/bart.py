"""BART: an encoder-decoder with learned positions; the number of layers differs, the embeddings are scaled."""

from typing import Any

from cases import VOCAB, case, reference


def _bart(head: str, **more: Any) -> Any:
    import torch
    import transformers

    keys = {
        **{"vocab_size": VOCAB, "d_model": 48, "max_position_embeddings": 40, "scale_embedding": True},
        **{"encoder_layers": 2, "encoder_ffn_dim": 80, "encoder_attention_heads": 6},
        **{"decoder_layers": 3, "decoder_ffn_dim": 64, "decoder_attention_heads": 4},
        **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, **more},
    }
    hf = reference(getattr(transformers, head), transformers.BartConfig(**keys))
    if hasattr(hf, "final_logits_bias"):
        hf.final_logits_bias.copy_(torch.randn_like(hf.final_logits_bias) * 0.3)
    return hf


@case("bart", task="seq2seq-lm", causal=False, encoder_decoder=True)
def _():
    return _bart("BartForConditionalGeneration")


@case("bart-base", task="base", causal=False, encoder_decoder=True, variant=True)
def _():
    return _bart("BartModel", scale_embedding=False, activation_function="relu")

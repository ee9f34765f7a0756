"""GPT-BigCode: one key head for all, and one for each."""

from typing import Any

from cases import SMALL, VOCAB, case, reference


def _bigcode(**more: Any) -> Any:
    from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM

    ids = {k: SMALL[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    sizes = {"n_positions": 64, "n_embd": 48, "n_layer": 3, "n_head": 6, "n_inner": 80}
    return reference(GPTBigCodeForCausalLM, GPTBigCodeConfig(vocab_size=VOCAB, **sizes, **ids, **more))


@case("gpt_bigcode")
def _():
    return _bigcode(tie_word_embeddings=False)


@case("gpt_bigcode-heads", variant=True)
def _():
    return _bigcode(multi_query=False, scale_attn_weights=False)

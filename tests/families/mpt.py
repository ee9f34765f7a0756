"""MPT: no biases, clipped projections."""

from cases import SMALL, VOCAB, case, reference


@case("mpt")
def _():
    from transformers import MptConfig, MptForCausalLM

    ids = {k: SMALL[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    attention = {"clip_qkv": 0.5, "softmax_scale": 0.4}
    sizes = {"d_model": 48, "n_layers": 3, "n_heads": 6, "max_seq_len": 64}
    return reference(MptForCausalLM, MptConfig(vocab_size=VOCAB, **sizes, attn_config=attention, **ids))

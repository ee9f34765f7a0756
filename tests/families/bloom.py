"""BLOOM: ALiBi with a number of heads that is no power of two."""

from cases import SMALL, VOCAB, case, reference


@case("bloom")
def _():
    from transformers import BloomConfig, BloomForCausalLM

    ids = {k: SMALL[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = BloomConfig(vocab_size=VOCAB, hidden_size=48, n_layer=3, n_head=6, layer_norm_epsilon=1e-3, **ids)
    return reference(BloomForCausalLM, config)
